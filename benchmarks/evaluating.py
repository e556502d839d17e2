"""Off-policy evaluation of many trials: seconds, CPU and memory.

`python -m benchmarks.evaluating`, `--rows 1000000` for less. Ten variants shown unevenly, a
target that likes the rarest: without context, with units of three trials as clusters, and
with a reward model on context. Then one experiment of a hundred out of a lake.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._lakes import START_MS, write_lake
from benchmarks._machine import print_header, print_row

from bandolero.evaluate import Situations, Trials, evaluate
from bandolero.evaluate.reading import Asked, read_logged

Floats = NDArray[np.float64]
LOGGED = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02])
TARGET = np.r_[np.full(9, 0.05), 0.55]
N_SITUATIONS, N_FEATURES = 1000, 16
TRIALS_A_UNIT = 3
LAKE_FILES = 20
SEED = 2026


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluating")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--lake-rows", type=int, default=2_000_000)
    options = parser.parse_args(arguments)
    print_header("Off-policy evaluation", ("bandolero", "numpy", "numba", "pyarrow"))
    evaluate(trials(1000), TARGET)
    print_row("six estimators and their intervals", "", "bar: 10,000,000 rows <= 20 s")
    n = options.rows
    units = np.random.default_rng(SEED).integers(n // TRIALS_A_UNIT, size=n)
    print_evaluated(f"{n:,} trials", trials(n))
    print_evaluated(f"{n:,} trials of {n // TRIALS_A_UNIT:,} units", trials(n, units))
    n //= 10
    print_evaluated(f"{n:,} trials, {N_FEATURES} features", with_context(n))
    print_read(options.lake_rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print_row("peak memory of all, trials among it", f"{peak:,.0f} MB")
    return 0


def trials(n: int, units: NDArray[np.int64] | None = None) -> Trials:
    """Trials without context, clicked in 0.5 to 2 % of them."""
    rng = np.random.default_rng(SEED)
    arms = rng.choice(len(LOGGED), p=LOGGED, size=n)
    rewards = (rng.random(n) < rng.uniform(0.005, 0.02, len(LOGGED))[arms]).astype(
        float
    )
    alike = np.zeros(n, np.int64)
    situations = Situations.alike(len(LOGGED))
    return Trials(arms, rewards, LOGGED[arms], alike, situations, units, 1.0)


def with_context(n: int) -> Trials:
    """Trials in a thousand situations, whose rewards depend on it."""
    rng = np.random.default_rng(SEED)
    features = np.c_[np.ones(N_SITUATIONS), rng.random((N_SITUATIONS, N_FEATURES - 1))]
    arms = rng.choice(len(LOGGED), p=LOGGED, size=n)
    situation = rng.integers(N_SITUATIONS, size=n)
    slopes = rng.uniform(0.0, 0.02 / N_FEATURES, (len(LOGGED), N_FEATURES))
    rates = (features @ slopes.T)[situation, arms]
    rewards = (rng.random(n) < rates).astype(float)
    possible = np.ones((N_SITUATIONS, len(LOGGED)), np.bool_)
    situations = Situations(features, possible)
    return Trials(arms, rewards, LOGGED[arms], situation, situations, None, 1.0)


def print_evaluated(what: str, given: Trials) -> None:
    """How long six estimators with their intervals take."""
    answers = []
    told = timed(lambda: answers.append(evaluate(given, TARGET)))
    if not answers[0].is_supported:
        raise RuntimeError(f"not enough support: {answers[0].support.reasons}")
    print_row(what, told)


def print_read(n: int) -> None:
    """How long it takes to read and settle one experiment's decisions of a lake."""
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        made = write_lake(folder, n, LAKE_FILES)
        now_ms = START_MS + 10**9
        told = timed(
            lambda: read_logged(made.records[0], made.lake, Asked(now_ms, now_ms))
        )
        print_row(f"one experiment of {len(made.records)} in a lake of {n:,}", told)


def timed(work: Callable[[], object]) -> str:
    """Wall and CPU seconds that something takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"{wall:.1f} s, {cpu:.1f} s CPU"


if __name__ == "__main__":
    raise SystemExit(main())
