"""Thompson sampling for values (revenue) with unknown mean and variance of each arm.

Rewards are taken as Normal with a Normal-inverse-gamma prior, so the posterior of an
arm's mean is a Student-t. Each arm is drawn with the probability that its mean is the
highest, exactly, by quadrature. Revenue is not Normal, but its mean over some hundred
trials is nearly so; until then the prior has to be careful. Where it is not given it is
taken from the data themselves, pooled over the arms that compete: their mean, weighted
as one trial, and their standard deviation, weighted as `PRIOR_DOF` trials, so that an arm
whose first hundred trials all earned nothing is not taken for certain to earn nothing.

References
----------
Gelman et al. (2013), Bayesian Data Analysis, section 3.3: the prior and its update.
Honda & Takemura (2014), Optimality of Thompson Sampling for Gaussian Bandits Depends on
Priors: why the prior of the variance matters.
"""

from dataclasses import dataclass
from math import nan, sqrt
from typing import NamedTuple

import numpy as np

from bandolero.micros import added
from bandolero.policies.base import (
    Counts,
    Floats,
    Ints,
    checked_rewards,
    corrected,
    count,
    count_micros,
    counting_weights,
    no_counts,
    prior_arrays,
    take,
)
from bandolero.policies.forgetting import kept
from bandolero.quadrature import best_of_students

PRIOR_DOF = 30.0
"""Trials that the standard deviation of the default prior counts as.

On simulated revenue (six variants, 1-5 % buy, log-normal baskets) 20 to 100 cost little
more than half the regret of the textbook's 2.
"""
ROUNDING = 1e-12
"""What is left of the variance of equal rewards, as a share of their square."""


class GaussianState(NamedTuple):
    """What every arm earned, and the prior of its mean and standard deviation.

    prior_mean, prior_sd
        (n_arms,), in units of the reward; nan to take it from the data.
    prior_trials, prior_dof
        (n_arms,), positive: trials that prior mean and prior deviation count as.
    trials, rewards_micros
        (n_arms,), number and sum of rewards in millionths; int64, or float64 with a
        half-life.
    rewards_squared
        (n_arms,), sum of squared rewards in units.
    """

    prior_mean: Floats
    prior_sd: Floats
    prior_trials: Floats
    prior_dof: Floats
    trials: Counts
    rewards_micros: Counts
    rewards_squared: Floats

    @property
    def mean(self) -> Floats:
        """Posterior mean of every arm's reward, (n_arms,)."""
        return posterior(self).mean


class Students(NamedTuple):
    """Student-t posteriors of the arms' means.

    mean, scale
        (n_arms,), in units of the reward; scale 0 where nothing is known of it.
    dof
        (n_arms,), degrees of freedom.
    """

    mean: Floats
    scale: Floats
    dof: Floats


@dataclass(frozen=True)
class GaussianThompson:
    """Probability-matching on Student-t posteriors of mean rewards.

    Parameters
    ----------
    prior_mean, prior_sd
        Of every arm that has none of its own; nan to take it from the data.
    prior_trials, prior_dof
        Trials that they count as.
    half_life_s
        Data this old count half; None for ever.
    arm_priors
        (mean, sd, trials, dof) by arm, or None.

    Examples
    --------
    >>> policy = GaussianThompson(prior_mean=0.0, prior_sd=1.0, prior_dof=1.0)
    >>> state = policy.update(policy.init(2), np.array([0]), np.array([2.0]))
    >>> policy.probabilities(state, np.array([0, 1])).round(2)
    array([0.68, 0.32])
    """

    prior_mean: float = nan
    prior_sd: float = nan
    prior_trials: float = 1.0
    prior_dof: float = PRIOR_DOF
    half_life_s: float | None = None
    arm_priors: tuple[tuple[float, ...] | None, ...] = ()
    kind = "gaussian_thompson"
    mode = "explore"

    def init(self, n_arms: int) -> GaussianState:
        """Prior and no data."""
        default = (self.prior_mean, self.prior_sd, self.prior_trials, self.prior_dof)
        mean, sd, trials, dof = prior_arrays(n_arms, default, self.arm_priors)
        none = no_counts(n_arms, self.half_life_s)
        return GaussianState(mean, sd, trials, dof, none, none.copy(), np.zeros(n_arms))

    def update(
        self,
        state: GaussianState,
        arms: Ints,
        rewards: Floats,
        weights: Floats | None = None,
    ) -> GaussianState:
        """Count trials, and sum rewards and their squares: arms, rewards (n_trials,).

        With `weights` (n_trials,), >= 0, how much each counts. Raises as `Policy.update` does.
        """
        n_arms = len(state.trials)
        arms, rewards = checked_rewards(n_arms, arms, rewards)
        weights = counting_weights(weights, arms.size)
        squares = rewards**2 if weights is None else weights * rewards**2
        return state._replace(
            trials=state.trials + count(arms, n_arms, weights),
            rewards_micros=added(
                state.rewards_micros, count_micros(arms, n_arms, rewards, weights)
            ),
            rewards_squared=state.rewards_squared
            + np.bincount(arms, squares, minlength=n_arms),
        )

    def decay(self, state: GaussianState, elapsed_ms: int) -> GaussianState:
        """The state so much later: sums shrink, and the prior is what stays."""
        if self.half_life_s is None:
            return state
        share = kept(elapsed_ms, self.half_life_s)
        return state._replace(
            trials=share * state.trials,
            rewards_micros=share * state.rewards_micros,
            rewards_squared=share * state.rewards_squared,
        )

    def probabilities(self, state: GaussianState, eligible: Ints) -> Floats:
        """Probability that each eligible arm's mean is the highest, (n_eligible,).

        See `bandolero.quadrature.best_of_students` for its error. Even where nothing is known of the scale: before two rewards differ, the arms
        do not either.
        """
        mean, scale, dof = posterior(take(state, eligible))
        if not (scale > 0.0).all():
            return np.full(len(eligible), 1.0 / len(eligible))
        return best_of_students(mean, scale, dof)

    def add(self, state: GaussianState, correction: GaussianState) -> GaussianState:
        """Sums of both."""
        return state._replace(
            trials=corrected(state.trials, correction.trials),
            rewards_micros=added(state.rewards_micros, correction.rewards_micros),
            rewards_squared=state.rewards_squared + correction.rewards_squared,
        )

    def correction(
        self,
        n_arms: int,
        trials: Counts,
        hits: Counts,
        rewards_micros: Counts | None = None,
        rewards_squared: Floats | None = None,
    ) -> GaussianState:
        """Differences of the sums, (n_arms,) each; may be negative."""
        micros = 1_000_000 * hits if rewards_micros is None else rewards_micros
        squares = hits if rewards_squared is None else rewards_squared
        return self.init(n_arms)._replace(
            trials=trials,
            rewards_micros=micros,
            rewards_squared=np.asarray(squares, np.float64),
        )

    def cost_us(self, n_eligible: int) -> float:
        """A panel grid of some hundred nodes per arm, measured at 5-20 us an arm."""
        return 100.0 + 25.0 * n_eligible


def mean_and_sd(trials: float, earned: float, squares: float) -> tuple[float, float]:
    """Of rewards, from how many they are, their sum and their sum of squares.

    The deviation is 0 where all are the same; both are 0 where there are none.

    Examples
    --------
    >>> mean_and_sd(4.0, 8.0, 20.0), mean_and_sd(3.0, 0.9, 0.27)
    ((2.0, 1.0), (0.3, 0.0))
    """
    if trials <= 0.0:
        return 0.0, 0.0
    mean = earned / trials
    variance = squares / trials - mean**2
    return mean, sqrt(variance) if variance > ROUNDING * mean**2 else 0.0


def posterior(state: GaussianState) -> Students:
    """Posterior of every arm's mean, (n_arms,) each.

    A prior that is nan is that of the pooled data of all arms of the state.
    """
    n = np.asarray(state.trials, np.float64)
    earned, squares = state.rewards_micros / 1e6, state.rewards_squared
    sums = float(n.sum()), float(np.sum(state.rewards_micros)) / 1e6
    pooled, pooled_sd = mean_and_sd(*sums, float(squares.sum()))
    m = np.where(np.isnan(state.prior_mean), pooled, state.prior_mean)
    sd = np.where(np.isnan(state.prior_sd), pooled_sd, state.prior_sd)

    own = np.divide(earned, n, out=np.zeros(len(n)), where=n > 0.0)
    within = np.maximum(squares - n * own**2, 0.0)
    known = state.prior_trials + n
    between = state.prior_trials * n / known * (own - m) ** 2
    dof = state.prior_dof + n
    variance = (state.prior_dof * sd**2 + within + between) / dof
    mean = (state.prior_trials * m + earned) / known
    return Students(mean, np.sqrt(variance / known), dof)
