"""Comparing a fold with what was served."""

import numpy as np

from bandolero.policies import BetaState, GaussianThompson
from bandolero.replay import agree


def test_counts_must_be_equal() -> None:
    """One trial more is another state."""
    prior, counts = np.ones(2), np.array([3, 4])
    state = BetaState(prior, prior, np.array([1, 2]), counts)
    assert agree(state, state._replace(trials=counts.copy()))
    assert not agree(state, state._replace(trials=np.array([3, 5])))


def test_sums_agree_however_they_were_grouped() -> None:
    """Sums of values agree to 1e-9 in any grouping, and no longer when one is missing."""
    rng = np.random.default_rng(5)
    arms, values = rng.integers(0, 2, 300), rng.gamma(2.0, 3.0, 300)
    policy = GaussianThompson()
    whole = policy.update(policy.init(2), arms, values)
    parts = policy.init(2)
    for some in np.array_split(np.arange(300), 7):
        parts = policy.update(parts, arms[some], values[some])
    assert agree(whole, parts)
    lacking = policy.update(policy.init(2), arms[1:], values[1:])
    assert not agree(whole, lacking)
