"""What an experiment may say about its policy, its priors and the limits of shares."""

from typing import Any

import numpy as np
import pytest

from bandolero.experiment import InvalidExperimentError, parse_experiment
from bandolero.policies import (
    BetaState,
    BetaThompson,
    EpsilonGreedy,
    Forgetful,
    GammaState,
    GaussianThompson,
    Greedy,
    PoissonThompson,
    TopTwoThompson,
    policy_of,
)
from bandolero.policy_specs import PRIOR_PARAMETERS, REWARDS
from strategies import experiment

THREE = [
    {"id": "v1", "attributes": {"tone": "calm"}},
    {"id": "v2", "attributes": {"tone": "urgent"}, "prior": {"alpha": 9, "beta": 300}},
    {"id": "v3", "attributes": {"tone": "urgent"}},
]


def faults(**fields: Any) -> dict[str, str]:
    """Message by field of a specification that must be refused."""
    raw = {"experiment": "hats", "tenant": "acme", "variants": THREE[::2]} | fields
    with pytest.raises(InvalidExperimentError) as refused:
        parse_experiment(raw)
    return {fault.field: fault.message for fault in refused.value.faults}


@pytest.mark.parametrize(
    ("spec", "reward", "policy"),
    [
        ({"kind": "beta_thompson"}, "binary", BetaThompson()),
        ({"kind": "top_two_thompson"}, "binary", TopTwoThompson()),
        (
            {"kind": "top_two_thompson", "prior_beta": 30.0, "leader_share": 0.8},
            "binary",
            TopTwoThompson(1.0, 30.0, leader_share=0.8),
        ),
        (
            {"kind": "poisson_thompson", "prior_rate": 5.0},
            "count",
            PoissonThompson(1.0, 5.0),
        ),
        (
            {"kind": "gaussian_thompson", "prior_mean": -1.0, "prior_sd": 2.0},
            "value",
            GaussianThompson(-1.0, 2.0),
        ),
        (
            {"kind": "beta_thompson", "half_life_s": 86_400},
            "binary",
            BetaThompson(half_life_s=86_400.0),
        ),
        ({"kind": "greedy", "prior_mean": 0.5}, "binary", Greedy(0.5)),
        ({"kind": "epsilon_greedy", "prior_mean": 1.0}, "value", EpsilonGreedy(1.0)),
    ],
)
def test_experiment_names_its_policy(
    spec: dict[str, Any], reward: str, policy: object
) -> None:
    """A specification gives its policy; what is left out is the policy's default."""
    assert policy_of(experiment(policy=spec, objective={"reward": reward})) == policy


@pytest.mark.parametrize("kind", ["gaussian_thompson", "greedy", "epsilon_greedy"])
def test_without_a_prior_the_data_give_it(kind: str) -> None:
    """A prior left out is that of the class: nan, to be read off the data."""
    policy = policy_of(experiment(policy={"kind": kind}, objective={"reward": "value"}))
    assert repr(policy) == repr(type(policy)())
    assert np.isnan(policy.init(2).prior_mean).all()


@pytest.mark.parametrize("kind", sorted(PRIOR_PARAMETERS))
def test_thompson_policies_take_a_half_life(kind: str) -> None:
    """Those with a prior for each variant do: then what is counted is real numbers."""
    objective = {"reward": REWARDS[kind][0]}
    for half_life_s, dtype in ((3600.0, np.float64), (None, np.int64)):
        policy = {"kind": kind, "half_life_s": half_life_s}
        made = policy_of(experiment(policy=policy, objective=objective))
        assert isinstance(made, Forgetful)
        assert made.half_life_s == half_life_s
        assert made.init(2).trials.dtype == dtype


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (59.9, "must be greater than or equal to 60."),
        (400_000_000, "must be less than or equal to 315576000."),
        (-1.0, "must be greater than or equal to 60."),
        ("3600", "must be a valid number."),
        (True, "must be a valid number."),
    ],
)
def test_half_life_has_limits(given: object, rule: str) -> None:
    """From a minute to ten years, as a number; the message says so."""
    found = faults(policy={"kind": "beta_thompson", "half_life_s": given})
    message = f"policy.half_life_s == {given!r}, {rule}"
    assert found == {"policy.half_life_s": message}


@pytest.mark.parametrize("kind", ["greedy", "epsilon_greedy", "uniform"])
def test_policies_that_cannot_forget_refuse_a_half_life(kind: str) -> None:
    """A half-life that nothing would read is refused."""
    found = faults(policy={"kind": kind, "half_life_s": 3600.0})
    message = "policy.half_life_s is not a known field."
    assert found == {"policy.half_life_s": message}


@pytest.mark.parametrize("kind", sorted(REWARDS))
@pytest.mark.parametrize("reward", ["binary", "count", "value"])
def test_policy_needs_its_reward(kind: str, reward: str) -> None:
    """A policy refuses rewards it cannot learn from, and says which it needs."""
    fields = {"policy": {"kind": kind}, "objective": {"reward": reward}}
    if reward in REWARDS[kind]:
        assert experiment(**fields).policy.kind == kind
        return
    allowed = " or ".join(repr(one) for one in REWARDS[kind])
    rule = f"must be {allowed} with policy.kind == {kind!r}."
    found = faults(**fields)
    assert found == {"objective.reward": f"objective.reward == {reward!r}, {rule}"}


def test_variant_starts_at_its_own_prior_else_at_its_groups() -> None:
    """Own prior before the group's, the group's before the policy's."""
    spec = experiment(
        variants=THREE,
        policy={
            "kind": "beta_thompson",
            "prior_beta": 50.0,
            "prior_by": "tone",
            "priors": {"urgent": {"alpha": 4.0, "beta": 100.0}},
        },
    )
    state = policy_of(spec).init(4)  # a variant that comes later has the policy's
    assert isinstance(state, BetaState)
    assert state.prior_alpha.tolist() == [1.0, 9.0, 4.0, 1.0]
    assert state.prior_beta.tolist() == [50.0, 300.0, 100.0, 50.0]
    assert state.trials.tolist() == [0] * 4


def test_groups_may_be_numbers() -> None:
    """An attribute's value is looked up as it is written."""
    variants = [{"id": "v1", "attributes": {"size": 2}}, {"id": "v2"}]
    priors = {"2": {"shape": 3.0, "rate": 10.0}}
    policy = {"kind": "poisson_thompson", "prior_by": "size", "priors": priors}
    spec = experiment(variants=variants, policy=policy, objective={"reward": "count"})
    state = policy_of(spec).init(2)
    assert isinstance(state, GammaState)
    assert state.prior_shape.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("kind", sorted(PRIOR_PARAMETERS))
def test_prior_has_the_parameters_of_its_kind(kind: str) -> None:
    """All that the kind has, and nothing else."""
    parameters = PRIOR_PARAMETERS[kind]
    fields = {"policy": {"kind": kind}, "objective": {"reward": REWARDS[kind][0]}}
    prior = dict.fromkeys(parameters, 2.0)
    given = experiment(variants=[{"id": "v1", "prior": prior}], **fields)
    assert given.arm_priors == ((2.0,) * len(parameters),)
    del prior[parameters[-1]]
    found = faults(variants=[{"id": "v1", "prior": prior}], **fields)
    rule = f"must have {', '.join(parameters)} with policy.kind == {kind!r}."
    had = ", ".join(sorted(prior))
    assert found == {"variants[0].prior": f"variants[0].prior has {had}, {rule}"}


def test_other_policies_have_no_priors() -> None:
    """A prior that nothing reads is refused."""
    found = faults(variants=THREE, policy={"kind": "uniform"})
    rule = "must be left out with policy.kind == 'uniform'."
    assert found == {"variants[1].prior": f"variants[1].prior is given, {rule}"}


def test_every_fault_of_priors_is_listed() -> None:
    """Wrong parameters, bounds and groups at once, each by its place."""
    group = {"kind": "beta_thompson", "priors": {"calm": {"shape": 1.0}}}
    found = faults(
        variants=[{"id": "v1", "prior": {"alpha": -1.0, "beta": 2.0}}], policy=group
    )
    assert found == {
        "variants[0].prior.alpha": "variants[0].prior.alpha == -1.0, "
        "must be greater than or equal to 0.000000001.",
        "policy.priors.calm": "policy.priors.calm has shape, "
        "must have alpha, beta with policy.kind == 'beta_thompson'.",
        "policy.prior_by": "policy.prior_by is missing, "
        "must name an attribute with priors.",
    }
    unknown = faults(policy={"kind": "beta_thompson", "prior_by": "colour"})
    assert unknown["policy.prior_by"].endswith("must be an attribute of a variant.")


def test_max_share_must_be_possible() -> None:
    """Two variants cannot have 40 % each at most, nor at least 0.9 and at most 0.6."""
    few = faults(allocation={"max_share": 0.4})
    message = "allocation.max_share == 0.4, must be >= 1 / n_variants == 0.5."
    assert few == {"allocation.max_share": message}
    crossed = faults(allocation={"max_share": 0.6, "min_share": 0.9})
    message = "allocation.max_share == 0.6, must be >= allocation.min_share == 0.9."
    assert crossed == {"allocation.max_share": message}
    assert list(faults(allocation={"max_share": 1.5})) == ["allocation.max_share"]
    assert experiment(allocation={"max_share": 0.5}).allocation.max_share == 0.5


@pytest.mark.parametrize(
    "raw",
    [
        {"policy": {"kind": ["greedy"]}, "objective": {"reward": {}}},
        {"policy": {"priors": [1], "prior_by": 3}, "variants": [1, {"prior": []}]},
        {"policy": {"priors": {"a": 3}}, "allocation": [0.5]},
        {"allocation": {"max_share": "most", "min_share": None}},
        {"allocation": {"max_share": True}, "variants": {"id": "v1"}},
    ],
)
def test_nonsense_is_refused_not_raised(raw: dict[str, Any]) -> None:
    """Whatever a document holds, the answer is a list of faults."""
    assert faults(**raw)
