"""Empirical-Bayes priors: what other experiments say before the first trial."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import betaln

MIN_VARIANTS = 20
MIN_SUCCESSES = 20


class BetaPrior(NamedTuple):
    """A prior of rates, fitted on `n_variants` variants of history."""

    alpha: float
    beta: float
    n_variants: int


def fit_beta_prior(
    successes: NDArray[np.int64], trials: NDArray[np.int64]
) -> BetaPrior | None:
    """Fit Beta(alpha, beta) to the rates of past variants by maximum likelihood.

    Maximises the beta-binomial likelihood in (logit mean, log strength), which moment
    matching misses for small counts. None where there is too little history to say, or
    where the variants differ no more than chance: then nothing bounds the strength.

    Parameters
    ----------
    successes, trials
        (n_variants,), 0 <= successes <= trials.

    References
    ----------
    Gelman et al. (2013), Bayesian Data Analysis, section 5.3.
    """
    seen = trials > 0
    x, n = successes[seen].astype(float), trials[seen].astype(float)
    if len(x) < MIN_VARIANTS or x.sum() < MIN_SUCCESSES or x.sum() >= n.sum():
        return None
    mean = x.sum() / n.sum()

    def loss(theta: NDArray[np.float64]) -> float:
        rate, strength = 1.0 / (1.0 + np.exp(-theta[0])), np.exp(theta[1])
        a, b = rate * strength, (1.0 - rate) * strength
        return -float(np.sum(betaln(a + x, b + n - x) - betaln(a, b)))

    start = np.array([np.log(mean / (1.0 - mean)), np.log(2.0 / mean)])
    bounds = [(-20.0, 20.0), (0.0, np.log(1e7))]
    fitted = minimize(loss, start, method="L-BFGS-B", bounds=bounds)
    if fitted.x[1] > np.log(n.sum()):
        return None
    rate, strength = 1.0 / (1.0 + np.exp(-fitted.x[0])), np.exp(fitted.x[1])
    return BetaPrior(float(rate * strength), float((1 - rate) * strength), len(x))
