"""Evaluate a target policy on logged trials: every estimator, or why there is no answer."""

import math
from typing import NamedTuple

import numpy as np

from bandolero.evaluate import intervals
from bandolero.evaluate.estimators import Terms, estimate_all
from bandolero.evaluate.intervals import (
    Bootstrap,
    Floats,
    Interval,
    sums_by,
    sums_of,
)
from bandolero.evaluate.models import Weighed, weigh
from bandolero.evaluate.support import Support, support_of
from bandolero.evaluate.trials import Trials, checked_target


class Estimate(NamedTuple):
    """What one estimator says a trial of the target earns.

    bootstrap
        BCa interval of the estimator; where it is biased, its bias is not in it.
    bernstein
        Empirical Bernstein interval, right at any sample size: of `ips` and `dr`, which
        have no bias, where rewards have a largest. Their range is taken from the largest
        weight seen.
    relative, relative_interval
        value over the log's own mean reward, and the bootstrap's interval of it.
    limit
        The threshold of `switch_dr`, the strength of `dros`.
    """

    value: float
    bootstrap: Interval
    bernstein: Interval | None
    relative: float
    relative_interval: Interval
    limit: float | None


class Evaluation(NamedTuple):
    """What a log says of a target.

    n_trials, n_clusters
        What was evaluated; clusters are trials unless draws were sticky.
    logged
        Mean reward of the log itself.
    support
        Diagnostics, and why there is no answer where there is none.
    estimates
        By estimator; empty without enough support.
    """

    n_trials: int
    n_clusters: int
    logged: float
    support: Support
    estimates: dict[str, Estimate]

    @property
    def is_supported(self) -> bool:
        """Whether there is an answer."""
        return not self.support.reasons


def evaluate(trials: Trials, target: Floats) -> Evaluation:
    """What a target would have earned a trial, by every estimator.

    Parameters
    ----------
    target
        Probability of every arm, (n_situations, n_arms), or (n_arms,) for the same in
        every situation.

    Raises
    ------
    ValueError
        When the target is no distribution over the arms.

    Examples
    --------
    >>> from bandolero.evaluate.trials import Situations
    >>> arms, hit = np.arange(8000) % 2, np.arange(8000) % 5 == 0
    >>> trials = Trials(
    ...     arms, hit.astype(float), np.full(8000, 0.5), 0 * arms, Situations.alike(2)
    ... )
    >>> found = evaluate(trials, np.array([0.2, 0.8]))
    >>> round(found.estimates["ips"].value, 3), round(found.estimates["dm"].value, 3)
    (0.2, 0.2)
    """
    given = checked_target(target, trials.situations)
    weighed = weigh(trials, given)
    support = support_of(trials, given, weighed.weights)
    clusters = trials.clusters
    n_clusters = len(trials)
    if clusters is not None:
        n_clusters = int(np.count_nonzero(np.bincount(clusters)))
    logged = float(trials.rewards.mean()) if len(trials) else math.nan
    estimates = {} if support.reasons else _estimates(trials, weighed)
    return Evaluation(len(trials), n_clusters, logged, support, estimates)


def _estimates(trials: Trials, weighed: Weighed) -> dict[str, Estimate]:
    """Every estimator with its intervals, all from the same replicates."""
    terms_by_name = estimate_all(weighed, trials.group)
    mean = float(trials.rewards.mean())
    widths, bootstrap = _widths(trials, weighed), _bootstrap(trials, terms_by_name)
    found = {}
    for i, (name, terms) in enumerate(terms_by_name.items()):
        above, below = 2 + 2 * i, 3 + 2 * i
        bernstein = _bernstein(trials, terms, widths[name]) if name in widths else None
        found[name] = Estimate(
            value=terms.value,
            bootstrap=bootstrap.interval(above, below),
            bernstein=bernstein,
            relative=terms.value / mean if mean else math.nan,
            relative_interval=bootstrap.interval(above, below, to=(0, 1)),
            limit=terms.limit,
        )
    return found


def _bootstrap(trials: Trials, terms_by_name: dict[str, Terms]) -> Bootstrap:
    """Replicates of the log's rewards and trials, then of each estimator's two sums."""
    ones = np.ones(len(trials))
    own = sums_by(trials.group, trials.rewards, ones)
    sums = [
        sums_by(trials.group, terms.above, ones if terms.below is None else terms.below)
        for terms in terms_by_name.values()
    ]
    return Bootstrap(np.hstack((own, *sums)))


def _widths(trials: Trials, of: Weighed) -> dict[str, float]:
    """How far apart two terms of an estimator can lie, rewards in [0, reward_max].

    A term of `ips` is in [0, W R], one of `dr` in [v - W Q, v + W R], with the largest
    weight W, reward R and prediction Q. None where rewards have no largest.
    """
    if trials.reward_max is None:
        return {}
    heaviest = float(of.weights.max())
    largest_prediction = float((of.rewards - of.residuals).max())
    width = heaviest * trials.reward_max
    reach = heaviest * largest_prediction + float(np.ptp(of.expected))
    return {"ips": width, "dr": width + reach}


def _bernstein(trials: Trials, terms: Terms, width: float) -> Interval:
    """Bernstein's interval of a mean of terms, by cluster."""
    clusters, high = trials.clusters, trials.reward_max or 0.0
    largest = 1 if clusters is None else int(np.bincount(clusters).max())
    found = intervals.bernstein(
        sums_of(terms.above, clusters), len(trials), largest * width
    )
    return Interval(max(found.low, 0.0), min(found.high, high))
