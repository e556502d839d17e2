"""Exact probability to be best and expected loss of independent posteriors.

With f, F the density and distribution function of an arm's rate x, and S = 1 - F,

    P(best = k) = int f_k prod_{j != k} F_j dx
    loss_k = E[max_j x_j] - E[x_k] = int F_k (1 - prod_{j != k} F_j) dx

are integrated on a scale z where the densities are log-concave and analytic (Beta: the
logit of x; Gamma: its log; Normal: x itself), in panels of Gauss-Legendre nodes from the
right to the left. Student's t, on x itself, is analytic but not log-concave.

1. Below `left`, the largest of all left ends of the supports, some arm is certainly
   better: nothing is left of P there, and of the loss only int F_k dx, which each arm
   has for itself.
2. An arm whose support ends left of a panel costs nothing in it. So panels are as narrow
   as the narrowest arm that is alive, and a wide arm is not sampled finely on its whole
   length for the sake of a narrow one.
3. S_k comes from f_k by integrating its interpolant within the panel: 16 densities give
   16 values of S_k, and no incomplete beta function is called.
4. Inside a panel around `mid`, log f_k(mid + s) = log f_k(mid) + p_k s - q_k w(s), where
   w is the same for all arms: one exponential per arm and node, and counts of 1e9 lose
   no digits. Beta: p = alpha, q = alpha + beta, w = log1p(x_mid expm1(s)). Gamma:
   p = shape, q = rate x_mid, w = expm1(s). Normal: w = s^2 / 2.
5. Products are carried as complements, U + S - U S, which loses nothing where all S are
   small; those without arm k come from prefixes and suffixes, without a division.
6. Student's tails are powers: panels widen in proportion to the distance, as far as the
   branch points at mean +- i scale sqrt(dof) allow, the support ends where e^-40 of the
   mass is left, and the march ends where all arms together have less than that.

Errors stay under 1e-10 for 2 to 1000 arms, rates of 1e-6 to 1 and counts to 1e9
(tests/test_quadrature.py, tests/test_quadrature_families.py).

References
----------
Miller (2015), Formulas for Bayesian A/B Testing; Stucchio (2015), Bayesian A/B Testing
at VWO: the integrals. Trefethen (2013), Approximation Theory and Approximation Practice,
chapters 8 and 19: convergence by the nearest pole, hence the panel widths.
"""

import math

import numpy as np
from numpy.typing import NDArray

from bandolero._jit import kernel

Floats = NDArray[np.float64]

N_NODES = 16
SUPPORT_DROP = 40.0
"""A support ends where the density is exp(-40) = 4e-18 of that at the mode."""
EXP_MAX = 700.0
"""w(s) of a Gamma ends here, lest it overflow in a panel so wide that q is 0."""
NOTHING = 1e-14
"""Student's march ends where the highest value is below with no more probability."""
CURVATURE_MAX = 2.5
"""A panel spans at most so many local standard deviations, (-(log f)'')^-1/2 ..."""
SLOPE_MAX = 6.0
"""... and at most so many powers of e ..."""
CROWDING = 0.25
"""... and less by this times log(arms): a product of many F is steeper than each."""
POLE_MAX = 2.5
"""... and stays as clear of the logistic function's poles at +-i pi, ..."""
ELLIPSE = 4.5
"""... and of Student's branch points: outside of the Bernstein ellipse of this size."""

BETA, GAMMA, NORMAL, STUDENT = 0, 1, 2, 3
"""Families, by parameters: (alpha, beta), (shape, rate), (mean, sd), (mean, scale, dof)."""


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
def _mode(family: int, a: float, b: float) -> float:
    """Where the density of z has its peak."""
    return math.log(a / b) if family <= GAMMA else a


@kernel
def _log_peak(family: int, a: float, b: float, c: float) -> float:
    """Log density of z at its mode."""
    if family == BETA:
        scale = 0.5 * math.log(a / (a + b) * b / (2.0 * math.pi))
        return scale - _stirling_error(a) - _stirling_error(b) + _stirling_error(a + b)
    if family == GAMMA:
        return 0.5 * math.log(a / (2.0 * math.pi)) - _stirling_error(a)
    normal = -0.5 * math.log(2.0 * math.pi) - math.log(b)
    if family == NORMAL:
        return normal
    y = 0.5 * c
    gammas = y * math.log1p(0.5 / y) - 0.5
    return normal + gammas + _stirling_error(y + 0.5) - _stirling_error(y)


@kernel
def _log_fall(family: int, t: float, a: float, b: float, c: float) -> float:
    """Log density of z at `t` right of its mode, less that at the mode."""
    if family == GAMMA:
        return -a * (math.expm1(t) - t)
    if family == NORMAL:
        return -0.5 * (t / b) * (t / b)
    if family == STUDENT:
        return -0.5 * (c + 1.0) * math.log1p(t / b * (t / b) / c)
    if a > b:
        t, a, b = -t, b, a
    n = a + b
    if t > 30.0:
        return a * t - n * (t + math.log((a + b * math.exp(-t)) / n))
    return a * t - n * math.log1p(a / n * math.expm1(t))


@kernel
def _log_slope(family: int, t: float, a: float, b: float, c: float) -> float:
    """Derivative of `_log_fall` by `t`."""
    if family == GAMMA:
        return -a * math.expm1(t)
    if family == NORMAL:
        return -t / b / b
    if family == STUDENT:
        return -(c + 1.0) * t / (c * b * b + t * t)
    if t > 0.0:
        e = math.exp(-t)
        return -(a * b) * (1.0 - e) / (a + b * e)
    e = math.exp(t)
    return (a * b) * (1.0 - e) / (a * e + b)


@kernel
def _support_end(family: int, a: float, b: float, c: float, side: float) -> float:
    """Where the density has fallen by SUPPORT_DROP on the side -1 or 1, from the mode.

    Newton's steps on a concave function: the first lands outside of the root, the
    others come back without crossing it.
    """
    if family == NORMAL:
        return side * b * math.sqrt(2.0 * SUPPORT_DROP)
    if family == STUDENT:
        return side * b * math.sqrt(c * math.expm1(2.0 * SUPPORT_DROP / c))
    variance = 1.0 / a + 1.0 / b if family == BETA else 1.0 / a
    t = math.sqrt(2.0 * SUPPORT_DROP * variance)
    if family == GAMMA and side > 0.0:
        t = min(t, 2.0 + math.log1p(2.0 * SUPPORT_DROP * variance))
    t *= side
    for _ in range(100):
        over = _log_fall(family, t, a, b, c) + SUPPORT_DROP
        if -1.0 < over <= 0.0:
            break
        t -= over / _log_slope(family, t, a, b, c)
    return t


@kernel
def _logistic(z: float) -> float:
    """X of a logit."""
    if z > 0.0:
        return 1.0 / (1.0 + math.exp(-z))
    e = math.exp(z)
    return e / (1.0 + e)


@kernel
def _value(family: int, z: float) -> float:
    """X of z."""
    if family == BETA:
        return _logistic(z)
    return math.exp(z) if family == GAMMA else z


@kernel
def _value_slope(family: int, z: float) -> float:
    """Dx / dz."""
    if family == BETA:
        return _logistic(z) * _logistic(-z)
    return math.exp(z) if family == GAMMA else 1.0


@kernel
def _panel_fits(
    family: int,
    a: float,
    b: float,
    c: float,
    mode: float,
    z_left: float,
    z_right: float,
    crowd: float,
) -> bool:
    """Whether N_NODES resolve an arm's density between two points.

    Errors count against the peak: down a tail, panels may be wider.
    """
    t_left, t_right, width = z_left - mode, z_right - mode, z_right - z_left
    steepest_left, steepest_right = t_left, t_right
    if family == BETA:
        x = _logistic(min(max(0.0, z_left), z_right))
        curvature = (a + b) * x * (1.0 - x)
    elif family == GAMMA:
        if width > max(POLE_MAX, -z_right - math.log(b)):
            return False
        curvature = a * math.exp(t_right)
    elif family == NORMAL:
        curvature = 1.0 / b / b
    else:
        turn = b * math.sqrt(c)
        foci = math.hypot(t_left, turn) + math.hypot(t_right, turn)
        if foci < 0.5 * width * (ELLIPSE + 1.0 / ELLIPSE):
            return False
        near = min(max(0.0, t_left), t_right)
        curvature = (c + 1.0) / (turn * turn + near * near)
        steepest_left = min(max(-turn, t_left), t_right)
        steepest_right = min(max(turn, t_left), t_right)
    slope = max(
        -_log_slope(family, steepest_right, a, b, c),
        _log_slope(family, steepest_left, a, b, c),
    )
    excess = (
        width * crowd * max(math.sqrt(curvature) / CURVATURE_MAX, slope / SLOPE_MAX)
    )
    if excess <= 1.0:
        return True
    nearest = min(max(0.0, t_left), t_right)
    return bool(excess <= math.exp(-_log_fall(family, nearest, a, b, c) / N_NODES))


@kernel
def _panel_left(
    family: int,
    z_right: float,
    left: float,
    width: float,
    a: Floats,
    b: Floats,
    c: Floats,
    mode: Floats,
    high: Floats,
    crowd: float,
) -> float:
    """Left end of the widest panel that suits every arm in it; arms fall in `high`."""
    width = min(width, z_right - left)
    if family == BETA:
        width = min(width, max(POLE_MAX, z_right / 2.0 if z_right > 0.0 else -z_right))
    for k in range(a.size):
        while high[k] > z_right - width and not _panel_fits(
            family, a[k], b[k], c[k], mode[k], z_right - width, z_right, crowd
        ):
            width *= 0.75
        if high[k] <= z_right - width:
            break
    return max(left, z_right - max(width, 1e-15 * (1.0 + abs(z_right))))


@kernel
def _panel_basis(
    family: int, mid: float, half: float, linear: Floats, common: Floats
) -> bool:
    """Write s and w(s) of step 4 at the nodes; return whether 1 - x is the rate.

    Right of 0 the roles of x and 1 - x are swapped, so that w(s) keeps its digits.
    """
    if family != BETA:
        for i in range(N_NODES):
            s = half * NODES[i]
            linear[i] = s
            common[i] = math.expm1(min(s, EXP_MAX)) if family == GAMMA else 0.5 * s * s
        return False
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
    family: int, a: float, b: float, c: float, low: float, z_right: float
) -> tuple[Floats, Floats]:
    """Points, and weights with an arm's density in them, from `low` to `z_right`."""
    mode, peak = _mode(family, a, b), _log_peak(family, a, b, c)
    one_a, one_b, one_c = np.array([a]), np.array([b]), np.array([c])
    one_mode, one_high = np.array([mode]), np.array([np.inf])
    edges, width = [z_right], np.inf
    while edges[-1] > low:
        z_left = _panel_left(
            family, edges[-1], low, width, one_a, one_b, one_c, one_mode, one_high, 1.0
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
            fall = _log_fall(family, z[at] - mode, a, b, c)
            weights[at] = half * WEIGHTS[i] * math.exp(peak + fall)
    return z, weights


@kernel
def _loss_below(
    family: int, a: float, b: float, c: float, low: float, left: float
) -> float:
    """Return int_0^x F dx = E[max(x - rate, 0)], x at the point `left`, for one arm."""
    z, weights = _density_nodes(family, a, b, c, low, left)
    total = 0.0
    for i in range(z.size):
        if family == BETA:
            total += weights[i] * _logistic(-z[i]) * -math.expm1(z[i] - left)
        elif family == GAMMA:
            total += weights[i] * -math.expm1(z[i] - left)
        else:
            total += weights[i] * (left - z[i])
    return total if family == NORMAL else _value(family, left) * total


@kernel
def _all_below(survival: Floats) -> float:
    """Probability that no arm survives."""
    product = 1.0
    for one in survival:
        product *= max(1.0 - one, 0.0)
    return product


@kernel
def logits_below(alpha: float, beta: float, z_end: float) -> tuple[Floats, Floats]:
    """Nodes and weights of `log_nodes_below`, nodes and end as logits."""
    mode = math.log(alpha / beta)
    low = mode + _support_end(BETA, alpha, beta, 0.0, -1.0)
    high = mode + _support_end(BETA, alpha, beta, 0.0, 1.0)
    return _density_nodes(BETA, alpha, beta, 0.0, low, min(high, z_end))


@kernel
def march(family: int, a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats]:
    """P(best), as integrated and so not quite of sum 1, and the loss, (n_arms,) each.

    `c` is read for STUDENT only, whose loss is not computed.
    """
    n_arms = a.size
    mode, peak = np.empty(n_arms), np.empty(n_arms)
    low, high = np.empty(n_arms), np.empty(n_arms)
    for k in range(n_arms):
        mode[k] = _mode(family, a[k], b[k])
        low[k] = mode[k] + _support_end(family, a[k], b[k], c[k], -1.0)
        high[k] = mode[k] + _support_end(family, a[k], b[k], c[k], 1.0)
        peak[k] = _log_peak(family, a[k], b[k], c[k])
    order = np.argsort(-high)
    a, b, c, mode = a[order], b[order], c[order], mode[order]
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
        z_left = _panel_left(family, z_right, left, width, a, b, c, mode, high, crowd)
        while n_alive < n_arms and high[n_alive] > z_left:
            loss[n_alive] = loss_absent
            n_alive += 1
        half, mid = 0.5 * (z_right - z_left), 0.5 * (z_right + z_left)
        swapped = _panel_basis(family, mid, half, linear, common)
        for i in range(N_NODES):
            width_z[i] = half * WEIGHTS[i]
            width_x[i] = width_z[i] * _value_slope(family, mid + half * NODES[i])

        # Densities, survival, and the complement of the product over the arms before.
        union[:] = 0.0
        for k in range(n_alive):
            t = mid - mode[k]
            at_mid = peak[k] + _log_fall(family, t, a[k], b[k], c[k])
            exponent, n = (b[k] if swapped else a[k]), a[k] + b[k]
            if family == GAMMA:
                n = a[k] * math.exp(t)
            elif family == NORMAL:
                exponent, n = -t / b[k] / b[k], 1.0 / b[k] / b[k]
            reach = survival_right[k]
            for i in range(N_NODES):
                log_density = at_mid + exponent * linear[i] - n * common[i]
                if family == STUDENT:
                    log_density = peak[k] + _log_fall(
                        family, t + linear[i], a[k], b[k], c[k]
                    )
                density[k, i] = math.exp(log_density)
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
        if family == STUDENT and _all_below(survival_right) < NOTHING:
            break

    x_left = _value(family, left)
    for k in range(n_arms):
        if k >= n_alive:
            mean = a[k] / (a[k] + b[k]) if family == BETA else a[k] / b[k]
            loss[k] = loss_absent + x_left - (a[k] if family >= NORMAL else mean)
        elif low[k] < left and family != STUDENT:
            loss[k] += _loss_below(family, a[k], b[k], c[k], low[k], left)
    back = np.argsort(order)
    return probability[back], loss[back]
