"""What every arm would earn in every situation, predicted from other trials.

One ridge regression an arm, pulled towards the regression of all arms together; without
context, a mean pulled towards the overall mean. How strongly is estimated: the noise of a
trial over the variance between arms, so that arms that do not differ are one arm. In
their means arms are pulled by one strength and in what the context changes by another,
both whatever the coding of the context.

Trials are predicted by a model that has not seen them nor any of their cluster
(cross-fitting): all a fit needs are sums, and a fold's are taken off the total. Linear
also where rewards are binary: doubly robust values are right whatever the model, a better
one only makes them surer, and a logistic one would need many passes for that.

References
----------
Chernozhukov et al. (2018), Double/Debiased Machine Learning: cross-fitting.
DerSimonian & Laird (1986), Meta-Analysis in Clinical Trials: variance between arms.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bandolero._jit import kernel
from bandolero.evaluate.intervals import Floats, Ints
from bandolero.evaluate.trials import Trials

N_FOLDS = 5
SHRINKAGE_MIN, SHRINKAGE_MAX = 1.0, 1e6
RIDGE = 1e-7
"""Part of all sums that is added to each, for those without an inverse: levels never seen,
columns that add up. Less would leave nothing of their digits."""


class Weighed(NamedTuple):
    """All that estimators need of each trial, (n_trials,) each.

    weights
        The target's probability of the logged arm over its propensity.
    rewards
        As logged.
    residuals
        Rewards less what the model says the logged arm earns there.
    expected
        What the model says the target earns there.
    model_weights
        Given weights that residuals are counted with, (n_trials,): those that they have
        besides, because the model learned from them (`Fitted.weights`).
    """

    weights: Floats
    rewards: Floats
    residuals: Floats
    expected: Floats
    model_weights: Callable[[Floats], Floats]


class Fitted(NamedTuple):
    """Regressions of all arms.

    coefficients
        (N_FOLDS, n_arms, n_features), for each fold, from the trials of the others.
    gram, own
        (n_arms, n_features, n_features): sums of x x' over all trials, and the inverse of
        what an arm's own deviation is solved from.
    shared
        (n_features, n_features), the same inverse of all arms together.
    """

    coefficients: Floats
    gram: Floats
    own: Floats
    shared: Floats

    def weights(self, trials: Trials, missing: Floats) -> Floats:
        """How much each trial's residual counts in what the model says, (n_trials,).

        Parameters
        ----------
        missing
            (n_arms, n_features): by how much what is asked changes with a coefficient.
        """
        own = np.einsum("kij,kj->ki", self.own, missing)
        left = (missing - np.einsum("kij,kj->ki", self.gram, own)).sum(axis=0)
        slopes = len(trials) * (own + self.shared @ left)
        out = np.empty(len(trials))
        features = trials.situations.features
        _predict(trials.arms, trials.situation, features, slopes, out)
        return out


def weigh(trials: Trials, target: Floats) -> Weighed:
    """Weights and cross-fitted predictions of trials for a target.

    Parameters
    ----------
    target
        (n_situations, n_arms).
    """
    fold = trials.group % N_FOLDS
    fitted = fit(trials, fold)
    features, n = trials.situations.features, max(len(trials), 1)
    low, high = -np.inf, np.inf
    if trials.reward_max is not None:
        low, high = 0.0, trials.reward_max
    columns = np.empty((3, len(trials)))
    _weigh(
        trials.arms,
        trials.propensities,
        trials.situation,
        fold,
        target,
        features,
        fitted.coefficients,
        low,
        high,
        columns,
    )
    asked = (target * trials.per_situation[:, None]).T @ features / n

    def model_weights(counted: Floats) -> Floats:
        covered = np.zeros(asked.shape)
        _add_features(trials.arms, trials.situation, features, counted, covered)
        return fitted.weights(trials, asked - covered / n)

    weights, predicted, expected = columns
    residuals = trials.rewards - predicted
    return Weighed(weights, trials.rewards, residuals, expected, model_weights)


def fit(trials: Trials, fold: Ints) -> Fitted:
    """Regressions of all arms, and for each fold those that have not seen it."""
    features = trials.situations.features
    k, d = trials.situations.n_arms, features.shape[1]
    gram, moment = np.zeros((N_FOLDS, k, d, d)), np.zeros((N_FOLDS, k, d))
    squares = np.zeros(N_FOLDS)
    _accumulate(
        trials.arms,
        trials.rewards,
        trials.situation,
        fold,
        features,
        gram,
        moment,
        squares,
    )
    gram += np.triu(gram, 1).swapaxes(2, 3)
    sums = gram.sum(axis=0), moment.sum(axis=0), float(squares.sum())
    without = [
        _solved(sums[0] - gram[f], sums[1] - moment[f], sums[2] - float(squares[f]))
        for f in range(N_FOLDS)
    ]
    own, shared = _inverses(*sums)
    return Fitted(np.stack(without), sums[0], own, shared)


def _solved(gram: Floats, moment: Floats, squares: float) -> Floats:
    """Coefficients by arm, (n_arms, n_features), from sums of x x', x r and r^2."""
    own, shared = _inverses(gram, moment, squares)
    together = shared @ moment.sum(axis=0)
    residual = moment - gram @ together
    return np.asarray(together + np.einsum("kij,kj->ki", own, residual), np.float64)


def _inverses(gram: Floats, moment: Floats, squares: float) -> tuple[Floats, Floats]:
    """Inverses of the penalised sums of x x': by arm, and of all arms."""
    total = gram.sum(axis=0)
    ridge = RIDGE * max(float(np.trace(total)), 1.0) * np.eye(len(total))
    shared = np.linalg.inv(total + ridge)
    penalties, unit = _kinds(total)
    free = np.asarray(np.linalg.inv(gram + ridge), np.float64)
    noise, between = _variances(gram, moment, squares, shared, free, unit)
    strengths = _strengths(noise, between)
    own = np.linalg.inv(gram + np.tensordot(strengths, penalties, 1) + ridge)
    return np.asarray(own, np.float64), np.asarray(shared, np.float64)


def _kinds(total: Floats) -> tuple[Floats, Floats]:
    """How an arm may deviate: in its mean, or in what changes with the situation.

    Both are said by what is predicted, so that no coding of features matters.

    Parameters
    ----------
    total
        (n_features, n_features), sums of x x' over all trials.

    Returns
    -------
    penalties
        (2, n_features, n_features): what a trial's worth of each adds to sums of x x'.
    unit
        (n_features, n_features): covariance of coefficients by which predictions change
        by a variance of 1.
    """
    mean = total[0] / max(float(total[0, 0]), 1.0)
    of_mean = np.outer(mean, mean)
    changes = (total / max(float(total[0, 0]), 1.0) - of_mean)[1:, 1:]
    inverse = np.linalg.pinv(changes, rcond=RIDGE, hermitian=True)
    n_changes = max(float(np.trace(inverse @ changes)), 1.0)
    penalties = np.zeros((2, *total.shape))
    penalties[0], penalties[1, 1:, 1:] = of_mean, n_changes * changes
    slopes = np.vstack((-mean[1:], np.eye(len(changes))))
    return penalties, slopes @ inverse @ slopes.T / n_changes


def _strengths(noise: float, between: Floats) -> Floats:
    """How many trials pull arms together, by kind of deviation, (2,)."""
    if noise / SHRINKAGE_MAX <= 0.0:
        return np.full(2, SHRINKAGE_MAX)
    pulls = noise / np.maximum(between, noise / SHRINKAGE_MAX)
    return np.asarray(np.maximum(pulls, SHRINKAGE_MIN), np.float64)


def _variances(
    gram: Floats,
    moment: Floats,
    squares: float,
    shared: Floats,
    free: Floats,
    unit: Floats,
) -> tuple[float, Floats]:
    """Variance of a trial, and of each kind of deviation between arms, (2,), by moments.

    That of means as DerSimonian and Laird have it; that of changes from all that arms
    explain beyond all of them together, less what noise explains: so much at most, lest
    changes be pulled away where means differ in a log that looked at the situation.

    Parameters
    ----------
    shared, free
        Inverses of the sums of all arms and, without penalty, of each.
    unit
        As of `_kinds`.
    """
    total = gram.sum(axis=0)
    ranks = float(np.einsum("kij,kji->", free, gram))
    left = float(total[0, 0]) - ranks
    if left <= 0.0:
        return 0.0, np.zeros(2)
    noise = squares - float(np.einsum("ki,kij,kj->", moment, free, moment))
    noise = max(noise, 0.0) / left
    residual = moment - gram @ (shared @ moment.sum(axis=0))
    of_means = _between_means(gram, residual, free, noise)
    explained = float(np.einsum("ki,kij,kj->", residual, free, residual))
    explained -= noise * (ranks - float(np.trace(shared @ total)))
    by_change = _growth(gram, shared, unit)
    of_changes = max(explained, 0.0) / by_change if by_change > 0.0 else 0.0
    return noise, np.array([of_means, of_changes])


def _between_means(gram: Floats, residual: Floats, free: Floats, noise: float) -> float:
    """Variance of what arms deviate by, in the mean over all situations.

    From all arms together, not from their mean: a log that looked at the situation shows
    more of some arms, and it is to all together that they are pulled.
    """
    mean = gram[:, 0, :].sum(axis=0) / float(gram[:, 0, 0].sum())
    asked = free @ mean
    deviations = np.einsum("ki,ki->k", asked, residual)
    worth = 1.0 / (asked @ mean)  # trials that an arm's deviation is known by
    share = worth / worth.sum()
    by_noise = worth * np.einsum("ki,kij,kj->k", asked, gram, asked)
    excess = float(worth @ deviations**2 - noise * ((1.0 - share) @ by_noise))
    growth = float(worth @ (1.0 - share))
    return max(excess, 0.0) / growth if growth > 0.0 else 0.0


def _growth(gram: Floats, shared: Floats, unit: Floats) -> float:
    """By how much a unit of covariance makes what arms explain grow."""
    spread = gram @ unit
    squared = np.einsum("kij,kjl->il", spread, gram)
    return float(np.einsum("kii->", spread)) - float(np.sum(shared * squared))


@kernel
def _accumulate(
    arms: Ints,
    rewards: Floats,
    situation: Ints,
    fold: Ints,
    features: Floats,
    gram: Floats,
    moment: Floats,
    squares: Floats,
) -> None:
    """Add up x x' (upper triangle) and x r by fold and arm, r^2 by fold."""
    for t in range(arms.size):
        if arms[t] < 0:
            continue
        x, f, a = features[situation[t]], fold[t], arms[t]
        squares[f] += rewards[t] * rewards[t]
        for i in range(x.size):
            moment[f, a, i] += x[i] * rewards[t]
            if x[i] != 0.0:  # most features are levels that are not there
                for j in range(i, x.size):
                    gram[f, a, i, j] += x[i] * x[j]


@kernel
def _weigh(
    arms: Ints,
    propensities: Floats,
    situation: Ints,
    fold: Ints,
    target: Floats,
    features: Floats,
    coefficients: Floats,
    low: float,
    high: float,
    columns: Floats,
) -> None:
    """Fill in weight, prediction of the logged arm and expectation of each trial."""
    n_arms, d = target.shape[1], features.shape[1]
    for t in range(arms.size):
        s, f, arm = situation[t], fold[t], arms[t]
        weight = logged = expected = 0.0
        for a in range(n_arms):
            share = target[s, a]
            if share == 0.0 and a != arm:
                continue
            predicted = 0.0
            for i in range(d):
                predicted += coefficients[f, a, i] * features[s, i]
            predicted = min(max(predicted, low), high)
            expected += share * predicted
            if a == arm:
                weight, logged = share / propensities[t], predicted
        columns[0, t], columns[1, t], columns[2, t] = weight, logged, expected


@kernel
def _predict(
    arms: Ints, situation: Ints, features: Floats, slopes: Floats, out: Floats
) -> None:
    """Fill in x' b of each trial's arm; 0 where it is none."""
    d = features.shape[1]
    for t in range(arms.size):
        predicted = 0.0
        if arms[t] >= 0:
            for i in range(d):
                predicted += slopes[arms[t], i] * features[situation[t], i]
        out[t] = predicted


@kernel
def _add_features(
    arms: Ints, situation: Ints, features: Floats, weights: Floats, sums: Floats
) -> None:
    """Add up the features of each arm's trials by weight, (n_arms, n_features)."""
    d = features.shape[1]
    for t in range(arms.size):
        if arms[t] >= 0 and weights[t] != 0.0:
            for i in range(d):
                sums[arms[t], i] += weights[t] * features[situation[t], i]
