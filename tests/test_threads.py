"""Many threads on one snapshot or one prepared posterior decide as one thread does."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.policies import policy_of
from bandolero.policies.lin_ucb import LinUcb
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson
from bandolero.snapshot import Drawn, Snapshot, build_snapshot, decide

N_THREADS, N_DECISIONS = 8, 400
N_VARIANTS, D = 60, 6
KINDS = ("beta_thompson", "gaussian_thompson", "epsilon_greedy", "uniform")
CONTEXTUAL: list[Any] = [
    LinearThompson(D),
    LogisticThompson(D),
    LogisticThompson(D, covariance="diagonal"),
    LinUcb(D),
]


@pytest.fixture(autouse=True)
def often() -> Iterator[None]:
    """Let threads take turns a thousand times as often as they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


def snapshot_of(kind: str) -> Snapshot:
    """A snapshot after some trials; the same arrays whenever it is made."""
    reward = "value" if kind == "gaussian_thompson" else "binary"
    spec = parse_experiment(
        {
            "experiment": "hats",
            "objective": {"reward": reward},
            "policy": {"kind": kind},
            "allocation": {"holdout_share": 0.1},
            "variants": [{"id": f"v{i}"} for i in range(N_VARIANTS)],
        }
    )
    record = ExperimentRecord(tenant="acme", spec=spec, status="running")
    policy: Any = policy_of(spec)
    arms = np.arange(6_000) % N_VARIANTS
    rewards = (np.random.default_rng(1).random(6_000) < 0.1).astype(float)
    state = policy.update(policy.init(N_VARIANTS), arms, rewards)
    return build_snapshot(record, state, version=1, created_at_ms=0)


def eligible_of(i: int) -> tuple[int, ...] | None:
    """Eligible set of the i-th decision: all, a few that are cheap, many that are dear."""
    start = i // 3 % 10
    sets = None, tuple(range(start, start + 5)), tuple(range(start, start + 45))
    return sets[i % 3]


def at_once(one: Callable[[int], Any], n: int) -> list[list[Any]]:
    """What each of several threads got for 0 … n - 1, each in an order of its own."""
    barrier = threading.Barrier(N_THREADS)

    def worker(seed: int) -> list[Any]:
        order = np.random.default_rng(seed).permutation(n).tolist()
        barrier.wait(timeout=30)
        got = {i: one(i) for i in order}
        return [got[i] for i in range(n)]

    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(worker, range(N_THREADS)))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_decide_as_one_thread_does(kind: str) -> None:
    """Arm, propensity, draw and mode by nonce are the same, cold cache of sets or warm."""

    def one(snapshot: Snapshot, i: int) -> Drawn:
        return decide(snapshot, i.to_bytes(4, "little"), f"u{i}", eligible_of(i))

    alone, shared = snapshot_of(kind), snapshot_of(kind)
    expected = [one(alone, i) for i in range(N_DECISIONS)]
    for got in at_once(lambda i: one(shared, i), N_DECISIONS):
        assert got == expected


def test_warming_beside_serving_only_sharpens() -> None:
    """While another thread warms dear sets, each decision is by the rough rule or the exact.

    Nothing in between: the propensity is one of the two rules' own, and afterwards all
    decisions are exact.
    """
    shared, rough, exact = (snapshot_of("beta_thompson") for _ in range(3))
    dear = [tuple(range(start, start + 45)) for start in range(10)]
    for eligible in dear:
        exact.warm(eligible)

    def one(snapshot: Snapshot, i: int) -> Drawn:
        return decide(snapshot, i.to_bytes(4, "little"), None, dear[i % 10])

    stop = threading.Event()

    def warmer() -> None:
        for eligible in dear:
            if stop.wait(0.001):
                return
            shared.warm(eligible)

    thread = threading.Thread(target=warmer)
    thread.start()
    try:
        seen = at_once(lambda i: one(shared, i), N_DECISIONS)
    finally:
        stop.set()
        thread.join(timeout=30)
    for eligible in dear:
        shared.warm(eligible)
    for i in range(N_DECISIONS):
        either = one(rough, i), one(exact, i)
        assert either[0] != either[1] or either[0].mode == "holdout"
        assert all(got[i] in either for got in seen)
        assert one(shared, i) == either[1]


@pytest.mark.parametrize("policy", CONTEXTUAL, ids=repr)
def test_threads_draw_by_context_as_one_thread_does(policy: Any) -> None:
    """Arm, propensity and probabilities of each request are the same to the bit."""
    rng, n, every = np.random.default_rng(2), 60, np.arange(10)
    X = rng.standard_normal((600, D))
    clicks = (rng.random(600) < 0.1).astype(float)
    state = policy.update(policy.init(10), np.arange(600) % 10, clicks, X)
    prepared, u = policy.prepare(state), rng.random(n)

    def one(i: int) -> tuple[int, float, bytes]:
        arm, propensity, shares = policy.draw(prepared, every, X[i], float(u[i]), 0.01)
        return arm, propensity, shares.tobytes()

    expected = [one(i) for i in range(n)]
    for got in at_once(one, n):
        assert got == expected


def test_learning_beside_serving_disturbs_nothing() -> None:
    """A thread that learns and prepares anew leaves what others draw from as it was."""
    policy, rng = LogisticThompson(D), np.random.default_rng(3)
    X, every = rng.standard_normal((200, D)), np.arange(4)
    arms, clicks = np.arange(200) % 4, (rng.random(200) < 0.2).astype(float)
    state = policy.update(policy.init(4), arms, clicks, X)
    prepared = policy.prepare(state)
    stop = threading.Event()

    def learner() -> None:
        later = state
        while not stop.is_set():
            later = policy.update(later, arms, clicks, X)
            policy.prepare(later)

    def one(i: int) -> tuple[int, float]:
        return policy.draw(prepared, every, X[i], i / 60)[:2]

    expected = [one(i) for i in range(60)]
    thread = threading.Thread(target=learner)
    thread.start()
    try:
        seen = at_once(one, 60)
    finally:
        stop.set()
        thread.join(timeout=30)
    assert all(got == expected for got in seen)
