"""Whether a log can say anything of a target policy: weights, and limits on them.

A weight is the target's probability of the logged variant over its propensity. Where few
trials carry all the weight, an estimate is a number all the same, and a wrong one; below
the limits here the answer is that there is not enough support.

References
----------
Kong (1992), A Note on Importance Sampling using Standardized Weights: effective size.
"""

import math
from typing import NamedTuple

import numpy as np

from bandolero.evaluate.intervals import Floats, Ints, sums_of

EFFECTIVE_MIN = 100.0
"""Fewer trials, so weighted, are worth less than a hundred of the target's own: a rate of
10 % would be known to 6 points at best, and intervals rest on the normal law."""
LARGEST_SHARE_MAX = 0.05
"""A single trial with more of all weight than this moves the value by as much."""
REWARDED_MIN = 10
"""Fewer rewarded trials with weight cannot tell a rate from half or twice of it."""
WEIGHT_MEAN_OFF = 0.01
"""Weights average 1 where propensities are right and every variant of the target could be
shown. Being off by more, and by more than chance, makes the value off by as much."""
CHANCE = 4.0
"""Standard errors that chance exceeds six times in 100,000 (two-sided)."""


class Weights(NamedTuple):
    """What the weights of a log say of its use for a target.

    effective
        Trials of the target's own that the weighted ones are worth: (sum w)^2 / sum w^2,
        where w is a trial's weight, or the sum of a cluster's.
    largest
        The largest weight; largest_share: its part of the sum.
    mean, error
        Mean weight, 1 where all is well, and its standard error.
    rewarded
        Rewarded trials with weight; rewards_effective: (sum w r)^2 / sum (w r)^2.
    """

    effective: float
    largest: float
    largest_share: float
    mean: float
    error: float
    rewarded: int
    rewards_effective: float


class NotEnoughSupport(NamedTuple):
    """The answer where a log says too little of a target; why, a sentence each."""

    reasons: tuple[str, ...]


def describe(weights: Floats, rewards: Floats, clusters: Ints | None) -> Weights:
    """Diagnostics of weights and rewards, (n_trials,); clusters as in `groups_of`."""
    n, total = max(len(weights), 1), float(weights.sum())
    largest = float(weights.max(initial=0.0))
    earned = weights * rewards
    mean = total / n
    return Weights(
        effective=_effective(sums_of(weights, clusters)),
        largest=largest,
        largest_share=largest / total if total > 0.0 else 1.0,
        mean=mean,
        error=float(np.linalg.norm(sums_of(weights - mean, clusters))) / n,
        rewarded=int(np.count_nonzero(earned)),
        rewards_effective=_effective(sums_of(earned, clusters)),
    )


def reasons_against(found: Weights, target: str = "the target") -> tuple[str, ...]:
    """Which limits the weights break, a sentence each; none where they support it."""
    reasons = []
    if found.effective < EFFECTIVE_MIN:
        rule = f"must be >= {EFFECTIVE_MIN:g}"
        reasons.append(
            f"effective trials of {target} == {found.effective:.1f}, {rule}."
        )
    if found.largest_share > LARGEST_SHARE_MAX:
        rule = f"must be <= {LARGEST_SHARE_MAX:.0%}"
        reasons.append(
            f"one trial has {found.largest_share:.1%} of the weight of {target}, {rule}."
        )
    if found.rewarded < REWARDED_MIN:
        rule = f"must be >= {REWARDED_MIN}"
        reasons.append(f"rewarded trials of {target} == {found.rewarded}, {rule}.")
    off = abs(found.mean - 1.0)
    if off > WEIGHT_MEAN_OFF and off > CHANCE * found.error:
        rule = "must be 1 but for chance: propensities are wrong, or variants missing"
        reasons.append(f"mean weight of {target} == {found.mean:.4f}, {rule}.")
    return tuple(reasons)


def _effective(weights: Floats) -> float:
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0.0 else 0.0


def checked_column(name: str, given: Floats, n: int, low: float = -math.inf) -> Floats:
    """A column of a log as it is computed with: (n,), finite, each >= `low`.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    column = np.ascontiguousarray(given, np.float64)
    if column.shape != (n,):
        raise ValueError(f"{name}.shape == {column.shape}, must be ({n},).")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} has nan or inf in it, must be finite.")
    if n and column.min() < low:
        raise ValueError(f"{name} has {column.min():g} in it, must be >= {low:g}.")
    return column
