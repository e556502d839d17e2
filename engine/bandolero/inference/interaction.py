"""Whether variants compare alike at every level of a context field.

The question to ask before any level is looked at alone: where lifts are the same
everywhere, all requests together say more about each level than its own trials do.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, polygamma
from scipy.stats import chi2 as chi_square

Floats = NDArray[np.float64]


class Interaction(NamedTuple):
    """How far levels differ in how their variants compare, beyond a rate of their own.

    chi2: what is left of log rates when each level and each variant has its own factor.
    p_value: of so much or more by chance, where lifts are the same at every level; right
    at one look.
    """

    chi2: float
    df: int
    p_value: float


def log_rates(hits: Floats, misses: Floats) -> tuple[Floats, Floats]:
    """Logs of rates and their variances, of any shape; known without a single hit.

    By a flat prior: E digamma(hits + 1) is log(expected hits) but for 2 % from two
    expected hits on, so that thin levels do not seem to differ.
    """
    a, n = hits + 1.0, hits + misses + 2.0
    return digamma(a) - digamma(n), polygamma(1, a) - polygamma(1, n)


def log_means(mean: Floats, trials: Floats, size: float) -> tuple[Floats, Floats]:
    """Logs of a level's mean rewards but for a constant, and their variances, (n_arms,).

    Each mean counts as the hits that are worth as much. How unlike rewards are is taken
    from the whole level: what a variant's few rewards say of it is too unsure, and many
    levels would seem to differ. nan where a level earned nothing.

    Parameters
    ----------
    mean, trials
        (n_arms,) of each variant.
    size
        What a hit is worth: variance of a trial's reward, over its mean.
    """
    if not 0.0 < size < np.inf:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    a = np.maximum(np.nan_to_num(mean * trials), 0.0) / size + 1.0
    with np.errstate(divide="ignore"):
        logs = digamma(a) - np.log(trials)
    return logs, polygamma(1, a)


def interaction(logs: Floats, variances: Floats) -> Interaction | None:
    """Test that log rates are a sum of level and variant; None where nothing can differ.

    Weighted least squares with a term for each level and each variant; its residual sum
    is chi-square where no more than that is true (Cochran's Q, for several variants).

    Parameters
    ----------
    logs, variances
        (n_levels, n_arms); nan where a level has nothing of a variant.

    References
    ----------
    Cochran (1954), The combination of estimates from different experiments.

    Examples
    --------
    >>> logs, variances = log_rates(np.array([[20, 40], [40, 20]]), np.full((2, 2), 960))
    >>> found = interaction(logs, variances)
    >>> round(found.chi2, 1), found.df, round(found.p_value, 4)
    (12.2, 1, 0.0005)
    """
    known = np.isfinite(logs) & (variances > 0.0)
    known &= known.sum(axis=1, keepdims=True) > 1
    w = np.where(known, 1.0 / np.where(known, variances, 1.0), 0.0)[known.any(axis=1)]
    y = np.where(known, logs, 0.0)[known.any(axis=1)]
    # Each level's own term is its weighted mean: what is left is one term a variant.
    share = w / w.sum(axis=1, keepdims=True)
    y = y - (share * y).sum(axis=1, keepdims=True)
    gram = np.diag(w.sum(axis=0)) - w.T @ share
    effects, _, rank, _ = np.linalg.lstsq(gram, (w * y).sum(axis=0), rcond=1e-10)
    df = int(known.sum()) - len(w) - int(rank)
    if df < 1:
        return None
    left = y - effects + (share * effects).sum(axis=1, keepdims=True)
    chi2 = float((w * left**2).sum())
    return Interaction(chi2, df, float(chi_square.sf(chi2, df)))
