"""The policies that `real_input` compares, by name, all with their default settings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from benchmarks import _upworthy
from benchmarks._logs import Items, item_attributes
from benchmarks._protocols import Flat, WithoutContext
from benchmarks._upworthy import HeadlineTest, Make, priors_of_others
from numpy.typing import NDArray

from bandolero.attributes import attribute_features
from bandolero.policies import (
    BetaThompson,
    EpsilonGreedy,
    GaussianThompson,
    Greedy,
    PoissonThompson,
    TopTwoThompson,
    Uniform,
)
from bandolero.policies.factorial_thompson import FactorialThompson
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson
from bandolero.policies.shared_linear_thompson import SharedLinearThompson

Floats = NDArray[np.float64]


def flat_policies(tests: Sequence[HeadlineTest], seed: int) -> dict[str, Make]:
    """Policies by name, each by the index of the test it is for."""
    priors = [(alpha, beta) for alpha, beta in priors_of_others(tests, seed)]
    told = " | ".join(f"Beta({a:.2f}, {b:.0f})" for a, b in sorted(set(priors)))
    print(f"fitted priors, each on the half that it does not serve: {told}")
    return {
        "beta_thompson, Beta(1, 1)": lambda _: BetaThompson(),
        "beta_thompson, fitted prior": lambda i: BetaThompson(*priors[i]),
        "top_two_thompson, Beta(1, 1)": lambda _: TopTwoThompson(),
        "top_two_thompson, fitted prior": lambda i: TopTwoThompson(*priors[i]),
        "poisson_thompson, Gamma(1, 1)": lambda _: PoissonThompson(),
        "gaussian_thompson": lambda _: GaussianThompson(),
        "greedy": lambda _: Greedy(),
        "greedy, fitted prior": lambda i: Greedy(
            priors[i][0] / sum(priors[i]), sum(priors[i])
        ),
        "epsilon_greedy, 5 %": lambda _: EpsilonGreedy(),
        "uniform": lambda _: Uniform(),
    }


def regressions(tests: Sequence[HeadlineTest]) -> dict[str, Make]:
    """Policies that regress rewards on a variant's attributes, or on its name alone."""
    attributes = [_upworthy.attributes(test) for test in tests]
    shared = [attribute_features(variants).matrix for variants in attributes]
    return {
        "linear_thompson, no context": lambda _: WithoutContext(LinearThompson(1)),
        "logistic_thompson, no context": lambda _: WithoutContext(LogisticThompson(1)),
        "shared_linear_thompson, attributes": lambda i: WithoutContext(
            SharedLinearThompson(1, rows_of(shared[i]))
        ),
        "factorial_thompson, and pairs": lambda i: WithoutContext(
            FactorialThompson.of(attributes[i], 1)
        ),
    }


def rows_of(matrix: Floats) -> tuple[tuple[float, ...], ...]:
    """A matrix as policies hold it."""
    return tuple(tuple(row) for row in matrix.tolist())


def of_kept(policies: dict[str, Make], kept: Sequence[int]) -> dict[str, Make]:
    """The policies by the index of a test among those that were kept."""

    def among(make: Make) -> Make:
        return lambda index: make(kept[index])

    return {name: among(make) for name, make in policies.items()}


def contextual_policies(n_features: int) -> dict[str, Any]:
    """Policies by name, all with their default settings, behind one protocol."""
    return {
        "uniform": Flat(Uniform()),
        "greedy": Flat(Greedy()),
        "beta_thompson": Flat(BetaThompson()),
        "linear_thompson": LinearThompson(n_features),
        "logistic_thompson": LogisticThompson(n_features),
    }


def with_items(items: Items) -> dict[str, Any]:
    """What takes items as they are: the shop's own prior, and their attributes.

    Without context: 80 items by 28 features would be 1,148 coefficients.
    """
    prior = tuple(zip(items.alpha.tolist(), items.beta.tolist(), strict=True))
    attributes = item_attributes(items)
    shared = SharedLinearThompson(1, rows_of(attribute_features(attributes).matrix))
    factorial = FactorialThompson.of(attributes, 1)
    return {
        "beta_thompson, production prior": Flat(BetaThompson(arm_priors=prior)),
        "shared_linear_thompson, attributes": Flat(WithoutContext(shared)),
        "factorial_thompson, and pairs": Flat(WithoutContext(factorial)),
    }
