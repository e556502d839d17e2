"""How sure an off-policy value is: a bootstrap of sums, and a bound that always holds.

Trials that hang together (those of one unit where draws are sticky) form a *cluster*;
clusters are independent. They are dealt in turn into at most `MAX_GROUPS` groups, and all
a bootstrap needs is each group's sums: a sum of independent clusters has the variance and
the third moment of its parts added up, so the intervals are those of a bootstrap over
clusters, at a cost that does not grow with the log.

References
----------
Efron (1987), Better Bootstrap Confidence Intervals: bias-corrected and accelerated.
Maurer & Pontil (2009), Empirical Bernstein Bounds and Sample-Variance Penalization,
theorem 4.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_GROUPS = 2000
"""A standard error from so many groups is itself known to 1 / sqrt(2 * 2000) = 1.6 %."""
N_REPLICATES = 2000
CONFIDENCE = 0.95
ROUNDING = 1e-12
_SEED = 20_090


class Interval(NamedTuple):
    """Bounds that hold the truth with probability `CONFIDENCE`."""

    low: float
    high: float


def groups_of(n_trials: int, clusters: Ints | None) -> Ints:
    """The group of each trial, (n_trials,).

    Parameters
    ----------
    clusters
        Numbers 0, 1, … of the clusters, (n_trials,); None where each trial is its own.
    """
    if clusters is None:
        clusters = np.arange(n_trials)
    return clusters % MAX_GROUPS


def sums_of(values: Floats, clusters: Ints | None) -> Floats:
    """Sum of values (n_trials,) by cluster, (n_clusters,); clusters as in `groups_of`."""
    if clusters is None:
        return values
    return np.bincount(clusters, values).astype(np.float64, copy=False)


def sums_by(group: Ints, *values: Floats) -> Floats:
    """Sum of each array (n_trials,) by group, (n_groups, n_arrays)."""
    n = int(group.max(initial=-1)) + 1
    return np.stack([np.bincount(group, v, minlength=n) for v in values], axis=1)


class Bootstrap:
    """Intervals of ratios of sums, all from the same replicates, hence comparable.

    Parameters
    ----------
    sums
        (n_groups, n_columns), of each group. A replicate draws as many groups as there
        are, with replacement.
    """

    def __init__(self, sums: Floats) -> None:
        total = sums.sum(axis=0)
        # The sums themselves; those without each group; those of each replicate.
        self._rows = np.vstack((total, total - sums, _counts(len(sums)) @ sums))
        self._n_groups = len(sums)

    def interval(
        self, above: int, below: int, to: tuple[int, int] | None = None
    ) -> Interval:
        """BCa interval of column `above` over `below`, and that over another ratio.

        nan where a lower sum can be 0: so few trials say nothing.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self._rows[:, above] / self._rows[:, below]
            if to is not None:
                ratios /= self._rows[:, to[0]] / self._rows[:, to[1]]
        if not np.isfinite(ratios).all():
            return Interval(math.nan, math.nan)
        without, replicates = np.split(ratios[1:], [self._n_groups])
        return _bca(float(ratios[0]), replicates, without.mean() - without)


@lru_cache(maxsize=1)
def _counts(n_groups: int) -> Floats:
    """How often each replicate holds each group, (N_REPLICATES, n_groups)."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.integers(n_groups, size=(N_REPLICATES, n_groups))
    drawn += np.arange(N_REPLICATES)[:, None] * n_groups
    counts = np.bincount(drawn.ravel(), minlength=drawn.size)
    return counts.reshape(drawn.shape).astype(np.float64)


def _bca(value: float, replicates: Floats, influence: Floats) -> Interval:
    """Quantiles of the replicates, moved for their bias and skewness."""
    squares = float(np.sum(influence**2))
    if squares <= (ROUNDING * value) ** 2:
        return Interval(value, value)
    acceleration = float(np.sum(influence**3)) / (6.0 * squares**1.5)
    below = np.mean(replicates < value) + 0.5 * np.mean(replicates == value)
    bias = ndtri(np.clip(below, 0.5 / N_REPLICATES, 1.0 - 0.5 / N_REPLICATES))
    tails = ndtri(np.array([0.5 - 0.5 * CONFIDENCE, 0.5 + 0.5 * CONFIDENCE])) + bias
    shares = ndtr(bias + tails / (1.0 - acceleration * tails))
    low, high = np.quantile(replicates, shares)
    return Interval(float(low), float(high))


def bernstein(total: Floats, n_trials: int, width: float) -> Interval:
    """Empirical Bernstein interval of sum(total) / n_trials: no sample is too small.

    Parameters
    ----------
    total
        (n_clusters,), each cluster's sum; independent given how many trials it has.
    width
        How far two such sums can lie apart at most.
    """
    n = len(total)
    mean = float(total.sum()) / n_trials
    if n < 2:
        return Interval(-math.inf, math.inf)
    log_term = math.log(4.0 / (1.0 - CONFIDENCE))
    spread = math.sqrt(2.0 * float(total.var(ddof=1)) * log_term / n)
    half = (spread + 7.0 * width * log_term / (3.0 * (n - 1))) * n / n_trials
    return Interval(mean - half, mean + half)
