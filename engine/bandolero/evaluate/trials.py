"""What off-policy evaluation knows of a log: trials, and the situations they were made in.

A *situation* is what is known before a draw: the features of the context, and which arms
could be drawn. Targets and reward models depend on the situation alone, so both are
tables with a row a situation; without context there are few.
"""

from collections.abc import Mapping, Sequence
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
    arm_names
        What the arms are called; by their number where there is none.

    Raises
    ------
    ValueError
        When shapes do not fit, or features are no numbers.
    """

    features: Floats
    possible: Bools
    levels: Mapping[str, Ints] = field(default_factory=dict)
    arm_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if np.ndim(self.features) != 2 or np.ndim(self.possible) != 2:
            raise ValueError("features and possible must be tables: a row a situation.")
        n, n_features = np.shape(self.features)
        flat = checked_column("features", np.ravel(self.features), n * n_features)
        features = flat.reshape(n, n_features)
        if not (features[:, :1] == 1.0).all() or not n_features:
            raise ValueError("features must begin with 1 in every situation.")
        if len(self.possible) != n:
            raise ValueError(f"possible has {len(self.possible)} rows, must have {n}.")
        levels = {
            name: checked_numbers(f"levels[{name!r}]", level, n, 0)
            for name, level in self.levels.items()
        }
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "possible", np.asarray(self.possible, np.bool_))
        object.__setattr__(self, "levels", levels)

    @classmethod
    def alike(cls, n_arms: int) -> "Situations":
        """One situation without context, in which every arm can be drawn."""
        return cls(np.ones((1, 1)), np.ones((1, n_arms), np.bool_))

    @property
    def n_arms(self) -> int:
        """How many arms there are."""
        return int(self.possible.shape[1])

    def name_of(self, arm: int) -> str:
        """What an arm is called."""
        return self.arm_names[arm] if self.arm_names else f"arm {arm}"

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
        (n_trials,), a number >= 0 of who hangs together: units where draws are sticky;
        None where every trial was drawn by itself. Kept as 0, 1, … without gaps.
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
        n, high = np.size(self.arms), self.reward_max
        low, most = (-np.inf, np.inf) if high is None else (0.0, high)
        columns: dict[str, Floats | Ints] = {
            "arms": checked_numbers(
                "arms", self.arms, n, -1, self.situations.n_arms - 1
            ),
            "rewards": checked_column("rewards", self.rewards, n, low, most),
            "propensities": checked_column(
                "propensities", self.propensities, n, SMALLEST_PROPENSITY, 1.0
            ),
            "situation": checked_numbers(
                "situation", self.situation, n, 0, len(self.situations) - 1
            ),
        }
        if self.clusters is not None:
            given = checked_numbers("clusters", self.clusters, n, 0)
            columns["clusters"] = _without_gaps(given)
        for name, column in columns.items():
            object.__setattr__(self, name, column)

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
    n, k = shape = len(situations), situations.n_arms
    given = np.asarray(target, np.float64)
    if given.shape not in (shape, (1, k), (k,)):
        raise ValueError(
            f"target.shape == {given.shape}, must be ({n}, {k}) or ({k},)."
        )
    given = np.broadcast_to(given, shape)
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


def checked_numbers(
    name: str, given: NDArray[np.generic], n: int, low: float, high: float = np.inf
) -> Ints:
    """The same of whole numbers.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    column = np.asarray(given)
    if column.size and column.dtype.kind not in "iu":
        raise ValueError(f"{name}.dtype == {column.dtype}, must be of integers.")
    checked_column(name, column, n, low, high)
    return np.ascontiguousarray(column, np.int64)


def _without_gaps(clusters: Ints) -> Ints:
    """Clusters numbered 0, 1, … in their order."""
    if clusters.max(initial=-1) < len(clusters) and np.bincount(clusters).all():
        return clusters
    return np.unique(clusters, return_inverse=True)[1].astype(np.int64, copy=False)
