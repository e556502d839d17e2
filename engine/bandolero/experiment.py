"""The experiment specification: what it may say, and every fault of one that is wrong.

One definition serves the file (YAML or JSON), the HTTP body and the OpenAPI document.
`parse_experiment` refuses a specification whole and lists *all* its faults, so that its
author mends it in one go. An `ExperimentRecord` is a specification with its life: status,
variant states, version.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import fsum
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from bandolero.attributes import FeatureTable, attribute_features, paired_features
from bandolero.documents import UnreadableDocumentError, decoded, faults_of
from bandolero.landing import landing_faults
from bandolero.policy_specs import (
    PRIOR_PARAMETERS,
    BetaThompsonSpec,
    EpsilonGreedySpec,
    FactorialThompsonSpec,
    Fault,
    FixedSpec,
    GaussianThompsonSpec,
    GreedySpec,
    LinearThompsonSpec,
    LinUcbSpec,
    LogisticThompsonSpec,
    PoissonThompsonSpec,
    PolicySpec,
    Prior,
    SharedLinearThompsonSpec,
    TopTwoThompsonSpec,
    UniformSpec,
    prior_faults,
    reward_faults,
    share_faults,
    size_faults,
)

__all__ = [
    "BetaThompsonSpec",
    "EpsilonGreedySpec",
    "Experiment",
    "ExperimentRecord",
    "FactorialThompsonSpec",
    "Fault",
    "FixedSpec",
    "GaussianThompsonSpec",
    "GreedySpec",
    "InvalidExperimentError",
    "LinUcbSpec",
    "LinearThompsonSpec",
    "LogisticThompsonSpec",
    "Objective",
    "PoissonThompsonSpec",
    "PriorSource",
    "SharedLinearThompsonSpec",
    "TopTwoThompsonSpec",
    "UniformSpec",
    "load_experiment",
    "parse_experiment",
]

OTHER = "other"
"""The level of a categorical field that stands for all unknown ones."""
CORRECTIONS = ("refund", "retract")
"""Types of events that take back what others gave; `bandolero.settle` says how."""
MAX_TEXT_CHARACTERS = 10_000
MAX_VARIANTS = 1000
MAX_WINDOW_S = 86_400.0

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
EventType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Status = Literal["draft", "running", "paused", "stopped"]
VariantStatus = Literal["active", "paused", "retired"]


def _attribute(given: object, check: ValidatorFunctionWrapHandler) -> object:
    """A value of an attribute; one fault where it is none, not one a type it could be."""
    try:
        return check(given)
    except ValidationError:
        raise PydanticCustomError(
            "attribute",
            "Value should be a text of at most {n_max} characters, a finite number,"
            " true or false",
            {"n_max": MAX_TEXT_CHARACTERS},
        ) from None


Attribute = Annotated[Text | int | float | bool, WrapValidator(_attribute)]


class _Model(BaseModel):
    """Frozen, strict (no silent casts), and closed to unknown fields."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False
    )


class Objective(_Model):
    """What a decision can earn, how it is counted and for how long.

    `trial` says which decisions count: every decision, or those with an impression.
    """

    event: EventType = "click"
    reward: Literal["binary", "value", "count"] = "binary"
    attribution_window_s: Annotated[float, Field(gt=0.0, le=MAX_WINDOW_S)] = 1800.0
    trial: Literal["decision", "impression"] = "decision"

    @property
    def window_ms(self) -> int:
        """The attribution window in milliseconds."""
        return round(self.attribution_window_s * 1000)


class Metric(_Model):
    """A further outcome to report; learned from by the refresh only."""

    name: Identifier
    event: EventType
    reward: Literal["binary", "value", "count"] = "binary"
    window_s: Annotated[float, Field(gt=0.0, le=30 * 86_400)] = 1800.0
    guardrail: bool = False


class CategoricalField(_Model):
    """A context field with known levels; unknown ones take the level "other"."""

    kind: Literal["categorical"]
    name: Identifier
    levels: Annotated[list[Text], Field(min_length=1, max_length=1000)]
    default: Text = OTHER

    @property
    def columns(self) -> list[str]:
        """Names of its features: one per level, and one for "other"."""
        return [f"{self.name}={x}" for x in dict.fromkeys([*self.levels, OTHER])]


class CyclicField(_Model):
    """A number on a circle, such as the hour of the day with period 24."""

    kind: Literal["cyclic"]
    name: Identifier
    period: Annotated[float, Field(ge=1e-9, le=1e9)]
    default: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0

    @property
    def columns(self) -> list[str]:
        """Names of its features: where on the circle it is."""
        return [f"sin({self.name})", f"cos({self.name})"]


class NumericField(_Model):
    """A plain number."""

    kind: Literal["numeric"]
    name: Identifier
    default: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0

    @property
    def columns(self) -> list[str]:
        """Names of its features: itself."""
        return [self.name]


ContextField = Annotated[
    CategoricalField | CyclicField | NumericField, Field(discriminator="kind")
]


class Allocation(_Model):
    """How traffic is kept honest: limits, a uniform holdout, stickiness by unit.

    `max_share` is kept where enough variants are eligible; they share evenly else.
    """

    holdout_share: Share = 0.0
    min_share: Share = 0.01
    max_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    sticky: Literal["none", "unit"] = "none"


class Variant(_Model):
    """One creative competing in an experiment."""

    id: Identifier
    creative: Annotated[dict[Text, Text], Field(max_length=100)] = Field(
        default_factory=dict
    )
    attributes: Annotated[dict[Text, Attribute], Field(max_length=100)] = Field(
        default_factory=dict
    )
    prior: Prior | None = None


class Experiment(_Model):
    """Variants, policy, objective and context schema, optionally for a placement."""

    experiment: Identifier
    tenant: Identifier | None = None
    placement: Text | None = None
    control: Identifier | None = None
    objective: Objective = Objective()
    metrics: Annotated[list[Metric], Field(max_length=50)] = []
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    policy: PolicySpec = BetaThompsonSpec()
    context: Annotated[list[ContextField], Field(max_length=100)] = []
    allocation: Allocation = Allocation()
    variants: Annotated[list[Variant], Field(min_length=1, max_length=MAX_VARIANTS)]

    @property
    def variant_ids(self) -> list[str]:
        """Ids in arm order."""
        return [variant.id for variant in self.variants]

    @property
    def n_features(self) -> int:
        """How many features the context schema gives, the intercept among them."""
        return 1 + sum(len(field.columns) for field in self.context)

    @property
    def attribute_table(self) -> FeatureTable:
        """Attributes of the variants as the policy sees them; no columns by most."""
        attributes = [variant.attributes for variant in self.variants]
        if isinstance(self.policy, SharedLinearThompsonSpec):
            return attribute_features(attributes)
        if isinstance(self.policy, FactorialThompsonSpec):
            return paired_features(attributes)
        return FeatureTable((), np.empty((len(attributes), 0)))

    @property
    def arm_priors(self) -> tuple[tuple[float, ...] | None, ...]:
        """Each variant's own prior or its group's, if it has one; () if none has."""
        names = PRIOR_PARAMETERS.get(self.policy.kind, ())
        found = [self.arm_prior(variant) for variant in self.variants]
        if not any(found):
            return ()
        return tuple(
            None if p is None else tuple(p.given[name] for name in names) for p in found
        )

    def arm_prior(self, variant: Variant) -> Prior | None:
        """A variant's own prior or its group's, if it has one."""
        by: str | None = getattr(self.policy, "prior_by", None)
        groups: dict[str, Prior] = getattr(self.policy, "priors", {})
        return variant.prior or groups.get(str(variant.attributes.get(by or "")))

    @property
    def control_arm(self) -> int:
        """The arm others are compared with (default: the first)."""
        return self.variant_ids.index(self.control) if self.control else 0


class PriorSource(BaseModel):
    """Which version of which published prior a variant took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: str
    group: str
    version: int


class ExperimentRecord(BaseModel):
    """An experiment with its life: who owns it, its version, status, variant states.

    `variant_states` names only variants that are not active; `prior_sources` those whose
    prior is a published one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: str
    spec: Experiment
    spec_version: int = 1
    status: Status = "draft"
    variant_states: dict[str, VariantStatus] = {}
    prior_sources: dict[str, PriorSource] = {}
    created_at_ms: int = 0
    started_at_ms: int | None = None

    @property
    def experiment_id(self) -> str:
        """The experiment's id, unique per tenant."""
        return self.spec.experiment

    @property
    def active_arms(self) -> tuple[int, ...]:
        """Arms that may be shown, in order."""
        states = self.variant_states
        return tuple(
            arm
            for arm, variant_id in enumerate(self.spec.variant_ids)
            if states.get(variant_id, "active") == "active"
        )


class InvalidExperimentError(ValueError):
    """A specification was refused; `faults` lists everything wrong with it."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults


def parse_experiment(raw: object) -> Experiment:
    """Check a decoded specification and return it.

    Raises
    ------
    InvalidExperimentError
        With every fault, structural and between fields.
    """
    faults: list[Fault] = []
    experiment = None
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        faults = faults_of(map(dict, error.errors()), "experiment file")
    if isinstance(raw, Mapping):
        faults += _cross_faults(cast("Mapping[str, Any]", raw))
    if experiment is not None:
        faults += size_faults(
            experiment.policy.kind,
            len(experiment.variants),
            experiment.n_features,
            len(experiment.attribute_table.names),
        )
    if faults or experiment is None:
        raise InvalidExperimentError(faults)
    return experiment


def load_experiment(text: bytes) -> Experiment:
    """Read a specification from the bytes of a YAML or JSON file.

    Raises
    ------
    InvalidExperimentError
        When the file is too large, cannot be read, or breaks a rule.
    """
    try:
        return parse_experiment(decoded(text))
    except UnreadableDocumentError as error:
        raise InvalidExperimentError([Fault("", str(error))]) from None


def _cross_faults(raw: Mapping[str, Any]) -> list[Fault]:
    """Rules between fields, read defensively: other fields may be wrong too."""
    variant_ids = _named(raw.get("variants"), "id")
    faults = [
        *_repeated("variants", "variants.id", variant_ids),
        *_repeated("context", "context.name", _named(raw.get("context"), "name")),
        *_repeated("metrics", "metrics.name", _named(raw.get("metrics"), "name")),
        *_level_faults(raw.get("context")),
        *_objective_faults(raw.get("objective")),
        *landing_faults(raw.get("variants")),
    ]
    control = raw.get("control")
    if isinstance(control, str) and variant_ids and control not in variant_ids:
        faults.append(_unknown_variant("control", control))
    policy, objective = (
        raw.get("policy", {"kind": "beta_thompson"}),
        raw.get("objective"),
    )
    if isinstance(policy, Mapping):
        faults += _policy_faults(policy, objective, variant_ids)
        faults += prior_faults(policy, raw.get("variants"))
    return faults + share_faults(raw.get("allocation"), len(variant_ids))


def _policy_faults(
    policy: Mapping[str, Any], objective: object, variant_ids: list[str]
) -> list[Fault]:
    faults: list[Fault] = []
    weights = policy.get("weights")
    if policy.get("kind") == "fixed" and isinstance(weights, Mapping):
        faults += [
            _unknown_variant(f"policy.weights.{key}", key)
            for key in weights
            if key not in variant_ids
        ]
        given = [w for w in weights.values() if isinstance(w, int | float)]
        shares = [float(w) for w in given if abs(w) < 1e12]  # nor nan, told elsewhere
        if len(shares) == len(weights) and abs(fsum(shares) - 1.0) > 1e-6:
            message = f"policy.weights sum == {fsum(shares):g}, must be 1."
            faults.append(Fault("policy.weights", message))
    reward = objective.get("reward", "binary") if isinstance(objective, Mapping) else ""
    return faults + reward_faults(policy.get("kind"), reward)


def _named(items: object, key: str) -> list[str]:
    entries = items if isinstance(items, list) else []
    names = [entry.get(key) for entry in entries if isinstance(entry, Mapping)]
    return [name for name in names if isinstance(name, str)]


def _level_faults(context: object) -> Iterator[Fault]:
    for i, entry in enumerate(context if isinstance(context, list) else []):
        levels = entry.get("levels") if isinstance(entry, Mapping) else None
        if isinstance(levels, list):
            field = f"context[{i}].levels"
            named = [level for level in levels if isinstance(level, str)]
            yield from _repeated(field, field, named)


def _objective_faults(objective: object) -> Iterator[Fault]:
    event = objective.get("event") if isinstance(objective, Mapping) else None
    if event in CORRECTIONS:
        rule = "must not be one that takes back what was earned"
        yield Fault("objective.event", f"objective.event == {event!r}, {rule}.")


def _repeated(field: str, what: str, names: list[str]) -> list[Fault]:
    return [
        Fault(field, f"{what} == {name!r} stands {n} times, must be unique.")
        for name, n in Counter(names).items()
        if n > 1
    ]


def _unknown_variant(field: str, variant_id: object) -> Fault:
    return Fault(field, f"{field} == {variant_id!r}, must be the id of a variant.")
