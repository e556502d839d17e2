"""Exact probability to be best and expected loss of independent Beta posteriors.

With f, F the density and distribution function of an arm's rate x, and S = 1 - F,

    P(best = k) = int f_k prod_{j != k} F_j dx
    loss_k = E[max_j x_j] - E[x_k] = int F_k (1 - prod_{j != k} F_j) dx

are integrated on the logit scale z = log(x / (1 - x)), where every Beta density is
log-concave and analytic, in panels of Gauss-Legendre nodes from the right to the left.

1. Below `left`, the largest of all left ends of the supports, some arm is certainly
   better: nothing is left of P there, and of the loss only int F_k dx, which each arm
   has for itself.
2. An arm whose support ends left of a panel costs nothing in it. So panels are as narrow
   as the narrowest arm that is alive, and a wide arm is not sampled finely on its whole
   length for the sake of a narrow one.
3. S_k comes from f_k by integrating its interpolant within the panel: 16 densities give
   16 values of S_k, and no incomplete beta function is called.
4. Inside a panel around `mid`, log f_k(mid + s) = log f_k(mid) + alpha_k s - n_k w(s),
   where w(s) = log1p(x_mid expm1(s)) is the same for all arms: one exponential per arm
   and node, and counts of 1e9 lose no digits.
5. Products are carried as complements, U + S - U S, which loses nothing where all S are
   small; those without arm k come from prefixes and suffixes, without a division.

Errors stay under 1e-10 for 2 to 1000 arms, rates of 1e-6 to 1 and counts to 1e9
(tests/test_quadrature.py).

References
----------
Miller (2015), Formulas for Bayesian A/B Testing; Stucchio (2015), Bayesian A/B Testing
at VWO: the integrals. Trefethen (2013), Approximation Theory and Approximation Practice,
chapters 8 and 19: convergence by the nearest pole, hence the panel widths.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandolero._jit import kernel

Floats = NDArray[np.float64]

N_NODES = 16
SUPPORT_DROP = 40.0
"""A support ends where the density is exp(-40) = 4e-18 of that at the mode."""
CURVATURE_MAX = 2.5
"""A panel spans at most so many local standard deviations, (-(log f)'')^-1/2 ..."""
SLOPE_MAX = 6.0
"""... and at most so many powers of e ..."""
CROWDING = 0.25
"""... and less by this times log(arms): a product of many F is steeper than each."""
POLE_MAX = 2.5
"""... and stays as clear of the logistic function's poles at +-i pi."""


class Best(NamedTuple):
    """What is believed of each arm against all others, (n_arms,) each.

    probability_best
        P(the arm's rate is the highest); sums to 1.
    expected_loss
        E[highest rate - the arm's rate], in units of the rate; not negative.
    """

    probability_best: Floats
    expected_loss: Floats


def best_of(alpha: Floats, beta: Floats) -> Best:
    """Probability to be best and expected loss of Beta posteriors, (n_arms,) each.

    Parameters
    ----------
    alpha, beta
        (n_arms,), positive, finite; at least one arm.

    Examples
    --------
    >>> best = best_of(np.array([5.0, 3.0]), np.array([7.0, 9.0]))
    >>> best.probability_best.round(4)
    array([0.8193, 0.1807])
    """
    # Copies: read-only arrays would be another type, and compile all kernels again.
    probability, loss = integrate(
        np.array(alpha, dtype=np.float64), np.array(beta, dtype=np.float64)
    )
    return Best(probability / probability.sum(), loss)


def beats(alpha_k: float, beta_k: float, alpha_j: float, beta_j: float) -> float:
    """P(x_k > x_j) for two independent Beta posteriors.

    Examples
    --------
    >>> round(beats(5.0, 7.0, 3.0, 9.0), 4)
    0.8193
    """
    both = best_of(np.array([alpha_k, alpha_j]), np.array([beta_k, beta_j]))
    return float(both.probability_best[0])


def nodes_below(alpha: float, beta: float, end: float = 1.0) -> tuple[Floats, Floats]:
    """Rates x_i and weights w_i: sum w_i g(x_i) = E[g(x); x < end] for a Beta posterior.

    Right to 1e-12 where g is smooth on the scale of the posterior; (n_nodes,) each.

    Examples
    --------
    >>> x, weights = nodes_below(5.0, 7.0)
    >>> round(float(weights @ x), 12) == round(5.0 / 12.0, 12)
    True
    """
    z_end = math.log(end / (1.0 - end)) if end < 1.0 else math.inf
    return _rates(float(alpha), float(beta), z_end)


def _rule() -> tuple[Floats, Floats, Floats]:
    """Gauss-Legendre nodes and weights on [-1, 1], and integrals from each node to 1.

    Row j of the matrix holds int_{x_i}^1 of node j's Lagrange polynomial for every i, by
    its Legendre expansion: (2 k + 1) int_x^1 P_k = P_{k-1}(x) - P_{k+1}(x).
    """
    nodes, weights = np.polynomial.legendre.leggauss(N_NODES)
    legendre = np.polynomial.legendre.legvander(nodes, N_NODES)
    tails = np.empty((N_NODES, N_NODES))
    tails[:, 0] = 1.0 - nodes
    tails[:, 1:] = legendre[:, : N_NODES - 1] - legendre[:, 2 : N_NODES + 1]
    integrals = 0.5 * tails @ legendre[:, :N_NODES].T * weights
    return nodes, weights, np.ascontiguousarray(integrals.T)


NODES, WEIGHTS, TAILS = _rule()


@kernel
def _stirling_error(x: float) -> float:
    """Return log Gamma(x) less Stirling's (x - 1/2) log x - x + log(2 pi) / 2."""
    if x < 10.0:
        return math.lgamma(x) - ((x - 0.5) * math.log(x) - x + 0.9189385332046728)
    y = 1.0 / (x * x)
    series = 1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - y * (691 / 360360 - y / 156)))
    return float((1 / 12 - y * (1 / 360 - y * series)) / x)


@kernel
def _log_peak(a: float, b: float) -> float:
    """Log density of logit(x) at its mode log(a / b)."""
    scale = 0.5 * math.log(a / (a + b) * b / (2.0 * math.pi))
    return scale - _stirling_error(a) - _stirling_error(b) + _stirling_error(a + b)


@kernel
def _log_fall(t: float, a: float, b: float) -> float:
    """Log density of logit(x) at `t` right of its mode, less that at the mode."""
    if a > b:
        t, a, b = -t, b, a
    n = a + b
    if t > 30.0:
        return a * t - n * (t + math.log((a + b * math.exp(-t)) / n))
    return a * t - n * math.log1p(a / n * math.expm1(t))


@kernel
def _log_slope(t: float, a: float, b: float) -> float:
    """Derivative of `_log_fall` by `t`."""
    if t > 0.0:
        e = math.exp(-t)
        return -(a * b) * (1.0 - e) / (a + b * e)
    e = math.exp(t)
    return (a * b) * (1.0 - e) / (a * e + b)


@kernel
def _support_end(a: float, b: float, side: float) -> float:
    """Where `_log_fall` reaches -SUPPORT_DROP on the side -1 or 1, in logits.

    Newton's steps on a concave function: the first lands outside of the root, the
    others come back without crossing it.
    """
    t = side * math.sqrt(2.0 * SUPPORT_DROP * (1.0 / a + 1.0 / b))
    for _ in range(100):
        over = _log_fall(t, a, b) + SUPPORT_DROP
        if -1.0 < over <= 0.0:
            break
        t -= over / _log_slope(t, a, b)
    return t


@kernel
def _logistic(z: float) -> float:
    """X of a logit."""
    if z > 0.0:
        return 1.0 / (1.0 + math.exp(-z))
    e = math.exp(z)
    return e / (1.0 + e)


@kernel
def _panel_fits(
    a: float, b: float, mode: float, z_left: float, z_right: float, crowd: float
) -> bool:
    """Whether N_NODES resolve an arm's density between two logits.

    Errors count against the peak: down a tail, panels may be wider.
    """
    x = _logistic(min(max(0.0, z_left), z_right))
    curvature = math.sqrt((a + b) * x * (1.0 - x)) / CURVATURE_MAX
    slope = max(-_log_slope(z_right - mode, a, b), _log_slope(z_left - mode, a, b))
    excess = (z_right - z_left) * crowd * max(curvature, slope / SLOPE_MAX)
    if excess <= 1.0:
        return True
    nearest = min(max(mode, z_left), z_right)
    return bool(excess <= math.exp(-_log_fall(nearest - mode, a, b) / N_NODES))


@kernel
def _panel_left(
    z_right: float,
    left: float,
    width: float,
    a: Floats,
    b: Floats,
    mode: Floats,
    high: Floats,
    crowd: float,
) -> float:
    """Left end of the widest panel that suits every arm in it; arms fall in `high`."""
    pole_free = max(POLE_MAX, abs(z_right) / 2.0 if z_right > 0.0 else -z_right)
    width = min(width, pole_free, z_right - left)
    for k in range(a.size):
        while high[k] > z_right - width and not _panel_fits(
            a[k], b[k], mode[k], z_right - width, z_right, crowd
        ):
            width *= 0.75
        if high[k] <= z_right - width:
            break
    return max(left, z_right - max(width, 1e-15 * (1.0 + abs(z_right))))


@kernel
def _panel_basis(mid: float, half: float, linear: Floats, common: Floats) -> bool:
    """Write s and w(s) of step 4 at the nodes; return whether 1 - x is the rate.

    Right of 0 the roles of x and 1 - x are swapped, so that w(s) keeps its digits.
    """
    swapped = mid > 0.0
    sign = -1.0 if swapped else 1.0
    base = _logistic(-abs(mid))
    for i in range(N_NODES):
        s = sign * half * NODES[i]
        linear[i] = s
        if s < 30.0:
            common[i] = math.log1p(base * math.expm1(s))
        else:
            common[i] = math.log1p(math.exp(s - abs(mid))) - math.log1p(base)
    return swapped


@kernel
def _density_nodes(
    a: float, b: float, low: float, z_right: float
) -> tuple[Floats, Floats]:
    """Logits, and weights with an arm's density in them, from `low` to `z_right`."""
    mode, peak = math.log(a / b), _log_peak(a, b)
    one_a, one_b = np.array([a]), np.array([b])
    one_mode, one_high = np.array([mode]), np.array([np.inf])
    edges, width = [z_right], np.inf
    while edges[-1] > low:
        z_left = _panel_left(
            edges[-1], low, width, one_a, one_b, one_mode, one_high, 1.0
        )
        width = 4.0 * (edges[-1] - z_left)
        edges.append(z_left)
    n_panels = len(edges) - 1
    z, weights = np.empty(n_panels * N_NODES), np.empty(n_panels * N_NODES)
    for panel in range(n_panels):
        half = 0.5 * (edges[panel] - edges[panel + 1])
        for i in range(N_NODES):
            at = panel * N_NODES + i
            z[at] = edges[panel] - half * (1.0 - NODES[i])
            weights[at] = (
                half * WEIGHTS[i] * math.exp(peak + _log_fall(z[at] - mode, a, b))
            )
    return z, weights


@kernel
def _loss_below(a: float, b: float, low: float, left: float) -> float:
    """Return int_0^x F dx = E[max(x - rate, 0)], x at logit `left`, for one arm."""
    z, weights = _density_nodes(a, b, low, left)
    total = 0.0
    for i in range(z.size):
        total += weights[i] * _logistic(-z[i]) * -math.expm1(z[i] - left)
    return _logistic(left) * total


@kernel
def _rates(alpha: float, beta: float, z_end: float) -> tuple[Floats, Floats]:
    """Nodes and weights of `nodes_below`, the end as a logit."""
    mode = math.log(alpha / beta)
    low = mode + _support_end(alpha, beta, -1.0)
    high = mode + _support_end(alpha, beta, 1.0)
    z, weights = _density_nodes(alpha, beta, low, min(high, z_end))
    for i in range(z.size):
        z[i] = _logistic(z[i])
    return z, weights


@kernel
def integrate(alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """P(best), as integrated and so not quite of sum 1, and the loss, (n_arms,) each."""
    n_arms = alpha.size
    mode = np.log(alpha / beta)
    low, high, peak = np.empty(n_arms), np.empty(n_arms), np.empty(n_arms)
    for k in range(n_arms):
        low[k] = mode[k] + _support_end(alpha[k], beta[k], -1.0)
        high[k] = mode[k] + _support_end(alpha[k], beta[k], 1.0)
        peak[k] = _log_peak(alpha[k], beta[k])
    order = np.argsort(-high)
    a, b, mode = alpha[order], beta[order], mode[order]
    low, high, peak = low[order], high[order], peak[order]

    left = low.max()
    probability, loss = np.zeros(n_arms), np.zeros(n_arms)
    survival_right = np.zeros(n_arms)
    density = np.empty((n_arms, N_NODES))
    survival = np.empty((n_arms, N_NODES))
    before = np.empty((n_arms, N_NODES))
    linear, common = np.empty(N_NODES), np.empty(N_NODES)
    union, others = np.empty(N_NODES), np.empty(N_NODES)
    width_x, width_z = np.empty(N_NODES), np.empty(N_NODES)

    n_alive, loss_absent = 0, 0.0
    z_right, width = high[0], np.inf
    while z_right > left:
        crowd = 1.0 + CROWDING * math.log(max(n_alive, 1))
        z_left = _panel_left(z_right, left, width, a, b, mode, high, crowd)
        while n_alive < n_arms and high[n_alive] > z_left:
            loss[n_alive] = loss_absent
            n_alive += 1
        half, mid = 0.5 * (z_right - z_left), 0.5 * (z_right + z_left)
        swapped = _panel_basis(mid, half, linear, common)
        for i in range(N_NODES):
            x = _logistic(mid + half * NODES[i])
            width_z[i] = half * WEIGHTS[i]
            width_x[i] = width_z[i] * x * _logistic(-mid - half * NODES[i])

        # Densities, survival, and the complement of the product over the arms before.
        union[:] = 0.0
        for k in range(n_alive):
            at_mid = peak[k] + _log_fall(mid - mode[k], a[k], b[k])
            exponent, n = (b[k] if swapped else a[k]), a[k] + b[k]
            reach = survival_right[k]
            for i in range(N_NODES):
                density[k, i] = math.exp(at_mid + exponent * linear[i] - n * common[i])
                survival[k, i] = reach
            for j in range(N_NODES):
                f = half * density[k, j]
                for i in range(N_NODES):
                    survival[k, i] += TAILS[j, i] * f
                reach += WEIGHTS[j] * f
            survival_right[k] = reach
            for i in range(N_NODES):
                survival[k, i] = min(max(survival[k, i], 0.0), 1.0)
                before[k, i] = union[i]
                union[i] += (1.0 - union[i]) * survival[k, i]
        for i in range(N_NODES):
            loss_absent += width_x[i] * union[i]

        # The same over the arms after, joined to a product without arm k.
        union[:] = 0.0
        for k in range(n_alive - 1, -1, -1):
            for i in range(N_NODES):
                others[i] = before[k, i] + (1.0 - before[k, i]) * union[i]
                union[i] += (1.0 - union[i]) * survival[k, i]
            for i in range(N_NODES):
                probability[k] += width_z[i] * density[k, i] * (1.0 - others[i])
                loss[k] += width_x[i] * (1.0 - survival[k, i]) * others[i]
        z_right, width = z_left, 4.0 * half

    x_left = _logistic(left)
    for k in range(n_arms):
        if k >= n_alive:
            loss[k] = loss_absent + x_left - a[k] / (a[k] + b[k])
        elif low[k] < left:
            loss[k] += _loss_below(a[k], b[k], low[k], left)
    back = np.argsort(order)
    return probability[back], loss[back]
