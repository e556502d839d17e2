"""Thompson sampling with a Bayesian logistic regression of a binary reward for each arm.

P(reward | x, arm k) = 1 / (1 + exp(-theta_k' x)), with a Normal belief about theta_k. Each
trial replaces the belief by its Laplace approximation: the mean goes to the maximum of
belief times likelihood, which along one x is one equation in one unknown, solved to
rounding; the precision gains p (1 - p) x x' there.

The state is sequential: it depends, a little, on the order of the trials, so it is folded
in log order only, has no `add`, and one batch equals its two halves bit for bit.

Serving compares theta_k' x, which ranks as the probabilities do. It draws from a belief
narrower than the posterior V_k (`normal_choice.drawn_belief`), here B_k, and adds half of
what was left out, x' (V_k - B_k) x / 2: where rewards are rare, the expected reward of
theta_k' x ~ N(m, v) is nearly exp(m + v / 2), so narrowing takes nothing from it.

References
----------
Chapelle & Li (2011), An Empirical Evaluation of Thompson Sampling, section 4, algorithm 3
(there with a diagonal precision, and batches; `covariance="diagonal"`).
Bishop (2006), Pattern Recognition and Machine Learning, section 4.5.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from bandolero._jit import kernel
from bandolero.policies import normal_choice
from bandolero.policies.base import Floats, Ints, checked_trials
from bandolero.policies.normal_choice import (
    EXPLORATION,
    Drawn,
    Prepared,
    drawn_belief,
    quadratic_terms,
)

PRIOR_INTERCEPT = -3.5
"""Log odds of a 3 % click rate, ..."""
PRIOR_VARIANCE = 0.25
"""... which is worth 1 / (0.25 * 0.03) = 130 trials.

With the click rates of problem P1 as the prior (variance 1 / 16) regret was no lower.
"""
MAX_STEPS = 100


class LogisticState(NamedTuple):
    """Normal belief about each arm's coefficients.

    prior_precision
        (n_arms, n_features), of the belief at the start; positive.
    mean
        (n_arms, n_features), in log odds per unit of the feature.
    covariance
        (n_arms, n_features, n_features), or (n_arms, n_features) where it is diagonal.
    trials
        (n_arms,), int64.
    """

    prior_precision: Floats
    mean: Floats
    covariance: Floats
    trials: Ints


@dataclass(frozen=True)
class LogisticThompson:
    """Probability matching on the predictions of one logistic regression an arm.

    Parameters
    ----------
    n_features
        As `bandolero.features.n_features` counts them; the first is the intercept.
    covariance
        "full", or "diagonal": O(n_features) a trial, and a wider belief where features
        are correlated.
    prior_intercept
        Prior mean of the first coefficient; those of the others are 0.
    prior_variance
        Of each coefficient; positive.
    exploration
        In (0, 1]; see `normal_choice.drawn_belief`.

    Examples
    --------
    >>> policy = LogisticThompson(1, prior_intercept=0.0, prior_variance=1.0)
    >>> arms, rewards = np.array([0, 1]), np.array([0.0, 1.0])
    >>> state = policy.update(policy.init(2), arms, rewards, np.ones((2, 1)))
    >>> state.mean.round(4)
    array([[-0.4011],
           [ 0.4011]])
    """

    n_features: int
    covariance: Literal["full", "diagonal"] = "full"
    prior_intercept: float = PRIOR_INTERCEPT
    prior_variance: float = PRIOR_VARIANCE
    exploration: float = EXPLORATION
    kind = "logistic_thompson"
    mode = "explore"

    def init(self, n_arms: int) -> LogisticState:
        """Prior and no data."""
        mean = np.zeros((n_arms, self.n_features))
        mean[:, 0] = self.prior_intercept
        covariance = np.full((n_arms, self.n_features), self.prior_variance)
        precision = 1.0 / covariance
        if self.covariance == "full":
            covariance = covariance[:, :, None] * np.eye(self.n_features)
        return LogisticState(precision, mean, covariance, np.zeros(n_arms, np.int64))

    def update(
        self, state: LogisticState, arms: Ints, rewards: Floats, features: Floats
    ) -> LogisticState:
        """Learn trials in order: arms and rewards (n_trials,), features (n_trials, d).

        Raises
        ------
        ValueError
            When shapes do not fit, an arm is unknown, there is nan or inf, or a reward
            outside of 0 … 1.
        """
        arms, rewards, features = checked_trials(
            len(state.trials), self.n_features, arms, rewards, features
        )
        if rewards.size and not 0.0 <= rewards.min() <= rewards.max() <= 1.0:
            given = f"{rewards.min():g} … {rewards.max():g}"
            raise ValueError(f"rewards in {given}, must be in 0 … 1.")
        learned = state._replace(
            mean=state.mean.copy(),
            covariance=state.covariance.copy(),
            trials=state.trials.copy(),
        )
        if self.covariance == "full":
            _learn_full(*learned[1:], arms, rewards, features)
        else:
            _learn_diagonal(*learned[1:], arms, rewards, features)
        return learned

    def observe(self, state: LogisticState, arm: int, reward: float, x: Floats) -> None:
        """Learn one trial in place, for a caller that owns the state; unchecked."""
        _, mean, covariance, trials = state
        if self.covariance == "full":
            _observe_full(mean, covariance, trials, arm, reward, x)
        else:
            _observe_diagonal(mean, covariance, trials, arm, reward, x)

    def prepare(self, state: LogisticState) -> Prepared:
        """The belief as serving needs it, narrowed, and the bonus for what was left out."""
        belief = drawn_belief(state.covariance, state.prior_precision, self.exploration)
        bonus = 0.5 * (state.covariance - belief)
        if self.covariance == "full":
            belief, bonus = quadratic_terms(belief), quadratic_terms(bonus)
        return Prepared(state.mean, belief, bonus)

    def probabilities(self, prepared: Prepared, eligible: Ints, x: Floats) -> Floats:
        """Probability that each eligible arm's reward is likeliest, (n_eligible,).

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


@kernel
def _logistic(s: float) -> float:
    """Probability at log odds s, without overflow."""
    if s > 0.0:
        return 1.0 / (1.0 + math.exp(-s))
    e = math.exp(s)
    return e / (1.0 + e)


@kernel
def _mode(at: float, variance: float, reward: float) -> float:
    """Log odds s of largest belief times likelihood: s = at + variance (reward - p(s)).

    Newton's steps, halved into a bracket where they would leave it: the left side less
    the right one rises everywhere, but turns where the variance is large.
    """
    low, high = at + variance * (reward - 1.0), at + variance * reward
    s = min(max(at, low), high)
    for _ in range(MAX_STEPS):
        p = _logistic(s)
        excess = s - at - variance * (reward - p)
        if excess > 0.0:
            high = s
        else:
            low = s
        step = s - excess / (1.0 + variance * p * (1.0 - p))
        if not low <= step <= high:
            step = 0.5 * (low + high)
        moved = abs(step - s)
        s = step
        if moved <= 1e-14 * (1.0 + abs(s)):
            break
    return s


@kernel
def _observe_full(
    mean: Floats,
    covariance: Floats,
    trials: Ints,
    arm: int,
    reward: float,
    x: Floats,
) -> None:
    """Learn one trial of an arm whose covariance V is (d, d).

    V x x' V is taken off with one square root, so that V stays symmetric to the bit.
    """
    d, m, V = x.size, mean[arm], covariance[arm]
    Vx = np.zeros(d)
    for i in range(d):
        row, xi = V[i], x[i]
        for j in range(d):
            Vx[j] += xi * row[j]
    at, variance = 0.0, 0.0
    for i in range(d):
        at += m[i] * x[i]
        variance += Vx[i] * x[i]
    p = _logistic(_mode(at, variance, reward))
    weight = p * (1.0 - p)
    shrink = math.sqrt(weight / (1.0 + weight * variance))
    for i in range(d):
        m[i] += Vx[i] * (reward - p)
        Vx[i] *= shrink
    for i in range(d):
        row, vi = V[i], Vx[i]
        for j in range(d):
            row[j] -= vi * Vx[j]
    trials[arm] += 1


@kernel
def _observe_diagonal(
    mean: Floats,
    covariance: Floats,
    trials: Ints,
    arm: int,
    reward: float,
    x: Floats,
) -> None:
    """Learn one trial of an arm whose covariance is the diagonal v (d,)."""
    d, m, v = x.size, mean[arm], covariance[arm]
    at, variance = 0.0, 0.0
    for i in range(d):
        at += m[i] * x[i]
        variance += v[i] * x[i] * x[i]
    p = _logistic(_mode(at, variance, reward))
    weight = p * (1.0 - p)
    for i in range(d):
        m[i] += v[i] * x[i] * (reward - p)
        v[i] /= 1.0 + v[i] * weight * x[i] * x[i]
    trials[arm] += 1


@kernel
def _learn_full(
    mean: Floats,
    covariance: Floats,
    trials: Ints,
    arms: Ints,
    rewards: Floats,
    features: Floats,
) -> None:
    """Learn trials one after the other."""
    for t in range(arms.size):
        _observe_full(mean, covariance, trials, arms[t], rewards[t], features[t])


@kernel
def _learn_diagonal(
    mean: Floats,
    covariance: Floats,
    trials: Ints,
    arms: Ints,
    rewards: Floats,
    features: Floats,
) -> None:
    """Learn trials one after the other."""
    for t in range(arms.size):
        _observe_diagonal(mean, covariance, trials, arms[t], rewards[t], features[t])
