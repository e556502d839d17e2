"""river: Thompson sampling, and LinUCB with one Bayesian regression an arm."""

from benchmarks.peers._timing import Bandit, Method, run
from river import bandit, proba  # type: ignore[import-not-found]


def thompson(n_arms: int) -> Bandit:
    """Beta posteriors."""
    policy = bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=1)
    arms = list(range(n_arms))
    return Bandit(
        decide=lambda _: policy.pull(arms),
        update=lambda _, arm, reward: policy.update(arm, reward),
    )


def lin_ucb(n_arms: int) -> Bandit:
    """Contexts are dictionaries."""
    policy = bandit.LinUCBDisjoint(seed=1)
    arms = list(range(n_arms))
    return Bandit(
        decide=lambda x: policy.pull(arms, context=x),
        update=lambda x, arm, reward: policy.update(arm, x, reward),
        context=lambda row: dict(enumerate(row)),
    )


if __name__ == "__main__":
    run(
        [Method("river Beta Thompson", thompson)],
        [Method("river LinUCB", lin_ucb, full_covariance=True)],
    )
