"""Probability to be best and expected loss of independent Normal posteriors.

For rewards that are values or counts. The integrals and the march from the right are
those of `bandolero.quadrature`; a Normal distribution function is a library call, so
NumPy over (arms alive, nodes) serves.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

from bandolero.quadrature import Best

Floats = NDArray[np.float64]

SUPPORT_SDS = 9.0
"""Beyond so many standard deviations a Normal holds less than 1e-18."""
PANEL_SDS = 2.0
"""Widest panel, in standard deviations of the narrowest arm in it."""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


def best_of_normals(mean: Floats, sd: Floats) -> Best:
    """Probability to be best and expected loss of Normal posteriors, (n_arms,) each.

    Any unit and size will do: it is computed in units of the largest number given.
    Errors stay under 1e-10, of the loss relative to that number.

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
    unit = max(float(np.abs(mean).max()), float(sd.max()))
    m, s = mean / unit, sd / unit
    low, high = m - SUPPORT_SDS * s, m + SUPPORT_SDS * s
    left = float(low.max())
    probability, loss = np.zeros(len(m)), _loss_below(left, m, s)
    edges = _edges(left, s, high)
    for z_left, z_right in zip(edges[1:], edges[:-1], strict=True):
        half = 0.5 * (z_right - z_left)
        _add_panel(z_left + half * (1.0 + NODES), half, m, s, probability, loss)
    return Best(probability / probability.sum(), loss * unit)


def _edges(left: float, sd: Floats, high: Floats) -> list[float]:
    """Panel edges from the right to `left`, as narrow as the arms alive ask for."""
    order = np.argsort(-high)
    edges = [float(high[order[0]])]
    while edges[-1] > left:
        right = edges[-1]
        # An arm that begins at `high` narrows a panel no further than to end there.
        widths = np.maximum(PANEL_SDS * _crowded(sd[order]), right - high[order])
        width = float(widths.min())
        edges.append(max(left, right - max(width, 1e-15 * (1.0 + abs(right)))))
    return edges


def _crowded(sd: Floats) -> Floats:
    """Scale of the product of many arms, each of scale `sd`."""
    return sd / (1.0 + 0.25 * math.log(len(sd)))


def _add_panel(
    x: Floats, half: float, mean: Floats, sd: Floats, probability: Floats, loss: Floats
) -> None:
    """Add one panel's part of both integrals, in place."""
    t = (x - mean[:, None]) / sd[:, None]
    log_below = log_ndtr(t)
    log_others = log_below.sum(axis=0) - log_below
    density = np.exp(-0.5 * t * t) / (np.sqrt(2.0 * np.pi) * sd[:, None])
    probability += half * (density * np.exp(log_others)) @ WEIGHTS
    loss += half * (np.exp(log_below) * -np.expm1(log_others)) @ WEIGHTS


def _loss_below(left: float, mean: Floats, sd: Floats) -> Floats:
    """Return int F dx left of `left`, E[max(left - value, 0)], (n_arms,).

    Zero for the arm whose support begins there: left of it, that arm is above all.
    """
    t = (left - mean) / sd
    density = np.exp(-0.5 * t * t) / np.sqrt(2.0 * np.pi)
    below: Floats = np.maximum(sd * (density + t * ndtr(t)), 0.0)
    return np.asarray(np.where(t <= -SUPPORT_SDS, 0.0, below), np.float64)
