"""Policies, one algorithm a file: its state, kernels and policy together."""

from typing import Any

from bandolero.experiment import BetaThompsonSpec, Experiment, FixedSpec
from bandolero.policies.base import Policy, choose, cumulative, with_floor
from bandolero.policies.beta_thompson import BetaState, BetaThompson
from bandolero.policies.fixed import Fixed, SplitState
from bandolero.policies.uniform import Uniform

STATES: dict[str, type[BetaState] | type[SplitState]] = {
    "beta_thompson": BetaState,
    "fixed": SplitState,
    "uniform": SplitState,
}
"""The state class of each kind of policy, for reading states back."""


def policy_of(experiment: Experiment) -> Policy[Any]:
    """Make the policy an experiment asks for."""
    spec = experiment.policy
    if isinstance(spec, BetaThompsonSpec):
        return BetaThompson(spec.prior_alpha, spec.prior_beta)
    if isinstance(spec, FixedSpec):
        ids = experiment.variant_ids
        return Fixed(tuple(spec.weights.get(variant_id, 0.0) for variant_id in ids))
    return Uniform()


__all__ = [
    "STATES",
    "BetaState",
    "BetaThompson",
    "Fixed",
    "Policy",
    "SplitState",
    "Uniform",
    "choose",
    "cumulative",
    "policy_of",
    "with_floor",
]
