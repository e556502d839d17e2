"""pybandits: Beta Thompson, and a Bayesian network an arm."""

import numpy as np
from benchmarks.peers._timing import N_FEATURES, Bandit, Method, run
from pybandits.cmab import CmabBernoulli  # type: ignore[import-not-found]
from pybandits.model import Beta  # type: ignore[import-not-found]
from pybandits.smab import SmabBernoulli  # type: ignore[import-not-found]

N_BATCH = 1_000


def thompson(n_arms: int) -> Bandit:
    """Beta posteriors."""
    mab = SmabBernoulli(actions={f"v{arm}": Beta() for arm in range(n_arms)})
    return Bandit(
        decide=lambda _: mab.predict(n_samples=1)[0],
        update=lambda _, drawn, reward: mab.update(drawn, [int(reward)]),
        decide_batch=lambda: mab.predict(n_samples=N_BATCH),
        n_batch=N_BATCH,
    )


def network(n_arms: int) -> Bandit:
    """No hidden layer: a logistic regression an arm."""
    ids = {f"v{arm}" for arm in range(n_arms)}
    mab = CmabBernoulli.cold_start(action_ids=ids, n_features=N_FEATURES)
    return Bandit(
        decide=lambda x: mab.predict(context=x)[0],
        update=lambda x, drawn, reward: mab.update(drawn, [int(reward)], context=x),
        context=lambda row: np.array([row]),
    )


if __name__ == "__main__":
    why = "a call runs 1,000 steps of variational inference: seconds"
    run(
        [Method("pybandits Beta Thompson", thompson)],
        [Method("pybandits Bayesian network", network, no_update=why)],
    )
