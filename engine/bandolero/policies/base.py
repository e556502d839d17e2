"""What every policy is: a function from its state into the simplex.

A policy never picks an arm. It gives the probability of every eligible variant, and one
shared `choose` draws with a number that is a hash of the decision, so the logged
propensity is the very number the draw used.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from bandolero.micros import END, sum_by

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Counts = NDArray[Any]
"""Counts of trials and rewards: integers; real numbers where a policy forgets."""
State = TypeVar("State", bound=tuple[NDArray[np.generic], ...])
Prepared = TypeVar("Prepared", bound=tuple[NDArray[np.generic], ...])


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
        """State after trials: arms (n_trials,) and their rewards (n_trials,).

        Raises
        ------
        ValueError
            When shapes do not fit, an arm is unknown, or a reward is nan, infinite or too
            large to be counted in millionths.
        """
        ...

    def probabilities(self, state: State, eligible: Ints) -> Floats:
        """Probability of each arm of `eligible` (n_eligible,) competing alone."""
        ...

    def add(self, state: State, correction: State) -> State:
        """State with the data of `correction` added; the prior stays."""
        ...

    def correction(
        self,
        n_arms: int,
        trials: Counts,
        hits: Counts,
        rewards_micros: Counts | None = None,
        rewards_squared: Floats | None = None,
    ) -> State:
        """Data alone, as a state: differences of the counts, (n_arms,) each.

        Integers, or real numbers where the policy forgets and they have faded.

        Rewards in millionths, their squares in units; without them rewards are binary.
        """
        ...

    def cost_us(self, n_eligible: int) -> float:
        """About how long `probabilities` takes, in microseconds."""
        ...


@runtime_checkable
class ContextualPolicy(Protocol[State, Prepared]):
    """The protocol of a policy whose probabilities depend on a request's features.

    `prepare` does once per snapshot what does not depend on the request; what it returns
    is a NamedTuple of arrays, (n_arms, …) each, that is only read.
    """

    kind: str
    mode: str

    @property
    def n_features(self) -> int:
        """Length of a request's features."""
        ...

    def init(self, n_arms: int) -> State:
        """State before any data."""
        ...

    def update(
        self, state: State, arms: Ints, rewards: Floats, features: Floats
    ) -> State:
        """State after trials: arms, rewards (n_trials,), features (n_trials, n_features)."""
        ...

    def prepare(self, state: State) -> Prepared:
        """What serving needs of a state."""
        ...

    def probabilities(self, prepared: Prepared, eligible: Ints, x: Floats) -> Floats:
        """Probability of each arm of `eligible` competing alone, given x (n_features,)."""
        ...

    def draw(
        self,
        prepared: Prepared,
        eligible: Ints,
        x: Floats,
        u: float,
        min_share: float = 0.0,
    ) -> tuple[int, float, Floats]:
        """Arm, its propensity, and the probability of each eligible arm, (n_eligible,).

        Given x (n_features,), with the floor, and drawn with `u` in [0, 1).
        """
        ...


def with_floor(weights: Floats, min_share: float) -> Floats:
    """Lift every probability to a floor and keep the sum: p = f + (1 - n f) w, (n_arms,).

    f = min(min_share, 0.5 / n), so that at least half of the traffic follows the policy.
    Additive, because clipping and renormalising biases the shares.
    """
    floor = min(min_share, 0.5 / len(weights))
    return floor + (1.0 - len(weights) * floor) * weights


def with_limits(weights: Floats, min_share: float, max_share: float) -> Floats:
    """`with_floor`, then no probability above a cap, (n_arms,).

    The cap is c = max(max_share, 1 / n). Mass above it goes to the others in proportion
    to what they have (evenly where they have nothing), again until none is above: water
    that overflows the fullest glasses. The sum and the floor stay.

    Examples
    --------
    >>> with_limits(np.array([0.7, 0.2, 0.1]), 0.0, 0.5).round(4)
    array([0.5   , 0.3333, 0.1667])
    """
    shares = with_floor(weights, min_share)
    n = len(shares)
    cap = max(max_share, 1.0 / n)
    order = np.argsort(-shares, kind="stable")
    falling = shares[order]
    if falling[0] <= cap:
        return shares
    # With the m largest at the cap, the others share 1 - m c; the least m that fits.
    beyond = np.cumsum(falling[::-1])[::-1]
    for m in range(1, n):
        left = 1.0 - m * cap
        if falling[m] * left <= cap * beyond[m]:
            break
    else:
        return np.full(n, 1.0 / n)
    rest = falling[m:] * (left / beyond[m]) if beyond[m] > 0.0 else left / (n - m)
    limited = np.full(n, cap)
    limited[order[m:]] = rest
    return limited


def cumulative(probabilities: Floats) -> list[float]:
    """Running sums for `choose`; the last positive arm's ends at exactly 1, (n_arms,)."""
    sums = np.cumsum(probabilities)
    sums[np.flatnonzero(probabilities)[-1] :] = 1.0
    told: list[float] = sums.tolist()
    return told


choose: Callable[[Sequence[float], float], int] = bisect_right
"""The arm whose stretch of [0, 1) holds a draw: `choose(cumulative, draw)`.

Parameters: running sums (n_arms,) from `cumulative`; a number in [0, 1). No function of
our own around it, since it is called for every decision.
"""


def grow(state: State, fresh: State) -> State:
    """`fresh` (a state with at least as many arms) with the first arms of `state`."""
    arrays = []
    for old, new in zip(state, fresh, strict=True):
        merged = new.copy()
        merged[: len(old)] = old
        arrays.append(merged)
    return type(fresh)(*arrays)


def checked_rewards(n_arms: int, arms: Ints, rewards: Floats) -> tuple[Ints, Floats]:
    """Arms and rewards of trials as they are counted: (n_trials,) each, in millionths.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    arms = np.asarray(arms)
    if arms.size and arms.dtype.kind not in "iu":
        raise ValueError(f"arms.dtype == {arms.dtype}, must be of integers.")
    arms = np.ascontiguousarray(arms, np.int64)
    rewards = np.ascontiguousarray(rewards, np.float64)
    _check_shape("arms", arms, (arms.size,))
    _check_shape("rewards", rewards, (arms.size,))
    if arms.size and not 0 <= arms.min() <= arms.max() < n_arms:
        raise ValueError(
            f"arms in {arms.min()} … {arms.max()}, must be in 0 … {n_arms - 1}."
        )
    _check_finite("rewards", rewards)
    _check_size("rewards", rewards)
    return arms, rewards


def checked_trials(
    n_arms: int, n_features: int, arms: Ints, rewards: Floats, features: Floats
) -> tuple[Ints, Floats, Floats]:
    """`checked_rewards`, and features as kernels take them: (n_trials, n_features), finite.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    arms, rewards = checked_rewards(n_arms, arms, rewards)
    features = np.ascontiguousarray(features, np.float64)
    _check_shape("features", features, (arms.size, n_features))
    _check_finite("features", features)
    return arms, rewards, features


def checked_weights(weights: Floats | None, n_trials: int) -> Floats:
    """How much trials count, (n_trials,), finite; 1 each where it is not said.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    if weights is None:
        return np.ones(n_trials)
    weights = np.ascontiguousarray(weights, np.float64)
    _check_shape("weights", weights, (n_trials,))
    _check_finite("weights", weights)
    return weights


def counting_weights(weights: Floats | None, n_trials: int) -> Floats | None:
    """`checked_weights`, (n_trials,), none below 0; None where it is not said.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    if weights is None:
        return None
    weights = checked_weights(weights, n_trials)
    if weights.size and weights.min() < 0.0:
        raise ValueError(f"weights has {weights.min():g} in it, must be >= 0.")
    return weights


def _check_shape(name: str, given: NDArray[Any], shape: tuple[int, ...]) -> None:
    if given.shape != shape:
        raise ValueError(f"{name}.shape == {given.shape}, must be {shape}.")


def _check_finite(name: str, given: Floats) -> None:
    if not np.isfinite(given).all():
        raise ValueError(f"{name} has nan or inf in it, must be finite.")


def _check_size(name: str, given: Floats) -> None:
    largest = np.abs(given).max(initial=0.0)
    if largest >= END / 1e6:
        rule = f"must be below {END / 1e6:.1e} either way"
        raise ValueError(f"{name} has one of {largest:g} in it, {rule}.")


def take(state: State, arms: Ints) -> State:
    """The state of some arms alone, in their order: (n,) of its (n_arms,)."""
    return type(state)(*(array[arms] for array in state))


def prior_arrays(
    n_arms: int, default: tuple[float, ...], own: Sequence[tuple[float, ...] | None]
) -> list[Floats]:
    """An array (n_arms,) for each parameter: the default, or an arm's own prior."""
    arrays = [np.full(n_arms, value) for value in default]
    for arm, parameters in enumerate(own[:n_arms]):
        if parameters is not None:
            for array, value in zip(arrays, parameters, strict=True):
                array[arm] = value
    return arrays


def no_counts(n_arms: int, half_life_s: float | None) -> Counts:
    """Zeros, (n_arms,): integers, or real numbers where counts will shrink."""
    return np.zeros(n_arms, dtype=np.int64 if half_life_s is None else np.float64)


def count(arms: Ints, n_arms: int, weights: Floats | None = None) -> Counts:
    """How often each arm occurs in (n_trials,), or the sum of its weights: (n_arms,)."""
    return np.bincount(arms, weights, minlength=n_arms)


def corrected(counts: Counts, changes: Counts) -> Counts:
    """Counts and their changes, (n_arms,), never below 0.

    What has faded is taken back to within rounding, which must not leave less than none.
    """
    total: Counts = np.maximum(counts + changes, 0)
    return total


def count_micros(
    arms: Ints, n_arms: int, rewards: Floats, weights: Floats | None = None
) -> Counts:
    """Sum of each arm's rewards in millionths, (n_arms,): exact without weights.

    Raises
    ------
    SumTooLargeError
        When an exact sum does not fit.
    """
    micros = np.rint(rewards * 1e6)
    if weights is not None:
        return np.bincount(arms, weights * micros, minlength=n_arms)
    return sum_by(arms, micros.astype(np.int64), n_arms)
