"""The paired difference of two policies on one log."""

import math

import numpy as np
import pytest

from bandolero.evaluate import Difference, NotEnoughSupport, difference
from bandolero.evaluate.intervals import Bootstrap, bernstein

PROPENSITY = np.array([0.7, 0.3])
RATES = np.array([0.02, 0.03])


def logged(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Arms of two, drawn by `PROPENSITY`, and clicks by `RATES`."""
    arms = (rng.random(n) < PROPENSITY[1]).astype(np.int64)
    return arms, (rng.random(n) < RATES[arms]).astype(np.float64)


def test_gain_by_hand() -> None:
    """(w_new - w_old)(r - mean) of four kinds of trials, averaged, is the gain."""
    arms = np.tile([0, 0, 1, 1], 250)
    rewards = np.tile([0.0, 1.0, 1.0, 1.0], 250)
    even = np.full(1000, 0.5)
    found = difference(rewards, even, np.array([0.2, 0.8])[arms], even)
    assert isinstance(found, Difference)
    # Weights 0.4 and 1.6 for the new policy, 1 for the old; the mean reward is 3/4.
    gain = (-0.6 * (0.0 - 0.75) - 0.6 * 0.25 + 2 * 0.6 * 0.25) / 4
    assert found.gain == pytest.approx(gain)
    assert found.old == pytest.approx(0.75)
    assert found.new == pytest.approx(0.75 + gain)
    assert found.lift == pytest.approx(gain / 0.75)


def test_gain_is_the_same_when_rewards_are_shifted() -> None:
    """A constant added to all rewards moves both values and not their difference."""
    rng = np.random.default_rng(1)
    arms, rewards = logged(rng, 4000)
    e, new = PROPENSITY[arms], np.array([0.4, 0.6])[arms]
    low, high = (difference(rewards + shift, e, new, e) for shift in (0.0, 5.0))
    assert isinstance(low, Difference)
    assert isinstance(high, Difference)
    assert high.gain == pytest.approx(low.gain)
    assert high.gain_interval == pytest.approx(low.gain_interval)
    assert high.old == pytest.approx(low.old + 5.0)


def test_intervals_cover_the_true_gain() -> None:
    """Of 200 logs, at least 180 intervals hold the truth: a chance below 0.3 % at 95 %.

    Binomial(200, 0.95) is below 180 with probability 0.0013; seeds are fixed.
    """
    rng = np.random.default_rng(2)
    truth = 0.5 * (RATES[1] - RATES[0])
    covered = 0
    for _ in range(200):
        arms, rewards = logged(rng, 5000)
        e = PROPENSITY[arms]
        found = difference(rewards, e, np.array([0.2, 0.8])[arms], e)
        assert isinstance(found, Difference)
        low, high = found.gain_interval
        covered += low <= truth <= high
    assert covered >= 180


def test_a_policy_does_not_differ_from_itself() -> None:
    """Its gain and lift are 0, and so are both intervals' ends."""
    arms, rewards = logged(np.random.default_rng(3), 5000)
    e = PROPENSITY[arms]
    found = difference(rewards, e, e, e)
    assert isinstance(found, Difference)
    assert (found.gain, found.gain_interval) == (0.0, (0.0, 0.0))
    assert (found.lift, found.lift_interval) == (0.0, (0.0, 0.0))


def test_trials_of_a_unit_count_as_one() -> None:
    """A log with every trial written four times is as sure as the log itself."""
    arms, rewards = logged(np.random.default_rng(4), 1500)
    e, new = PROPENSITY[arms], np.array([0.4, 0.6])[arms]
    once = difference(rewards, e, new, e)
    units = np.repeat(np.arange(1500), 4)
    rewards, e, new = (np.repeat(column, 4) for column in (rewards, e, new))
    often = difference(rewards, e, new, e, units)
    assert isinstance(once, Difference)
    assert isinstance(often, Difference)
    assert often.gain == pytest.approx(once.gain)
    assert often.gain_interval == pytest.approx(once.gain_interval)


@pytest.mark.parametrize(
    ("n", "new", "word"),
    [
        (90, [0.4, 0.6], "effective trials of the new policy"),
        (5000, [0.0, 0.0], "effective trials of the new policy"),
        (5000, [0.3, 0.3], "mean weight of the new policy == 0.6"),
        (220, [0.4, 0.6], "rewarded trials of the new policy"),
    ],
)
def test_too_little_support_is_said(n: int, new: list[float], word: str) -> None:
    """Below a limit the answer is why, and no number."""
    arms, rewards = logged(np.random.default_rng(5), n)
    e = PROPENSITY[arms]
    found = difference(rewards, e, np.array(new)[arms], e)
    assert isinstance(found, NotEnoughSupport)
    assert any(reason.startswith(word) for reason in found.reasons), found.reasons


def test_one_heavy_trial_is_no_support() -> None:
    """A trial with more than 5 % of all weight is refused, whatever the others say."""
    e = np.r_[1e-4, np.full(999, 0.5)]
    found = difference(np.ones(1000), e, np.full(1000, 0.5), np.full(1000, 0.5))
    assert isinstance(found, NotEnoughSupport)
    assert any("one trial has" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, np.nan, "rewards has nan or inf in it, must be finite."),
        (1, 0.0, "propensities has 0 in it, must be >= 1e-12."),
        (2, -0.1, "new has -0.1 in it, must be >= 0."),
        (3, np.inf, "old has nan or inf in it, must be finite."),
    ],
)
def test_bad_numbers_are_named(column: int, value: float, message: str) -> None:
    """A column that cannot be is refused by name and rule."""
    columns = [np.full(10, 0.5) for _ in range(4)]
    columns[column][3] = value
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        difference(*columns)


def test_bernstein_by_hand() -> None:
    """Two clusters of one trial, sums 0 and 1, width 1: the formula's own numbers."""
    low, high = bernstein(np.array([0.0, 1.0]), 2, 1.0)
    log_term = math.log(80.0)
    half = math.sqrt(2.0 * 0.5 * log_term / 2.0) + 7.0 * log_term / 3.0
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half))


def test_bernstein_covers_where_nothing_was_seen() -> None:
    """Clicks at 1 in 1,000 that never came in 200 trials are within the bound."""
    low, high = bernstein(np.zeros(200), 200, 1.0)
    assert low < 0.001 < high < 0.06


def test_skewness_moves_the_bootstrap() -> None:
    """Of rare large values the interval reaches further up than down, as it should."""
    values = np.r_[np.zeros(970), np.full(30, 10.0)]
    low, high = Bootstrap(np.stack((values, np.ones(1000)), axis=1)).interval(0, 1)
    assert low < 0.3 < high
    assert high - 0.3 > 1.1 * (0.3 - low)
