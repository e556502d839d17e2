"""Thompson sampling over all combinations of attribute values, none of them listed.

Six attributes of ten values make a million combinations, and 1,561 weights: one for all,
one for each value, one for each pair of values of two attributes. A combination earns a
click with probability Phi(sum of its weights), weights of values multiplied by the
request's features x (x[0] = 1), those of pairs by 1. Two combinations share what their
values share, so one that was never shown starts warm.

1. Learning: independent Normal beliefs about weights; each trial replaces them by the
   Normals of the same means and variances as belief times likelihood (assumed-density
   filtering). It costs as much as a combination has weights. The state is sequential: it
   depends on the order of the trials, so it is folded in log order only.
2. A snapshot holds `N_DRAWS` draws of the weights.
3. A decision finds the best combination of each draw: by trying all where they are at
   most `EXACT_MAX`, else by coordinate ascent from several starts, one of them the best
   without context. One draw of them, picked evenly, is shown; its propensity is the share
   of draws with the same best combination, as found: whether ascent found the very best
   costs reward, never truth. Without context and without a narrowed choice all this was
   done when the snapshot was built.

The floor is one per value, not one per combination: with probability
epsilon = min(largest number of values * min_share, 0.5) a combination is drawn evenly from
the product, so each value gets at least min_share. Half of the traffic spread over a
million combinations would teach nothing about any. A combination that is best in no draw
has propensity epsilon / combinations: weigh trials by 1 / `value_probabilities` to judge
values, not by 1 / propensity to judge combinations that are hardly ever shown.

References
----------
Hill et al. (2017), An Efficient Bandit Algorithm for Realtime Multivariate Optimization:
model, Thompson sampling, hill climbing with restarts. Graepel et al. (2010), Web-Scale
Bayesian Click-Through Rate Prediction: the probit update.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bandolero._jit import kernel
from bandolero.policies import product_choice
from bandolero.policies.base import Floats, Ints
from bandolero.policies.normal_choice import drawn_belief
from bandolero.policies.product_choice import (
    STARTS_WITHOUT_CONTEXT,
    Floats32,
    ProductPrepared,
)
from bandolero.policies.shared_linear_thompson import EXPLORATION

N_DRAWS = 256
SEED = 20170813
COMBINATIONS_MAX = 2**40
"""A number in [0, 1) of 53 bits draws evenly from no more."""
FEATURE_MAX = 1e30
"""Draws are 32 bits wide."""
Allowed = Sequence[Ints]
"""Values that may be shown of each attribute; ascending, none empty."""


class ProductState(NamedTuple):
    """Independent Normal beliefs about weights, on the scale of the probit.

    common_mean, common_variance
        (n_features,), of what all combinations share.
    value_mean, value_variance
        (n_values in all, n_features), attribute after attribute.
    pair_mean, pair_variance
        (n_values in all, n_values in all); only above the diagonal, and there between
        values of different attributes, is a weight; 0 elsewhere.
    trials
        (1,), int64.
    """

    common_mean: Floats
    common_variance: Floats
    value_mean: Floats
    value_variance: Floats
    pair_mean: Floats
    pair_variance: Floats
    trials: Ints


class Combination(NamedTuple):
    """A drawn combination, (n_attributes,) values, and its propensity."""

    values: Ints
    propensity: float


class Shares(NamedTuple):
    """Combinations (n, n_attributes) that are best in some draw, and their shares (n,)."""

    combinations: Ints
    shares: Floats


@dataclass(frozen=True)
class ProductThompson:
    """Probability matching on the best of all combinations.

    Parameters
    ----------
    n_values
        How many values each attribute has; positive, `COMBINATIONS_MAX` combinations at
        most.
    n_features
        As `bandolero.features.n_features` counts them; the first is 1.
    prior_intercept
        Prior mean of the first common weight; of all others it is 0. Phi(-1.9) is 3 %.
    prior_variance
        Of the common weights; positive, and so the next two.
    value_variance, pair_variance
        Of the weights of values and of pairs.
    exploration
        In (0, 1]; see `normal_choice.drawn_belief`.

    Examples
    --------
    >>> policy = ProductThompson((2, 2))
    >>> shown = np.array([[0, 0], [0, 1], [1, 0]] * 300)
    >>> clicks = (shown[:, 0] == 1).astype(float)
    >>> state = policy.update(policy.init(), shown, clicks, np.ones((900, 1)))
    >>> policy.draw(policy.prepare(state), np.ones(1), u=0.5, min_share=0.01).values
    array([1, 0])
    """

    n_values: tuple[int, ...]
    n_features: int = 1
    prior_intercept: float = -1.9
    prior_variance: float = 0.05
    value_variance: float = 0.03
    pair_variance: float = 0.01
    exploration: float = EXPLORATION
    kind = "product_thompson"
    mode = "explore"

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn from."""
        if not self.n_values or min(self.n_values) < 1:
            raise ValueError(f"n_values == {self.n_values}, must be positive.")
        if self.n_combinations > COMBINATIONS_MAX:
            given = f"n_combinations == {self.n_combinations}"
            raise ValueError(f"{given}, must be <= {COMBINATIONS_MAX}.")

    @property
    def n_combinations(self) -> int:
        """How many combinations there are."""
        return math.prod(self.n_values)

    @property
    def n_weights(self) -> int:
        """How many weights are learned."""
        total = sum(self.n_values)
        n_pairs = (total**2 - sum(n * n for n in self.n_values)) // 2
        return self.n_features * (1 + total) + n_pairs

    @cached_property
    def first(self) -> Ints:
        """Where each attribute's values begin, and how many there are in all."""
        return np.concatenate(([0], np.cumsum(self.n_values))).astype(np.int64)

    def init(self) -> ProductState:
        """Prior and no data."""
        total, d = sum(self.n_values), self.n_features
        common = np.zeros(d)
        common[0] = self.prior_intercept
        attribute = np.repeat(np.arange(len(self.n_values)), self.n_values)
        apart = attribute[:, None] < attribute
        return ProductState(
            common,
            np.full(d, self.prior_variance),
            np.zeros((total, d)),
            np.full((total, d), self.value_variance),
            np.zeros((total, total)),
            np.where(apart, self.pair_variance, 0.0),
            np.zeros(1, np.int64),
        )

    def grow(self, state: ProductState, before: "ProductThompson") -> ProductState:
        """A state of `before`, to whose attributes this policy's last values were added."""
        blocks = zip(self.first, before.n_values, strict=False)
        at = np.concatenate([begin + np.arange(n) for begin, n in blocks])
        grown, pairs = self.init(), np.ix_(at, at)
        grown.common_mean[:], grown.common_variance[:] = state[:2]
        grown.value_mean[at], grown.value_variance[at] = state[2:4]
        grown.pair_mean[pairs], grown.pair_variance[pairs] = state[4:6]
        grown.trials[:] = state.trials
        return grown

    def update(
        self, state: ProductState, combinations: Ints, rewards: Floats, features: Floats
    ) -> ProductState:
        """Learn trials in order.

        Parameters
        ----------
        combinations
            (n_trials, n_attributes), values by their number.
        rewards
            (n_trials,), 0 or 1.
        features
            (n_trials, n_features).

        Raises
        ------
        ValueError
            When shapes do not fit, a value is unknown, a reward neither 0 nor 1, or a feature
            not a number within `FEATURE_MAX`.
        """
        combinations, rewards, features = self._checked(combinations, rewards, features)
        learned = ProductState._make(array.copy() for array in state)
        _learn(learned, self.first[:-1] + combinations, rewards, features)
        return learned

    def observe(
        self, state: ProductState, combination: Ints, reward: float, x: Floats
    ) -> None:
        """Learn one trial in place, for a caller that owns the state; unchecked."""
        _observe(state, self.first[:-1] + combination, reward, x)

    def prepare(self, state: ProductState) -> ProductPrepared:
        """Draws of the weights, and the best combination of each without context.

        The numbers behind the draws are the same for all snapshots, so shares move when
        data do.
        """
        rng = np.random.default_rng(SEED)
        total, d = state.value_mean.shape
        z = rng.standard_normal((N_DRAWS, d + total, total), np.float32)
        uniform = rng.random((STARTS_WITHOUT_CONTEXT, len(self.n_values)))
        sd = self._spread(state.value_variance, self.value_variance)
        values = state.value_mean.T.astype(np.float32) + sd.T * z[:, :d]
        sd = self._spread(state.pair_variance, self.pair_variance)
        pairs = state.pair_mean.astype(np.float32) + sd * z[:, d:]
        pairs += pairs.transpose(0, 2, 1)
        starts = (uniform * self.n_values).astype(np.int64)
        x, mask = np.eye(1, d)[0], np.ones(total, np.bool_)
        best = np.zeros((N_DRAWS, len(self.n_values)), np.int64)
        given = ProductPrepared(values, pairs, self.first, starts, best)
        return given._replace(best=product_choice.best(given, x, mask, len(starts)))

    def best(
        self, prepared: ProductPrepared, x: Floats, allowed: Allowed | None = None
    ) -> Ints:
        """Best combination of each draw given x (n_features,), (n_draws, n_attributes).

        Raises
        ------
        ValueError
            When `x` has another shape than the model or is not finite, or `allowed` has
            an attribute without a value, or with an unknown one.
        """
        if x.shape != (self.n_features,) or not (np.abs(x) < FEATURE_MAX).all():
            rule = f"must be {self.n_features} numbers within {FEATURE_MAX:g}"
            raise ValueError(f"features == {x}, {rule}.")
        if self.n_features == 1 and allowed is None and x[0] == 1.0:
            return prepared.best
        return product_choice.best(prepared, x, self._mask(allowed))

    def probabilities(
        self, prepared: ProductPrepared, x: Floats, allowed: Allowed | None = None
    ) -> Shares:
        """The combinations that are best in some draw, with their shares of the draws.

        The standard error of a share is at most 0.5 / sqrt(N_DRAWS) = 0.031.
        """
        best = self.best(prepared, x, allowed)
        combinations, counts = np.unique(best, axis=0, return_counts=True)
        return Shares(combinations, counts / len(best))

    def draw(
        self,
        prepared: ProductPrepared,
        x: Floats,
        u: float,
        min_share: float = 0.0,
        allowed: Allowed | None = None,
    ) -> Combination:
        """Draw a combination for features `x`, with its propensity; `u` in [0, 1).

        Raises as `best` does.
        """
        best = self.best(prepared, x, allowed)
        values = _values_of(self.n_values, allowed)
        epsilon = _epsilon(values, min_share)
        if u < epsilon:
            combination = _even(values, u / epsilon)
        else:
            at = int((u - epsilon) / (1.0 - epsilon) * len(best))
            combination = best[min(at, len(best) - 1)]
        alike = product_choice.share_of(best, combination)
        evenly = epsilon / math.prod(map(len, values))
        return Combination(combination, evenly + (1.0 - epsilon) * alike)

    def value_probabilities(
        self,
        prepared: ProductPrepared,
        x: Floats,
        min_share: float = 0.0,
        allowed: Allowed | None = None,
    ) -> list[Floats]:
        """Probability of each value of each attribute to be shown, (n_values,) each."""
        best = self.best(prepared, x, allowed)
        values = _values_of(self.n_values, allowed)
        epsilon = _epsilon(values, min_share)
        shares = []
        for column, some, n in zip(best.T, values, self.n_values, strict=True):
            share = (1.0 - epsilon) * np.bincount(column, minlength=n) / len(best)
            share[some] += epsilon / len(some)
            shares.append(share)
        return shares

    def _spread(self, variance: Floats, prior: float) -> Floats32:
        """Standard deviation to draw weights with, the exploration scale in it."""
        # A variance of 0 is no weight; its belief is 0 whatever the precision.
        precision = np.full(variance.shape, 1.0 / prior)
        belief = drawn_belief(variance, precision, self.exploration)
        return np.sqrt(belief).astype(np.float32)

    def _mask(self, allowed: Allowed | None) -> NDArray[np.bool_]:
        """Whether each value may be shown, (n_values in all,)."""
        mask = np.zeros(sum(self.n_values), np.bool_)
        values = _values_of(self.n_values, allowed)
        for first, some in zip(self.first, values, strict=False):
            mask[first + some] = True
        return mask

    def _checked(
        self, combinations: Ints, rewards: Floats, features: Floats
    ) -> tuple[Ints, Floats, Floats]:
        """Trials as kernels take them."""
        combinations = np.ascontiguousarray(combinations, np.int64)
        rewards = np.ascontiguousarray(rewards, np.float64)
        features = np.ascontiguousarray(features, np.float64)
        n = len(rewards)
        for name, given, shape in (
            ("combinations", combinations, (n, len(self.n_values))),
            ("rewards", rewards, (n,)),
            ("features", features, (n, self.n_features)),
        ):
            if given.shape != shape:
                raise ValueError(f"{name}.shape == {given.shape}, must be {shape}.")
        if ((combinations < 0) | (combinations >= self.n_values)).any():
            raise ValueError(f"combinations must be values below {self.n_values}.")
        if not ((rewards == 0.0) | (rewards == 1.0)).all():
            raise ValueError("rewards must be 0 or 1.")
        if not (np.abs(features) < FEATURE_MAX).all():
            raise ValueError(f"features must be numbers within {FEATURE_MAX:g}.")
        return combinations, rewards, features


def _values_of(n_values: tuple[int, ...], allowed: Allowed | None) -> list[Ints]:
    """Values that may be shown of each attribute."""
    if allowed is None:
        return [np.arange(n) for n in n_values]
    if len(allowed) != len(n_values):
        rule = f"must be {len(n_values)}, the attributes"
        raise ValueError(f"len(allowed) == {len(allowed)}, {rule}.")
    for attribute, (some, n) in enumerate(zip(allowed, n_values, strict=True)):
        if not len(some) or min(some) < 0 or max(some) >= n:
            rule = f"must be some of 0 … {n - 1}"
            raise ValueError(f"allowed[{attribute}] == {some}, {rule}.")
    return list(allowed)


def _epsilon(values: Sequence[Ints], min_share: float) -> float:
    """Share of the traffic that is spread evenly over the product."""
    return min(max(map(len, values)) * min_share, 0.5)


def _even(values: Sequence[Ints], u: float) -> Ints:
    """The combination at `u` of [0, 1), all being equally long."""
    combination = np.empty(len(values), np.int64)
    for attribute, some in enumerate(values):
        u *= len(some)
        at = min(int(u), len(some) - 1)
        combination[attribute] = some[at]
        u -= at
    return combination


# --- learning -----------------------------------------------------------------


@kernel
def _observe(state: ProductState, at: Ints, reward: float, x: Floats) -> None:
    """Learn one trial of the combination whose values' rows are `at`, ascending."""
    common_mean, common_variance, value_mean, value_variance = state[:4]
    pair_mean, pair_variance, trials = state[4:]
    d, n = x.size, at.size
    mean, variance = 0.0, 1.0
    for i in range(d):
        xi, squared = x[i], x[i] * x[i]
        mean += xi * common_mean[i]
        variance += squared * common_variance[i]
        for v in at:
            mean += xi * value_mean[v, i]
            variance += squared * value_variance[v, i]
    for a in range(n):
        for b in range(a + 1, n):
            mean += pair_mean[at[a], at[b]]
            variance += pair_variance[at[a], at[b]]

    sign = 1.0 if reward > 0.5 else -1.0
    sd = math.sqrt(variance)
    rise, bend = _surprise(sign * mean / sd)
    shift, shrink = sign * rise / sd, bend / variance
    for i in range(d):
        xi, squared = x[i], x[i] * x[i]
        common_mean[i] += shift * xi * common_variance[i]
        common_variance[i] *= max(1.0 - shrink * squared * common_variance[i], 0.0)
        for v in at:
            value_mean[v, i] += shift * xi * value_variance[v, i]
            value_variance[v, i] *= max(
                1.0 - shrink * squared * value_variance[v, i], 0.0
            )
    for a in range(n):
        for b in range(a + 1, n):
            v, w = at[a], at[b]
            pair_mean[v, w] += shift * pair_variance[v, w]
            pair_variance[v, w] *= max(1.0 - shrink * pair_variance[v, w], 0.0)
    trials[0] += 1


@kernel
def _surprise(t: float) -> tuple[float, float]:
    """First and minus the second derivative of log Phi at t."""
    if t < -30.0:  # where Phi is soon 0: Mills' ratio, to 1e-6 of the second
        rise = -t - 1.0 / t + 2.0 / t**3
    else:
        density = 0.3989422804014327 * math.exp(-0.5 * t * t)
        rise = density / (0.5 * math.erfc(-t * 0.7071067811865476))
    return rise, min(rise * (rise + t), 1.0)


@kernel
def _learn(state: ProductState, rows: Ints, rewards: Floats, features: Floats) -> None:
    """Learn trials one after the other."""
    for t in range(rewards.size):
        _observe(state, rows[t], rewards[t], features[t])
