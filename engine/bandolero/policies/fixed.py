"""A split by constant weights, for plain A/B tests; learns nothing."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bandolero.policies.base import Floats, Ints


class SplitState(NamedTuple):
    """weights: (n_arms,), not negative."""

    weights: Floats


@dataclass(frozen=True)
class Fixed:
    """Each arm by its weight, renormalised over the eligible ones."""

    weights: tuple[float, ...]
    kind = "fixed"
    mode = "fixed"

    def init(self, n_arms: int) -> SplitState:
        """The weights; arms past their end get nothing."""
        weights = np.zeros(n_arms)
        weights[: len(self.weights)] = self.weights[:n_arms]
        return SplitState(weights)

    def update(self, state: SplitState, arms: Ints, rewards: Floats) -> SplitState:
        """Data changes nothing."""
        return state

    def probabilities(self, state: SplitState, eligible: Ints) -> Floats:
        """Weights over their sum, (n_eligible,); evenly where all of them are zero."""
        weights = state.weights[eligible]
        total = float(weights.sum())
        if total <= 0.0:
            return np.full(len(eligible), 1.0 / len(eligible))
        return weights / total

    def add(self, state: SplitState, correction: SplitState) -> SplitState:
        """Data changes nothing."""
        return state

    def correction(
        self,
        n_arms: int,
        trials: Ints,
        hits: Ints,
        rewards_micros: Ints | None = None,
        rewards_squared: Floats | None = None,
    ) -> SplitState:
        """Data changes nothing."""
        return self.init(n_arms)

    def cost_us(self, n_eligible: int) -> float:
        """A few array operations."""
        return 10.0
