"""Memory stays flat however many decisions a process makes.

The resident set is read before and after, garbage collected, once everything that is
kept on purpose is there: compiled kernels, and caches that have an end. Growth may be
`GROWTH_MAX_BYTES`; that is a tenth of a byte a decision in the longest of them, 4 bytes in the others.
"""

import gc
import os
from collections.abc import Callable
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandolero.draws import draws
from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.policies import policy_of
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson
from bandolero.snapshot import (
    EXACT_COST_US,
    MAX_CACHED_SETS,
    Snapshot,
    build_snapshot,
    decide,
)

GROWTH_MAX_BYTES = 1 << 20
STRETCHES = 3
N_VARIANTS, N_SETS = 50, 3 * MAX_CACHED_SETS
STATM = Path("/proc/self/statm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not STATM.is_file(), reason="no /proc to read memory from"),
]


def resident_bytes() -> int:
    """Resident set of this process, garbage collected."""
    gc.collect()
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(run: Callable[[range], None], warm_up: int, n: int) -> int:
    """Bytes that the process grows by in `n` steps after a warm-up.

    The least of some stretches, until one is small enough: other threads of the process
    that tests share take memory now and then, what leaks takes it every time.
    """
    run(range(warm_up))
    grown: list[int] = []
    while (
        len(grown) < STRETCHES
        and min(grown, default=GROWTH_MAX_BYTES) >= GROWTH_MAX_BYTES
    ):
        start = warm_up + len(grown) * n
        before = resident_bytes()
        run(range(start, start + n))
        grown.append(resident_bytes() - before)
    return min(grown)


def snapshot_of(kind: str) -> Snapshot:
    """A snapshot of fifty variants after some trials."""
    spec = parse_experiment(
        {
            "experiment": "hats",
            "policy": {"kind": kind},
            "allocation": {"holdout_share": 0.05},
            "variants": [{"id": f"v{i}"} for i in range(N_VARIANTS)],
        }
    )
    record = ExperimentRecord(tenant="acme", spec=spec, status="running")
    policy: Any = policy_of(spec)
    arms = np.arange(5_000) % N_VARIANTS
    rewards = (np.random.default_rng(1).random(5_000) < 0.05).astype(float)
    state = policy.update(policy.init(N_VARIANTS), arms, rewards)
    return build_snapshot(record, state, version=1, created_at_ms=0)


def test_ten_million_decisions() -> None:
    """10,000,000 decisions, a fresh nonce each, grow the process by under a megabyte."""
    snapshot = snapshot_of("beta_thompson")

    def run(steps: range) -> None:
        for i in steps:
            decide(snapshot, i.to_bytes(8, "little"))

    assert growth(run, 100_000, 10_000_000) < GROWTH_MAX_BYTES


def test_units_are_not_remembered() -> None:
    """Units are hashed, not remembered: 300,000 new ones, with a holdout."""
    snapshot = snapshot_of("beta_thompson")

    def run(steps: range) -> None:
        for i in steps:
            decide(snapshot, i.to_bytes(8, "little"), f"unit-{i}")

    assert growth(run, 50_000, 300_000) < GROWTH_MAX_BYTES


@pytest.mark.parametrize(("kind", "size"), [("greedy", 4), ("beta_thompson", 46)])
def test_rotating_eligible_sets(kind: str, size: int) -> None:
    """Thrice as many sets as are cached, in turn: caches have an end, and keep to it.

    `greedy` computes each set; sets of 46 are too dear for `beta_thompson`, so they are
    noted as misses. Neither forgets what it holds to take in another.
    """
    snapshot = snapshot_of(kind)
    policy: Any = snapshot.policy
    is_dear = policy.cost_us(size) > EXACT_COST_US
    assert is_dear == (kind == "beta_thompson")
    sets = list(islice(combinations(range(N_VARIANTS), size), N_SETS))

    def run(steps: range) -> None:
        for i in steps:
            decide(snapshot, i.to_bytes(8, "little"), None, sets[i % N_SETS])

    assert growth(run, 2 * N_SETS, 100_000) < GROWTH_MAX_BYTES
    assert len(snapshot.sets) == (1 if is_dear else MAX_CACHED_SETS)
    assert len(snapshot.misses) == (MAX_CACHED_SETS if is_dear else 0)


@pytest.mark.parametrize("policy", [LinearThompson(8), LogisticThompson(8)], ids=repr)
def test_contextual_draws(policy: Any) -> None:
    """300,000 draws by context, features and number fresh each, grow it no more."""
    rng, every = np.random.default_rng(2), np.arange(3)
    X = rng.standard_normal((300, 8))
    clicks = (rng.random(300) < 0.1).astype(float)
    state = policy.update(policy.init(3), np.arange(300) % 3, clicks, X)
    prepared, key = policy.prepare(state), b"8 bytes."

    def run(steps: range) -> None:
        for i in steps:
            u = draws(key, i.to_bytes(8, "little")).arm
            policy.draw(prepared, every, X[i % 300] + u, u, 0.01)

    assert growth(run, 20_000, 300_000) < GROWTH_MAX_BYTES
