"""Policies with and without context, each behind the protocol of the other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandolero.policies import Policy, choose, cumulative

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Flat:
    """A policy without context behind the protocol of those with it."""

    def __init__(self, policy: "Policy[Any] | WithoutContext") -> None:
        self.policy, self.kind = policy, policy.kind

    def init(self, n_arms: int) -> Any:
        """State before any data."""
        return self.policy.init(n_arms)

    def update(self, state: Any, arms: Ints, rewards: Floats, features: Floats) -> Any:
        """State after trials; features teach it nothing."""
        return self.policy.update(state, arms, rewards)

    def prepare(self, state: Any) -> tuple[Floats, list[float]]:
        """Probabilities of all arms, and their running sums."""
        every = np.arange(len(state[0]))
        probabilities = self.policy.probabilities(state, every)
        return probabilities, cumulative(probabilities)

    def draw(
        self, prepared: Any, eligible: Ints, x: Floats, u: float
    ) -> tuple[int, float, Floats]:
        """Arm, its propensity, all probabilities; all arms have to be eligible."""
        probabilities, sums = prepared
        arm = choose(sums, u)
        return arm, float(probabilities[arm]), probabilities


class WithoutContext:
    """A policy with context behind the protocol of those without: x is 1, always."""

    mode = "explore"

    def __init__(self, policy: Any) -> None:
        self.policy, self.kind = policy, policy.kind

    def init(self, n_arms: int) -> Any:
        """State before any data."""
        return self.policy.init(n_arms)

    def update(self, state: Any, arms: Ints, rewards: Floats) -> Any:
        """State after trials."""
        return self.policy.update(state, arms, rewards, np.ones((len(arms), 1)))

    def probabilities(self, state: Any, eligible: Ints) -> Floats:
        """Probability of each arm of `eligible` competing alone."""
        prepared = self.policy.prepare(state)
        shares = self.policy.probabilities(prepared, eligible, np.ones(1))
        return np.asarray(shares, np.float64)
