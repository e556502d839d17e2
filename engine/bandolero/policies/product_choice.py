"""The best combination of attribute values in each of many draws of their weights.

A combination v is worth sum_a values[v_a] + sum_{a<b} pairs[v_a, v_b], with the weights
of values multiplied by a request's features. Products of at most `EXACT_MAX` combinations
are tried out. Larger ones are climbed, one value at a time, from several starts, one of
them the best without context. Of 6 attributes with 10 values each and 8 features, 61 to
95 % of the draws got their very best so, by context, and 0.1 to 1.8 % of what it is worth
was lost on average (`python -m benchmarks.factorial`).

References
----------
Hill et al. (2017), An Efficient Bandit Algorithm for Realtime Multivariate Optimization:
hill climbing with restarts.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandolero._jit import kernel
from bandolero.policies.base import Floats, Ints

EXACT_MAX = 512
"""Products up to so large are tried out, for each of the draws."""
STARTS_WITHOUT_CONTEXT = 32
STARTS = 4
"""Starts of the ascent per draw: at preparation, and at a request."""
MAX_STEPS = 10_000
Floats32 = NDArray[np.float32]
Bools = NDArray[np.bool_]


class ProductPrepared(NamedTuple):
    """Draws of the weights; what all combinations share does not matter for the best.

    values
        (n_draws, n_features, n_values in all).
    pairs
        (n_draws, n_values in all, n_values in all), symmetric.
    first
        (n_attributes + 1,), where each attribute's values begin; int64.
    starts
        (STARTS_WITHOUT_CONTEXT, n_attributes), values to begin the ascent from; int64.
    best
        (n_draws, n_attributes), best combination of each draw at x = (1, 0, …); int64.
    """

    values: Floats32
    pairs: Floats32
    first: Ints
    starts: Ints
    best: Ints


def best(
    prepared: ProductPrepared,
    x: Floats,
    allowed: Bools,
    n_starts: int = STARTS,
    exact_max: int = EXACT_MAX,
) -> Ints:
    """Best combination of allowed values of each draw, (n_draws, n_attributes).

    Safe to call from any thread: nothing is shared but arrays that are only read.

    Parameters
    ----------
    x
        (n_features,), finite.
    allowed
        (n_values in all,); some value of each attribute.
    n_starts
        At most one more than there are `starts`.
    exact_max
        At most so many combinations are tried out.
    """
    return _best(prepared, x, allowed, n_starts, exact_max)


def share_of(best: Ints, combination: Ints) -> float:
    """Share of the draws, best (n_draws, n_attributes), that are `combination`."""
    return _count(best, combination) / len(best)


@kernel
def _count(best: Ints, combination: Ints) -> int:
    """How many rows of `best` are `combination`."""
    count = 0
    for row in best:
        alike = True
        for a in range(combination.size):
            if row[a] != combination[a]:
                alike = False
                break
        if alike:
            count += 1
    return count


# --- deciding -----------------------------------------------------------------
# A combination's value is sum_a values[v_a] + sum_{a<b} pairs[v_a, v_b]. Its gains are
# what each value would add to the rest: values[w] + sum_{b != a} pairs[w, v_b] for w of
# attribute a. Pairs of values of one attribute are 0, so all gains together are
# values + sum_a pairs[v_a], and a change of one value changes them by two rows.


@kernel
def _gains(values: Any, pairs: Any, first: Ints, combination: Ints, gains: Any) -> None:
    """Write the gains of a combination, (n_values in all,)."""
    gains[:] = values
    for a in range(combination.size):
        at = first[a] + combination[a]
        for w in range(gains.size):
            gains[w] += pairs[at, w]


@kernel
def _value(values: Any, gains: Any, first: Ints, combination: Ints) -> float:
    """Value of a combination: half of its gains and its values' weights."""
    total = 0.0
    for a in range(combination.size):
        at = first[a] + combination[a]
        total += 0.5 * (gains[at] + values[at])
    return total


@kernel
def _climb(
    values: Any, pairs: Any, first: Ints, combination: Ints, gains: Any
) -> float:
    """Coordinate ascent in place, to where no single value is better; returns the value.

    A value whose weight is -inf is never taken, but may be started from.
    """
    _gains(values, pairs, first, combination, gains)
    n, settled, a = combination.size, 0, 0
    for _ in range(MAX_STEPS):  # more are rounding's, where two values are alike
        if settled == n:
            break
        begin = first[a]
        here = begin + combination[a]
        top = here
        for w in range(begin, first[a + 1]):
            if gains[w] > gains[top]:
                top = w
        settled += 1
        if top != here:
            # Indexed, not sliced: a slice costs as much as what is done to it here.
            for w in range(gains.size):
                gains[w] += pairs[top, w] - pairs[here, w]
            combination[a] = top - begin
            settled = 1
        a = a + 1 if a + 1 < n else 0
    return _value(values, gains, first, combination)


@kernel
def _exhaust(
    values: Any, pairs: Any, first: Ints, combination: Ints, gains: Any
) -> None:
    """Write the best of all combinations; `gains` is (n_attributes, n_values in all).

    Attribute after attribute, as a counter counts; gains[a] are those of values of a and
    later attributes, given the values of earlier ones.
    """
    n = combination.size
    digits, reached = np.full(n, -1), np.zeros(n)
    gains[0] = values
    top, a = -np.inf, 0
    while a >= 0:
        begin, end = first[a], first[a + 1]
        if a == n - 1:
            most = gains[a, begin]
            for w in range(begin + 1, end):
                most = max(most, gains[a, w])
            if reached[a] + most > top:
                top = reached[a] + most
                combination[:] = digits
                combination[a] = np.argmax(gains[a, begin:end])
            a -= 1
            continue
        digits[a] += 1
        at = begin + digits[a]
        if at == end:
            digits[a] = -1
            a -= 1
        elif gains[a, at] > -np.inf:
            for w in range(end, first[n]):
                gains[a + 1, w] = gains[a, w] + pairs[at, w]
            reached[a + 1] = reached[a] + gains[a, at]
            a += 1


@kernel
def _best(
    prepared: ProductPrepared, x: Floats, allowed: Bools, n_starts: int, exact_max: int
) -> Ints:
    """As `best`; ascents begin at the best known and at all but one of n_starts."""
    values, pairs, first, starts, known = prepared
    n_draws, d, total = values.shape
    n = first.size - 1
    size = 1.0
    for a in range(n):
        size *= allowed[first[a] : first[a + 1]].sum()
    best = known.copy()
    combination = np.empty(n, np.int64)
    weight = np.empty(total, np.float32)
    gains = np.empty((n, total), np.float32)
    for s in range(n_draws):
        weight[:] = 0.0
        for i in range(d):
            row, xi = values[s, i], np.float32(x[i])
            for w in range(total):
                weight[w] += xi * row[w]
        for w in range(total):
            if not allowed[w]:
                weight[w] = -np.inf
        if size <= exact_max:
            _exhaust(weight, pairs[s], first, best[s], gains)
            continue
        top = _climb(weight, pairs[s], first, best[s], gains[0])
        for r in range(n_starts - 1):
            combination[:] = starts[r]
            reached = _climb(weight, pairs[s], first, combination, gains[0])
            if reached > top:
                top = reached
                best[s] = combination
    return best
