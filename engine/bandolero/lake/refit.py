"""The night's priors: fitted on all that has settled, judged by the gates, or left alone.

From plain tables to a decision for each prior of each tenant: publish it, or keep the
one in force, and why. Who publishes is the caller.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.epochs import DAY_MS
from bandolero.experiment import ExperimentRecord, Variant
from bandolero.inference.families import Facts, Family, family_of
from bandolero.inference.priors import FittedPrior, History, fit_priors, lack
from bandolero.lake.gates import (
    Finding,
    Replay,
    drift,
    first_value,
    log_score,
    sample_ratios,
)
from bandolero.lake.measures import in_order
from bandolero.lake.stages import COUNTS, stages_of
from bandolero.policies import POLICIES
from bandolero.policy_specs import CONTEXTUAL, FAMILIES
from bandolero.prior_book import (
    ALL,
    PriorBook,
    PublishedPrior,
    groups_of,
    objective_name,
)

MOVED = 1e-3
"""A prior that moved by less, in each parameter's own size, is the same."""
REPLAYED = 20
"""So many experiments, the newest, judge the value of first decisions."""
Name = tuple[str, str]
"""Tenant and experiment."""
Parameters = tuple[float, ...]
FLAT: dict[str, Parameters] = {"binary": (1.0, 1.0), "count": (1.0, 1.0)}
"""What is in force where nothing was published, by reward; values have nothing flat."""
_KINDS = {reward: kind for kind, reward in reversed(FAMILIES.items())}
"""The plainest policy that takes a prior, by reward."""
Outcome = Literal["published", "unchanged", "blocked", "held", "stale"]


class Night(NamedTuple):
    """What a refresh found, as far as priors are concerned.

    rollups: facts by variant, mode and day. stages: see `bandolero.lake.stages`. splits:
    the p-values of experiments' sample-ratio checks, of their newest days.
    """

    watermark_ms: int
    rollups: pa.Table
    stages: pa.Table
    splits: Mapping[Name, float]


class Refit(NamedTuple):
    """What becomes of one prior; `prior` is its next version where it is published."""

    tenant: str
    objective: str
    group: str
    outcome: Outcome
    findings: tuple[Finding, ...]
    prior: PublishedPrior


class _Case(NamedTuple):
    """The experiments of a tenant that share an objective, and what they earned."""

    tenant: str
    objective: str
    records: dict[str, ExperimentRecord]
    rows: pa.Table
    night: Night
    book: PriorBook

    @property
    def reward(self) -> str:
        """What they count."""
        return next(iter(self.records.values())).spec.objective.reward


def refit(
    records: Sequence[ExperimentRecord], night: Night, books: Mapping[str, PriorBook]
) -> list[Refit]:
    """Each prior that the history of a tenant's objective gives, and what becomes of it.

    Rates under a contextual policy are those of the requests it chose a variant for, and
    are left out.

    Parameters
    ----------
    books
        Priors in force, by tenant.
    """
    return [
        one for case in _cases(records, night, books) for one in _refitted_case(case)
    ]


def lacking(records: Sequence[ExperimentRecord], night: Night) -> dict[Name, str]:
    """Why a prior cannot be fitted, by tenant and objective that has had a trial."""
    found = {}
    for case in _cases(records, night, {}):
        history = _history(case)
        if history.experiments:
            family = family_of(case.reward, history.facts)
            found[case.tenant, case.objective] = lack(family, history.facts)
    return {name: why for name, why in found.items() if why}


def _cases(
    records: Sequence[ExperimentRecord], night: Night, books: Mapping[str, PriorBook]
) -> Iterator[_Case]:
    groups: dict[Name, dict[str, ExperimentRecord]] = defaultdict(dict)
    for record in records:
        if record.spec.policy.kind not in CONTEXTUAL:
            name = (record.tenant, objective_name(record.spec))
            groups[name][record.experiment_id] = record
    for (tenant, objective), members in sorted(groups.items()):
        rows = night.rollups.filter(_is_of(night.rollups, tenant, [*members]))
        book = books.get(tenant, PriorBook())
        yield _Case(tenant, objective, members, rows, night, book)


def _refitted_case(case: _Case) -> Iterator[Refit]:
    history = _history(case)
    if not history.experiments:
        return
    family = family_of(case.reward, history.facts)
    checks = [_split_finding(case), _drift_finding(case)]
    fitted = fit_priors(history)
    for group in fitted:
        prior = _next_version(case, group, fitted[group])
        outcome, findings = _outcome(case, family, prior), checks
        if outcome == "published":
            findings = [*checks, *_judged(case, history, family, group, fitted)]
            if any(finding.blocks for finding in findings):
                outcome = "blocked"
        yield Refit(case.tenant, case.objective, group, outcome, tuple(findings), prior)


def _next_version(case: _Case, group: str, fitted: FittedPrior) -> PublishedPrior:
    """The prior as it would be published; stopped experiments take none any more."""
    old = case.book.get(case.objective, group)
    without = {
        name: parameters
        for name, parameters in fitted.without.items()
        if case.records[name].status != "stopped"
    }
    return PublishedPrior(
        objective=case.objective,
        group=group,
        version=1 if old is None else old.version + 1,
        parameters=fitted.parameters,
        without=without,
        n_variants=fitted.n_variants,
        watermark_ms=case.night.watermark_ms,
    )


def _outcome(case: _Case, family: Family, prior: PublishedPrior) -> Outcome:
    """What becomes of a prior, if no gate blocks it."""
    old = case.book.get(*prior.name)
    if old is None:
        return "published"
    if old.held:
        return "held"
    if prior.watermark_ms < old.watermark_ms:
        return "stale"
    before, after = (
        family.coordinates(tuple(one.parameters.values())) for one in (old, prior)
    )
    return "published" if np.abs(after - before).max() > MOVED else "unchanged"


def _judged(
    case: _Case,
    history: History,
    family: Family,
    group: str,
    fitted: Mapping[str, FittedPrior],
) -> Iterator[Finding]:
    """The gates that compare a fitted prior with the one in force."""
    in_force = _in_force(case, group)
    old = FLAT.get(case.reward) if in_force is None else _values(in_force.parameters)
    if old is None:
        return
    new = {
        name: values
        for name, parameters in fitted[group].without.items()
        if (values := _values(parameters)) is not None
    }
    inside = np.array([group in (ALL, *groups) for groups in history.groups])
    whose = np.array(history.experiments, dtype=object)[inside].tolist()
    yield log_score(family, history.facts.of(inside), whose, old, new)
    newest = sorted(new, key=lambda name: -(case.records[name].started_at_ms or 0))
    replays = (_replay(case, name, group, fitted) for name in newest[:REPLAYED])
    yield first_value([replay for replay in replays if replay is not None])


def _in_force(case: _Case, group: str) -> PublishedPrior | None:
    own = case.book.get(case.objective, group)
    return own or case.book.get(case.objective, ALL)


def _values(parameters: Mapping[str, float] | None) -> Parameters | None:
    return None if parameters is None else tuple(parameters.values())


def _replay(
    case: _Case, name: str, group: str, fitted: Mapping[str, FittedPrior]
) -> Replay | None:
    """An experiment with what its variants would take of this night, and take by now.

    By their groups of the attribute in question; None where it has none of the group's
    variants, or was not logged.
    """
    attribute = group.partition("=")[0]
    variants = case.records[name].spec.variants
    groups = [_group_of(variant, attribute) for variant in variants]
    rows = case.night.stages.filter(_is_of(case.night.stages, case.tenant, [name]))
    if (group != ALL and group not in groups) or not rows.num_rows:
        return None
    make = POLICIES[_KINDS[case.reward]]
    new = tuple(
        _values(fitted.get(own, fitted[ALL]).without.get(name)) for own in groups
    )
    old = tuple(_taken(_in_force(case, own), name) for own in groups)
    stages = stages_of(rows, [variant.id for variant in variants])
    return Replay(stages, make(arm_priors=new), make(arm_priors=old))


def _group_of(variant: Variant, attribute: str) -> str:
    mine = (
        g for g in groups_of(variant) if attribute and g.startswith(f"{attribute}=")
    )
    return next(mine, ALL)


def _taken(prior: PublishedPrior | None, experiment_id: str) -> Parameters | None:
    """What an experiment takes of a published prior; None for what the policy has."""
    if prior is None:
        return None
    return _values(prior.without.get(experiment_id, prior.parameters))


def _is_of(rows: pa.Table, tenant: str, experiment_ids: Sequence[str]) -> pa.Array:
    """Which rows are of some experiments of a tenant."""
    return pc.and_(
        pc.equal(rows["tenant_id"], tenant),
        pc.is_in(rows["experiment_id"], pa.array(experiment_ids, pa.string())),
    )


def _split_finding(case: _Case) -> Finding:
    return sample_ratios(
        {
            name: case.night.splits[case.tenant, name]
            for name in case.records
            if (case.tenant, name) in case.night.splits
        }
    )


def _drift_finding(case: _Case) -> Finding:
    keys = ["experiment_id", "variant_id", "day"]
    rows = _summed(case.rows, keys)
    variants = pc.binary_join_element_wise(
        rows["experiment_id"], rows["variant_id"], "/"
    )
    codes = np.asarray(variants.combine_chunks().dictionary_encode().indices)
    last_day = case.night.watermark_ms // DAY_MS
    return drift(np.asarray(rows["day"]), codes, _facts(rows), last_day)


def _history(case: _Case) -> History:
    """The variants that have had a trial, by name."""
    rows = _summed(case.rows, ["experiment_id", "variant_id"])
    rows = rows.filter(pc.greater(rows["trials"], 0))
    variants = {
        (name, variant.id): groups_of(variant)
        for name, record in case.records.items()
        for variant in record.spec.variants
    }
    names = [*zip(*(rows[k].to_pylist() for k in rows.column_names[:2]), strict=True)]
    return History(
        case.reward,
        [experiment_id for experiment_id, _ in names],
        [variants.get(name, frozenset()) for name in names],
        _facts(rows),
    )


def _summed(rows: pa.Table, keys: list[str]) -> pa.Table:
    """Facts by some keys, in their order."""
    sums = rows.group_by(keys).aggregate([(name, "sum") for name in COUNTS])
    named = sums.rename_columns([*keys, *COUNTS])
    return in_order(named, keys)


def _facts(rows: pa.Table) -> Facts:
    trials, hits, micros, squares = (
        np.asarray(rows[name].cast(pa.float64()))
        for name in ("trials", "hits", "rewards_micros", "rewards_squared")
    )
    return Facts(trials, hits, micros / 1e6, squares)
