"""Rewards in whole millionths: what one event may be worth, and sums that never wrap.

Sums are int64, so that they are the same in any order and on any engine. Where one would
not fit, that is an error: numpy would go on from the other end in silence.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Sums = TypeVar("Sums", bound=NDArray[Any])

MAX_MICROS = 10**15
"""What one event may be worth: 10^9 units, of which it takes 9,223 to fill an int64."""
END = 2**63
"""The first that an int64 cannot hold."""


class SumTooLargeError(OverflowError):
    """A sum of millionths does not fit an int64; `at` is the place of the first such."""

    def __init__(self, at: int) -> None:
        super().__init__(
            f"rewards add up to more than {END / 1e6:.1e} either way,"
            " must fit an int64 of millionths."
        )
        self.at = at


def sum_by(row: Ints, micros: Ints, n: int) -> Ints:
    """Sum of millionths (n_values,) by row, (n,).

    Raises
    ------
    SumTooLargeError
        When a sum does not fit.
    """
    total = np.zeros(n, np.int64)
    np.add.at(total, row, micros)
    if len(micros):
        largest = max(int(micros.max()), -int(micros.min()))
        if largest * len(micros) >= END:
            roughly = np.bincount(row, micros.astype(np.float64), minlength=n)
            _refuse(_wrapped(total, roughly.astype(np.float64)))
    return total


def added(one: Sums, other: Sums) -> Sums:
    """The sum of two sums of millionths, (n,) each; of real numbers where data fade.

    Raises
    ------
    SumTooLargeError
        When a sum does not fit.
    """
    total: Sums = one + other
    if total.dtype.kind == "i":
        _refuse((one ^ total) & (other ^ total) < 0)  # a sign that neither of them has
    return total


def units(parts: Sequence[Ints], n: int) -> Floats:
    """Sums of millionths, (n,) each, together and in units, (n,), however large."""
    total, roughly = np.zeros(n, np.int64), np.zeros(n)
    for part in parts:
        total, roughly = total + part, roughly + part
    return np.where(_wrapped(total, roughly), roughly, total) / 1e6


@contextmanager
def named(name_of: Callable[[int], str]) -> Iterator[None]:
    """Say of a sum that is too large whose it is."""
    try:
        yield
    except SumTooLargeError as error:
        raise OverflowError(f"{name_of(error.at)}: {error}") from None


def _refuse(wrapped: Bools) -> None:
    if wrapped.any():
        raise SumTooLargeError(int(np.argmax(wrapped)))


def _wrapped(total: Ints, roughly: Floats) -> Bools:
    """Which sums are off by 2^64 or more from the same in real numbers, (n,)."""
    return np.abs(roughly - total) >= END
