"""Regressions whose data fade: weighted least squares, however a fold was cut."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bandolero.policies import (
    FactorialThompson,
    Forgetful,
    LinearState,
    LinearThompson,
    LinUcb,
    LogisticThompson,
    SharedLinearThompson,
    Trials,
    learn,
)
from bandolero.policies.base import Floats, Ints

HALF_LIFE_S = 3600.0
HOUR_MS = 3_600_000
D, N_ARMS = 3, 2
ATTRIBUTES = ((1.0, 1.0, 0.0), (1.0, 0.0, 1.0))
FADING: list[Any] = [
    LinearThompson(D, half_life_s=HALF_LIFE_S),
    LinUcb(D, half_life_s=HALF_LIFE_S),
    SharedLinearThompson(D, ATTRIBUTES, half_life_s=HALF_LIFE_S),
    FactorialThompson(D, ATTRIBUTES, half_life_s=HALF_LIFE_S),
]
every_policy = pytest.mark.parametrize("policy", FADING, ids=lambda p: p.kind)


def trials_of(seed: int, n: int) -> tuple[Ints, Floats, Floats]:
    """Arms, rewards and features of some trials."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, D))
    X[:, 0] = 1.0
    return rng.integers(0, N_ARMS, n), rng.standard_normal(n), X


def part_of(trials: tuple[Ints, Floats, Floats], which: Any) -> Trials:
    """Some of the trials."""
    return trials[0][which], trials[1][which], trials[2][which]


@every_policy
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    ends=st.lists(st.integers(0, 30), max_size=3),
)
def test_state_is_weighted_sums_in_any_grouping(
    policy: Any, seed: int, n: int, ends: list[int]
) -> None:
    """Every trial counts 2^(-age / half-life) in each sum, cut and ordered as you like."""
    trials = trials_of(seed, n)
    at_ms = np.random.default_rng(seed).integers(0, 5 * HOUR_MS, n)
    state, as_of_ms = policy.init(N_ARMS), 0
    for part in np.split(np.arange(n), sorted(min(end, n) for end in ends)):
        state, as_of_ms = learn(
            policy, state, as_of_ms, part_of(trials, part), at_ms[part]
        )
    assert as_of_ms == at_ms.max()
    weights = 0.5 ** ((at_ms.max() - at_ms) / HOUR_MS)
    rows, columns = np.triu_indices(D)
    for arm in range(N_ARMS):
        arms, r, X = trials
        w = weights * (arms == arm)
        assert_allclose(state.gram[arm], w @ (X[:, rows] * X[:, columns]), atol=1e-9)
        assert_allclose(state.moment[arm], (w * r) @ X, atol=1e-9)
        assert_allclose(state.squares[arm], w @ r**2, atol=1e-9)
        assert_allclose(state.trials[arm], w.sum(), atol=1e-9)


def test_posterior_is_weighted_least_squares() -> None:
    """Rows scaled by the root of their weight, and the prior as rows of its own in full.

    The noise is the mean of the squared errors of all of them, with the first guess.
    """
    policy = LinearThompson(D, prior_mean=0.1, prior_precision=4.0, half_life_s=60.0)
    arms, r, X = trials_of(5, 60)
    weights = np.random.default_rng(5).random(60)
    state = policy.update(policy.init(N_ARMS), arms, r, X, weights)
    posterior, errors = policy.posterior(state), 0.25
    for arm in range(N_ARMS):
        root = np.sqrt(weights[arms == arm])
        rows = np.vstack((2.0 * np.eye(D), root[:, None] * X[arms == arm]))
        told = np.r_[np.full(D, 0.2), root * r[arms == arm]]
        mean, missed, _, _ = np.linalg.lstsq(rows, told, rcond=None)
        errors += float(missed[0])
        assert_allclose(posterior.mean[arm], mean, rtol=1e-8)
        assert_allclose(
            posterior.covariance[arm], np.linalg.inv(rows.T @ rows), rtol=1e-8
        )
    assert_allclose(posterior.noise_variance, errors / (1.0 + weights.sum()), rtol=1e-8)


@every_policy
def test_a_belief_fades_to_the_prior(policy: Any) -> None:
    """After a half-life half of every sum is left, after a hundred nothing; the prior stays."""
    state = policy.update(policy.init(N_ARMS), *trials_of(1, 40))
    half, late = policy.decay(state, HOUR_MS), policy.decay(state, 100 * HOUR_MS)
    for name in ("gram", "moment", "squares", "trials"):
        assert_allclose(getattr(half, name), getattr(state, name) / 2.0)
    prior = policy.prepare(policy.init(N_ARMS))
    for one, other in zip(policy.prepare(late), prior, strict=True):
        assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("half_life_s", [None, HALF_LIFE_S])
def test_taking_back_an_arms_only_trials_leaves_none(half_life_s: float | None) -> None:
    """Also where rounding leaves a little more, or a little less, than nothing."""
    policy = LinearThompson(D, half_life_s=half_life_s)
    state = policy.decay(
        policy.update(policy.init(N_ARMS), *trials_of(2, 9)), 1_234_567
    )
    for times in (1.0, 1.0 + 1e-15, 1.0 - 1e-15):
        back = state._replace(
            gram=-times * state.gram,
            moment=-times * state.moment,
            squares=-times * state.squares,
            trials=-state.trials if half_life_s is None else -times * state.trials,
        )
        left = policy.add(state, back)
        assert not any(array.any() for array in left[2:])


def test_rounding_takes_no_arm_away() -> None:
    """A feature whose only trials are taken back may be left a little below 0."""
    policy = LinearThompson(2)
    squares = np.array([0.1, 0.2, 0.3])
    X = np.column_stack((np.ones(5), np.r_[np.sqrt(squares), 0.0, 0.0]))
    arms, rewards = np.zeros(5, np.int64), np.ones(5)
    state = policy.update(policy.init(1), arms, rewards, X)
    taken = policy.update(policy.init(1), arms[:3], rewards[:3], X[:3][::-1])
    back = LinearState(*taken[:2], *(-array for array in taken[2:]))
    back.gram[0, -1] -= 1e-16
    left = policy.add(state, back)
    assert left.gram[0, -1] < 0.0
    assert left.trials.tolist() == [2]
    assert_allclose(left.gram[0, 0], 2.0)
    assert np.isfinite(policy.prepare(left).mean).all()


def test_without_a_half_life_the_sums_are_those_of_ever() -> None:
    """Trials are integers, time changes nothing, and weights of 1 are no weights."""
    policy = LinearThompson(D)
    trials = trials_of(3, 50)
    state = policy.update(policy.init(N_ARMS), *trials)
    assert state.trials.dtype == np.int64
    assert policy.decay(state, 10**12) is state
    weighted = LinearThompson(D, half_life_s=1.0).update(
        policy.init(N_ARMS), *trials, np.ones(50)
    )
    for one, other in zip(state, weighted, strict=True):
        assert_array_equal(one, other)


@pytest.mark.parametrize("weights", [np.ones(4), np.array([1.0, np.nan, 1.0])])
def test_bad_weights_are_refused(weights: Floats) -> None:
    """As many as trials, and finite; the message names them."""
    policy: Any = FADING[0]
    with pytest.raises(ValueError, match="weights"):
        policy.update(policy.init(N_ARMS), *trials_of(1, 3), weights)


def test_a_logistic_policy_does_not_forget() -> None:
    """What it learned is no sum, and it does not claim to fade; the others do."""
    assert not isinstance(LogisticThompson(D), Forgetful)
    assert all(isinstance(policy, Forgetful) for policy in FADING)


@pytest.mark.parametrize("x", [[1.0, 0.0], [1.0, 1.0]])
def test_a_switch_is_followed_by_what_forgets_alone(x: list[float]) -> None:
    """Four half-lives after the arms changed places the new best is believed to be it.

    2,000 trials at rates 0.5 and 0.1, then 1,000 the other way round. With a half-life of
    250 trials the estimates differ by 0.35 with a standard deviation of 0.06, without
    one by -0.13 with 0.02: a false alarm is below one in a million.
    """
    rng = np.random.default_rng(7)
    n = 3_000
    arms, mobile = rng.integers(0, 2, n), rng.integers(0, 2, n)
    is_best = (arms == 0) == (np.arange(n) < 2_000)
    rewards = (rng.random(n) < np.where(is_best, 0.5, 0.1)).astype(np.float64)
    X = np.column_stack((np.ones(n), mobile)).astype(np.float64)
    trials = arms, rewards, X
    shares = []
    for half_life_s in (250.0, None):
        policy = LinearThompson(2, half_life_s=half_life_s)
        state, _ = learn(policy, policy.init(2), 0, trials, 1000 * np.arange(n))
        prepared = policy.prepare(state)
        shares.append(policy.probabilities(prepared, np.arange(2), np.array(x)))
    assert shares[0][1] > 0.95
    assert shares[1][0] > 0.95
