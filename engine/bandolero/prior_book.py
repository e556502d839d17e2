"""Published priors: what they are called, and which one a variant takes.

A tenant's `PriorBook` holds the newest version of each of its priors. An experiment that
starts takes them for its variants, and a variant added later takes the newest then; what
was taken is written into the record and stays. So a record alone says what its variants
were believed to earn before their first trial, for the fold, replay and reports alike.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bandolero.experiment import Experiment, ExperimentRecord, PriorSource, Variant
from bandolero.policy_specs import FAMILIES, Prior, ThompsonSpec

ALL = ""
"""The group of all variants of an objective."""
Cause = Literal["refresh", "rollback", "release"]
Parameters = dict[str, float]


class PublishedPrior(BaseModel):
    """One version of the prior of a group of variants (all of them: "") by an objective.

    without: the same as fitted without the data of an experiment, for those that may still
    take it; None where nothing can be said without them. held: a refresh leaves it as it is.
    restores: the version that a rollback went back to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str
    group: str
    version: int
    parameters: Parameters
    without: dict[str, Parameters | None] = {}
    n_variants: int
    watermark_ms: int
    cause: Cause = "refresh"
    restores: int | None = None
    held: bool = False

    @property
    def name(self) -> tuple[str, str]:
        """What it is the prior of: objective and group."""
        return self.objective, self.group


class PriorBook(BaseModel):
    """The newest version of each prior of a tenant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    priors: list[PublishedPrior] = []

    def get(self, objective: str, group: str) -> PublishedPrior | None:
        """The prior of just that group, if there is one."""
        return next((p for p in self.priors if p.name == (objective, group)), None)

    def with_priors(self, newer: list[PublishedPrior]) -> "PriorBook":
        """The book with newer versions in their places, in order of names."""
        by_name = {prior.name: prior for prior in [*self.priors, *newer]}
        return PriorBook(priors=[by_name[name] for name in sorted(by_name)])


def objective_name(spec: Experiment) -> str:
    """The name under which experiments share a prior: what they count, and how.

    Examples
    --------
    >>> from bandolero.experiment import parse_experiment
    >>> objective_name(parse_experiment({"experiment": "hats", "variants": [{"id": "v1"}]}))
    'click.binary.decision'
    """
    one = spec.objective
    parts = [one.event, one.reward, one.trial]
    if one.reward == "value" and spec.currency is not None:
        parts.append(spec.currency)
    return ".".join(parts)


def groups_of(variant: Variant) -> frozenset[str]:
    """The groups a variant belongs to: one an attribute."""
    return frozenset(f"{name}={value}" for name, value in variant.attributes.items())


def takes_prior(spec: Experiment) -> bool:
    """Whether an experiment's variants can take a published prior.

    Its policy must be one on independent posteriors for just that kind of reward, and
    leave open what to believe (`ThompsonSpec.is_taught`).
    """
    policy = spec.policy
    is_taught = isinstance(policy, ThompsonSpec) and policy.is_taught
    return is_taught and FAMILIES.get(policy.kind) == spec.objective.reward


def with_priors(
    record: ExperimentRecord, before: ExperimentRecord | None, book: PriorBook
) -> ExperimentRecord:
    """The record with the priors that its new variants take.

    Once it has started; then those are all variants that were not there `before` it, or
    not started before. A variant with a prior of its own or of its group keeps that.
    """
    if record.started_at_ms is None or not takes_prior(record.spec):
        return record
    known = before is not None and before.started_at_ms is not None
    old = set(before.spec.variant_ids) if known and before is not None else set[str]()
    spec, sources = record.spec, dict(record.prior_sources)
    variants = list(spec.variants)
    for i, variant in enumerate(variants):
        if variant.id in old or spec.arm_prior(variant) is not None:
            continue
        found = _prior_for(record, variant, book)
        if found is not None:
            parameters, sources[variant.id] = found
            variants[i] = variant.model_copy(update={"prior": parameters})
    spec = spec.model_copy(update={"variants": variants})
    return record.model_copy(update={"spec": spec, "prior_sources": sources})


def _prior_for(
    record: ExperimentRecord, variant: Variant, book: PriorBook
) -> tuple[Prior, PriorSource] | None:
    """The prior of the variant's group, else of its objective, without its experiment."""
    objective = objective_name(record.spec)
    by = getattr(record.spec.policy, "prior_by", None)
    mine = (g for g in groups_of(variant) if by and g.startswith(f"{by}="))
    for group in (*mine, ALL):
        prior = book.get(objective, group)
        if prior is None:
            continue
        parameters = prior.without.get(record.experiment_id, prior.parameters)
        if parameters is None:
            continue
        source = PriorSource(objective=objective, group=group, version=prior.version)
        return Prior(**parameters), source
    return None


def with_taken(spec: Experiment, record: ExperimentRecord) -> Experiment:
    """A specification as its author wrote it, with the priors its variants have taken.

    Where the author says otherwise of a variant, the author's stands (and is judged).
    """
    taken: Mapping[str, Any] = {
        v.id: v.prior for v in record.spec.variants if v.id in record.prior_sources
    }
    variants = [
        v.model_copy(update={"prior": taken[v.id]})
        if v.prior is None and v.id in taken
        else v
        for v in spec.variants
    ]
    return spec.model_copy(update={"variants": variants})
