"""Thompson sampling with one Bayesian linear regression that all arms share.

Arm k has attribute features a_k, and earns r = sum_ij theta_ij a_ki x_j + noise: what is
learned of a value of an attribute counts for all arms that have it, so an arm without data
starts warm. Arms with the same attributes are the same to it; where a variant may differ
from all that its attributes say, give it one more attribute with a value of its own.

What is learned are the sums of `linear_thompson`, arm by arm. The joint posterior is
solved from them when a snapshot is built: its precision is the prior's, and
sum_k (a_k a_k') ⊗ (sum_t x_t x_t'). So trials fold in any order, and arms may be added
later, with new values too, without touching what is stored.

Shares are those of `N_DRAWS` coefficients drawn once per snapshot: predictions of arms
that share coefficients are not independent, and a draw of all of them keeps that. The
numbers behind the draws are the same for all snapshots of as many coefficients, so shares
move when data do.
They are a scrambled Sobol sequence, whose shares were off by 0.4 to 0.7 times as much as
those of independent draws (10 to 48 arms of 9 to 12 columns, 1 to 16 features).

References
----------
Agrawal & Goyal (2013), Thompson Sampling for Contextual Bandits with Linear Payoffs,
algorithm 1. Li et al. (2010), A Contextual-Bandit Approach to Personalized News Article
Recommendation: features shared by arms. Gelman et al. (2013), Bayesian Data Analysis,
section 14.8: conjugate prior and noise variance.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.special import ndtri
from scipy.stats import qmc

from bandolero._jit import kernel, sum_kernel
from bandolero.policies.base import Floats, Ints
from bandolero.policies.linear_thompson import LinearState, LinearThompson
from bandolero.policies.normal_choice import Drawn

EXPLORATION = 0.3
"""How far data narrows what is drawn from; see `normal_choice.drawn_belief`."""
N_DRAWS = 256
"""Posterior draws; a power of 2, as Sobol's sequence wants it."""
EFFECT_PRECISION = 100.0
"""An effect is about a tenth of the noise: at clicks of 4 %, a percentage point or two.
Chosen among 20, 100 and 300 on 80 seeds of simulated tests with 18 and 48 variants."""
SEED = 20170813
RIDGE = 1e-11
"""Added to the precision, as a share of its diagonal: indicators of all values of an
attribute sum to the constant, which only the prior tells apart."""


class SharedPosterior(NamedTuple):
    """Normal posterior of the coefficients.

    mean
        (n_columns, n_features).
    root
        Lower Cholesky factor of the precision in units of 1 / noise variance,
        (n_coefficients, n_coefficients), coefficients column by column of the attributes.
    noise_variance
        Posterior mean of sigma^2.
    """

    mean: Floats
    root: Floats
    noise_variance: float


class SharedPrepared(NamedTuple):
    """What serving needs of a posterior; made once per snapshot.

    arm_features
        (n_arms, n_columns).
    coefficients
        (n_columns, n_features, n_draws): draws last, for the vector instructions.
    """

    arm_features: Floats
    coefficients: Floats


@dataclass(frozen=True)
class SharedLinearThompson:
    """Probability matching on one linear regression of context x attributes.

    Parameters
    ----------
    n_features
        As `bandolero.features.n_features` counts them.
    arm_features
        (n_arms, n_columns) as tuples, finite, the first column 1; see
        `bandolero.attributes`.
    prior_precision
        Of the coefficients that all arms have, in trials; positive.
    effect_precision
        Of those of attributes, in trials; positive.
    noise_variance, noise_trials
        First guess of the noise variance, worth so many trials; both positive.
    exploration
        In (0, 1]; see `normal_choice.drawn_belief`.
    half_life_s
        Data this old count half; None for ever.

    Examples
    --------
    An arm without data is predicted by its attributes:

    >>> policy = SharedLinearThompson(1, ((1, 1, 0), (1, 0, 1), (1, 1, 0)))
    >>> arms, rewards = np.repeat([0, 1], 200), np.repeat([0.0, 1.0], 200)
    >>> state = policy.update(policy.init(3), arms, rewards, np.ones((400, 1)))
    >>> policy.probabilities(policy.prepare(state), np.arange(3), np.ones(1))
    array([0., 1., 0.])
    """

    n_features: int
    arm_features: tuple[tuple[float, ...], ...]
    prior_precision: float = 1.0
    effect_precision: float = EFFECT_PRECISION
    noise_variance: float = 0.25
    noise_trials: float = 1.0
    exploration: float = EXPLORATION
    half_life_s: float | None = None
    kind = "shared_linear_thompson"
    mode = "explore"

    @property
    def sums(self) -> LinearThompson:
        """Keeper of the state: the sums are those of one regression an arm."""
        return LinearThompson(
            self.n_features,
            prior_precision=self.prior_precision,
            half_life_s=self.half_life_s,
        )

    def init(self, n_arms: int) -> LinearState:
        """No data. The prior in this state is not used: the joint one is this policy's."""
        return self.sums.init(n_arms)

    def update(
        self,
        state: LinearState,
        arms: Ints,
        rewards: Floats,
        features: Floats,
        weights: Floats | None = None,
    ) -> LinearState:
        """Add trials; see `LinearThompson.update`."""
        return self.sums.update(state, arms, rewards, features, weights)

    def decay(self, state: LinearState, elapsed_ms: int) -> LinearState:
        """As `LinearThompson.decay`."""
        return self.sums.decay(state, elapsed_ms)

    def observe(self, state: LinearState, arm: int, reward: float, x: Floats) -> None:
        """Add one trial in place, for a caller that owns the state; inputs unchecked."""
        self.sums.observe(state, arm, reward, x)

    def add(self, state: LinearState, correction: LinearState) -> LinearState:
        """Sums of both."""
        return self.sums.add(state, correction)

    def posterior(self, state: LinearState) -> SharedPosterior:
        """Solve the regression; O((n_columns n_features)^3), once per snapshot.

        sigma^2 as `LinearThompson.posterior` has it, with one sum of errors.

        Raises
        ------
        ValueError
            When the state has another number of arms than `arm_features`.
        """
        a, prior = self._checked_features(len(state.trials)), self._prior()
        root = _root(_data_precision(a, state.gram, self.n_features), prior)
        weighted = (a.T @ state.moment).ravel()
        mean = cho_solve((root, True), weighted)
        errors = max(float(state.squares.sum() - mean @ weighted), 0.0)
        noise = self.noise_trials * self.noise_variance + errors
        noise /= self.noise_trials + float(state.trials.sum())
        return SharedPosterior(mean.reshape(a.shape[1], -1), root, noise)

    def prepare(self, state: LinearState) -> SharedPrepared:
        """Draws of the coefficients, with the exploration scale in them."""
        a, prior = self._checked_features(len(state.trials)), self._prior()
        mean, _, noise_variance = self.posterior(state)
        # `drawn_belief` by its precision: the prior's, and data 1 / exploration^2 times.
        data = _data_precision(a, state.gram, self.n_features) / self.exploration**2
        z = standard_draws(prior.size)
        away = solve_triangular(_root(data, prior), z, lower=True, trans="T")
        drawn = mean.ravel()[:, None] + math.sqrt(noise_variance) * away
        return SharedPrepared(a, drawn.reshape(*mean.shape, N_DRAWS))

    def probabilities(
        self, prepared: SharedPrepared, eligible: Ints, x: Floats
    ) -> Floats:
        """Share of the draws in which each eligible arm is best, (n_eligible,).

        Arms that tie share a draw evenly. The standard error of a share, as an estimate
        of P(best | x), is at most 0.5 / sqrt(N_DRAWS) = 0.031.
        """
        return self.draw(prepared, eligible, x, 0.0).probabilities

    def draw(
        self,
        prepared: SharedPrepared,
        eligible: Ints,
        x: Floats,
        u: float,
        min_share: float = 0.0,
    ) -> Drawn:
        """Draw an eligible arm with the floor in one kernel; `u` in [0, 1).

        Raises
        ------
        ValueError
            When `x` has another shape than the model, or nan or inf in it.
        """
        if x.shape != (self.n_features,):
            rule = f"must be {(self.n_features,)}"
            raise ValueError(f"features.shape == {x.shape}, {rule}.")
        arm, propensity, shares = _draw(*prepared, eligible, x, u, min_share)
        if not propensity > 0.0:
            raise ValueError(
                f"features == {x}, must be finite, and so the predictions."
            )
        return Drawn(arm, propensity, shares)

    def _checked_features(self, n_arms: int) -> Floats:
        """Attribute features as an array, (n_arms, n_columns)."""
        if len(self.arm_features) != n_arms:
            given = f"len(arm_features) == {len(self.arm_features)}"
            raise ValueError(f"{given}, must be {n_arms}, the arms of the state.")
        lengths = {len(row) for row in self.arm_features}
        if len(lengths) != 1 or not all(
            math.isfinite(v) for row in self.arm_features for v in row
        ):
            raise ValueError("arm_features must be equal rows of finite numbers.")
        return np.array(self.arm_features, np.float64)

    def _prior(self) -> Floats:
        """Diagonal of the prior's precision, (n_coefficients,)."""
        precision = np.full(len(self.arm_features[0]), self.effect_precision)
        precision[0] = self.prior_precision
        return np.repeat(precision, self.n_features)


@lru_cache(maxsize=16)
def standard_draws(n: int) -> Floats:
    """Standard Normal numbers, always the same, (n, N_DRAWS)."""
    points = qmc.Sobol(n, seed=SEED).random(N_DRAWS)
    z = np.ascontiguousarray(ndtri(np.clip(points, 1e-9, 1.0 - 1e-9)).T)
    z.setflags(write=False)
    return z


def _data_precision(a: Floats, gram: Floats, d: int) -> Floats:
    """sum_k (a_k a_k') ⊗ G_k from the upper triangles of G_k."""
    p = a.shape[1]
    data = np.empty((p, d, p, d))
    for at, (i, j) in enumerate(zip(*np.triu_indices(d), strict=True)):
        block = a.T @ (gram[:, at, None] * a)
        data[:, i, :, j] = block
        data[:, j, :, i] = block
    return data.reshape(p * d, p * d)


def _root(data: Floats, prior: Floats) -> Floats:
    """Lower Cholesky factor of prior and data precision together."""
    total = data.copy()
    at = np.arange(prior.size)
    total[at, at] = (total[at, at] + prior) * (1.0 + RIDGE)
    return np.asarray(cholesky(total, lower=True), np.float64)


@sum_kernel
def _predictions(
    arm_features: Floats, coefficients: Floats, eligible: Ints, x: Floats
) -> Floats:
    """Predicted rewards of each eligible arm in each draw, (n_eligible, n_draws)."""
    n_columns, d, n_draws = coefficients.shape
    effects = np.zeros((n_columns, n_draws))
    for c in range(n_columns):
        effect = effects[c]
        for i in range(d):
            xi, drawn = x[i], coefficients[c, i]
            if xi != 0.0:
                for s in range(n_draws):
                    effect[s] += xi * drawn[s]
    predicted = np.zeros((eligible.size, n_draws))
    for k in range(eligible.size):
        one = predicted[k]
        for c in range(n_columns):
            a, effect = arm_features[eligible[k], c], effects[c]
            if a != 0.0:
                for s in range(n_draws):
                    one[s] += a * effect[s]
    return predicted


@kernel
def _shares(predicted: Floats) -> Floats:
    """Share of the draws in which each arm is best; zeros where not finite."""
    n, n_draws = predicted.shape
    best, total = predicted[0].copy(), 0.0
    for k in range(1, n):
        one = predicted[k]
        for s in range(n_draws):
            best[s] = max(best[s], one[s])
    for k in range(n):
        for s in range(n_draws):
            total += abs(predicted[k, s])
    shares = np.zeros(n)
    if not total < np.inf:
        return shares
    ties = np.zeros(n_draws)
    for k in range(n):
        one = predicted[k]
        for s in range(n_draws):
            ties[s] += 1.0 if one[s] == best[s] else 0.0
    for k in range(n):
        one = predicted[k]
        for s in range(n_draws):
            if one[s] == best[s]:
                shares[k] += 1.0 / ties[s]
    for k in range(n):
        shares[k] /= n_draws
    return shares


@kernel
def _draw(
    arm_features: Floats,
    coefficients: Floats,
    eligible: Ints,
    x: Floats,
    u: float,
    min_share: float,
) -> tuple[int, float, Floats]:
    """Arm, propensity, and probabilities with the floor; -1 where x is not finite."""
    n = eligible.size
    for xi in x:
        if not math.isfinite(xi):
            return -1, 0.0, np.zeros(n)
    shares = _shares(_predictions(arm_features, coefficients, eligible, x))
    if not shares.sum() > 0.0:
        # Beyond all numbers nothing can be ranked: all are alike.
        shares[:] = 1.0 / n
    floor = min(min_share, 0.5 / n)
    drawn, reached = -1, 0.0
    for k in range(n):
        shares[k] = floor + (1.0 - n * floor) * shares[k]
        # The last positive arm's stretch ends at 1, whatever the rounding of the sum.
        if reached <= u and shares[k] > 0.0:
            drawn = k
        reached += shares[k]
    if drawn < 0:
        return -1, 0.0, shares
    return int(eligible[drawn]), float(shares[drawn]), shares
