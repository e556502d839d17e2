"""What one policy would have earned more than another, from the same log, paired."""

from typing import NamedTuple

import numpy as np

from bandolero.evaluate.intervals import (
    Bootstrap,
    Floats,
    Interval,
    Ints,
    groups_of,
    sums_by,
)
from bandolero.evaluate.support import NotEnoughSupport, weight_reasons, weights_of
from bandolero.evaluate.trials import SMALLEST_PROPENSITY, checked_column


class Difference(NamedTuple):
    """Values per trial of two policies, and the new one's gain over the old one's.

    gain
        new - old, with its bootstrap interval.
    lift
        gain / old, with its bootstrap interval; nan where the old value can be 0.
    """

    old: float
    new: float
    gain: float
    gain_interval: Interval
    lift: float
    lift_interval: Interval


def difference(
    rewards: Floats,
    propensities: Floats,
    new: Floats,
    old: Floats,
    clusters: Ints | None = None,
) -> Difference | NotEnoughSupport:
    """How much better a new policy is than an old one, by a log of either or neither.

    Doubly robust with the log's mean reward for a model: the gain is the mean of
    (w_new - w_old) (r - mean r), w a policy's probability of the logged variant over its
    propensity. Both policies are weighed on the same trials, so what they agree on
    cancels; nothing changes when a constant is added to all rewards.

    Parameters
    ----------
    rewards, propensities
        (n_trials,), of the logged variants; propensities in (0, 1].
    new, old
        (n_trials,), each policy's probability of the logged variant.
    clusters
        Numbers 0, 1, … of who hangs together, (n_trials,): units where draws are sticky;
        None where every trial was drawn by itself.

    Raises
    ------
    ValueError
        When shapes do not fit, or numbers are out of range.

    References
    ----------
    Dudík, Langford & Li (2011), Doubly Robust Policy Evaluation and Learning.

    Examples
    --------
    >>> arms, rewards = np.arange(8000) % 2, np.arange(8000) % 5 == 0
    >>> old, new = np.full(8000, 0.5), np.where(arms == 1, 0.8, 0.2)
    >>> found = difference(rewards.astype(float), old, new, old)
    >>> round(found.old, 3), found.gain_interval.low < 0.0 < found.gain_interval.high
    (0.2, True)
    """
    n = len(rewards)
    rewards = checked_column("rewards", rewards, n)
    e = checked_column("propensities", propensities, n, SMALLEST_PROPENSITY, 1.0)
    w_new = checked_column("new", new, n, 0.0, 1.0) / e
    w_old = checked_column("old", old, n, 0.0, 1.0) / e
    reasons = [
        reason
        for name, w in (("the new policy", w_new), ("the old policy", w_old))
        for reason in weight_reasons(weights_of(w, rewards, clusters), name)
    ]
    if reasons:
        return NotEnoughSupport(tuple(reasons))
    return _difference(rewards, w_new, w_old, groups_of(n, clusters))


def _difference(
    rewards: Floats, w_new: Floats, w_old: Floats, group: Ints
) -> Difference:
    """The difference where weights, (n_trials,) each, are fit to be used."""
    base = float(rewards.mean())
    residual = rewards - base
    old_terms = w_old * residual + base
    sums = sums_by(group, (w_new - w_old) * residual, old_terms, np.ones(len(rewards)))
    gain, old = (float(x) / len(rewards) for x in sums[:, :2].sum(axis=0))
    bootstrap = Bootstrap(sums)
    return Difference(
        old=old,
        new=old + gain,
        gain=gain,
        gain_interval=bootstrap.interval(0, 2),
        lift=gain / old if old else float("nan"),
        lift_interval=bootstrap.interval(0, 1),
    )
