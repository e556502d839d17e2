"""Always the arm with the highest posterior mean: what exploring is measured against."""

from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import numpy as np

from bandolero.micros import added
from bandolero.policies.base import (
    Counts,
    Floats,
    Ints,
    checked_rewards,
    count,
    count_micros,
    take,
)

TIE = 1e-12
"""Means that differ by less than this, of the largest, are the same."""


class MeanState(NamedTuple):
    """What every arm earned, and the prior of its mean.

    prior_mean
        (n_arms,), in units of the reward; nan for the mean of all arms that compete.
    prior_trials
        (n_arms,), positive: trials that it counts as.
    trials, rewards_micros
        (n_arms,), int64: number and sum of rewards in millionths.
    """

    prior_mean: Floats
    prior_trials: Floats
    trials: Counts
    rewards_micros: Counts

    @property
    def mean(self) -> Floats:
        """Posterior mean of every arm's reward, (n_arms,)."""
        total = float(np.sum(self.trials))
        earned = float(np.sum(self.rewards_micros)) / 1e6
        pooled = earned / total if total > 0.0 else 0.0
        prior = np.where(np.isnan(self.prior_mean), pooled, self.prior_mean)
        weight = self.prior_trials + self.trials
        return (self.prior_trials * prior + self.rewards_micros / 1e6) / weight


def highest(mean: Floats) -> Floats:
    """Evenly over the arms with the highest mean, 0 elsewhere, (n_arms,)."""
    best = mean >= mean.max() - TIE * np.abs(mean).max()
    return np.asarray(best / best.sum(), np.float64)


@dataclass(frozen=True)
class Greedy:
    """The highest posterior mean; arms with the same share evenly. For any reward.

    Parameters
    ----------
    prior_mean
        Of every arm; nan for the mean of all arms that compete.
    prior_trials
        Trials that it counts as.

    Examples
    --------
    >>> policy = Greedy()
    >>> state = policy.update(policy.init(3), np.array([0]), np.array([0.0]))
    >>> policy.probabilities(state, np.arange(3)).round(4)
    array([0.3333, 0.3333, 0.3333])
    """

    prior_mean: float = nan
    prior_trials: float = 2.0
    kind = "greedy"
    mode = "explore"

    def init(self, n_arms: int) -> MeanState:
        """Prior and no data."""
        zeros = np.zeros(n_arms, dtype=np.int64)
        return MeanState(
            np.full(n_arms, self.prior_mean),
            np.full(n_arms, self.prior_trials),
            zeros,
            zeros.copy(),
        )

    def update(self, state: MeanState, arms: Ints, rewards: Floats) -> MeanState:
        """Count trials and sum rewards: arms, rewards (n_trials,); as `Policy.update`."""
        n_arms = len(state.trials)
        arms, rewards = checked_rewards(n_arms, arms, rewards)
        return state._replace(
            trials=state.trials + count(arms, n_arms),
            rewards_micros=added(
                state.rewards_micros, count_micros(arms, n_arms, rewards)
            ),
        )

    def probabilities(self, state: MeanState, eligible: Ints) -> Floats:
        """Evenly over the arms with the highest mean, 0 elsewhere, (n_eligible,)."""
        return highest(take(state, eligible).mean)

    def add(self, state: MeanState, correction: MeanState) -> MeanState:
        """Sums of both."""
        return state._replace(
            trials=state.trials + correction.trials,
            rewards_micros=added(state.rewards_micros, correction.rewards_micros),
        )

    def correction(
        self,
        n_arms: int,
        trials: Ints,
        hits: Ints,
        rewards_micros: Ints | None = None,
        rewards_squared: Floats | None = None,
    ) -> MeanState:
        """Differences of the sums, (n_arms,) each; may be negative."""
        micros = 1_000_000 * hits if rewards_micros is None else rewards_micros
        return self.init(n_arms)._replace(trials=trials, rewards_micros=micros)

    def cost_us(self, n_eligible: int) -> float:
        """A few array operations."""
        return 30.0
