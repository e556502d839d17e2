"""coba: UCB1-tuned, and LinUCB and LinTS as one joint model over actions."""

from typing import Any

from benchmarks.peers._timing import Bandit, Method, run
from coba.learners import (  # type: ignore[import-not-found]
    BanditUCBLearner,
    LinTSLearner,
    LinUCBLearner,
)


def ucb(n_arms: int) -> Bandit:
    """It has no Thompson sampling without context."""
    return _bandit(BanditUCBLearner(), list(range(n_arms)), lambda _: None)


def lin_ucb(n_arms: int) -> Bandit:
    """Actions are one-hot."""
    return _bandit(LinUCBLearner(alpha=0.2), _one_hot(n_arms), lambda x: x)


def lin_ts(n_arms: int) -> Bandit:
    """Actions are one-hot."""
    return _bandit(LinTSLearner(v=0.1), _one_hot(n_arms), lambda x: x)


def _one_hot(n_arms: int) -> list[tuple[int, ...]]:
    return [tuple(int(i == arm) for i in range(n_arms)) for arm in range(n_arms)]


def _bandit(learner: Any, actions: list[Any], context_of: Any) -> Bandit:
    return Bandit(
        decide=lambda x: learner.predict(context_of(x), actions),
        update=lambda x, drawn, reward: learner.learn(
            context_of(x), drawn[0], reward, drawn[1]
        ),
    )


if __name__ == "__main__":
    run(
        [Method("coba UCB1-tuned", ucb)],
        [
            Method("coba LinUCB, joint", lin_ucb, full_covariance=True),
            Method("coba LinTS, joint", lin_ts, full_covariance=True),
        ],
    )
