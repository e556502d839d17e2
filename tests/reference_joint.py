"""Slow, obvious twins of the policies with one posterior for all variants."""

from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import reference_contextual
from bandolero.policies.product_choice import ProductPrepared

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def shared_regression(
    arm_features: Floats,
    prior_precision: Floats,
    arms: Ints,
    rewards: Floats,
    X: Floats,
) -> reference_contextual.Regression:
    """One regression of the rewards on kron(attributes, context), trial after trial."""
    rows = [np.kron(arm_features[k], x) for k, x in zip(arms, X, strict=True)]
    dense = np.array(rows).reshape(len(rows), len(prior_precision))
    return reference_contextual.linear_regression(
        np.zeros(len(prior_precision)), prior_precision, dense, rewards
    )


def shares_of_draws(values: Floats) -> Floats:
    """Share of the draws in which each arm is best, ties evenly; values (n_arms, n)."""
    shares = np.zeros(len(values))
    for column in values.T:
        best = np.flatnonzero(column == column.max())
        shares[best] += 1.0 / (len(best) * values.shape[1])
    return shares


def combination_features(
    n_values: Sequence[int], combination: Sequence[int], x: Floats
) -> Floats:
    """Dense features: x, x for each value shown, then 1 for each pair of values shown."""
    shown = [
        (a, v) == (a, combination[a]) for a, n in enumerate(n_values) for v in range(n)
    ]
    pairs = [
        (v, w) == (combination[a], combination[b])
        for a, b in combinations(range(len(n_values)), 2)
        for v in range(n_values[a])
        for w in range(n_values[b])
    ]
    return np.concatenate([x, np.kron(shown, x), np.array(pairs, np.float64)])


def probit_filter(
    mean: Floats, variance: Floats, rows: Floats, rewards: Floats
) -> tuple[Floats, Floats]:
    """Means and variances of independent Normal weights, trial after trial.

    Each weight's by its own integrals: given weight w, a click has probability
    Phi((rest + z w) / sqrt(1 + spread of the rest)).
    """
    m, v = mean.copy(), variance.copy()
    u, du = np.linspace(-10.0, 10.0, 4001, retstep=True)
    for z, reward in zip(rows, rewards, strict=True):
        sign = 1.0 if reward else -1.0
        old_m, old_v = m.copy(), v.copy()
        for i in np.flatnonzero(z):
            w = old_m[i] + np.sqrt(old_v[i]) * u
            rest = z @ old_m - z[i] * old_m[i]
            sd = np.sqrt(1.0 + z**2 @ old_v - z[i] ** 2 * old_v[i])
            weight = stats.norm.pdf(u) * stats.norm.cdf(sign * (rest + z[i] * w) / sd)
            weight /= weight.sum() * du
            m[i] = np.sum(weight * w) * du
            v[i] = np.sum(weight * (w - m[i]) ** 2) * du
    return m, v


def best_combination(
    values: Floats, pairs: Floats, allowed: Sequence[Sequence[int]], first: Ints
) -> tuple[list[int], float]:
    """The best combination and its value, by trying all."""

    def value(combination: Sequence[int]) -> float:
        at = [first[a] + v for a, v in enumerate(combination)]
        together = sum(pairs[v, w] for v, w in combinations(at, 2))
        return float(values[at].sum() + together)

    best = max(product(*allowed), key=value)
    return list(best), value(best)


def worth_of(prepared: ProductPrepared, best: Ints, x: Floats) -> Floats:
    """What each draw's combination is worth, by the definition, (n_draws,)."""
    worth = []
    for weights, pairs, row in zip(prepared.values, prepared.pairs, best, strict=True):
        at = prepared.first[:-1] + row
        worth.append((x @ weights)[at].sum() + 0.5 * pairs[np.ix_(at, at)].sum())
    return np.array(worth)
