"""Thompson sampling with a Bayesian linear regression of the reward for each arm.

Arm k earns r = theta_k' x + noise, theta_k ~ N(prior mean, sigma^2 / prior precision).
What is learned are sums over trials, so folding them in any order or grouping gives the
same state (to rounding, 1e-9); the posterior is solved when a snapshot is built.

The scale of exploration comes from the data: sigma^2 is the posterior mean noise variance,
pooled over arms. The textbook's scale of 1 means noise of one reward unit, and explores
five times too much where a click is worth 1 and comes in 4 % of trials. Serving draws from
a narrower belief still (`normal_choice.drawn_belief`), B_k in units of the noise variance
against the posterior's V_k, and adds OPTIMISM sigma x' (V_k - B_k) x to a prediction.

With a half-life every sum fades, and the prior does not (`forgetting`): a trial that
counts w is one whose noise has the variance sigma^2 / w. So the posterior is
(P0 + sum w x x')^-1; discounting as Russac et al. do has the same mean, and the variance
V (P0 + sum w^2 x x') V, which is that of old trials as sure as new ones: narrower, and
for a bound on regret, where old trials are a bias and not noise.

References
----------
Agrawal & Goyal (2013), Thompson Sampling for Contextual Bandits with Linear Payoffs,
section 2.2, algorithm 1. Li et al. (2010), A Contextual-Bandit Approach to Personalized
News Article Recommendation, section 3.1: disjoint models. Gelman et al. (2013), Bayesian
Data Analysis, section 14.8: conjugate prior and noise variance. Russac et al. (2019),
Weighted Linear Bandits for Non-Stationary Environments, section 3. Ibrahim & Chen (2000),
Power Prior Distributions for Regression Models: likelihoods to a power w.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bandolero._jit import kernel
from bandolero.policies import normal_choice
from bandolero.policies.base import (
    Counts,
    Floats,
    Ints,
    checked_trials,
    checked_weights,
    count,
    no_counts,
)
from bandolero.policies.forgetting import kept
from bandolero.policies.normal_choice import (
    EXPLORATION,
    Drawn,
    Prepared,
    drawn_belief,
    quadratic_terms,
)

OPTIMISM = 2.0
"""Bonus for what is not drawn, in noise standard deviations; falls as 1 / trials.

A click of rate p and log odds of variance v is expected p v / 2 more often than its mean
log odds say: about x' V x / 2, which at p = 0.04 is 2.5 standard deviations of x' V x.
Chosen with `PRIOR_PRECISION` and `EXPLORATION` on seeds 100 … 131 of problem P1.
"""
RIDGE = 1e-11
"""Added to the scaled precision: large features that say the same round the prior away."""
PRIOR_PRECISION = 10.0
"""A coefficient is about a third of the noise's standard deviation."""
ROUNDING = 1e-9
"""Sums of the same trials in another order differ by less, as a share of what was added."""


class LinearState(NamedTuple):
    """Prior, and sums over trials, of each arm; features x, rewards r.

    prior_mean, prior_precision
        (n_arms, n_features); the latter positive, in trials: a feature's own units apart,
        it is the number of trials that the prior is worth.
    gram
        (n_arms, n_features (n_features + 1) / 2), sums of x_i x_j, i <= j, row by row.
    moment
        (n_arms, n_features), sums of x r.
    squares
        (n_arms,), sums of r^2.
    trials
        (n_arms,), int64, or float64 with a half-life.
    """

    prior_mean: Floats
    prior_precision: Floats
    gram: Floats
    moment: Floats
    squares: Floats
    trials: Counts


class LinearPosterior(NamedTuple):
    """Normal posterior of each arm's coefficients.

    mean
        (n_arms, n_features).
    covariance
        (n_arms, n_features, n_features), in units of the noise variance.
    noise_variance
        Posterior mean of sigma^2, pooled over arms.
    """

    mean: Floats
    covariance: Floats
    noise_variance: float


@dataclass(frozen=True)
class LinearThompson:
    """Probability matching on the predictions of one linear regression an arm.

    Parameters
    ----------
    n_features
        As `bandolero.features.n_features` counts them.
    prior_precision
        Positive; 1 says that a coefficient is about as large as the noise, 100 a tenth.
    noise_variance, noise_trials
        First guess of the noise variance, worth so many trials; both positive. A click's
        is at most 1/4.
    exploration
        In (0, 1]; see `normal_choice.drawn_belief`.
    half_life_s
        Data this old count half; None for ever.

    Examples
    --------
    >>> policy = LinearThompson(n_features=2)
    >>> X = np.array([[1.0, 0.0], [1.0, 1.0]])
    >>> trials = np.array([0, 1]), np.array([0.0, 1.0]), X
    >>> state = policy.update(policy.init(n_arms=2), *trials)
    >>> prepared = policy.prepare(state)
    >>> policy.probabilities(prepared, np.arange(2), np.array([1.0, 1.0])).round(3)
    array([0.127, 0.873])
    """

    n_features: int
    prior_mean: float = 0.0
    prior_precision: float = PRIOR_PRECISION
    noise_variance: float = 0.25
    noise_trials: float = 1.0
    exploration: float = EXPLORATION
    half_life_s: float | None = None
    kind = "linear_thompson"
    mode = "explore"

    def init(self, n_arms: int) -> LinearState:
        """Prior and no data."""
        d = self.n_features
        return LinearState(
            np.full((n_arms, d), self.prior_mean),
            np.full((n_arms, d), self.prior_precision),
            np.zeros((n_arms, d * (d + 1) // 2)),
            np.zeros((n_arms, d)),
            np.zeros(n_arms),
            no_counts(n_arms, self.half_life_s),
        )

    def update(
        self,
        state: LinearState,
        arms: Ints,
        rewards: Floats,
        features: Floats,
        weights: Floats | None = None,
    ) -> LinearState:
        """Add trials: arms and rewards (n_trials,), features (n_trials, n_features).

        With `weights` (n_trials,), how much each counts.

        Raises
        ------
        ValueError
            When shapes do not fit, an arm is unknown, or there is nan or inf.
        """
        n_arms = len(state.trials)
        arms, rewards, features = checked_trials(
            n_arms, self.n_features, arms, rewards, features
        )
        grown = state._replace(
            gram=state.gram.copy(),
            moment=state.moment.copy(),
            squares=state.squares.copy(),
            trials=state.trials + count(arms, n_arms, weights),
        )
        counted = checked_weights(weights, len(arms))
        _accumulate(*grown[2:5], arms, rewards, features, counted)
        return grown

    def decay(self, state: LinearState, elapsed_ms: int) -> LinearState:
        """The state so much later: sums shrink, and the prior is what stays."""
        if self.half_life_s is None:
            return state
        share = kept(elapsed_ms, self.half_life_s)
        return state._replace(
            gram=share * state.gram,
            moment=share * state.moment,
            squares=share * state.squares,
            trials=share * state.trials,
        )

    def observe(self, state: LinearState, arm: int, reward: float, x: Floats) -> None:
        """Add one trial in place, for a caller that owns the state; inputs unchecked."""
        _, _, gram, moment, squares, trials = state
        _observe_one(gram, moment, squares, trials, arm, reward, x)

    def posterior(self, state: LinearState) -> LinearPosterior:
        """Solve each arm's regression; O(n_arms n_features^3), once per snapshot.

        sigma^2 = (v0 m0 + sum_k S_k) / (v0 + sum_k n_k), with S_k the sum of squared
        errors of predicting each trial from those before it, over their variances.
        """
        precision = _unpacked(state.gram, self.n_features)
        at = np.arange(self.n_features)
        precision[:, at, at] += state.prior_precision
        # Scaled to a unit diagonal, so that features of any unit lose no digits.
        scale = 1.0 / np.sqrt(precision[:, at, at])
        outer = scale[:, :, None] * scale[:, None, :]
        scaled = precision * outer
        scaled[:, at, at] += RIDGE
        inverse = np.linalg.inv(scaled) * outer
        covariance = 0.5 * (inverse + inverse.transpose(0, 2, 1))
        weighted = state.prior_precision * state.prior_mean + state.moment
        mean = np.einsum("kij,kj->ki", covariance, weighted)
        prior_squares = np.sum(state.prior_precision * state.prior_mean**2, axis=1)
        errors = state.squares + prior_squares - np.sum(mean * weighted, axis=1)
        noise = self.noise_trials * self.noise_variance + np.maximum(errors, 0.0).sum()
        noise /= self.noise_trials + state.trials.sum()
        return LinearPosterior(mean, covariance, float(noise))

    def prepare(self, state: LinearState) -> Prepared:
        """The posterior as serving needs it, narrowed, and the bonus for what is left."""
        mean, covariance, noise_variance = self.posterior(state)
        belief = drawn_belief(covariance, state.prior_precision, self.exploration)
        bonus = OPTIMISM * noise_variance**0.5 * (covariance - belief)
        drawn = quadratic_terms(noise_variance * belief)
        return Prepared(mean, drawn, quadratic_terms(bonus))

    def probabilities(self, prepared: Prepared, eligible: Ints, x: Floats) -> Floats:
        """Probability that each eligible arm's prediction is the highest, (n_eligible,).

        See `bandolero.policies.normal_choice`: errors, exceptions, source.
        """
        return normal_choice.probabilities(prepared, eligible, x)

    def draw(
        self,
        prepared: Prepared,
        eligible: Ints,
        x: Floats,
        u: float,
        min_share: float = 0.0,
    ) -> Drawn:
        """Draw an eligible arm in one kernel; see `normal_choice.draw`."""
        return normal_choice.draw(prepared, eligible, x, u, min_share)

    def add(self, state: LinearState, correction: LinearState) -> LinearState:
        """Sums of both; the prior stays.

        An arm whose sums no data could have given afterwards, because more was taken back
        than had been learned (or all but for `ROUNDING`), has none.
        """
        gram = state.gram + correction.gram
        trials = state.trials + correction.trials
        diagonal = np.cumsum(np.r_[0, np.arange(self.n_features, 1, -1)])
        added = np.abs(state.gram) + np.abs(correction.gram)
        least = -ROUNDING * added[:, diagonal]
        possible = trials > ROUNDING * np.abs(correction.trials)
        possible &= (gram[:, diagonal] >= least).all(axis=1)
        squares = np.maximum(state.squares + correction.squares, 0.0)
        return state._replace(
            gram=gram * possible[:, None],
            moment=(state.moment + correction.moment) * possible[:, None],
            squares=squares * possible,
            trials=trials * possible,
        )


def _unpacked(packed: Floats, d: int) -> Floats:
    """Symmetric matrices (n_arms, d, d) from their upper triangles."""
    row, column = np.triu_indices(d)
    full = np.empty((len(packed), d, d))
    full[:, row, column] = packed
    full[:, column, row] = packed
    return full


@kernel
def _observe(
    gram: Floats,
    moment: Floats,
    squares: Floats,
    arm: int,
    reward: float,
    x: Floats,
    weight: float,
) -> None:
    """Add one trial to the sums of its arm."""
    d, packed, at = x.size, gram[arm], 0
    for i in range(d):
        # Slices from 0, since an index that may be negative is not vectorised.
        row, rest, xi = packed[at : at + d - i], x[i:], weight * x[i]
        for j in range(rest.size):
            row[j] += xi * rest[j]
        at += d - i
    sums = moment[arm]
    for i in range(d):
        sums[i] += weight * reward * x[i]
    squares[arm] += weight * reward * reward


@kernel
def _observe_one(
    gram: Floats,
    moment: Floats,
    squares: Floats,
    trials: Counts,
    arm: int,
    reward: float,
    x: Floats,
) -> None:
    """Add one whole trial, and count it."""
    _observe(gram, moment, squares, arm, reward, x, 1.0)
    trials[arm] += 1


@kernel
def _accumulate(
    gram: Floats,
    moment: Floats,
    squares: Floats,
    arms: Ints,
    rewards: Floats,
    features: Floats,
    weights: Floats,
) -> None:
    """Add trials, one after the other."""
    for t in range(arms.size):
        x = features[t]
        _observe(gram, moment, squares, arms[t], rewards[t], x, weights[t])
