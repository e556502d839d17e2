"""The same probability for every eligible arm: what others are measured against."""

from dataclasses import dataclass

import numpy as np

from bandolero.policies.base import Floats, Ints
from bandolero.policies.fixed import SplitState


@dataclass(frozen=True)
class Uniform:
    """Evenly over the eligible arms; learns nothing."""

    kind = "uniform"
    mode = "fixed"

    def init(self, n_arms: int) -> SplitState:
        """Equal weights."""
        return SplitState(np.ones(n_arms))

    def update(self, state: SplitState, arms: Ints, rewards: Floats) -> SplitState:
        """Data changes nothing."""
        return state

    def probabilities(self, state: SplitState, eligible: Ints) -> Floats:
        """1 / n_eligible each, (n_eligible,)."""
        return np.full(len(eligible), 1.0 / len(eligible))

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
        """One array."""
        return 5.0
