"""Epochs: the rollups of an experiment, small enough to make a report from in no time.

An epoch is a stretch of decisions of one day and mode drawn with the same probabilities;
its counts per variant are all that a report needs. Where every decision had probabilities
of its own, because they depend on its context, an epoch is a day and mode, and `MOMENTS`
keep what the probabilities said.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from bandolero.micros import added
from bandolero.policies.base import Floats, Ints

DAY_MS = 86_400_000
MOMENTS = (
    "expected",
    "variance",
    "weights",
    "weights_squared",
    "weighted_rewards",
    "squared_weighted_rewards",
    "squared_weighted_squares",
)
"""Sums by variant that stand in for constant probabilities; 1 / propensity is a weight w.

expected, variance: of p and p (1 - p) over decisions, p the variant's probability. The
others over its own trials with rewards r in units: of w, w^2, w r, w^2 r, w^2 r^2.
"""


class Epoch(NamedTuple):
    """Counts of a stretch of decisions: one rollup row per variant.

    day: days since 1970 (UTC) of the decisions. versions: first and last snapshot.
    probabilities: (n_arms,) of every arm given the mode; nan where not known, or not
    constant. The counts: (n_arms,), int64; rewards in millionths, and squared rewards in
    units (float64). moments: `MOMENTS`, (len(MOMENTS), n_arms); None where probabilities
    are constant, since they follow from the counts there, or not known.
    """

    day: int
    mode: str
    versions: tuple[int, int]
    probabilities: Floats
    decisions: Ints
    trials: Ints
    impressions: Ints
    rewards_micros: Ints
    rewards_squared: Floats
    moments: Floats | None = None

    @property
    def is_known(self) -> bool:
        """Whether the decisions' probabilities are, constant or not."""
        return self.moments is not None or not np.isnan(self.probabilities).any()


Epochs = dict[str, Epoch]
Vectors = Mapping[int, Floats]


def empty_epoch(day: int, mode: str, version: int, probabilities: Floats) -> Epoch:
    """An epoch without decisions."""
    n_arms = len(probabilities)
    none = np.zeros(n_arms, np.int64)
    versions, squares = (version, version), np.zeros(n_arms)
    return Epoch(day, mode, versions, probabilities, none, none, none, none, squares)


def merge(one: Epoch, other: Epoch) -> Epoch:
    """The sum of two stretches of the same probabilities, day and mode.

    Raises
    ------
    SumTooLargeError
        When a variant's rewards add up to more than an int64 holds.
    """
    versions = (
        min(one.versions[0], other.versions[0]),
        max(one.versions[1], other.versions[1]),
    )
    n_arms = max(len(one.decisions), len(other.decisions))
    one, other = padded(one, n_arms), padded(other, n_arms)
    moments = one.moments
    if moments is not None and other.moments is not None:
        moments = moments + other.moments
    return one._replace(
        versions=versions,
        decisions=one.decisions + other.decisions,
        trials=one.trials + other.trials,
        impressions=one.impressions + other.impressions,
        rewards_micros=added(one.rewards_micros, other.rewards_micros),
        rewards_squared=one.rewards_squared + other.rewards_squared,
        moments=moments,
    )


def padded(epoch: Epoch, n_arms: int) -> Epoch:
    """The epoch with zeros for variants that came later, arrays (n_arms,).

    Where no probability is known, those of later variants are not either.
    """
    missing = (0, n_arms - len(epoch.decisions))
    unknown = np.isnan(epoch.probabilities).any()
    none = np.nan if unknown else 0.0
    moments = epoch.moments
    return epoch._replace(
        probabilities=np.pad(epoch.probabilities, missing, constant_values=none),
        decisions=np.pad(epoch.decisions, missing),
        trials=np.pad(epoch.trials, missing),
        impressions=np.pad(epoch.impressions, missing),
        rewards_micros=np.pad(epoch.rewards_micros, missing),
        rewards_squared=np.pad(epoch.rewards_squared, missing),
        moments=None if moments is None else np.pad(moments, ((0, 0), missing)),
    )


def epoch_key(epoch: Epoch) -> str:
    """What makes two stretches the same epoch: day, mode, probabilities."""
    shares = np.trim_zeros(epoch.probabilities, "b").tobytes()
    if epoch.moments is not None:
        shares = b"by context"
    elif not epoch.is_known:
        shares = b"unknown"
    name = f"{epoch.day}|{epoch.mode}|".encode() + shares
    return blake2b(name, digest_size=12).hexdigest()


def moments_of(epoch: Epoch) -> Floats:
    """`MOMENTS` of an epoch whose probabilities are known, (len(MOMENTS), n_arms)."""
    if epoch.moments is not None:
        return epoch.moments
    p, n = epoch.probabilities, epoch.decisions.sum()
    weight = np.divide(1.0, p, out=np.zeros_like(p), where=p > 0.0)
    rewards = epoch.rewards_micros / 1e6
    return np.stack(
        (
            n * p,
            n * p * (1.0 - p),
            weight * epoch.trials,
            weight**2 * epoch.trials,
            weight * rewards,
            weight**2 * rewards,
            weight**2 * epoch.rewards_squared,
        )
    )


def earned_moments(arms: Ints, weights: Floats, rewards: Floats, n_arms: int) -> Floats:
    """The last five of `MOMENTS`, of trials (n_trials,) each, (5, n_arms)."""
    earned = weights * rewards
    values = (weights, weights**2, earned, weights * earned, earned**2)
    sums = [np.bincount(arms, each, minlength=n_arms) for each in values]
    return np.array(sums, np.float64)
