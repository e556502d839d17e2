"""What off-policy evaluation knows of a log: trials, and the situations they were made in.

A *situation* is what is known before a draw: the features of the context, and which arms
could be drawn. Targets and reward models depend on the situation alone, so both are
tables with a row a situation; without context there are few.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bandolero.evaluate.intervals import Floats, Ints, groups_of

Bools = NDArray[np.bool_]
SMALLEST_PROPENSITY = 1e-12
SUM_ROUNDING = 1e-4
"""Probabilities that were written in single precision add up to 1 within this."""


@dataclass(frozen=True)
class Situations:
    """What was known before a draw, n_situations times.

    Parameters
    ----------
    features
        (n_situations, n_features), the first of which is 1.
    possible
        (n_situations, n_arms): whether the log could draw the arm there.
    levels
        For each categorical field of the context, the number of its level, (n_situations,).
    """

    features: Floats
    possible: Bools
    levels: Mapping[str, Ints] = field(default_factory=dict)

    @classmethod
    def alike(cls, n_arms: int) -> "Situations":
        """One situation without context, in which every arm can be drawn."""
        return cls(np.ones((1, 1)), np.ones((1, n_arms), np.bool_))

    @property
    def n_arms(self) -> int:
        """How many arms there are."""
        return int(self.possible.shape[1])

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Trials:
    """Logged trials, n of them, in any order.

    Parameters
    ----------
    arms
        (n_trials,), what was drawn; -1 for a variant that is no arm: it has no part in
        any target.
    rewards, propensities
        (n_trials,); propensities in (0, 1], of the drawn arm given the mode.
    situation
        (n_trials,), rows of `situations`.
    clusters
        (n_trials,), numbers 0, 1, … of who hangs together: units where draws are sticky;
        None where every trial was drawn by itself.
    reward_max
        The largest reward there can be, where there is one, and the smallest is 0.

    Raises
    ------
    ValueError
        When shapes do not fit, or numbers are out of range.
    """

    arms: Ints
    rewards: Floats
    propensities: Floats
    situation: Ints
    situations: Situations
    clusters: Ints | None = None
    reward_max: float | None = None

    def __post_init__(self) -> None:
        n, high = len(self.arms), self.reward_max
        checked_column("rewards", self.rewards, n)
        checked_column("propensities", self.propensities, n, SMALLEST_PROPENSITY, 1.0)
        checked_column("arms", self.arms, n, -1, self.situations.n_arms - 1)
        checked_column("situation", self.situation, n, 0, len(self.situations) - 1)
        if high is not None:
            checked_column("rewards", self.rewards, n, 0.0, high)
        if self.clusters is not None:
            checked_column("clusters", self.clusters, n, 0)

    def __len__(self) -> int:
        return len(self.arms)

    @cached_property
    def group(self) -> Ints:
        """The group of each trial for the bootstrap, (n_trials,)."""
        return groups_of(len(self), self.clusters)

    @cached_property
    def per_situation(self) -> Ints:
        """How many trials each situation has, (n_situations,)."""
        return np.bincount(self.situation, minlength=len(self.situations))


def checked_target(target: Floats, situations: Situations) -> Floats:
    """A target's probabilities, (n_situations, n_arms), rows that add up to 1.

    (n_arms,) is the same in every situation.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    shape = (len(situations), situations.n_arms)
    given = np.broadcast_to(np.asarray(target, np.float64), shape)
    if not np.isfinite(given).all() or given.min(initial=0.0) < 0.0:
        raise ValueError("target has numbers in it that are none, must be >= 0.")
    off = float(np.abs(given.sum(axis=1) - 1.0).max(initial=0.0))
    if off > SUM_ROUNDING:
        raise ValueError(f"target has a row that adds up to 1 ± {off:g}, must be 1.")
    return np.ascontiguousarray(given)


def checked_column(
    name: str,
    given: NDArray[np.generic],
    n: int,
    low: float = -np.inf,
    high: float = np.inf,
) -> Floats:
    """A column of a log as it is computed with: (n,), finite, in [low, high].

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
    if n and column.max() > high:
        raise ValueError(f"{name} has {column.max():g} in it, must be <= {high:g}.")
    return column
