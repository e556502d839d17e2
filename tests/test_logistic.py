"""Logistic regressions learn as Laplace's approximation says, in the order of the log."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import reference_contextual as reference
from bandolero.codec import pack, unpack
from bandolero.policies.base import grow
from bandolero.policies.logistic_thompson import LogisticState, LogisticThompson
from bandolero.policies.normal_choice import predictions
from bandolero.snapshot import state_arrays

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Trials = tuple[Ints, Floats, Floats]

each_form = pytest.mark.parametrize("diagonal", [False, True])


def policy_of(d: int, diagonal: bool) -> LogisticThompson:
    """The policy of a form of the covariance."""
    return LogisticThompson(d, "diagonal" if diagonal else "full", prior_variance=0.5)


def trials_of(seed: int, n: int, n_arms: int, d: int) -> Trials:
    """Clicks of a logistic model with an intercept, at a rate of some 10 %."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    X[:, 0] = 1.0
    slopes = 0.5 * rng.standard_normal((n_arms, d))
    slopes[:, 0] = -2.0
    arms = rng.integers(0, n_arms, n)
    rate = 1.0 / (1.0 + np.exp(-np.sum(X * slopes[arms], axis=1)))
    return arms, (rng.random(n) < rate).astype(np.float64), X


def part(trials: Trials, which: slice) -> Trials:
    """Some of the trials."""
    arms, rewards, X = trials
    return arms[which], rewards[which], X[which]


@each_form
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 8), d=st.integers(1, 4))
def test_learns_as_the_twin(diagonal: bool, seed: int, n: int, d: int) -> None:
    """Mean and precision equal the twin's: Newton in all coefficients, matrices inverted."""
    arms, rewards, X = trials_of(seed, n, 2, d)
    policy = policy_of(d, diagonal)
    state = policy.update(policy.init(2), arms, rewards, X)
    start = np.zeros(d)
    start[0] = policy.prior_intercept
    for k in range(2):
        mean, precision = reference.logistic_regression(
            start, 0.5 * np.eye(d), X[arms == k], rewards[arms == k], diagonal
        )
        full = np.diag(state.covariance[k]) if diagonal else state.covariance[k]
        assert_allclose(state.mean[k], mean, atol=1e-8)
        assert_allclose(np.linalg.inv(full), precision, rtol=1e-7, atol=1e-9)
    assert_array_equal(state.trials, np.bincount(arms, minlength=2))


def test_one_trial_by_hand() -> None:
    """Belief N(0, 1), reward 1 at x = 1: s = 1 - p(s), and variance 1 / (1 + p (1 - p))."""
    policy = LogisticThompson(1, prior_intercept=0.0, prior_variance=1.0)
    one = np.array([0]), np.array([1.0]), np.array([[1.0]])
    state = policy.update(policy.init(1), *one)
    s = float(state.mean[0, 0])
    p = 1.0 / (1.0 + np.exp(-s))
    assert s == pytest.approx(1.0 - p, abs=1e-14)
    assert state.covariance[0, 0, 0] == pytest.approx(1.0 / (1.0 + p * (1.0 - p)))


@each_form
def test_one_batch_equals_two_halves(diagonal: bool) -> None:
    """Trials in the order of the log, in any batches: the same bits, and so by `observe`."""
    policy, trials = policy_of(5, diagonal), trials_of(1, 200, 3, 5)
    whole = policy.update(policy.init(3), *trials)
    halves = policy.update(policy.init(3), *part(trials, slice(0, 77)))
    halves = policy.update(halves, *part(trials, slice(77, None)))
    own = policy.init(3)
    for arm, reward, x in zip(*trials, strict=True):
        policy.observe(own, arm, reward, x)
    for one, other, third in zip(whole, halves, own, strict=True):
        assert_array_equal(one, other)
        assert_array_equal(one, third)


@each_form
def test_saved_state_goes_on_to_the_bit(diagonal: bool) -> None:
    """State to bytes and back, then more trials: the same as without the detour."""
    policy, trials = policy_of(4, diagonal), trials_of(2, 60, 3, 4)
    state = policy.update(policy.init(3), *part(trials, slice(0, 30)))
    arrays = unpack(pack({}, state_arrays("state", state))).arrays
    back = LogisticState(*(arrays[f"state.{name}"] for name in LogisticState._fields))
    later = part(trials, slice(30, None))
    for one, other in zip(
        policy.update(state, *later), policy.update(back, *later), strict=True
    ):
        assert_array_equal(one, other)


def test_covariance_stays_sound() -> None:
    """After 20,000 trials V is symmetric to the bit, positive, and inverts the precision."""
    n, d = 20_000, 6
    policy = policy_of(d, False)
    arms, rewards, X = trials_of(3, n, 1, d)
    state = policy.update(policy.init(1), arms, rewards, X)
    V = state.covariance[0]
    assert_array_equal(V, V.T)
    p = 1.0 / (1.0 + np.exp(-X @ state.mean[0]))
    precision = 2.0 * np.eye(d) + (X * (p * (1.0 - p))[:, None]).T @ X
    assert_allclose(V @ precision, np.eye(d), atol=0.05)


def test_finds_the_coefficients() -> None:
    """10,000 trials: every coefficient within 4.5 of its standard deviations."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((10_000, 4))
    X[:, 0] = 1.0
    theta = np.array([-2.0, 0.5, -0.5, 0.2])
    rewards = (rng.random(10_000) < 1.0 / (1.0 + np.exp(-X @ theta))).astype(float)
    policy = LogisticThompson(4)
    arms = np.zeros(10_000, np.int64)
    state = policy.update(policy.init(1), arms, rewards, X)
    sd = np.sqrt(np.diag(state.covariance[0]))
    assert (np.abs(state.mean[0] - theta) < 4.5 * sd).all()
    assert (sd < 0.06).all()


@each_form
def test_cold_arm_honours_the_prior(diagonal: bool) -> None:
    """An arm without data is drawn from the prior: its mean and all of its variance."""
    policy = policy_of(2, diagonal)
    prepared = policy.prepare(policy.init(2))
    mean, sd = predictions(prepared, np.arange(2), np.array([1.0, 2.0]))
    assert_allclose(mean, -3.5)
    assert_allclose(sd, np.sqrt(0.5 * 5.0))
    shares = policy.probabilities(prepared, np.arange(2), np.array([1.0, 2.0]))
    assert_allclose(shares, [0.5, 0.5], rtol=1e-15)


@each_form
def test_arms_added_later_start_at_the_prior(diagonal: bool) -> None:
    """`grow` keeps what is learned and gives new arms the prior."""
    policy = policy_of(3, diagonal)
    state = policy.update(policy.init(2), *trials_of(5, 50, 2, 3))
    grown = grow(state, policy.init(3))
    assert_array_equal(grown.mean[:2], state.mean)
    assert_array_equal(grown.covariance[2], policy.init(1).covariance[0])


@each_form
def test_surprises_do_not_break_it(diagonal: bool) -> None:
    """Huge features, sure beliefs and rewards against them leave everything finite."""
    policy = policy_of(2, diagonal)
    state = policy.init(1)
    for scale in (1.0, 1e3, 1e6, 1e9):
        x = np.array([[1.0, scale], [1.0, -scale], [1.0, scale]])
        state = policy.update(state, np.zeros(3, int), np.array([1.0, 1.0, 0.0]), x)
    assert all(np.isfinite(array).all() for array in state)
    variances = state.covariance[0] if diagonal else np.diag(state.covariance[0])
    assert (variances >= 0.0).all()
    drawn = policy.draw(policy.prepare(state), np.arange(1), np.array([1.0, 1e9]), 0.5)
    assert drawn.propensity == 1.0


@each_form
@pytest.mark.parametrize("exploration", [0.15, 0.6, 1.0])
def test_narrowing_keeps_the_expected_rate(diagonal: bool, exploration: float) -> None:
    """E exp(s) of what is drawn is that of the posterior: mean + variance / 2 agree."""
    policy = replace(policy_of(4, diagonal), exploration=exploration)
    form: Literal["diagonal", "full"] = "diagonal" if diagonal else "full"
    policy = LogisticThompson(4, form, exploration=exploration)
    state = policy.update(policy.init(3), *trials_of(8, 300, 2, 4))
    x = np.array([1.0, 0.5, -2.0, 1.5])
    mean, sd = predictions(policy.prepare(state), np.arange(3), x)
    V = state.covariance
    full = V[:, :, None] * np.eye(4) if diagonal else V
    variance = np.einsum("i,kij,j->k", x, full, x)
    assert_allclose(mean + sd**2 / 2.0, state.mean @ x + variance / 2.0, rtol=1e-12)
    if exploration == 1.0:
        assert_allclose(mean, state.mean @ x, rtol=1e-12)
    else:
        assert (sd[:2] ** 2 < 0.9 * variance[:2]).all()
    assert sd[2] ** 2 == pytest.approx(variance[2])


@pytest.mark.parametrize("reward", [-0.5, 1.5, np.nan])
def test_bad_rewards_are_refused(reward: float) -> None:
    """A logistic model is for rewards of 0 … 1."""
    policy = LogisticThompson(1)
    with pytest.raises(ValueError, match="rewards"):
        policy.update(
            policy.init(1), np.array([0]), np.array([reward]), np.ones((1, 1))
        )
