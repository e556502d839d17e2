"""`choose` for many decisions at once: simulations, replays, off-policy checks.

A guide table makes a draw O(1): [0, 1) is cut into equal bins, and the table holds where
the walk along the running sums begins for a draw of each bin. With twice as many bins as
arms the walk takes half a step on average, whatever the probabilities.

References
----------
Chen & Asau (1974), On Generating Random Variates from an Empirical Distribution. Devroye
(1986), Non-Uniform Random Variate Generation, chapter III: the method of guide tables.
"""

from typing import NamedTuple

import numpy as np

from bandolero._jit import kernel
from bandolero.policies.base import Floats, Ints, cumulative


class Chosen(NamedTuple):
    """Arms, and the propensities they were drawn with, (n_decisions,) each."""

    arms: Ints
    propensities: Floats


def choose_batch(probabilities: Floats, draws: Floats) -> Chosen:
    """As many `choose`s as there are draws; the same arms as one by one.

    Parameters
    ----------
    probabilities
        (n_arms,), of sum 1; zero where an arm may not be drawn.
    draws
        (n_decisions,), in [0, 1).

    Raises
    ------
    ValueError
        When draws are not one row of numbers in [0, 1).

    Examples
    --------
    >>> chosen = choose_batch(np.array([0.2, 0.0, 0.8]), np.array([0.1, 0.2, 0.9]))
    >>> chosen.arms, chosen.propensities
    (array([0, 2, 2]), array([0.2, 0.8, 0.8]))
    """
    draws = np.ascontiguousarray(draws, np.float64)
    if draws.ndim != 1:
        raise ValueError(f"draws.shape == {draws.shape}, must be (n_decisions,).")
    if draws.size and not (draws.min() >= 0.0 and draws.max() < 1.0):
        raise ValueError(f"draws in {draws.min()} … {draws.max()}, must be in [0, 1).")
    shares = np.array(probabilities, np.float64)
    sums = np.array(cumulative(shares))
    # A power of two, so that u * n_bins is exact and no draw lands in the wrong bin.
    n_bins = 2 ** (2 * len(sums) - 1).bit_length()
    guide = np.searchsorted(sums, np.arange(n_bins) / n_bins, side="right")
    return Chosen(*_walk(sums, shares, guide, draws))


@kernel
def _walk(
    sums: Floats, shares: Floats, guide: Ints, draws: Floats
) -> tuple[Ints, Floats]:
    """The first arm of each draw's bin, then on while its stretch ends at or before it."""
    arms, propensities = np.empty(draws.size, np.int64), np.empty(draws.size)
    for i in range(draws.size):
        arm = guide[int(draws[i] * guide.size)]
        while sums[arm] <= draws[i]:
            arm += 1
        arms[i], propensities[i] = arm, shares[arm]
    return arms, propensities
