"""gittins: epsilon-greedy over one hashed linear model; a ledger of open decisions."""

from itertools import count
from typing import Any

import gittins  # type: ignore[import-not-found]
from benchmarks.peers._timing import Bandit, Method, run


def flat(n_arms: int) -> Bandit:
    """The candidates are all there is."""
    return _bandit(n_arms, lambda _: {})


def contextual(n_arms: int) -> Bandit:
    """The features are shared by all candidates."""
    return _bandit(n_arms, lambda x: x)


def _bandit(n_arms: int, context_of: Any) -> Bandit:
    state = gittins.create(bits=16, horizon=1e9)
    candidates: list[tuple[str, dict[str, float]]] = [
        (f"v{arm}", {}) for arm in range(n_arms)
    ]
    tick, decide, learn = count(1), gittins.decide, gittins.learn

    def settle(records: list[Any]) -> None:
        for record in records:
            learn(state, record.decision_id, 0.0, float(next(tick)))

    return Bandit(
        decide=lambda x: decide(
            state, context_of(x), candidates, float(next(tick)), "s"
        ),
        update=lambda _, record, reward: learn(
            state, record.decision_id, reward, float(next(tick))
        ),
        context=lambda row: {f"f{i}": value for i, value in enumerate(row)},
        settle=settle,
    )


if __name__ == "__main__":
    run(
        [Method("gittins epsilon-greedy", flat, has_propensity=True)],
        [Method("gittins epsilon-greedy", contextual, has_propensity=True)],
    )
