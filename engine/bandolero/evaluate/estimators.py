"""Estimators of what a target would have earned a trial, from weighed trials.

w is a trial's weight, r its reward, q the model's prediction for the logged arm, v what
the model expects of the target there. Each is a mean of a term a trial, but for the
self-normalised one, which divides by the mean weight.

| name | term | unbiased |
|---|---|---|
| `ips` | w r | if propensities are right |
| `snips` | w r, over the mean of w | nearly: of order 1 / n |
| `dm` | v | if the model is right |
| `dr` | w (r - q) + v | if either is |
| `switch_dr` | the same, weights above a threshold taken for 0 | if the model is right there |
| `dros` | the same with s w / (w^2 + s) for w | between `dr` and `dm` |

References
----------
Horvitz & Thompson (1952); Swaminathan & Joachims (2015), The Self-Normalized Estimator;
Dudík, Langford & Li (2011), Doubly Robust Policy Evaluation and Learning; Wang, Agarwal &
Dudík (2017), Optimal and Adaptive Off-policy Evaluation in Contextual Bandits (SWITCH);
Su, Dimakopoulou, Krishnamurthy & Dudík (2020), Doubly Robust Off-policy Evaluation with
Shrinkage.
"""

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np

from bandolero.evaluate.intervals import Floats, Ints, sums_by
from bandolero.evaluate.models import Weighed

QUANTILES = (0.5, 0.9, 0.99)
"""Thresholds that are tried are these quantiles of the positive weights, besides 0 and inf."""


class Terms(NamedTuple):
    """An estimate, and what each trial has to do with it.

    value
        The estimate.
    above, below
        (n_trials,), whose sums' ratio it is; `below` None stands for ones. What a trial
        does through the model that learned from it is in `above` too, with mean 0, or the
        intervals of `dm` would be those of a model that is known.
    limit
        Of `switch_dr` the threshold, of `dros` the strength; None for others.
    """

    value: float
    above: Floats
    below: Floats | None = None
    limit: float | None = None


def ips(of: Weighed) -> Terms:
    """Inverse propensity: rewards by weight."""
    above = of.weights * of.rewards
    return Terms(float(above.mean()), above)


def snips(of: Weighed) -> Terms:
    """Self-normalised inverse propensity: a mean of rewards, so never beyond them."""
    above = of.weights * of.rewards
    return Terms(float(above.sum() / of.weights.sum()), above, of.weights)


def direct(of: Weighed) -> Terms:
    """Direct method: the model's word."""
    return _modelled(of, np.zeros_like(of.weights))


def doubly_robust(of: Weighed) -> Terms:
    """The model's word, and its errors by weight; errors of the model cancel."""
    return Terms(_value(of, of.weights), of.weights * of.residuals + of.expected)


def switch_dr(of: Weighed, threshold: float) -> Terms:
    """Doubly robust up to a weight, the model's word beyond; inf is `doubly_robust`."""
    kept = np.where(of.weights <= threshold, of.weights, 0.0)
    return _modelled(of, kept)._replace(limit=threshold)


def shrunk_dr(of: Weighed, strength: float) -> Terms:
    """Doubly robust with optimistic shrinkage of weights; 0 is `direct`, inf as above."""
    if strength == 0.0:
        return direct(of)._replace(limit=0.0)
    shrunk = of.weights / (1.0 + of.weights**2 / strength)
    return _modelled(of, shrunk)._replace(limit=strength)


def _modelled(of: Weighed, weights: Floats) -> Terms:
    """The model's word and its errors by other weights than the target's."""
    value = _value(of, weights)
    above = of.model_weights(weights)
    above += weights
    above *= of.residuals
    above += of.expected
    above += value - above.mean()
    return Terms(value, above)


def _value(of: Weighed, weights: Floats) -> float:
    """The mean of what the model expects and of its errors by weight."""
    return float(weights @ of.residuals + of.expected.sum()) / len(weights)


def tuned(
    estimator: Callable[[Weighed, float], Terms],
    of: Weighed,
    group: Ints,
    limits: Floats,
    ends: tuple[Terms, Terms],
) -> Terms:
    """The estimate with the limit of the least estimated squared error.

    Squared error is variance, from sums by group, and squared bias: the distance to
    `doubly_robust`, which has none. That distance is noise too, so bias is overstated
    rather than missed.

    Parameters
    ----------
    limits
        (n_limits,), positive and finite.
    ends
        `direct` and `doubly_robust`: the estimator at 0 and at inf.
    """
    direct_terms, unbiased = ends
    best, least = direct_terms._replace(limit=0.0), np.inf
    tried = chain(
        [best, unbiased._replace(limit=np.inf)],
        (estimator(of, float(limit)) for limit in limits),
    )
    for terms in tried:
        error = _variance(terms, group) + (terms.value - unbiased.value) ** 2
        if error < least:
            best, least = terms, error
    return best


def thresholds(weights: Floats) -> Floats:
    """Positive weights at which `switch_dr` is tried, (n_thresholds,)."""
    positive = weights[weights > 0.0]
    return np.unique(np.quantile(positive, QUANTILES)) if len(positive) else positive


def influence(terms: Terms) -> Floats:
    """How far each trial moved the estimate, (n_trials,).

    Its squares add up to the estimate's variance where trials are independent.
    """
    if terms.below is None:
        return (terms.above - terms.value) / len(terms.above)
    return (terms.above - terms.value * terms.below) / float(terms.below.sum())


def _variance(terms: Terms, group: Ints) -> float:
    sums = sums_by(group, influence(terms))
    return float(np.sum(sums**2))


def estimate_all(of: Weighed, group: Ints) -> dict[str, Terms]:
    """Every estimator by name; strengths that are tried are squared thresholds."""
    tried, ends = thresholds(of.weights), (direct(of), doubly_robust(of))
    return {
        "ips": ips(of),
        "snips": snips(of),
        "dm": ends[0],
        "dr": ends[1],
        "switch_dr": tuned(switch_dr, of, group, tried, ends),
        "dros": tuned(shrunk_dr, of, group, tried**2, ends),
    }
