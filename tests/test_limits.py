"""Floors and caps of shares, by hand and by their twin."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import reference_policies as reference
from bandolero.policies import with_limits
from bandolero.policies.base import Floats

shares = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12).filter(
    lambda weights: sum(weights) > 1e-3
)
distributions = shares.map(lambda w: np.array(w) / sum(w))


@given(distributions, st.floats(0.05, 1.0))
def test_cap_equals_twin(weights: Floats, max_share: float) -> None:
    """Water-filling: one level for all, cut off at the cap."""
    limited = with_limits(weights, 0.01, max_share)
    floored = with_limits(weights, 0.01, 1.0)
    assert_allclose(limited, reference.with_cap(floored, max_share), atol=1e-9)


@given(distributions, st.floats(0.0, 0.99), st.floats(0.01, 1.0))
def test_limits_are_kept(weights: Floats, min_share: float, max_share: float) -> None:
    """A distribution between floor and cap, in the order of the weights."""
    limited, n = with_limits(weights, min_share, max_share), len(weights)
    assert_allclose(limited.sum(), 1.0, atol=1e-12)
    assert (limited >= min(min_share, 0.5 / n) - 1e-15).all()
    assert (limited <= max(max_share, 1.0 / n) + 1e-12).all()
    order = np.argsort(weights)
    assert (np.diff(limited[order]) >= -1e-12).all()


def test_limits_by_hand() -> None:
    """Of (0.7, 0.2, 0.1) with a cap of 0.4: (0.4, 0.4, 0.2), both full; of 0.3: thirds."""
    weights = np.array([0.1, 0.7, 0.2])
    assert_allclose(with_limits(weights, 0.0, 0.4), [0.2, 0.4, 0.4])
    assert_allclose(with_limits(weights, 0.0, 0.3), 1 / 3)
    assert_allclose(with_limits(np.array([1.0, 0, 0]), 0.0, 0.5), [0.5, 0.25, 0.25])
    assert with_limits(np.array([1.0]), 0.01, 0.5).tolist() == [1.0]
