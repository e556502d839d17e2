"""What a policy would have earned, from a log of another one: replay and inverse propensity.

Replay walks the log in order. The policy draws an arm for each row; where it is the one
that was logged the row is accepted and learned, else it is as if it had never been. On a
log whose arms were drawn uniformly, the accepted rows are what playing would have given.

References
----------
Li, Chu, Langford & Wang (2011), Unbiased Offline Evaluation of Contextual-bandit-based
News Article Recommendation Algorithms: algorithm 2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandolero.evaluate.estimators import Terms, influence, snips
from bandolero.evaluate.models import Weighed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Log(NamedTuple):
    """Logged decisions in order: arms, rewards (n,), features (n, d); 1 / n_arms each."""

    arms: Ints
    rewards: Floats
    features: Floats
    n_arms: int

    def take(self, rows: Ints) -> "Log":
        """Some of the rows, in the order given."""
        return Log(
            self.arms[rows], self.rewards[rows], self.features[rows], self.n_arms
        )


class Replayed(NamedTuple):
    """What became of each row, (n,).

    accepted
        Whether the policy drew the arm that was logged.
    weights
        Its probability of that arm, over that of the log.
    """

    accepted: Bools
    weights: Floats


class Value(NamedTuple):
    """A mean reward, its standard error, and the gain over the log with its own."""

    mean: float
    error: float
    gain: float
    gain_error: float


def replay(policy: Any, log: Log, every: int, seed: Sequence[int]) -> Replayed:
    """Replay a log; the policy learns after `every` accepted rows.

    `policy` has the protocol of a contextual policy; `Flat` lends it to others.
    """
    draws = np.random.default_rng(seed).random(len(log.arms))
    eligible = np.arange(log.n_arms)
    state = policy.init(log.n_arms)
    prepared, pending = policy.prepare(state), []
    accepted, weights = np.zeros(len(draws), np.bool_), np.zeros(len(draws))
    for t, (logged, x) in enumerate(zip(log.arms, log.features, strict=True)):
        arm, _, probabilities = policy.draw(prepared, eligible, x, draws[t])
        weights[t] = log.n_arms * probabilities[logged]
        if arm != logged:
            continue
        accepted[t] = True
        pending.append(t)
        if len(pending) == every:
            learned = log.take(np.array(pending))
            state = policy.update(state, *learned[:3])
            prepared, pending = policy.prepare(state), []
    return Replayed(accepted, weights)


def value(weights: Floats, rewards: Floats) -> Value:
    """Mean reward of the rows by weight; errors linearised, rows taken as independent.

    With 0 and 1 for weights this is the mean of the accepted rows, with probability over
    propensity the self-normalised inverse-propensity estimate; the mean of several runs'
    weights gives the mean of the runs, weighted by how many rows each accepted.
    """
    nothing = np.zeros_like(rewards)
    of = Weighed(weights, rewards, nothing, nothing, np.zeros_like)
    estimate, logged = snips(of), Terms(float(rewards.mean()), rewards)
    own, others = influence(estimate), influence(logged)
    error, gain_error = float(np.linalg.norm(own)), float(np.linalg.norm(own - others))
    return Value(estimate.value, error, estimate.value - logged.value, gain_error)


def play(
    policy: Any, features: Floats, table: Floats, every: int, seed: Sequence[int]
) -> Floats:
    """Rewards of really playing where the reward of every arm is known, (n,).

    Parameters
    ----------
    features, table
        (n, n_features); (n, n_arms), what each arm would earn.
    every
        The policy learns after so many rows.
    """
    draws = np.random.default_rng(seed).random(len(table))
    eligible = np.arange(table.shape[1])
    state, earned = policy.init(len(eligible)), np.zeros(len(table))
    for start in range(0, len(table), every):
        prepared, now = policy.prepare(state), slice(start, start + every)
        arms = np.array(
            [
                policy.draw(prepared, eligible, x, u)[0]
                for x, u in zip(features[now], draws[now], strict=True)
            ]
        )
        earned[now] = table[now][np.arange(len(arms)), arms]
        state = policy.update(state, arms, earned[now], features[now])
    return earned
