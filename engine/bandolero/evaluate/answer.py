"""Evaluate a target on what the lake has of an experiment.

What a policy learns from and what it is evaluated on are never the same trials: it learns
from those before `from`, by default the first half. A served snapshot is evaluated on
decisions made after what it had learned, a table of probabilities on all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bandolero.evaluate.evaluation import Evaluation, evaluate
from bandolero.evaluate.intervals import Floats, Ints
from bandolero.evaluate.reading import (
    Asked,
    Logged,
    NothingLoggedError,
    read_logged,
)
from bandolero.evaluate.targets import (
    TargetError,
    learned_snapshot,
    probabilities_of,
    served_snapshot,
    tabled,
    with_policy,
)
from bandolero.evaluate.trials import Situations, Trials
from bandolero.experiment import CategoricalField, Experiment, ExperimentRecord
from bandolero.features import FeatureMap
from bandolero.lake.catalog import BadFile, Lake
from bandolero.log import log_ms
from bandolero.snapshot import Snapshot

MODEL_NUMBERS_MAX = 250_000
"""So many numbers the sums of the reward model may have; context is left out beyond."""
UNLEARNED = ("fixed", "uniform")
"""Kinds of policy that need no trials to learn from."""


@dataclass(frozen=True)
class ByPolicy:
    """The policy of a specification, as a mapping with its `kind`."""

    policy: dict[str, Any]


@dataclass(frozen=True)
class BySnapshot:
    """A snapshot that was served, by its version."""

    version: int


@dataclass(frozen=True)
class ByTable:
    """Probabilities by variant_id, or by decision_id and variant_id."""

    table: pa.Table


Target = ByPolicy | BySnapshot | ByTable


class Answer(NamedTuple):
    """An evaluation and what it was made of.

    from_ms, to_ms
        Decisions in [from_ms, to_ms) were evaluated.
    n_learned
        Trials before, that the target learned from.
    pending
        Decisions that had not closed.
    invalid
        Decisions that are left out as invalid traffic, as the newest refresh found.
    """

    evaluation: Evaluation
    variant_ids: list[str]
    from_ms: int
    to_ms: int
    n_learned: int
    pending: int
    invalid: int
    bad_files: tuple[BadFile, ...]


class Cases(NamedTuple):
    """Trials' situations as a target needs them.

    situation
        (n_trials,), rows of the others.
    features
        (n_situations, n_features), of the whole context.
    set_of
        (n_situations,), rows of `Logged.sets`.
    """

    situation: Ints
    features: Floats
    set_of: Ints


def evaluate_experiment(
    record: ExperimentRecord,
    lake: Lake,
    target: Target,
    now_ms: int,
    from_ms: int | None = None,
    to_ms: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Answer:
    """What a target would have earned on an experiment's logged decisions.

    Parameters
    ----------
    now_ms
        The time of asking: ingested decisions that closed before have settled.
    from_ms, to_ms
        Decisions made in [from_ms, to_ms) are evaluated; None for the default and for
        all there are.
    progress
        Told the name of each step as it begins.

    Raises
    ------
    bandolero.experiment.InvalidExperimentError
        With every fault of a policy.
    TargetError
        When the target cannot be evaluated.
    NothingLoggedError
        When there are no trials.
    """
    end_ms = now_ms if to_ms is None else to_ms
    plan = _plan(record, lake, target)
    asked = Asked(end_ms, now_ms, _texts(record.spec, target))
    logged = read_logged(record, lake, asked, progress)
    begin_ms = _begin(plan, logged, from_ms)
    before, after = _split(logged, begin_ms)
    n_learned = len(before.rows) if isinstance(plan, Experiment) else 0
    progress(f"learning from {n_learned:,} trials")
    source = (
        learned_snapshot(record, plan, before, begin_ms)
        if isinstance(plan, Experiment)
        else plan
    )
    progress(f"evaluating on {len(after.rows):,} trials")
    cases = _cases(record.spec, after, alone=_is_by_decision(target))
    trials = _trials(record.spec, after, cases)
    return Answer(
        evaluation=evaluate(trials, _probabilities(record, source, after, cases)),
        variant_ids=record.spec.variant_ids,
        from_ms=begin_ms,
        to_ms=min(end_ms, int(after.numbers("decided_at_ms").max()) + 1),
        n_learned=n_learned,
        pending=logged.pending,
        invalid=logged.invalid,
        bad_files=logged.bad_files,
    )


Plan = Experiment | Snapshot | ByTable
"""Where probabilities come from: a policy yet to learn, a snapshot, or a table."""


def _plan(record: ExperimentRecord, lake: Lake, target: Target) -> Plan:
    """The target, with everything checked that can be before the log is read."""
    if isinstance(target, ByPolicy):
        return with_policy(record.spec, target.policy)
    if isinstance(target, BySnapshot):
        return served_snapshot(record, lake, target.version)
    return target


def _texts(spec: Experiment, target: Target) -> list[str]:
    """Which texts of the log have a say in the answer."""
    wanted = {
        "context": bool(spec.context),
        "unit": spec.allocation.sticky == "unit",
        "decision_id": _is_by_decision(target),
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]


def _begin(plan: Plan, logged: Logged, from_ms: int | None) -> int:
    """Where evaluation begins so that it meets no trial that the target learned from."""
    decided = logged.numbers("decided_at_ms")
    if isinstance(plan, Snapshot):
        learned_to_ms = log_ms(plan.folded_to)
        if from_ms is not None and from_ms <= learned_to_ms:
            rule = (
                f"must be after {learned_to_ms}, when snapshot {plan.version} learned"
            )
            raise TargetError(f"from == {from_ms} ms, {rule}.")
        return from_ms or max(learned_to_ms + 1, int(decided.min()))
    if from_ms is not None:
        return from_ms
    if isinstance(plan, Experiment) and plan.policy.kind not in UNLEARNED:
        return int(np.median(decided))
    return int(decided.min())


def _split(logged: Logged, at_ms: int) -> tuple[Logged, Logged]:
    """Trials decided before a time, and from then on."""
    later = logged.numbers("decided_at_ms") >= at_ms
    if not later.any():
        raise NothingLoggedError("no closed decision was made in that time.")
    before, after = (logged.rows.filter(pa.array(keep)) for keep in (~later, later))
    return logged._replace(rows=before), logged._replace(rows=after)


def _is_by_decision(target: Target) -> bool:
    return isinstance(target, ByTable) and "decision_id" in target.table.column_names


def _cases(spec: Experiment, logged: Logged, *, alone: bool) -> Cases:
    """Situations of trials: equal contexts and sets are one, unless each is `alone`."""
    contexts, features = np.zeros(len(logged.rows), np.int64), np.ones((1, 1))
    if spec.context:
        encoded = logged.rows["context"].combine_chunks().dictionary_encode("encode")
        contexts = np.asarray(encoded.indices.to_numpy(), np.int64)
        texts = pa.chunked_array([encoded.dictionary.cast(pa.string())])
        features = FeatureMap(spec.context).encode_texts(texts)
    n_sets = len(logged.sets.eligible)
    code = contexts * n_sets + logged.numbers("set_of")
    situation, distinct = np.arange(len(code)), code
    if not alone:
        known = pa.array(code).dictionary_encode()
        situation = np.asarray(known.indices.to_numpy(), np.int64)
        distinct = np.asarray(known.dictionary.to_numpy())
    context_of, set_of = np.divmod(distinct, n_sets)
    return Cases(situation, features[context_of], set_of)


def _trials(spec: Experiment, logged: Logged, cases: Cases) -> Trials:
    """What the estimators need of trials."""
    n_features, features = cases.features.shape[1], cases.features
    if len(spec.variants) * n_features**2 > MODEL_NUMBERS_MAX:
        features = features[:, :1]
    situations = Situations(
        np.ascontiguousarray(features),
        logged.sets.possible[cases.set_of],
        _levels(spec, cases.features),
        spec.variant_ids,
    )
    return Trials(
        arms=logged.numbers("arm"),
        rewards=logged.numbers("reward"),
        propensities=logged.numbers("propensity"),
        situation=cases.situation,
        situations=situations,
        clusters=_clusters(spec, logged),
        reward_max=1.0 if spec.objective.reward == "binary" else None,
    )


def _levels(spec: Experiment, features: Floats) -> dict[str, Ints]:
    """The level of each categorical field by situation."""
    found, start = {}, 1
    for field in spec.context:
        end = start + len(field.columns)
        if isinstance(field, CategoricalField):
            found[field.name] = np.argmax(features[:, start:end], axis=1)
        start = end
    return found


def _clusters(spec: Experiment, logged: Logged) -> Ints | None:
    """Numbers of the units where they fix draws; a trial without one is its own."""
    if spec.allocation.sticky != "unit":
        return None
    encoded = logged.rows["unit"].combine_chunks().dictionary_encode()
    numbers = encoded.indices.fill_null(-1).to_numpy()
    alone = len(encoded.dictionary) + np.arange(len(numbers))
    return np.where(numbers >= 0, numbers, alone).astype(np.int64)


def _probabilities(
    record: ExperimentRecord, source: Snapshot | ByTable, logged: Logged, cases: Cases
) -> Floats:
    """The target's probabilities by situation."""
    if isinstance(source, Snapshot):
        sets = logged.sets.eligible
        return probabilities_of(source, cases.features, cases.set_of, sets)
    ids = logged.rows["decision_id"].combine_chunks()
    shares = tabled(record.spec, source.table, ids)
    return np.broadcast_to(shares, (len(cases.set_of), shares.shape[1]))
