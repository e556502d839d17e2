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

from bandolero.policies.base import (
    Counts,
    Floats,
    Ints,
    checked_rewards,
    corrected,
    count,
    counting_weights,
    no_counts,
    prior_arrays,
)
from bandolero.policies.forgetting import kept
from bandolero.quadrature import best_of


class BetaState(NamedTuple):
    """Belief about every arm's rate, as a prior and counts.

    Prior and counts are kept apart, so that folding the same data in any order or
    grouping gives the same bytes, and forgetting leads back to the prior.

    prior_alpha, prior_beta
        (n_arms,), positive.
    successes, trials
        (n_arms,), 0 <= successes <= trials; int64, or float64 with a half-life.
    """

    prior_alpha: Floats
    prior_beta: Floats
    successes: Counts
    trials: Counts

    @property
    def alpha(self) -> Floats:
        """First parameter of each arm's posterior, (n_arms,)."""
        return self.prior_alpha + self.successes

    @property
    def beta(self) -> Floats:
        """Second parameter of each arm's posterior, (n_arms,)."""
        failures: Counts = corrected(self.trials, -self.successes)
        return self.prior_beta + failures

    @property
    def mean(self) -> Floats:
        """Posterior mean of every arm's rate, (n_arms,)."""
        return self.alpha / (self.alpha + self.beta)


@dataclass(frozen=True)
class BetaThompson:
    """Probability-matching on Beta posteriors; the prior of a rate is Beta(a, b).

    Parameters
    ----------
    prior_alpha, prior_beta
        Of every arm that has none of its own.
    half_life_s
        Data this old count half; None for ever.
    arm_priors
        (alpha, beta) by arm, or None.
    """

    prior_alpha: float = 1.0
    prior_beta: float = 1.0
    half_life_s: float | None = None
    arm_priors: tuple[tuple[float, ...] | None, ...] = ()
    kind = "beta_thompson"
    mode = "explore"

    def init(self, n_arms: int) -> BetaState:
        """Prior and no data."""
        default = (self.prior_alpha, self.prior_beta)
        alpha, beta = prior_arrays(n_arms, default, self.arm_priors)
        none = no_counts(n_arms, self.half_life_s)
        return BetaState(alpha, beta, none, none.copy())

    def update(
        self,
        state: BetaState,
        arms: Ints,
        rewards: Floats,
        weights: Floats | None = None,
    ) -> BetaState:
        """Count trials, and those with a positive reward: arms, rewards (n_trials,).

        With `weights` (n_trials,), >= 0, how much each counts. Raises as `Policy.update` does.
        """
        n_arms = len(state.trials)
        arms, rewards = checked_rewards(n_arms, arms, rewards)
        weights = counting_weights(weights, arms.size)
        won = rewards > 0.0
        hits = count(arms[won], n_arms, None if weights is None else weights[won])
        trials = count(arms, n_arms, weights)
        return state._replace(
            successes=state.successes + hits, trials=state.trials + trials
        )

    def decay(self, state: BetaState, elapsed_ms: int) -> BetaState:
        """The state so much later: counts shrink, and the prior is what stays."""
        if self.half_life_s is None:
            return state
        share = kept(elapsed_ms, self.half_life_s)
        return state._replace(
            successes=share * state.successes, trials=share * state.trials
        )

    def probabilities(self, state: BetaState, eligible: Ints) -> Floats:
        """Probability that each eligible arm's rate is the highest, (n_eligible,).

        Exact to 1e-10: see `bandolero.quadrature.best_of`.
        """
        return best_of(state.alpha[eligible], state.beta[eligible]).probability_best

    def add(self, state: BetaState, correction: BetaState) -> BetaState:
        """Counts of both."""
        return state._replace(
            successes=corrected(state.successes, correction.successes),
            trials=corrected(state.trials, correction.trials),
        )

    def correction(
        self,
        n_arms: int,
        trials: Counts,
        hits: Counts,
        rewards_micros: Counts | None = None,
        rewards_squared: Floats | None = None,
    ) -> BetaState:
        """Differences of the counts, (n_arms,) each; may be negative."""
        return self.init(n_arms)._replace(successes=hits, trials=trials)

    def cost_us(self, n_eligible: int) -> float:
        """A panel grid of some hundred nodes per arm, measured at 10-25 us an arm."""
        return 100.0 + 25.0 * n_eligible
