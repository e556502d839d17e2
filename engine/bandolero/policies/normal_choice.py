"""One decision over arms whose predicted rewards are independent Normals, in one kernel.

Linear and logistic Thompson sampling predict the reward of arm k for features x as
N(mean_k' x + x' C_k x, x' V_k x). Here is what they share: P(k best | x) by quadrature, the floor,
and the draw. No posterior is sampled, so the propensity is the very number that was
drawn with. Everything compiled is in this file (decision 0002 of engine/DESIGN.md).

With f, F an arm's density and distribution function and G = prod_j F_j,

    P(best = k) = int f_k / F_k G dt

is integrated from the right to `left`, the largest of all m_j - REACH s_j: below it some
arm is certainly better, and right of it no F_j is small, so the division is safe.

1. A panel is PANEL times as wide as the narrowest arm alive in it; an arm narrower than
   the others ends the integral where its own support ends, so panels stay few.
2. Inside a panel, 16 nodes go through the same arithmetic without a branch, which the
   compiler turns into vector instructions: exp(-y) is the 64th power of a polynomial,
   and the distribution function is Abramowitz & Stegun's 26.2.17 (error 7.5e-8).
3. The shares are divided by their sum, which is 1 but for the ends cut off.

The error of a probability was 6e-6 at most in 3,000 cases of 2 to 1,000 arms of all scales
(tests/test_linear.py asks for 1e-4).

References
----------
Abramowitz & Stegun (1964), Handbook of Mathematical Functions, 26.2.17.
Chapelle & Li (2011), An Empirical Evaluation of Thompson Sampling, section 2.
"""

import math
from typing import NamedTuple

import numpy as np

from bandolero._jit import kernel, sum_kernel
from bandolero.policies.base import Floats, Ints

N_NODES = 16
NODES, WEIGHTS = np.polynomial.legendre.leggauss(N_NODES)
REACH = 5.0
"""An arm's support ends so many standard deviations from its mean: mass 3e-7 beyond."""
PANEL = 5.0
"""Width of a panel, in standard deviations of the narrowest arm alive in it, ..."""
CROWDING = 0.3
"""... over this times log(arms) if that is above 1: a product of many F is steeper."""
REST = 1e-7
"""The integral ends where the arms' maximum is below with at most this probability."""
RESOLUTION = 1e-12
"""A standard deviation is at least this times the largest number: floats end there."""


class Prepared(NamedTuple):
    """What serving needs of a posterior; made once per snapshot.

    mean
        (n_arms, n_features), coefficients of the predicted reward.
    variance
        (n_arms, n_terms), coefficients of the prediction's variance, the exploration
        scale in them: of x_i x_j for i <= j, row by row, n_terms = d (d + 1) / 2;
        or of x_i^2 alone, n_terms = d.
    bonus
        As `variance`, or none, (n_arms, 0): coefficients of what is added to the prediction because part of
        its variance is not drawn. Without it, a narrowed belief locks in: an arm that
        was unlucky early is hardly ever shown again, and nothing says it may be better.
    """

    mean: Floats
    variance: Floats
    bonus: Floats


EXPLORATION = 0.15
"""How far data narrows what is drawn from, in standard deviations; see `drawn_belief`.

Chosen with the bonus on seeds 100 … 147 of problem P1 (benchmarks/contextual_learning.py):
0.1 to 0.2 are alike, more explores more than pays.
"""


class Drawn(NamedTuple):
    """A drawn arm, its propensity, and that of each eligible arm, (n_eligible,)."""

    arm: int
    propensity: float
    probabilities: Floats


class DrawnBatch(NamedTuple):
    """Arms and propensities (n,), and those of each eligible arm (n, n_eligible)."""

    arms: Ints
    propensities: Floats
    probabilities: Floats


def quadratic_terms(matrices: Floats) -> Floats:
    """Coefficients of x_i x_j, i <= j, of quadratic forms x' M x, (n_arms, n_terms).

    Examples
    --------
    >>> quadratic_terms(np.array([[[1.0, 2.0], [2.0, 5.0]]]))
    array([[1., 4., 5.]])
    """
    row, column = np.triu_indices(matrices.shape[-1])
    twice = np.where(row == column, 1.0, 2.0)
    return np.ascontiguousarray(matrices[..., row, column] * twice)


def drawn_belief(
    covariance: Floats, prior_precision: Floats, exploration: float
) -> Floats:
    """Covariance that arms are drawn with, as `covariance`: the prior's, less data.

    Data counts 1 / exploration^2 times in it: (P0 + (V^-1 - P0) / exploration^2)^-1. So an
    arm without data is drawn from its prior, and one with much data with `exploration`
    times its posterior's standard deviation. 1 is plain Thompson sampling, which explores
    more than pays within the life of an experiment. The variance left out is not lost: a
    policy adds it to the prediction (`Prepared.bonus`), in its own units.

    Narrowing all of the posterior, prior too, as Chapelle & Li (2011, section 4.1) do, was
    tried: it locks in on some seeds, because arms that were unlucky early never return.

    Parameters
    ----------
    covariance
        Posterior, (n_arms, d, d), or (n_arms, d) where it is diagonal.
    prior_precision
        Diagonal of the prior's inverse covariance, (n_arms, d).
    exploration
        In (0, 1].
    """
    rest = 1.0 - exploration**2
    if covariance.ndim == 2:
        diagonal = covariance / (1.0 - rest * covariance * prior_precision)
        return np.asarray(exploration**2 * diagonal, np.float64)
    # e^2 (1 - (1 - e^2) V P0)^-1 V: nothing near singular is inverted.
    left = np.eye(covariance.shape[1]) - rest * covariance * prior_precision[:, None, :]
    belief = exploration**2 * np.linalg.solve(left, covariance)
    return np.asarray(0.5 * (belief + belief.transpose(0, 2, 1)), np.float64)


def draw(
    prepared: Prepared, eligible: Ints, x: Floats, u: float, min_share: float = 0.0
) -> Drawn:
    """Draw an arm for features `x`, with its propensity.

    Safe to call from any thread: nothing is shared but arrays that are only read.

    Parameters
    ----------
    eligible
        Arms that may be drawn, (n_eligible,), ascending, not empty.
    x
        (n_features,), finite.
    u
        In [0, 1); fixes the draw.
    min_share
        Floor f of `with_floor`: p = f + (1 - n f) w.

    Raises
    ------
    ValueError
        When `x` has another shape than the model, or nan or inf in it.

    Examples
    --------
    >>> prepared = Prepared(np.array([[1.0], [0.0]]), np.ones((2, 1)), np.zeros((2, 1)))
    >>> drawn = draw(prepared, np.arange(2), np.array([1.0]), u=0.9)
    >>> drawn.arm, round(drawn.propensity, 4)
    (1, 0.2398)
    """
    mean, variance, bonus = prepared
    if x.shape != mean.shape[1:]:
        raise ValueError(f"features.shape == {x.shape}, must be {mean.shape[1:]}.")
    arm, propensity, shares = _draw(mean, variance, bonus, eligible, x, u, min_share)
    if not propensity > 0.0:
        raise ValueError(f"features == {x}, must be finite, and so the predictions.")
    return Drawn(arm, propensity, shares)


def probabilities(prepared: Prepared, eligible: Ints, x: Floats) -> Floats:
    """P(best | x) of each arm of `eligible` competing alone, (n_eligible,).

    The same kernel as `draw`, so the same bits. Raises as `draw` does.
    """
    return draw(prepared, eligible, x, 0.0).probabilities


def draw_batch(
    prepared: Prepared, eligible: Ints, X: Floats, u: Floats, min_share: float = 0.0
) -> DrawnBatch:
    """As many `draw`s as `X` (n, n_features) has rows; the same numbers as one by one.

    Raises
    ------
    ValueError
        When shapes do not fit, or there is nan or inf in `X`.
    """
    mean = prepared.mean
    if X.ndim != 2 or X.shape[1:] != mean.shape[1:] or u.shape != X.shape[:1]:
        rule = f"must be (n, {mean.shape[1]}) and (n,)"
        raise ValueError(f"X.shape, u.shape == {X.shape}, {u.shape}, {rule}.")
    arms = np.empty(len(X), np.int64)
    shares = np.empty((len(X), len(eligible)))
    propensities = np.empty(len(X))
    _draw_batch(*prepared, eligible, X, u, min_share, arms, propensities, shares)
    if not (propensities > 0.0).all():
        at = int(np.argmin(propensities > 0.0))
        raise ValueError(f"X[{at}] == {X[at]}, must be finite, and so the predictions.")
    return DrawnBatch(arms, propensities, shares)


def predictions(prepared: Prepared, eligible: Ints, x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each eligible arm's prediction, (n_eligible,)."""
    if x.shape != prepared.mean.shape[1:]:
        rule = f"must be {prepared.mean.shape[1:]}"
        raise ValueError(f"features.shape == {x.shape}, {rule}.")
    if not np.isfinite(x).all():
        raise ValueError(f"features == {x}, must be finite.")
    both = _predict(*prepared, eligible, x)
    return both[0], both[1]


def best_of_predictions(mean: Floats, sd: Floats) -> Floats:
    """P(best) of independent Normals, (n_arms,); zeros where an input is not finite."""
    return _best(np.stack((mean, sd)))


@sum_kernel
def _dot(a: Floats, b: Floats) -> float:
    """Sum of products, in whatever order is fastest."""
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@kernel
def _predict(
    mean: Floats, variance: Floats, bonus: Floats, eligible: Ints, x: Floats
) -> Floats:
    """Means and standard deviations of the predictions, (2, n_eligible)."""
    d, n_terms = x.size, variance.shape[1]
    terms = np.empty(n_terms)
    if n_terms == d:
        for i in range(d):
            terms[i] = x[i] * x[i]
    else:
        at = 0
        for i in range(d):
            # Slices from 0, since an index that may be negative is not vectorised.
            row, rest = terms[at : at + d - i], x[i:]
            for j in range(rest.size):
                row[j] = x[i] * rest[j]
            at += d - i
    both = np.empty((2, eligible.size))
    for k in range(eligible.size):
        arm = eligible[k]
        both[0, k] = _dot(mean[arm], x) + _dot(bonus[arm], terms)
        both[1, k] = math.sqrt(max(_dot(variance[arm], terms), 0.0))
    return both


@kernel
def _best(both: Floats) -> Floats:
    """P(best) of Normals with means both[0] and standard deviations both[1]."""
    n_arms = both.shape[1]
    share = np.zeros(n_arms)
    largest = 0.0
    for k in range(n_arms):
        largest += abs(both[0, k]) + both[1, k]
    if not largest < np.inf:
        return share
    tiny = RESOLUTION * largest / n_arms + 1e-300
    m, s = both[0], np.empty(n_arms)
    left, right = -np.inf, -np.inf
    for k in range(n_arms):
        s[k] = max(both[1, k], tiny)
        left = max(left, m[k] - REACH * s[k])
        right = max(right, m[k] + REACH * s[k])

    alive = np.empty(n_arms, np.int64)
    hazard = np.empty((n_arms, N_NODES))
    t, below = np.empty(N_NODES), np.empty(N_NODES)
    panel = PANEL / max(1.0, CROWDING * math.log(n_arms))
    z_right, total, rest = right, 0.0, 1.0
    while z_right > left and rest > REST:
        width = z_right - left
        for k in range(n_arms):
            # An arm that begins at `high` narrows a panel no further than to end there.
            high = m[k] + REACH * s[k]
            if high > left:
                width = min(width, max(panel * s[k], z_right - high))
        z_left = z_right - width
        half, mid = 0.5 * width, z_right - 0.5 * width
        for i in range(N_NODES):
            t[i] = mid + half * NODES[i]
            below[i] = 1.0
        n_alive = 0
        for k in range(n_arms):
            if m[k] + REACH * s[k] > z_left:
                alive[n_alive] = k
                _fall(t, m[k], 1.0 / s[k], below, hazard[n_alive])
                n_alive += 1
        rest = below[0]
        for i in range(N_NODES):
            below[i] *= half * WEIGHTS[i]
        for k in range(n_alive):
            part = _dot(hazard[k], below)
            share[alive[k]] += part
            total += part
        z_right = z_left
    for k in range(n_arms):
        share[k] /= total
    return share


@kernel
def _fall(
    t: Floats, mean: float, precision: float, below: Floats, hazard: Floats
) -> None:
    """Multiply `below` by an arm's F at the nodes; write f / F to `hazard`."""
    for i in range(N_NODES):
        z = (t[i] - mean) * precision
        size = min(abs(z), 7.0)
        y = size * size * (-0.5 / 64.0)
        # Taylor of exp, the remainder under 2e-7 at |z| = 7, where f is 1e-11.
        e = 1.0 + y * (1.0 + y * (1 / 2 + y * (1 / 6 + y * (1 / 24 + y / 120))))
        e *= e
        e *= e
        e *= e
        e *= e
        e *= e
        e *= e
        f = 0.3989422804014327 * e
        v = 1.0 / (1.0 + 0.2316419 * size)
        tail = -1.821255978 + v * 1.330274429
        tail = 0.319381530 + v * (-0.356563782 + v * (1.781477937 + v * tail))
        above = f * v * tail
        F = 1.0 - above if z > 0.0 else above
        below[i] *= F
        hazard[i] = f / F * precision


@kernel
def _draw(
    mean: Floats,
    variance: Floats,
    bonus: Floats,
    eligible: Ints,
    x: Floats,
    u: float,
    min_share: float,
) -> tuple[int, float, Floats]:
    """Arm, propensity, and probabilities with the floor; -1 where x is not finite."""
    n = eligible.size
    for xi in x:
        if not math.isfinite(xi):
            return -1, 0.0, np.zeros(n)
    shares = _best(_predict(mean, variance, bonus, eligible, x))
    if not shares.sum() > 0.0:
        # Beyond all numbers nothing can be ranked: all are alike.
        shares[:] = 1.0 / n
    floor = min(min_share, 0.5 / n)
    drawn, reached = -1, 0.0
    for k in range(n):
        shares[k] = floor + (1.0 - n * floor) * shares[k]
        # The last positive arm's stretch ends at 1, whatever the rounding of the sum.
        if reached <= u and shares[k] > 0.0:
            drawn = k
        reached += shares[k]
    if drawn < 0:
        return -1, 0.0, shares
    return int(eligible[drawn]), float(shares[drawn]), shares


@kernel
def _draw_batch(
    mean: Floats,
    variance: Floats,
    bonus: Floats,
    eligible: Ints,
    X: Floats,
    u: Floats,
    min_share: float,
    arms: Ints,
    propensities: Floats,
    shares: Floats,
) -> None:
    """`_draw` for each row of X."""
    for i in range(len(X)):
        arms[i], propensities[i], shares[i] = _draw(
            mean, variance, bonus, eligible, X[i], u[i], min_share
        )
