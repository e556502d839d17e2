"""What every policy is: a function from its state into the simplex.

A policy never picks an arm. It gives the probability of every eligible variant, and one
shared `choose` draws with a number that is a hash of the decision, so the logged
propensity is the very number the draw used.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
State = TypeVar("State", bound=tuple[NDArray[np.generic], ...])


@runtime_checkable
class Policy(Protocol[State]):
    """The protocol of a policy; states are NamedTuples of arrays, never changed.

    The first axis of every array of a state is the arm, so that a state grows with its
    experiment (`grow`) and adds up (`add`) whatever the policy.
    """

    kind: str
    mode: str

    def init(self, n_arms: int) -> State:
        """State before any data."""
        ...

    def update(self, state: State, arms: Ints, rewards: Floats) -> State:
        """State after trials: arms (n_trials,) and their rewards (n_trials,)."""
        ...

    def probabilities(self, state: State, eligible: Ints) -> Floats:
        """Probability of each arm of `eligible` (n_eligible,) competing alone."""
        ...

    def add(self, state: State, correction: State) -> State:
        """State with the data of `correction` added; the prior stays."""
        ...

    def correction(self, n_arms: int, trials: Ints, hits: Ints) -> State:
        """Data alone, as a state: by how much (n_arms,) trials and hits differ."""
        ...

    def cost_us(self, n_eligible: int) -> float:
        """About how long `probabilities` takes, in microseconds."""
        ...


def with_floor(weights: Floats, min_share: float) -> Floats:
    """Lift every probability to a floor and keep the sum: p = f + (1 - n f) w, (n,).

    f = min(min_share, 0.5 / n), so that at least half of the traffic follows the policy.
    Additive, because clipping and renormalising biases the shares.
    """
    floor = min(min_share, 0.5 / len(weights))
    return floor + (1.0 - len(weights) * floor) * weights


def cumulative(probabilities: Floats) -> list[float]:
    """Running sums for `choose`; the last positive arm's ends at exactly 1, (n_arms,)."""
    sums = np.cumsum(probabilities)
    sums[np.flatnonzero(probabilities)[-1] :] = 1.0
    return [float(x) for x in sums]


def choose(cumulative: Sequence[float], draw: float) -> int:
    """The arm whose stretch of [0, 1) holds `draw`.

    Parameters
    ----------
    cumulative
        (n_arms,), from `cumulative`.
    draw
        In [0, 1).
    """
    return bisect_right(cumulative, draw)


def grow(state: State, fresh: State) -> State:
    """`fresh` (a state with at least as many arms) with the first arms of `state`."""
    arrays = []
    for old, new in zip(state, fresh, strict=True):
        merged = new.copy()
        merged[: len(old)] = old
        arrays.append(merged)
    return type(fresh)(*arrays)
