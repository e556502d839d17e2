"""Intervals of off-policy values: by hand, where nothing was seen, where values are skewed."""

import math

import numpy as np
import pytest

from bandolero.evaluate.intervals import Bootstrap, bernstein


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
