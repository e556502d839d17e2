"""Bandolero, timed as its peers are.

A decision is what a worker does for one: the hash of its nonce, the draw, the propensity.
Updates without context pay for a new snapshot every thousand; those with context are sums
that a snapshot's `prepare` solves later, so that it is timed beside them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from benchmarks.decision import record_of, snapshot_of, week_old
from benchmarks.peers._timing import (
    BATCH_ARMS,
    N_FEATURES,
    Bandit,
    Method,
    report,
    run,
    us_per_call,
)

from bandolero import build_snapshot, decide, experiment_key
from bandolero.draws import drawer
from bandolero.policies import BetaThompson, choose_batch
from bandolero.policies.lin_ucb import LinUcb
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson

N_BATCH = 1_000_000
N_PER_SNAPSHOT = 1_000
FLOOR = 0.01


def thompson(n_arms: int) -> Bandit:
    """Decide from a snapshot; every 1,000 updates make the next one."""
    policy, state, record = BetaThompson(), week_old(n_arms), record_of(n_arms, None)
    first = snapshot = snapshot_of(state)
    arms: list[int] = []
    rewards: list[float] = []

    def update(_: bytes, drawn: Any, reward: float) -> None:
        arms.append(drawn.arm)
        rewards.append(reward)
        if len(arms) == N_PER_SNAPSHOT:
            learn()

    def both(token: bytes, reward: float) -> None:
        arms.append(decide(snapshot, token).arm)
        rewards.append(reward)
        if len(arms) == N_PER_SNAPSHOT:
            learn()

    def learn() -> None:
        nonlocal state, snapshot
        state = policy.update(state, np.array(arms), np.array(rewards))
        snapshot = build_snapshot(record, state, version=1, created_at_ms=0)
        arms.clear()
        rewards.clear()

    u = np.random.default_rng(1).random(N_BATCH)
    return Bandit(
        decide=partial(decide, first),
        update=update,
        both=both,
        decide_batch=lambda: choose_batch(first.probabilities, u),
        n_batch=N_BATCH,
    )


def contextual(policy: Any, n_arms: int) -> Bandit:
    """Decide from prepared arrays; updates in place."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((100 * n_arms, N_FEATURES))
    clicks = (rng.random(len(X)) < 0.05).astype(np.float64)
    state = policy.update(policy.init(n_arms), np.arange(len(X)) % n_arms, clicks, X)
    prepared, eligible = policy.prepare(state), np.arange(n_arms)
    observe = (policy.regression if isinstance(policy, LinUcb) else policy).observe
    draw, token = drawer(experiment_key("acme", "spring-hero")), bytes(8)

    def decide_for(x: Any) -> int:
        drawn = policy.draw(prepared, eligible, x, draw(token), FLOOR)
        return int(drawn[0])

    def update(x: Any, arm: int, reward: float) -> None:
        observe(state, arm, reward, x)

    return Bandit(decide_for, update, context=np.array)


def time_extras(method: Method, policy: Any) -> None:
    """An update in a batch of a million, and what solving the sums takes, 10 arms."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((N_BATCH, N_FEATURES))
    arms, clicks = rng.integers(0, 10, N_BATCH), np.zeros(N_BATCH)
    clicks[::30] = 1.0
    state = policy.init(10)
    bandit = contextual(policy, 10)
    took = us_per_call(lambda _: policy.update(state, arms, clicks, X), bandit, [0])
    each = [us / N_BATCH for us in took]
    report("W3b", method, 10, each, f"{N_BATCH:,} a call")
    state = policy.update(state, arms[:1000], clicks[:1000], X[:1000])
    for n_arms in (10, 50):
        grown = policy.update(
            policy.init(n_arms), np.arange(1000) % n_arms, clicks[:1000], X[:1000]
        )
        took = us_per_call(policy.prepare, bandit, [grown])
        report("prepare", method, n_arms, took, "once per snapshot")


def main() -> None:
    """All workloads, and those that only we have."""
    policies: dict[str, Any] = {
        "linear_thompson": LinearThompson(N_FEATURES),
        "logistic_thompson": LogisticThompson(N_FEATURES),
        "lin_ucb": LinUcb(N_FEATURES),
    }
    methods: dict[str, Method] = {}
    for name, policy in policies.items():
        make: Callable[[int], Bandit] = partial(contextual, policy)
        methods[name] = Method(name, make, has_propensity=True, full_covariance=True)
    beta = Method("beta_thompson", thompson, has_propensity=True)
    run([beta], list(methods.values()))
    for name in ("linear_thompson", "logistic_thompson"):
        time_extras(methods[name], policies[name])
    bandit = thompson(BATCH_ARMS)
    key, tokens = experiment_key("acme", "spring-hero"), [bytes([i]) for i in range(99)]
    took = us_per_call(drawer(key), bandit, tokens)
    report("hash", beta, BATCH_ARMS, took, "one draw number; in W1, not in W4")


if __name__ == "__main__":
    main()
