"""Thompson sampling for counts (items bought, pages read) with Gamma posteriors.

A trial earns a Poisson-distributed number; its mean has a Gamma prior. Each arm is drawn
with the probability that its mean is the highest, exactly, by quadrature. Where counts
vary more than Poisson ones, posteriors are too narrow by the root of variance / mean;
`gaussian_thompson` learns the variance.

References
----------
Gelman et al. (2013), Bayesian Data Analysis, section 2.6: the conjugate Gamma prior.
Russo et al. (2018), A Tutorial on Thompson Sampling, section 3.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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
from bandolero.quadrature import best_of_gammas


class GammaState(NamedTuple):
    """Belief about every arm's mean count, as a prior and counts.

    prior_shape, prior_rate
        (n_arms,), positive: as if `prior_shape` were counted in `prior_rate` trials.
    counted, trials
        (n_arms,), sum of rewards and number of trials; int64, or float64 with a half-life.
    """

    prior_shape: Floats
    prior_rate: Floats
    counted: Counts
    trials: Counts

    @property
    def shape(self) -> Floats:
        """First parameter of each arm's posterior, (n_arms,)."""
        return self.prior_shape + self.counted

    @property
    def rate(self) -> Floats:
        """Second parameter of each arm's posterior, in trials, (n_arms,)."""
        return self.prior_rate + self.trials

    @property
    def mean(self) -> Floats:
        """Posterior mean of every arm's reward, (n_arms,)."""
        return self.shape / self.rate


@dataclass(frozen=True)
class PoissonThompson:
    """Probability-matching on Gamma posteriors; the prior is Gamma(shape, rate).

    Parameters
    ----------
    prior_shape, prior_rate
        Of every arm that has none of its own.
    half_life_s
        Data this old count half; None for ever.
    arm_priors
        (shape, rate) by arm, or None.

    Examples
    --------
    >>> policy = PoissonThompson()
    >>> state = policy.update(policy.init(2), np.array([0]), np.array([2.0]))
    >>> policy.probabilities(state, np.array([0, 1])).round(4)
    array([0.7037, 0.2963])
    """

    prior_shape: float = 1.0
    prior_rate: float = 1.0
    half_life_s: float | None = None
    arm_priors: tuple[tuple[float, ...] | None, ...] = ()
    kind = "poisson_thompson"
    mode = "explore"

    def init(self, n_arms: int) -> GammaState:
        """Prior and no data."""
        default = (self.prior_shape, self.prior_rate)
        shape, rate = prior_arrays(n_arms, default, self.arm_priors)
        none = no_counts(n_arms, self.half_life_s)
        return GammaState(shape, rate, none, none.copy())

    def update(
        self,
        state: GammaState,
        arms: Ints,
        rewards: Floats,
        weights: Floats | None = None,
    ) -> GammaState:
        """Count trials and what they earned: arms, rewards (n_trials,).

        Rewards are whole numbers, not negative. With `weights` (n_trials,), >= 0, how much
        each counts. Raises as `Policy.update` does, and for a reward that is no count.
        """
        n_arms = len(state.trials)
        arms, rewards = checked_rewards(n_arms, arms, rewards)
        weights = counting_weights(weights, arms.size)
        is_count = (rewards >= 0.0) & (rewards == np.rint(rewards))
        if not is_count.all():
            worst = rewards[~is_count][0]
            raise ValueError(f"rewards has {worst:g} in it, must be whole and >= 0.")
        earned = count(arms, n_arms, rewards if weights is None else rewards * weights)
        if weights is None:
            earned = earned.astype(np.int64)
        return state._replace(
            counted=state.counted + earned,
            trials=state.trials + count(arms, n_arms, weights),
        )

    def decay(self, state: GammaState, elapsed_ms: int) -> GammaState:
        """The state so much later: counts shrink, and the prior is what stays."""
        if self.half_life_s is None:
            return state
        share = kept(elapsed_ms, self.half_life_s)
        return state._replace(
            counted=share * state.counted, trials=share * state.trials
        )

    def probabilities(self, state: GammaState, eligible: Ints) -> Floats:
        """Probability that each eligible arm's mean is the highest, (n_eligible,).

        See `bandolero.quadrature.best_of_gammas` for its error.
        """
        best = best_of_gammas(state.shape[eligible], state.rate[eligible])
        return best.probability_best

    def add(self, state: GammaState, correction: GammaState) -> GammaState:
        """Counts of both."""
        return state._replace(
            counted=corrected(state.counted, correction.counted),
            trials=corrected(state.trials, correction.trials),
        )

    def correction(
        self,
        n_arms: int,
        trials: Counts,
        hits: Counts,
        rewards_micros: Counts | None = None,
        rewards_squared: Floats | None = None,
    ) -> GammaState:
        """Differences of the counts, (n_arms,) each; may be negative."""
        counted: Counts = hits
        if rewards_micros is not None:
            # Whole counts, but for what has faded.
            fades = self.half_life_s is not None
            counted = rewards_micros / 1e6 if fades else rewards_micros // 1_000_000
        return self.init(n_arms)._replace(counted=counted, trials=trials)

    def cost_us(self, n_eligible: int) -> float:
        """A panel grid of some hundred nodes per arm, measured at 10-25 us an arm."""
        return 100.0 + 25.0 * n_eligible
