"""Many experiments at once, and many eligible sets: `python -m benchmarks.snapshots`.

First a learner on half a core: 1,000 experiments of 20 variants, all changing, each in turn
learns, builds its snapshot and writes it. CPU times are measured, the clock runs twice as
fast as they do, and the age of what is served is read off for all experiments whenever one
is published. What a worker pays to read them is beside it.

Then one experiment with 1,000 eligible sets in rotation, a new version every second: what
`decide` takes while another thread warms the sets, as a worker's views do.
"""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import print_header, print_row, spread
from benchmarks.decision import POSTERIORS, record_of, snapshot_of, week_old

from bandolero import Snapshot, build_snapshot, decide
from bandolero.policies import BetaState, BetaThompson
from bandolero.snapshot import snapshot_from_bytes, snapshot_to_bytes

Floats = NDArray[np.float64]

N_EXPERIMENTS = 1_000
N_VARIANTS = 20
N_TRIALS = 100
N_ROUNDS = 3
SHARE_OF_CORE = 0.5
N_SETS = 1_000
N_VERSIONS = 5
VERSION_S = 1.0
POLL_S = 0.2
WARMED_BEFORE = 256
"""As the views of a worker: how often they look, and how many sets a new version gets."""
REQUESTS_PER_S = 2_000
RNG = np.random.default_rng(7)


class Costs(NamedTuple):
    """CPU milliseconds of each publication, (n,): learning and building, and writing."""

    build: Floats
    write: Floats


def main() -> None:
    """Print the tables."""
    print_header("Snapshots of many experiments, eligible sets of one")
    snapshot_of(week_old(N_VARIANTS))
    print_row(f"{N_EXPERIMENTS:,} experiments of {N_VARIANTS} variants", "", "bar")
    costs, published = publish_rounds()
    for what, values in (("learn and build", costs.build), ("write", costs.write)):
        print_row(f"  {what}, ms CPU each", spread(list(values)).text())
    busy = (costs.build + costs.write) / SHARE_OF_CORE / 1e3
    each = float(busy.sum()) / N_ROUNDS
    print_row("  a round on half a core, s", f"{each:.2f}")
    ages = served_ages(busy)
    p50, p99 = np.quantile(ages, [0.5, 0.99])
    told = f"p50 {p50:.2f}, p99 {p99:.2f}, max {ages.max():.2f}"
    print_row("  age of what is served, s", told, "p99 <= 5 s")
    read = read_ms(published)
    print_row("  a worker reads one, ms CPU", spread(read).text())
    print_row("  a worker's core for all, each round", f"{sum(read) / each / 10:.0f} %")
    for n_arms in (50, 200):
        print_sets(n_arms)


def publish_rounds() -> tuple[Costs, list[bytes]]:
    """Rounds over all experiments; the bytes of the last one."""
    record, policy = record_of(N_VARIANTS, None), BetaThompson()
    shapes = list(POSTERIORS.values())
    states = [shapes[i % len(shapes)](N_VARIANTS) for i in range(N_EXPERIMENTS)]
    build, write, data = [], [], [b""] * N_EXPERIMENTS
    for version in range(1, N_ROUNDS + 1):
        for i in range(N_EXPERIMENTS):
            arms = RNG.integers(0, N_VARIANTS, N_TRIALS)
            rewards = (RNG.random(N_TRIALS) < 0.02).astype(np.float64)
            began = time.thread_time_ns()
            states[i] = policy.update(states[i], arms, rewards)
            snapshot = build_snapshot(
                record, states[i], version=version, created_at_ms=0
            )
            built = time.thread_time_ns()
            data[i] = snapshot_to_bytes(snapshot)
            write.append((time.thread_time_ns() - built) / 1e6)
            build.append((built - began) / 1e6)
    return Costs(np.array(build), np.array(write)), data


def served_ages(busy_s: Floats) -> Floats:
    """Age of all served snapshots just before each publication, after the first round.

    A snapshot is as old as the state in it: what was learned when its build began.
    """
    ends = np.cumsum(busy_s)
    began = ends - busy_s
    known = began[:N_EXPERIMENTS].copy()
    ages = np.empty((len(ends) - N_EXPERIMENTS, N_EXPERIMENTS))
    for at in range(N_EXPERIMENTS, len(ends)):
        ages[at - N_EXPERIMENTS] = ends[at] - known
        known[at % N_EXPERIMENTS] = began[at]
    return ages.ravel()


def read_ms(published: list[bytes]) -> list[float]:
    """CPU milliseconds to read each snapshot."""
    took = []
    for data in published:
        began = time.thread_time_ns()
        snapshot_from_bytes(data)
        took.append((time.thread_time_ns() - began) / 1e6)
    return took


def print_sets(n_arms: int) -> None:
    """One experiment, many eligible sets in rotation, a thread that warms."""
    wall, cpu, rules = decide_in_rotation(n_arms)
    n_exact = rules.count("exact")
    print_row(f"\n{N_SETS:,} eligible sets of {n_arms} variants", "", "bar")
    for what, took in (("wall", wall), ("CPU of the thread", cpu)):
        p50, p99, most = np.quantile(took, [0.5, 0.99, 1.0])
        told = f"p50 {p50:.4f}, p99 {p99:.3f}, max {most:.2f}"
        print_row(f"  decide, ms {what}", told, "p99 <= 20 ms" * (what == "wall"))
    told = f"{n_exact:,} of {len(rules):,}"
    print_row("  drawn by exact probabilities", told)


def decide_in_rotation(n_arms: int) -> tuple[Floats, Floats, list[str]]:
    """Milliseconds of every `decide`, wall and CPU, and by which rule it was drawn."""
    sets = eligible_sets(n_arms)
    state = week_old(n_arms)
    served = [snapshot_of(state)]
    for some in sets[:WARMED_BEFORE]:
        served[0].warm(some)
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(served, state, stop))
    wall, cpu, rules = [], [], []
    watcher.start()
    try:
        for nonce, eligible in _requests(sets):
            snapshot = served[0]
            began, busy = time.perf_counter_ns(), time.thread_time_ns()
            decide(snapshot, nonce, eligible=eligible)
            cpu.append((time.thread_time_ns() - busy) / 1e6)
            wall.append((time.perf_counter_ns() - began) / 1e6)
            rules.append("exact" if eligible in snapshot.sets else "renormalised")
    finally:
        stop.set()
        watcher.join()
    return np.array(wall), np.array(cpu), rules


def eligible_sets(n_arms: int) -> list[tuple[int, ...]]:
    """Distinct sets of two to all arms, each size as likely."""
    sets: dict[tuple[int, ...], None] = {}
    while len(sets) < N_SETS:
        n = int(RNG.integers(2, n_arms + 1))
        arms = RNG.choice(n_arms, n, replace=False)
        sets[tuple(int(arm) for arm in np.sort(arms))] = None
    return list(sets)


def _requests(sets: list[tuple[int, ...]]) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Requests at a steady rate, the sets in rotation."""
    began, n = time.perf_counter(), int(N_VERSIONS * VERSION_S * REQUESTS_PER_S)
    for i in range(n):
        late = time.perf_counter() - began - i / REQUESTS_PER_S
        if late < 0.0:
            time.sleep(-late)
        yield i.to_bytes(8, "little"), sets[i % len(sets)]


def _watch(served: list[Snapshot], state: BetaState, stop: threading.Event) -> None:
    """Warm what was missed; every second swap in a new version, warmed like the old one."""
    swapped = time.monotonic()
    while not stop.wait(POLL_S):
        if time.monotonic() - swapped >= VERSION_S:
            new = snapshot_of(state)
            for eligible in list(served[0].sets)[-WARMED_BEFORE:]:
                new.warm(eligible)
            served[0], swapped = new, time.monotonic()
        while served[0].misses:
            served[0].warm(served[0].misses.pop())


if __name__ == "__main__":
    main()
