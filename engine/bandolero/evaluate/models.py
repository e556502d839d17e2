"""What every arm would earn in every situation, predicted from other trials.

One ridge regression an arm, pulled towards the regression of all arms together; without
context, a mean pulled towards the overall mean. How strongly is estimated: the noise of a
trial over the variance between arms, so that arms that do not differ are one arm.

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
    identity = np.eye(gram.shape[1])
    shared = np.linalg.inv(gram.sum(axis=0) + identity)
    penalty = _shrinkage(gram, moment, squares, shared)
    own = np.linalg.inv(gram + penalty * identity)
    return np.asarray(own, np.float64), np.asarray(shared, np.float64)


def _shrinkage(gram: Floats, moment: Floats, squares: float, shared: Floats) -> float:
    """Variance of a trial over that of a coefficient between arms, by moments.

    What arms explain beyond all of them together, less what noise explains, over how much
    it grows with the variance of coefficients; without context, DerSimonian and Laird's.
    """
    inverse = np.linalg.inv(gram + np.eye(gram.shape[1]))
    ranks = np.einsum("kij,kji->k", inverse, gram)
    total = gram.sum(axis=0)
    free = float(total[0, 0] - ranks.sum())
    if free <= 0.0:
        return SHRINKAGE_MAX
    noise = squares - float(np.einsum("ki,kij,kj->", moment, inverse, moment))
    noise = max(noise, 0.0) / free
    residual = moment - gram @ (shared @ moment.sum(axis=0))
    explained = float(np.einsum("ki,kij,kj->", residual, inverse, residual))
    by_noise = noise * float(ranks.sum() - np.trace(shared @ total))
    slope = np.trace(total) - np.einsum("ij,kjl,kli->", shared, gram, gram)
    between = max(explained - by_noise, 0.0) / float(slope) if slope > 0.0 else 0.0
    if between <= noise / SHRINKAGE_MAX:
        return SHRINKAGE_MAX
    return max(noise / between, SHRINKAGE_MIN)


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
