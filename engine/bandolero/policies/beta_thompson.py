"""Thompson sampling for a binary reward with independent Beta posteriors.

Each arm is drawn with the probability that its rate is the highest, computed exactly by
quadrature when a snapshot is built; no posterior is sampled while serving.

References
----------
Thompson (1933), On the likelihood that one unknown probability exceeds another.
Chapelle & Li (2011), An Empirical Evaluation of Thompson Sampling, section 2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bandolero.policies.base import Floats, Ints
from bandolero.quadrature import best_of


class BetaState(NamedTuple):
    """Belief about every arm's rate, as a prior and integer counts.

    Prior and counts are kept apart, so that folding the same data in any order or
    grouping gives the same bytes.

    prior_alpha, prior_beta
        (n_arms,), positive.
    successes, trials
        (n_arms,), int64, 0 <= successes <= trials.
    """

    prior_alpha: Floats
    prior_beta: Floats
    successes: Ints
    trials: Ints

    @property
    def alpha(self) -> Floats:
        """First parameter of each arm's posterior, (n_arms,)."""
        return self.prior_alpha + self.successes

    @property
    def beta(self) -> Floats:
        """Second parameter of each arm's posterior, (n_arms,)."""
        return self.prior_beta + (self.trials - self.successes)


@dataclass(frozen=True)
class BetaThompson:
    """Probability-matching on Beta posteriors; the prior of a rate is Beta(a, b)."""

    prior_alpha: float = 1.0
    prior_beta: float = 1.0
    kind = "beta_thompson"
    mode = "explore"

    def init(self, n_arms: int) -> BetaState:
        """Prior and no data."""
        zeros = np.zeros(n_arms, dtype=np.int64)
        return BetaState(
            np.full(n_arms, self.prior_alpha),
            np.full(n_arms, self.prior_beta),
            zeros,
            zeros.copy(),
        )

    def update(self, state: BetaState, arms: Ints, rewards: Floats) -> BetaState:
        """Count trials, and those with a reward."""
        n_arms = len(state.trials)
        hits = np.bincount(arms[rewards > 0.0], minlength=n_arms)
        trials = np.bincount(arms, minlength=n_arms)
        return state._replace(
            successes=state.successes + hits, trials=state.trials + trials
        )

    def probabilities(self, state: BetaState, eligible: Ints) -> Floats:
        """Probability that each eligible arm's rate is the highest among them."""
        return best_of(state.alpha[eligible], state.beta[eligible]).probability_best

    def add(self, state: BetaState, correction: BetaState) -> BetaState:
        """Counts of both."""
        return state._replace(
            successes=state.successes + correction.successes,
            trials=state.trials + correction.trials,
        )

    def correction(self, n_arms: int, trials: Ints, hits: Ints) -> BetaState:
        """Differences of the counts; may be negative."""
        return self.init(n_arms)._replace(successes=hits, trials=trials)

    def cost_us(self, n_eligible: int) -> float:
        """A panel grid of some hundred nodes per arm, measured at 10-25 us an arm."""
        return 100.0 + 25.0 * n_eligible
