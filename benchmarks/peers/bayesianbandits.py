"""bayesianbandits: Thompson sampling with Dirichlet, Normal and logistic learners."""

from collections.abc import Callable
from typing import Any

import numpy as np
from bayesianbandits import (  # type: ignore[import-not-found]
    Agent,
    Arm,
    BayesianGLM,
    ContextualAgent,
    DirichletClassifier,
    NormalRegressor,
    ThompsonSampling,
    UpperConfidenceBound,
)
from benchmarks.peers._timing import Bandit, Method, run


def thompson(n_arms: int) -> Bandit:
    """Two classes: a click and none."""
    arms = [
        Arm(arm, lambda p: p[..., 1], DirichletClassifier({0: 1, 1: 1}))
        for arm in range(n_arms)
    ]
    agent = Agent(arms, ThompsonSampling(), random_seed=1)
    rewards = {0.0: np.array([0]), 1.0: np.array([1])}
    return Bandit(
        decide=lambda _: agent.pull()[0],
        update=lambda _, arm, reward: agent.select_for_update(arm).update(
            rewards[reward]
        ),
    )


def lin_ts(n_arms: int) -> Bandit:
    """A Normal regression an arm."""
    return _contextual(n_arms, lambda: NormalRegressor(1.0, 100.0), ThompsonSampling())


def lin_ucb(n_arms: int) -> Bandit:
    """Bounds are quantiles of samples."""
    return _contextual(
        n_arms, lambda: NormalRegressor(1.0, 100.0), UpperConfidenceBound()
    )


def logistic_ts(n_arms: int) -> Bandit:
    """A logistic regression an arm."""
    return _contextual(n_arms, lambda: BayesianGLM(link="logit"), ThompsonSampling())


def _contextual(n_arms: int, learner: Callable[[], Any], policy: Any) -> Bandit:
    arms = [Arm(arm, learner=learner()) for arm in range(n_arms)]
    agent = ContextualAgent(arms, policy, random_seed=1)
    rewards = {0.0: np.array([0.0]), 1.0: np.array([1.0])}
    return Bandit(
        decide=lambda x: agent.pull(x)[0],
        update=lambda x, arm, reward: agent.select_for_update(arm).update(
            x, rewards[reward]
        ),
        context=lambda row: np.array([row]),
    )


if __name__ == "__main__":
    run(
        [Method("bayesianbandits Dirichlet Thompson", thompson)],
        [
            Method("bayesianbandits Normal Thompson", lin_ts, full_covariance=True),
            Method("bayesianbandits Normal UCB", lin_ucb, full_covariance=True),
            Method("bayesianbandits logistic TS", logistic_ts, full_covariance=True),
        ],
    )
