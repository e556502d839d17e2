"""Lift of a variant over control: the distribution of rate / control's rate - 1."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaincc, betaln, digamma, ndtri, polygamma

from bandolero.quadrature import log_nodes_below

Floats = NDArray[np.float64]

CONTROL_SDS_MIN = 4.0
"""A mean has a lift over a control that is at least so many sd above zero."""
LOG_MIN, LOG_MAX = -40.0, 700.0
"""Ratios are e to the power of these; what is under is 0, and what is over infinite."""


class Lift(NamedTuple):
    """Lift over control: 0.1 is ten percent more.

    mean
        Its posterior mean; nan where there is none.
    lower, upper
        Its equal-tailed credible interval; inf where control may be as good as zero.
    """

    mean: float
    lower: float
    upper: float


NO_LIFT = Lift(math.nan, math.nan, math.nan)


def lift_of_rates(
    alpha: float,
    beta: float,
    control_alpha: float,
    control_beta: float,
    credibility: float,
) -> Lift:
    """Lift between two independent Beta posteriors.

    The mean is E[x] E[1 / x_c] - 1, which is infinite, here nan, for control_alpha <= 1:
    where control may well be zero, no number is its multiple. The interval always
    exists; an end that no float can hold is infinite. Ends hold their probability
    within 1e-7 for counts up to 1e9 and beta parameters >= 1; with smaller ones and
    rates near 1, within 1e-4.

    Examples
    --------
    >>> lift = lift_of_rates(121.0, 881.0, 101.0, 901.0, 0.95)
    >>> round(lift.mean, 3), round(lift.lower, 3), round(lift.upper, 3)
    (0.209, -0.065, 0.541)
    """
    mean = math.nan
    if control_alpha > 1.0:
        inverse = (control_alpha + control_beta - 1.0) / (control_alpha - 1.0)
        mean = alpha / (alpha + beta) * inverse - 1.0
    below = ratio_below(alpha, beta, control_alpha, control_beta)
    center = _log_mean(alpha, beta) - _log_mean(control_alpha, control_beta)
    sd = math.hypot(_log_sd(alpha, beta), _log_sd(control_alpha, control_beta))
    tail = 0.5 * (1.0 - credibility)
    return Lift(
        mean,
        math.expm1(_quantile(below, tail, center, sd)),
        math.expm1(_quantile(below, 1.0 - tail, center, sd)),
    )


def lift_of_means(
    mean: float, sd: float, control_mean: float, control_sd: float, credibility: float
) -> Lift:
    """Lift between two independent Normal posteriors, by Fieller's theorem.

    All nan unless control is above zero by CONTROL_SDS_MIN standard deviations, and by
    one more than the interval reaches: near zero or below it, a ratio says nothing, and
    at a negative control more would look like less. The mean is to second order.

    References
    ----------
    Fieller (1954), Some Problems in Interval Estimation; Hinkley (1969), On the Ratio
    of Two Correlated Normal Random Variables.

    Examples
    --------
    >>> lift = lift_of_means(1.1, 0.05, 1.0, 0.05, 0.95)
    >>> round(lift.mean, 3), round(lift.lower, 3), round(lift.upper, 3)
    (0.103, -0.036, 0.257)
    >>> lift_of_means(1.0, 0.05, -1.0, 0.05, 0.95)
    Lift(mean=nan, lower=nan, upper=nan)
    """
    z = -float(ndtri(0.5 * (1.0 - credibility)))
    if not control_mean > max(CONTROL_SDS_MIN, z + 1.0) * control_sd:
        return NO_LIFT
    # In units of control's mean, so that no square overflows.
    ratio, own, base = mean / control_mean, sd / control_mean, control_sd / control_mean
    shrink = 1.0 - (z * base) ** 2
    reach = z * math.sqrt(own * own * shrink + (ratio * base) ** 2)
    return Lift(
        ratio * (1.0 + base * base) - 1.0,
        (ratio - reach) / shrink - 1.0,
        (ratio + reach) / shrink - 1.0,
    )


def ratio_below(
    alpha: float, beta: float, control_alpha: float, control_beta: float
) -> Callable[[float], float]:
    """P(log(x / x_c) <= y) as a function of y, for two Beta posteriors.

    Integrates over the narrower of the two, on whose scale the other's distribution
    function is smooth; where that reaches 1 or 0 inside, the integral ends.
    """
    if _log_sd(alpha, beta) < _log_sd(control_alpha, control_beta):
        over_variant = _expectation(
            alpha, beta, lambda log: 1.0 - _rate_below(control_alpha, control_beta, log)
        )
        return lambda y: over_variant(-y)
    over_control = _expectation(
        control_alpha, control_beta, lambda log: _rate_below(alpha, beta, log)
    )

    def below(y: float) -> float:
        above = betaincc(control_alpha, control_beta, math.exp(-y)) if y > 0.0 else 0.0
        return over_control(y) + float(above)

    return below


def _expectation(
    alpha: float, beta: float, g: Callable[[Floats], Floats]
) -> Callable[[float], float]:
    """E[g(log x + y); log x + y < 0] as a function of y, for a Beta posterior of x."""
    whole = log_nodes_below(alpha, beta)

    def expectation(y: float) -> float:
        logs, weights = whole
        if y > 0.0 and logs[0] + y > 0.0:
            logs, weights = log_nodes_below(alpha, beta, -y)
        return float(weights @ g(np.minimum(logs + y, 0.0)))

    return expectation


def _rate_below(alpha: float, beta: float, log: Floats) -> Floats:
    """P(log x <= log) for a Beta posterior of x, (n,); by a power where x underflows."""
    below = betainc(alpha, beta, np.exp(log))
    tiny = log < -LOG_MAX
    power = alpha * log[tiny] - math.log(alpha) - betaln(alpha, beta)
    below[tiny] = np.exp(np.minimum(power, 0.0))
    return np.asarray(below, np.float64)


def _quantile(
    below: Callable[[float], float], probability: float, center: float, sd: float
) -> float:
    """Where a distribution function reaches `probability`, from a Normal guess.

    Sought on the Normal scale, where `below` is nearly straight, from LOG_MIN to LOG_MAX;
    infinite where it lies beyond them.
    """

    def excess(y: float) -> float:
        return float(ndtri(min(max(below(y), 1e-300), 1.0 - 1e-16))) - target

    target = float(ndtri(probability))
    low = high = min(max(center + target * sd, LOG_MIN), LOG_MAX)
    step = 0.25 * sd
    while excess(low) > 0.0:
        if low == LOG_MIN:
            return -math.inf
        low, step = max(low - step, LOG_MIN), 2.0 * step
    step = 0.25 * sd
    while excess(high) < 0.0:
        if high == LOG_MAX:
            return math.inf
        high, step = min(high + step, LOG_MAX), 2.0 * step
    if low == high:
        return low
    return float(brentq(excess, low, high, xtol=1e-7 * min(sd, 1.0), rtol=1e-14))


def _log_mean(alpha: float, beta: float) -> float:
    """E[log x]."""
    return float(digamma(alpha) - digamma(alpha + beta))


def _log_sd(alpha: float, beta: float) -> float:
    """Standard deviation of log x; by 1 / alpha - 1 / n where differences lose digits."""
    n = alpha + beta
    if alpha > 1e4:
        return math.sqrt(beta / n / alpha)
    return math.sqrt(float(polygamma(1, alpha) - polygamma(1, n)))
