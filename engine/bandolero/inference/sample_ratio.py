"""Whether decisions split between variants as their logged propensities say.

The first thing to read of an experiment: a leak, a bot or a double count shows here
before it shows in rates. Equal shares are not what a bandit gives, so the test is of
counts against the probabilities in force when they were counted.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import chdtrc, gammaln, xlogy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Verdict = Literal["ok", "mismatch", "too few"]

P_VALUE_MIN = 0.001
"""A smaller p-value is a mismatch: one healthy experiment in a thousand, per look."""
LOG_E_VALUE_MAX = float(np.log(1000.0))
"""A larger e-value is one: one healthy experiment in a thousand, over all looks."""
EXPECTED_MIN = 5.0
"""Arms expected to be drawn less often are tested together, as chi-square asks."""
WEIGHED_MIN = 20.0
"""The same where only the drawn arm's propensity is known, for that says less of variance."""
EVEN_MIN = 0.9
"""Propensities are even if (sum w)^2 / sum w^2 is so large a share of the decisions."""
PRIOR_DECISIONS = 100.0
"""How many decisions the e-value's prior belief in the logged split weighs."""


class SampleRatio(NamedTuple):
    """Outcome of a sample-ratio check.

    chi2, df, p_value
        Chi-square, its degrees of freedom and upper tail, right at one look fixed
        beforehand. p_value is nan where df == 0; chi2 is inf and p_value 0 where an arm
        of probability 0 was drawn.
    n_tests
        How many tests the p-value is corrected for; 1 where all arms are tested together.
    log_e_value
        Log of the evidence against the logged split, right at any number of looks.
    verdict
        `too few` where nothing can be tested and nothing is known to be wrong.
    """

    chi2: float
    df: int
    p_value: float
    n_tests: int
    log_e_value: float
    verdict: Verdict


def sample_ratio(counts: Ints, probabilities: Floats) -> SampleRatio:
    """Test counts per epoch and arm against the probabilities they were drawn with.

    A sum of martingale differences: epochs may depend on what came before, as they do
    in a bandit. Decisions must be drawn independently given their probabilities, so
    with sticky units count units' first decisions only.

    Parameters
    ----------
    counts
        (n_epochs, n_arms), decisions, in the order of time.
    probabilities
        (n_epochs, n_arms), of every arm, 0 where it could not be drawn. Rows are
        normalised, so float32 will do.

    References
    ----------
    Hall and Heyde (1980), Martingale Limit Theory, section 3.2: the central limit.
    Lindon and Malek (2022), Anytime-Valid Inference for Multinomial Count Data: the
    e-value, here with probabilities that change.

    Examples
    --------
    >>> sample_ratio(np.array([[500, 500], [90, 910]]), np.array([[0.5, 0.5], [0.1, 0.9]]))
    SampleRatio(chi2=0.29..., df=1, p_value=0.58..., n_tests=1, log_e_value=-..., verdict='ok')
    """
    seen = counts.sum(axis=1) > 0
    n, e = counts[seen].astype(np.float64), probabilities[seen].astype(np.float64)
    if (n[e <= 0.0] > 0.0).any():
        return SampleRatio(np.inf, 0, 0.0, 1, np.inf, "mismatch")
    e = e / e.sum(axis=1, keepdims=True)
    chi2, df = _chi_square(n, e)
    p_value = float(chdtrc(df, chi2)) if df else np.nan
    log_e_value = _log_e_value(n, e)
    verdict: Verdict = "ok" if df else "too few"
    if p_value < P_VALUE_MIN or log_e_value > LOG_E_VALUE_MAX:
        verdict = "mismatch"
    return SampleRatio(chi2, df, p_value, 1, log_e_value, verdict)


def sample_ratio_by_moments(
    counts: Ints | Floats, expected: Floats, variance: Floats
) -> SampleRatio:
    """The same test where every decision had probabilities of its own.

    Of each arm's count against the sum of its probabilities; the p-value is the smallest
    arm's times the number of arms tested (Bonferroni), but that of two arms, whose
    surpluses are one number, is of one test. Has no e-value (nan).

    Parameters
    ----------
    counts
        (n_arms,), decisions.
    expected, variance
        (n_arms,), sums of p and of p (1 - p) over all decisions, p the arm's probability.

    Examples
    --------
    >>> sample_ratio_by_moments(
    ...     np.array([530, 470]), np.array([500.0, 500.0]), np.array([250.0, 250.0])
    ... )
    SampleRatio(chi2=3.6, df=1, p_value=0.05..., n_tests=1, log_e_value=nan, verdict='ok')
    """
    if (counts[expected <= 0.0] > 0).any():
        return SampleRatio(np.inf, 0, 0.0, 1, np.inf, "mismatch")
    tested = variance >= EXPECTED_MIN
    if not tested.any():
        return SampleRatio(0.0, 0, np.nan, 1, np.nan, "too few")
    squares = (counts[tested] - expected[tested]) ** 2 / variance[tested]
    chi2 = float(squares.max())
    n_tests = 1 if np.count_nonzero(variance) == 2 else int(tested.sum())
    p_value = min(1.0, float(chdtrc(1, chi2)) * n_tests)
    verdict: Verdict = "mismatch" if p_value < P_VALUE_MIN else "ok"
    return SampleRatio(chi2, 1, p_value, n_tests, np.nan, verdict)


def sample_ratio_by_weights(
    among: Floats, counts: Floats, weights: Floats, weights_squared: Floats
) -> SampleRatio:
    """The same test where only the drawn arm's propensity is known, w = 1 / propensity.

    An arm's w sum to as many decisions as it was drawn among, in expectation. Sums are
    counted in decisions of its typical propensity, sum w / sum w^2. Where propensities
    vary much the rare large w decide, and nothing is tested (`EVEN_MIN`).

    Parameters
    ----------
    among
        (n_arms,), decisions at which the arm could have been drawn.
    counts, weights, weights_squared
        (n_arms,), each arm's own decisions, and their sums of w and w^2.

    Examples
    --------
    >>> counts, among = np.array([530.0, 470.0]), np.array([1000.0, 1000.0])
    >>> sample_ratio_by_weights(among, counts, counts / 0.5, counts / 0.25)
    SampleRatio(chi2=3.6, df=1, p_value=0.05..., n_tests=1, log_e_value=nan, verdict='ok')
    """
    drawn = weights_squared > 0.0
    share = np.divide(weights, weights_squared, out=np.zeros_like(weights), where=drawn)
    expected = among * share
    variance = expected * (1.0 - share)
    is_even = (weights * share).sum() >= EVEN_MIN * counts.sum()
    is_tested = (variance >= WEIGHED_MIN) & is_even
    variance = np.where(is_tested, variance, np.minimum(variance, 1.0))
    return sample_ratio_by_moments(weights * share, expected, variance)


def _chi_square(n: Floats, e: Floats) -> tuple[float, int]:
    """Z' Sigma^+ Z and the rank of Sigma, Z the surplus of counts over expectation."""
    totals = n.sum(axis=1, keepdims=True)
    groups = _groups((totals * e * (e < 1.0)).sum(axis=0))
    n, e = n @ groups, e @ groups
    surplus = (n - totals * e).sum(axis=0)
    covariance = np.diag((totals * e).sum(axis=0)) - (totals * e).T @ e
    free = _free_groups(e)
    if not len(free):
        return 0.0, 0
    spread = np.sqrt(covariance[free, free])
    z = surplus[free] / spread
    correlation = covariance[np.ix_(free, free)] / np.outer(spread, spread)
    return float(z @ np.linalg.solve(correlation, z)), len(free)


def _groups(expected: Floats) -> Floats:
    """Matrix (n_arms, n_groups) of 0 and 1 that adds up arms with few decisions.

    `expected` counts random decisions only: those that had to be are no evidence.
    """
    order = np.argsort(-expected, kind="stable")
    n_alone = int((expected >= EXPECTED_MIN).sum())
    rest = expected[order[n_alone:]].sum()
    if rest > 0.0 and rest < EXPECTED_MIN and n_alone:
        n_alone -= 1
    group_of_rank = np.minimum(np.arange(len(order)), n_alone)
    groups = np.zeros((len(order), n_alone + 1))
    groups[order, group_of_rank] = 1.0
    return groups


def _free_groups(e: Floats) -> Ints:
    """Groups whose surplus is free: all but one of those that ever competed.

    Surpluses of groups that share epochs, directly or by others, sum to zero; leaving
    one of them out is the generalised inverse, with no eigenvalue to call small.
    """
    alive = (e > 0.0).astype(np.float64)
    _, component = connected_components(alive.T @ alive > 0.0, directed=False)
    first = np.unique(component, return_index=True)[1]
    return np.setdiff1d(np.arange(e.shape[1]), first)


def _log_e_value(n: Floats, e: Floats) -> float:
    """Log of a Dirichlet-multinomial's likelihood over that of the logged split.

    Before an epoch, arm k is expected in the share e_k (C_k + c e_k) / (M_k + c e_k),
    normalised, of its decisions: C_k counted and M_k expected so far, c the prior's
    weight; belief in these shares weighs as many decisions as were seen, plus c. Both
    look at the past only, so the product over epochs is a martingale of mean 1 if the
    log is right. With constant probabilities it is Lindon and Malek's, however epochs
    are cut.
    """
    totals = n.sum(axis=1, keepdims=True)
    counted = np.cumsum(n, axis=0) - n
    expected = np.cumsum(totals * e, axis=0) - totals * e
    weight = PRIOR_DECISIONS + np.cumsum(totals, axis=0) - totals
    prior = PRIOR_DECISIONS * e
    possible = e > 0.0
    tilt = np.divide(counted + prior, expected + prior, out=e * 0.0, where=possible)
    share = e * tilt
    belief = weight * share / share.sum(axis=1, keepdims=True)
    belief = np.where(possible, belief, 1.0)
    arms = gammaln(belief + n) - gammaln(belief) - xlogy(n, np.where(possible, e, 1.0))
    epochs = gammaln(weight) - gammaln(weight + totals)
    return float(arms[possible].sum() + epochs.sum())
