"""Policies, one algorithm a file: its state, kernels and policy together."""

from collections.abc import Callable
from typing import Any

from bandolero.experiment import Experiment, FixedSpec
from bandolero.policies.base import (
    Policy,
    choose,
    cumulative,
    with_floor,
    with_limits,
)
from bandolero.policies.beta_thompson import BetaState, BetaThompson
from bandolero.policies.choose_batch import Chosen, choose_batch
from bandolero.policies.epsilon_greedy import EpsilonGreedy
from bandolero.policies.fixed import Fixed, SplitState
from bandolero.policies.forgetting import Forgetful, learn
from bandolero.policies.gaussian_thompson import GaussianState, GaussianThompson
from bandolero.policies.greedy import Greedy, MeanState
from bandolero.policies.poisson_thompson import GammaState, PoissonThompson
from bandolero.policies.top_two_thompson import TopTwoThompson
from bandolero.policies.uniform import Uniform

POLICIES: dict[str, Callable[..., Policy[Any]]] = {
    "beta_thompson": BetaThompson,
    "top_two_thompson": TopTwoThompson,
    "poisson_thompson": PoissonThompson,
    "gaussian_thompson": GaussianThompson,
    "greedy": Greedy,
    "epsilon_greedy": EpsilonGreedy,
    "uniform": Uniform,
}
"""Policies by kind whose parameters are the fields of their specification."""

STATES: dict[
    str,
    type[BetaState]
    | type[GammaState]
    | type[GaussianState]
    | type[MeanState]
    | type[SplitState],
] = {
    "beta_thompson": BetaState,
    "top_two_thompson": BetaState,
    "poisson_thompson": GammaState,
    "gaussian_thompson": GaussianState,
    "greedy": MeanState,
    "epsilon_greedy": MeanState,
    "fixed": SplitState,
    "uniform": SplitState,
}
"""The state class of each kind of policy, for reading states back."""


def policy_of(experiment: Experiment) -> Policy[Any]:
    """Make the policy an experiment asks for."""
    spec = experiment.policy
    if isinstance(spec, FixedSpec):
        ids = experiment.variant_ids
        return Fixed(tuple(spec.weights.get(variant_id, 0.0) for variant_id in ids))
    given = {
        name: value
        for name, value in spec
        if value is not None and name not in ("kind", "prior_by", "priors")
    }
    if experiment.arm_priors:
        given["arm_priors"] = experiment.arm_priors
    return POLICIES[spec.kind](**given)


__all__ = [
    "STATES",
    "BetaState",
    "BetaThompson",
    "Chosen",
    "EpsilonGreedy",
    "Fixed",
    "Forgetful",
    "GammaState",
    "GaussianState",
    "GaussianThompson",
    "Greedy",
    "MeanState",
    "PoissonThompson",
    "Policy",
    "SplitState",
    "TopTwoThompson",
    "Uniform",
    "choose",
    "choose_batch",
    "cumulative",
    "learn",
    "policy_of",
    "with_floor",
    "with_limits",
]
