"""mabwiser: Beta Thompson, LinTS and LinUCB with a ridge regression an arm."""

import numpy as np
from benchmarks.peers._timing import N_FEATURES, Bandit, Method, run
from mabwiser.mab import MAB, LearningPolicy  # type: ignore[import-not-found]

N_BATCH = 100_000


def thompson(n_arms: int) -> Bandit:
    """It has to be fitted once before it predicts."""
    mab = MAB(list(range(n_arms)), LearningPolicy.ThompsonSampling(), seed=1)
    arms = np.repeat(np.arange(n_arms), 2)
    mab.fit(arms, np.zeros(len(arms)))
    batch = np.zeros((N_BATCH, 1))
    return Bandit(
        decide=lambda _: mab.predict(),
        update=lambda _, arm, reward: mab.partial_fit([arm], [reward]),
        decide_batch=lambda: mab.predict(batch),
        n_batch=N_BATCH,
    )


def lin_ts(n_arms: int) -> Bandit:
    """Draws coefficients."""
    return _linear(n_arms, LearningPolicy.LinTS(alpha=0.1))


def lin_ucb(n_arms: int) -> Bandit:
    """Upper bounds."""
    return _linear(n_arms, LearningPolicy.LinUCB(alpha=0.2))


def _linear(n_arms: int, policy: object) -> Bandit:
    mab = MAB(list(range(n_arms)), policy, seed=1)
    arms = np.arange(n_arms)
    mab.fit(arms, np.zeros(n_arms), np.zeros((n_arms, N_FEATURES)))
    return Bandit(
        decide=mab.predict,
        update=lambda x, arm, reward: mab.partial_fit([arm], [reward], x),
        context=lambda row: np.array([row]),
    )


if __name__ == "__main__":
    run(
        [Method("mabwiser Beta Thompson", thompson)],
        [
            Method("mabwiser LinTS", lin_ts, full_covariance=True),
            Method("mabwiser LinUCB", lin_ucb, full_covariance=True),
        ],
    )
