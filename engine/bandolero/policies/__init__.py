"""Policies, one algorithm a file: its state, kernels and policy together."""

from collections.abc import Callable
from typing import Any

from bandolero.experiment import Experiment, FixedSpec
from bandolero.policies.base import (
    ContextualPolicy,
    Policy,
    choose,
    cumulative,
    with_floor,
    with_limits,
)
from bandolero.policies.beta_thompson import BetaState, BetaThompson
from bandolero.policies.choose_batch import Chosen, choose_batch
from bandolero.policies.epsilon_greedy import EpsilonGreedy
from bandolero.policies.factorial_thompson import FactorialThompson
from bandolero.policies.fixed import Fixed, SplitState
from bandolero.policies.forgetting import Forgetful, Trials, aged, learn
from bandolero.policies.gaussian_thompson import GaussianState, GaussianThompson
from bandolero.policies.greedy import Greedy, MeanState
from bandolero.policies.lin_ucb import LinUcb
from bandolero.policies.linear_thompson import LinearState, LinearThompson
from bandolero.policies.logistic_thompson import LogisticState, LogisticThompson
from bandolero.policies.normal_choice import Prepared
from bandolero.policies.poisson_thompson import GammaState, PoissonThompson
from bandolero.policies.shared_linear_thompson import (
    SharedLinearThompson,
    SharedPrepared,
)
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

CONTEXTUAL_POLICIES: dict[str, Callable[..., ContextualPolicy[Any, Any]]] = {
    "linear_thompson": LinearThompson,
    "logistic_thompson": LogisticThompson,
    "lin_ucb": LinUcb,
    "shared_linear_thompson": SharedLinearThompson,
    "factorial_thompson": FactorialThompson,
}
"""The same, with `n_features` as their first parameter."""

STATES: dict[str, Any] = {
    "beta_thompson": BetaState,
    "top_two_thompson": BetaState,
    "poisson_thompson": GammaState,
    "gaussian_thompson": GaussianState,
    "linear_thompson": LinearState,
    "logistic_thompson": LogisticState,
    "lin_ucb": LinearState,
    "shared_linear_thompson": LinearState,
    "factorial_thompson": LinearState,
    "greedy": MeanState,
    "epsilon_greedy": MeanState,
    "fixed": SplitState,
    "uniform": SplitState,
}
"""The state class of each kind of policy, for reading states back."""

PREPARED: dict[str, Any] = {
    "linear_thompson": Prepared,
    "logistic_thompson": Prepared,
    "lin_ucb": Prepared,
    "shared_linear_thompson": SharedPrepared,
    "factorial_thompson": SharedPrepared,
}
"""The class of what each kind of contextual policy serves from."""


def policy_of(experiment: Experiment) -> Policy[Any] | ContextualPolicy[Any, Any]:
    """Make the policy an experiment asks for."""
    spec = experiment.policy
    if isinstance(spec, FixedSpec):
        ids = experiment.variant_ids
        return Fixed(tuple(spec.weights.get(variant_id, 0.0) for variant_id in ids))
    given = {
        name: value
        for name, value in spec
        if value is not None
        and name not in ("kind", "prior_by", "priors", "learn_prior")
    }
    if (table := experiment.attribute_table.matrix).size:
        given["arm_features"] = tuple(map(tuple, table.tolist()))
    if spec.kind in CONTEXTUAL_POLICIES:
        return CONTEXTUAL_POLICIES[spec.kind](experiment.n_features, **given)
    if experiment.arm_priors:
        given["arm_priors"] = experiment.arm_priors
    return POLICIES[spec.kind](**given)


__all__ = [
    "PREPARED",
    "STATES",
    "BetaState",
    "BetaThompson",
    "Chosen",
    "ContextualPolicy",
    "EpsilonGreedy",
    "FactorialThompson",
    "Fixed",
    "Forgetful",
    "GammaState",
    "GaussianState",
    "GaussianThompson",
    "Greedy",
    "LinUcb",
    "LinearState",
    "LinearThompson",
    "LogisticState",
    "LogisticThompson",
    "MeanState",
    "PoissonThompson",
    "Policy",
    "SharedLinearThompson",
    "SplitState",
    "TopTwoThompson",
    "Trials",
    "Uniform",
    "aged",
    "choose",
    "choose_batch",
    "cumulative",
    "learn",
    "policy_of",
    "with_floor",
    "with_limits",
]
