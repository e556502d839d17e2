"""What an experiment may say about its policy and its priors, and the rules between.

`bandolero.experiment` puts these models into the specification. A prior is given for all
variants (fields of the policy), for a group (`policy.priors`, by the value of the
attribute that `policy.prior_by` names) or for one variant (`variants[].prior`); the
closest one holds.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Model(BaseModel):
    """Frozen, strict (no silent casts), and closed to unknown fields."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False
    )


class Fault(NamedTuple):
    """One thing wrong with a specification: where, and which rule it breaks."""

    field: str
    message: str


Text = Annotated[str, Field(max_length=10_000)]
CONTEXTUAL = (
    "linear_thompson",
    "logistic_thompson",
    "lin_ucb",
    "shared_linear_thompson",
    "factorial_thompson",
)
"""Kinds of policy whose probabilities depend on a request's context."""
STATE_NUMBERS_MAX = 250_000
"""So many numbers a contextual policy's state may have: a snapshot of it is 3 MB."""
COEFFICIENTS_MAX = 1000
"""So many coefficients a shared regression may have: a snapshot of it is 2 MB."""

Positive = Annotated[float, Field(ge=1e-9, le=1e9)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]
LogOdds = Annotated[float, Field(ge=-50.0, le=50.0)]
MIN_HALF_LIFE_S = 60.0
MAX_HALF_LIFE_S = 10 * 31_557_600.0
HalfLife = Annotated[float, Field(ge=MIN_HALF_LIFE_S, le=MAX_HALF_LIFE_S)]


def _not_given(value: object) -> None:
    """Refuse a half-life where trials are learned in their order."""
    if value is not None:
        rule = "be left out with policy.kind == 'logistic_thompson': what it learned is no sum that fades; 'linear_thompson' forgets"
        raise PydanticCustomError("no_sum", rule)


NoHalfLife = Annotated[None, BeforeValidator(_not_given)]


class Prior(Model):
    """A prior of one variant or group: the parameters that the policy's kind has.

    beta_thompson, top_two_thompson: alpha, beta. poisson_thompson: shape, rate.
    gaussian_thompson: mean, sd, trials, dof.
    """

    alpha: Positive | None = None
    beta: Positive | None = None
    shape: Positive | None = None
    rate: Positive | None = None
    mean: Number | None = None
    sd: Positive | None = None
    trials: Positive | None = None
    dof: Annotated[float, Field(ge=1.0, le=1e9)] | None = None

    @property
    def given(self) -> dict[str, float]:
        """Parameters that are given."""
        return {name: value for name, value in self if value is not None}


PRIOR_PARAMETERS: dict[str, tuple[str, ...]] = {
    "beta_thompson": ("alpha", "beta"),
    "top_two_thompson": ("alpha", "beta"),
    "poisson_thompson": ("shape", "rate"),
    "gaussian_thompson": ("mean", "sd", "trials", "dof"),
}
"""Parameters of a variant's prior by kind of policy, in the order its states have them."""

FAMILIES: dict[str, str] = {
    "beta_thompson": "binary",
    "top_two_thompson": "binary",
    "poisson_thompson": "count",
    "gaussian_thompson": "value",
}
"""Kinds of policy that can take a prior from history, and of which reward's."""

REWARDS: dict[str, tuple[str, ...]] = {
    "beta_thompson": ("binary",),
    "top_two_thompson": ("binary",),
    "poisson_thompson": ("count",),
    "gaussian_thompson": ("value", "count"),
    "logistic_thompson": ("binary",),
}
"""Rewards that a kind of policy can learn from; kinds left out learn from any."""


class ForgetfulSpec(Model):
    """A policy whose data may fade: the age at which they count half.

    A minute to ten years; without it they count for ever.
    """

    half_life_s: HalfLife | None = None


class ThompsonSpec(ForgetfulSpec):
    """What all Thompson policies on independent posteriors share: priors by group.

    With `learn_prior`, variants without a prior take the one that other experiments
    gave, by the attribute `prior_by`.
    """

    prior_by: Text | None = None
    priors: Annotated[dict[Text, Prior], Field(max_length=1000)] = {}
    learn_prior: bool = True

    @property
    def is_taught(self) -> bool:
        """Whether variants without a prior take one from history: none is said here."""
        fields = type(self).model_fields
        return self.learn_prior and all(
            getattr(self, name) == field.default
            for name, field in fields.items()
            if name.startswith("prior_") and name != "prior_by"
        )


class BetaThompsonSpec(ThompsonSpec):
    """Thompson sampling for a binary reward; the prior of every variant's rate."""

    kind: Literal["beta_thompson"] = "beta_thompson"
    prior_alpha: Positive = 1.0
    prior_beta: Positive = 1.0


class TopTwoThompsonSpec(ThompsonSpec):
    """Top-two Thompson sampling for a binary reward: for a test that must end."""

    kind: Literal["top_two_thompson"]
    prior_alpha: Positive = 1.0
    prior_beta: Positive = 1.0
    leader_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5


class PoissonThompsonSpec(ThompsonSpec):
    """Thompson sampling for counts; the Gamma prior of every variant's mean."""

    kind: Literal["poisson_thompson"]
    prior_shape: Positive = 1.0
    prior_rate: Positive = 1.0


class GaussianThompsonSpec(ThompsonSpec):
    """Thompson sampling for values; without a prior, the data give its scale."""

    kind: Literal["gaussian_thompson"]
    prior_mean: Number | None = None
    prior_sd: Positive | None = None
    prior_trials: Positive = 1.0
    prior_dof: Annotated[float, Field(ge=1.0, le=1e9)] = 30.0


class LinearThompsonSpec(ForgetfulSpec):
    """Thompson sampling on a linear regression of the reward on context."""

    kind: Literal["linear_thompson"]
    prior_mean: Number | None = None
    prior_precision: Positive | None = None


class SharedLinearThompsonSpec(ForgetfulSpec):
    """One linear regression on context and attributes that all variants share."""

    kind: Literal["shared_linear_thompson"]
    prior_precision: Positive | None = None
    effect_precision: Positive | None = None


class FactorialThompsonSpec(ForgetfulSpec):
    """The same for combinations of attribute values, pairs of values in it."""

    kind: Literal["factorial_thompson"]
    prior_precision: Positive | None = None
    effect_precision: Positive | None = None


class LogisticThompsonSpec(Model):
    """Thompson sampling on a logistic regression of a binary reward on context."""

    kind: Literal["logistic_thompson"]
    half_life_s: NoHalfLife = None
    covariance: Literal["full", "diagonal"] = "full"
    prior_intercept: LogOdds | None = None
    prior_variance: Positive | None = None


class LinUcbSpec(ForgetfulSpec):
    """The highest upper confidence bound of a linear regression on context."""

    kind: Literal["lin_ucb"]
    alpha: Annotated[float, Field(ge=0.0, le=1e3)] = 1.0


class GreedySpec(Model):
    """Always the highest posterior mean; without a prior mean, that of all data."""

    kind: Literal["greedy"]
    prior_mean: Number | None = None
    prior_trials: Positive = 2.0


class EpsilonGreedySpec(Model):
    """Greedy, but a share of the traffic is spread evenly."""

    kind: Literal["epsilon_greedy"]
    prior_mean: Number | None = None
    prior_trials: Positive = 2.0
    epsilon: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05


class FixedSpec(Model):
    """A split by constant weights; variants left out get nothing."""

    kind: Literal["fixed"] = "fixed"
    weights: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]]


class UniformSpec(Model):
    """The same probability for every eligible variant."""

    kind: Literal["uniform"] = "uniform"


PolicySpec = Annotated[
    BetaThompsonSpec
    | TopTwoThompsonSpec
    | PoissonThompsonSpec
    | GaussianThompsonSpec
    | LinearThompsonSpec
    | SharedLinearThompsonSpec
    | FactorialThompsonSpec
    | LogisticThompsonSpec
    | LinUcbSpec
    | GreedySpec
    | EpsilonGreedySpec
    | FixedSpec
    | UniformSpec,
    Field(discriminator="kind"),
]


def reward_faults(kind: object, reward: object) -> list[Fault]:
    """A reward that the policy cannot learn from; fields as in the raw document."""
    allowed = REWARDS.get(kind, ()) if isinstance(kind, str) else ()
    if not allowed or reward in allowed or reward not in ("binary", "value", "count"):
        return []
    rule = f"must be {_alternatives(allowed)} with policy.kind == {kind!r}."
    return [Fault("objective.reward", f"objective.reward == {reward!r}, {rule}")]


def size_faults(
    kind: str, n_variants: int, n_features: int, n_columns: int
) -> list[Fault]:
    """A contextual policy of more variants, features and effects than can be served."""
    if kind not in CONTEXTUAL:
        return []
    faults = []
    if n_variants * n_features**2 > STATE_NUMBERS_MAX:
        message = (
            f"context gives {n_features} features for {n_variants} variants, "
            f"must keep variants * features ** 2 <= {STATE_NUMBERS_MAX:,}."
        )
        faults.append(Fault("context", message))
    if n_columns == 1:
        message = (
            f"variants have no attributes, must have with policy.kind == {kind!r}."
        )
        faults.append(Fault("variants", message))
    if n_columns * n_features > COEFFICIENTS_MAX:
        message = (
            f"variants.attributes give {n_columns} effects on {n_features} features, "
            f"must keep effects * features <= {COEFFICIENTS_MAX:,}."
        )
        faults.append(Fault("variants", message))
    return faults


def prior_faults(policy: Mapping[str, Any], variants: object) -> list[Fault]:
    """Priors that do not suit the policy's kind, or the groups they are for."""
    kind = policy.get("kind", "beta_thompson")
    entries = variants if isinstance(variants, list) else []
    rows = [row for row in entries if isinstance(row, Mapping)]
    groups = policy.get("priors")
    named = {
        f"variants[{i}].prior": row.get("prior")
        for i, row in enumerate(entries)
        if isinstance(row, Mapping)
    }
    if isinstance(groups, Mapping):
        named |= {f"policy.priors.{key}": prior for key, prior in groups.items()}
    faults = [
        fault
        for field, prior in named.items()
        if isinstance(prior, Mapping) and (fault := _prior_fault(field, prior, kind))
    ]
    by = policy.get("prior_by")
    if isinstance(groups, Mapping) and groups and by is None:
        message = "policy.prior_by is missing, must name an attribute with priors."
        faults.append(Fault("policy.prior_by", message))
    attributes = [a for row in rows if isinstance(a := row.get("attributes"), Mapping)]
    if isinstance(by, str) and not any(by in each for each in attributes):
        message = f"policy.prior_by == {by!r}, must be an attribute of a variant."
        faults.append(Fault("policy.prior_by", message))
    return faults


def share_faults(allocation: object, n_variants: int) -> list[Fault]:
    """Limits of shares that no distribution over the variants keeps."""
    if not isinstance(allocation, Mapping) or n_variants < 1:
        return []
    low, high = allocation.get("min_share", 0.01), allocation.get("max_share", 1.0)
    if not all(type(share) in (int, float) for share in (low, high)):
        return []
    faults = []
    if 0.0 < high < 1.0 / n_variants:
        least = f"1 / n_variants == {1.0 / n_variants:.4g}"
        message = f"allocation.max_share == {high!r}, must be >= {least}."
        faults.append(Fault("allocation.max_share", message))
    if 0.0 < high < low < 1.0:
        rule = f"must be >= allocation.min_share == {low!r}."
        message = f"allocation.max_share == {high!r}, {rule}"
        faults.append(Fault("allocation.max_share", message))
    return faults


def _prior_fault(field: str, prior: Mapping[str, Any], kind: object) -> Fault | None:
    parameters = PRIOR_PARAMETERS.get(kind) if isinstance(kind, str) else None
    if parameters is None:
        message = f"{field} is given, must be left out with policy.kind == {kind!r}."
        return Fault(field, message)
    given = {name for name, value in prior.items() if value is not None}
    if given == set(parameters):
        return None
    message = (
        f"{field} has {', '.join(sorted(map(str, given))) or 'nothing'}, "
        f"must have {', '.join(parameters)} with policy.kind == {kind!r}."
    )
    return Fault(field, message)


def _alternatives(allowed: tuple[str, ...]) -> str:
    return " or ".join(repr(one) for one in allowed)
