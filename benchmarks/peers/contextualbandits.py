"""contextualbandits: LinTS (sampling predictions) and LinUCB. None without context."""

from typing import Any

import numpy as np
from benchmarks.peers._timing import N_FEATURES, Bandit, Method, run
from contextualbandits.online import (  # type: ignore[import-not-found]
    LinTS,
    LinUCB,
)


def lin_ts(n_arms: int) -> Bandit:
    """Samples predictions, since its sampling of coefficients is broken in 0.3.30."""
    return _bandit(n_arms, LinTS(n_arms, v_sq=0.04, sample_from="ci", random_state=1))


def lin_ucb(n_arms: int) -> Bandit:
    """Upper bounds."""
    return _bandit(n_arms, LinUCB(n_arms, alpha=0.2, random_state=1))


def _bandit(n_arms: int, model: Any) -> Bandit:
    rng = np.random.default_rng(1)
    model.fit(
        rng.standard_normal((2 * n_arms, N_FEATURES)),
        np.repeat(np.arange(n_arms), 2),
        np.tile([0.0, 1.0], n_arms),
    )
    return Bandit(
        decide=model.predict,
        update=lambda x, arm, reward: model.partial_fit(x, arm, np.array([reward])),
        context=lambda row: np.array([row]),
    )


if __name__ == "__main__":
    run(
        [],
        [
            Method("contextualbandits LinTS", lin_ts, full_covariance=True),
            Method("contextualbandits LinUCB", lin_ucb, full_covariance=True),
        ],
    )
