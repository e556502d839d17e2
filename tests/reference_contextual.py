"""Slow, obvious twins of the contextual policies, as `reference` has them of the rest."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


def best_of_normals(mean: Floats, sd: Floats) -> Floats:
    """P(best) of independent Normals, each by the trapezoidal rule on its own grid."""
    z = np.linspace(-9.0, 9.0, 4001)
    shares = []
    for k, (m, s) in enumerate(zip(mean, sd, strict=True)):
        others = np.ones_like(z)
        for j in range(len(mean)):
            if j != k:
                others = others * stats.norm.cdf((m + s * z - mean[j]) / sd[j])
        shares.append(np.sum(stats.norm.pdf(z) * others) * (z[1] - z[0]))
    return np.array(shares)


class Regression(NamedTuple):
    """Mean, covariance and sum of squared errors of predicting the next trial."""

    mean: Floats
    covariance: Floats
    errors: float


def linear_regression(
    prior_mean: Floats, prior_precision: Floats, X: Floats, rewards: Floats
) -> Regression:
    """Bayesian linear regression of one arm, by Bayes' rule trial after trial."""
    m, V, errors = prior_mean, np.diag(1.0 / prior_precision), 0.0
    for x, r in zip(X, rewards, strict=True):
        spread = 1.0 + x @ V @ x
        errors += (r - m @ x) ** 2 / spread
        m, V = (
            m + V @ x * (r - m @ x) / spread,
            np.linalg.inv(np.linalg.inv(V) + np.outer(x, x)),
        )
    return Regression(m, V, errors)


def logistic_regression(
    mean: Floats, covariance: Floats, X: Floats, rewards: Floats, diagonal: bool
) -> tuple[Floats, Floats]:
    """Mean and precision of one arm by a Laplace approximation after each trial."""
    m, A = mean, np.asarray(np.linalg.inv(covariance), np.float64)
    for x, r in zip(X, rewards, strict=True):
        prior, precision, theta = m, A, m
        # Maximum of log belief + log likelihood: damped Newton in all coefficients.
        for _ in range(500):
            p = 1.0 / (1.0 + np.exp(-x @ theta))
            slope = -precision @ (theta - prior) + x * (r - p)
            bend = precision + np.outer(x, x) * p * (1.0 - p)
            step = np.linalg.solve(bend, slope)
            theta = theta + step / max(1.0, abs(float(x @ step)))
        p = 1.0 / (1.0 + np.exp(-x @ theta))
        gain = np.outer(x, x) * p * (1.0 - p)
        m, A = theta, A + (np.diag(np.diag(gain)) if diagonal else gain)
    return m, A
