"""Probability to be best and expected loss of independent posteriors, exactly.

`bandolero._march` has the integrals, the method, the errors and the sources.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandolero._march import BETA, GAMMA, NORMAL, STUDENT, logits_below, march

Floats = NDArray[np.float64]


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


def best_of_gammas(shape: Floats, rate: Floats) -> Best:
    """Probability to be best and expected loss of Gamma posteriors, (n_arms,) each.

    Parameters
    ----------
    shape, rate
        (n_arms,), positive, finite; at least one arm.

    Examples
    --------
    >>> best = best_of_gammas(np.array([2.0, 1.0]), np.array([1.0, 1.0]))
    >>> best.probability_best.round(4)
    array([0.75, 0.25])
    """
    a, b = np.array(shape, dtype=np.float64), np.array(rate, dtype=np.float64)
    probability, loss = march(GAMMA, a, b, b)
    return Best(probability / probability.sum(), loss)


def best_of_normals(mean: Floats, sd: Floats) -> Best:
    """Probability to be best and expected loss of Normal posteriors, (n_arms,) each.

    Any unit and size will do: it is computed in units of the largest number given.
    Errors stay under 1e-10, of the loss relative to that number, where every sd is more
    than 1e-6 of it, and under 1e-3 down to 1e-13; beyond, the narrowest is lost.

    Parameters
    ----------
    mean, sd
        (n_arms,), finite; sd positive.

    Examples
    --------
    >>> best = best_of_normals(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    >>> best.probability_best.round(4)
    array([0.2398, 0.7602])
    """
    unit = max(float(np.abs(mean).max()), float(np.max(sd)))
    m, s = np.asarray(mean, np.float64) / unit, np.asarray(sd, np.float64) / unit
    probability, loss = march(NORMAL, m, s, s)
    return Best(probability / probability.sum(), loss * unit)


def best_of_students(mean: Floats, scale: Floats, dof: Floats) -> Floats:
    """Probability to be best of Student-t posteriors in any unit, (n_arms,).

    Errors stay under 1e-10 for dof >= 1 where scales are within a factor of 1e6, and
    under 1e-3 up to 1e16; beyond that the narrowest is lost among the widest.

    Parameters
    ----------
    mean, scale, dof
        (n_arms,), finite; scale and dof positive.

    Examples
    --------
    >>> some = np.array([1.0, 1.0])
    >>> best_of_students(np.array([0.0, 2.0]), some, some).round(4)
    array([0.25, 0.75])
    """
    # In units of the widest scale, about the arm that is most likely good.
    unit, middle = float(np.max(scale)), float(np.max(mean))
    m = (np.asarray(mean, np.float64) - middle) / unit
    s, v = np.asarray(scale, np.float64) / unit, np.array(dof, dtype=np.float64)
    probability, _ = march(STUDENT, m, s, v)
    return np.asarray(probability / probability.sum(), np.float64)


def beats(alpha_k: float, beta_k: float, alpha_j: float, beta_j: float) -> float:
    """P(x_k > x_j) for two independent Beta posteriors.

    Examples
    --------
    >>> round(beats(5.0, 7.0, 3.0, 9.0), 4)
    0.8193
    """
    both = best_of(np.array([alpha_k, alpha_j]), np.array([beta_k, beta_j]))
    return float(both.probability_best[0])


def log_nodes_below(
    alpha: float, beta: float, log_end: float = 0.0
) -> tuple[Floats, Floats]:
    """Logs l_i of rates, weights w_i: sum w_i g(l_i) = E[g(log x); log x < log_end].

    x has a Beta posterior. Right to 1e-12 where g is smooth on its scale; (n_nodes,)
    each. Logs, because with a tiny `alpha` much of x is too small for a float.

    Examples
    --------
    >>> logs, weights = log_nodes_below(5.0, 7.0)
    >>> round(float(weights @ np.exp(logs)), 12) == round(5.0 / 12.0, 12)
    True
    """
    z_end = math.inf
    if log_end < 0.0:
        z_end = log_end - math.log(-math.expm1(log_end))
    z, weights = logits_below(float(alpha), float(beta), z_end)
    return -np.logaddexp(0.0, -z), weights


def integrate(alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """`march` over Beta posteriors."""
    return march(BETA, alpha, beta, beta)
