"""Bayesian comparison of variants with each other and with control.

Takes posteriors, not data: which prior, and what counts as data, is the caller's. A
posterior is not spoiled by adaptive allocation if its prior is right and rates hold
still; where they drift, look at `evaluate` and the sample-ratio check too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from bandolero.inference.lift import NO_LIFT, Lift, lift_of_means, lift_of_rates
from bandolero.quadrature import beats, best_of, best_of_normals

Floats = NDArray[np.float64]


class Comparison(NamedTuple):
    """What is believed of each variant, (n_arms,) each.

    mean, interval_lower, interval_upper
        Posterior mean and equal-tailed credible interval of the variant's own rate (or
        mean reward), in its unit.
    probability_best
        P(the variant's rate is the highest); sums to 1.
    probability_beat_control
        P(the variant's rate is above control's), whatever their signs; nan for control.
    expected_loss
        E[highest rate - the variant's rate]: what choosing it for good costs per trial.
    lift, lift_lower, lift_upper
        Posterior mean and credible interval of rate / control's rate - 1. nan for
        control, and where it has no meaning; inf beyond what a float holds: see
        `bandolero.inference.lift`.
    """

    mean: Floats
    interval_lower: Floats
    interval_upper: Floats
    probability_best: Floats
    probability_beat_control: Floats
    expected_loss: Floats
    lift: Floats
    lift_lower: Floats
    lift_upper: Floats


def compare_rates(
    alpha: Floats, beta: Floats, control: int, credibility: float = 0.95
) -> Comparison:
    """Compare Beta posteriors of rates.

    Parameters
    ----------
    alpha, beta
        (n_arms,), positive, finite.
    control
        Arm that the others are compared with.
    credibility
        Of the intervals, in (0, 1).

    Raises
    ------
    ValueError
        Naming what is wrong.

    Examples
    --------
    >>> table = compare_rates(np.array([101.0, 121.0]), np.array([901.0, 881.0]), 0)
    >>> table.probability_beat_control.round(3)
    array([  nan, 0.923])
    """
    alpha = np.asarray(alpha, dtype=np.float64)
    beta = np.asarray(beta, dtype=np.float64)
    _check_positive("alpha", alpha)
    _check_positive("beta", beta)
    _check_question(control, len(alpha), credibility)
    tail = 0.5 * (1.0 - credibility)
    best = best_of(alpha, beta)
    other = (float(alpha[control]), float(beta[control]))

    def beat(k: int) -> float:
        return beats(float(alpha[k]), float(beta[k]), *other)

    def lift(k: int) -> Lift:
        return lift_of_rates(float(alpha[k]), float(beta[k]), *other, credibility)

    return Comparison(
        mean=alpha / (alpha + beta),
        interval_lower=np.asarray(betaincinv(alpha, beta, tail), np.float64),
        interval_upper=np.asarray(betaincinv(alpha, beta, 1.0 - tail), np.float64),
        probability_best=best.probability_best,
        expected_loss=best.expected_loss,
        **_against(control, len(alpha), beat, lift),
    )


def compare_means(
    mean: Floats, sd: Floats, control: int, credibility: float = 0.95
) -> Comparison:
    """Compare Normal posteriors of mean rewards, which may be negative.

    Parameters
    ----------
    mean, sd
        (n_arms,), finite, in the reward's unit; sd, the standard error, is positive.
    control
        Arm that the others are compared with.
    credibility
        Of the intervals, in (0, 1).

    Raises
    ------
    ValueError
        Naming what is wrong.

    Examples
    --------
    >>> table = compare_means(np.array([-2.0, -1.0]), np.array([1.0, 1.0]), 0)
    >>> table.probability_beat_control.round(3)
    array([ nan, 0.76])
    """
    if not np.isfinite(mean).all():
        raise ValueError("mean has nan or inf in it, must be finite.")
    _check_positive("sd", sd)
    _check_question(control, len(mean), credibility)
    z = -float(ndtri(0.5 * (1.0 - credibility)))
    best = best_of_normals(mean, sd)
    other = (float(mean[control]), float(sd[control]))

    def beat(k: int) -> float:
        return float(ndtr((mean[k] - other[0]) / math.hypot(sd[k], other[1])))

    def lift(k: int) -> Lift:
        return lift_of_means(float(mean[k]), float(sd[k]), *other, credibility)

    return Comparison(
        mean=np.array(mean, dtype=np.float64),
        interval_lower=mean - z * sd,
        interval_upper=mean + z * sd,
        probability_best=best.probability_best,
        expected_loss=best.expected_loss,
        **_against(control, len(mean), beat, lift),
    )


def _check_positive(name: str, given: Floats) -> None:
    fits = np.isfinite(given) & (np.asarray(given) > 0.0)
    if not fits.all():
        worst = np.asarray(given)[~fits][0]
        raise ValueError(f"{name} has {worst:g} in it, must be positive and finite.")


def _check_question(control: int, n_arms: int, credibility: float) -> None:
    if not 0 <= control < n_arms:
        raise ValueError(f"control == {control}, must be in 0 … {n_arms - 1}.")
    if not 0.0 < credibility < 1.0:
        raise ValueError(f"credibility == {credibility}, must be in (0, 1).")


def _against(
    control: int,
    n_arms: int,
    beat: Callable[[int], float],
    lift: Callable[[int], Lift],
) -> dict[str, Floats]:
    """Columns that compare with control, (n_arms,) each, nan in control's own row."""
    others = [k != control for k in range(n_arms)]
    lifts = [lift(k) if other else NO_LIFT for k, other in enumerate(others)]
    return {
        "probability_beat_control": np.array(
            [beat(k) if other else math.nan for k, other in enumerate(others)]
        ),
        "lift": np.array([each.mean for each in lifts]),
        "lift_lower": np.array([each.lower for each in lifts]),
        "lift_upper": np.array([each.upper for each in lifts]),
    }
