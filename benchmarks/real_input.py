"""Policies on real input: `python -m benchmarks.real_input`.

Upworthy: every test of the archive played again by every policy that needs no context,
observed click rates for the truth. Less noise: some of them again, with the spread that is
noise taken out of those rates. Crossed: the tests that tried every headline with every
image. Open Bandit: replay of a uniform log of a shop. Bank: labelled data made a
bandit, replayed from a uniform log and, because all rewards are known, really played.

The data are not part of this repository; a part whose data are missing is left out.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks import _logs, _off_policy, _upworthy
from benchmarks._line_up import (
    contextual_policies,
    flat_policies,
    of_kept,
    regressions,
    with_items,
)
from benchmarks._machine import PACKAGES, print_header
from benchmarks._off_policy import Log, Value, replay, value
from benchmarks._upworthy import (
    HeadlineTest,
    Make,
    play_all,
    read_tests,
)

Floats = NDArray[np.float64]

SEED = 2026
BATCH = 200
MIN_SHARES = (0.0, 0.01)
N_LESS_NOISE = 400
CROSSED_SEEDS = range(SEED, SEED + 10)
OPEN_SEEDS = range(SEED, SEED + 50)
BANK_SEEDS = range(SEED, SEED + 10)
N_SHUFFLED = 20
GROUPS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_input")
    parser.add_argument("--only", choices=tuple(PARTS), help="default: all")
    options = parser.parse_args(arguments)
    print_header("Policies on real input", (*PACKAGES, "scipy", "pyarrow"))
    print(f"seeds from {SEED}, {BATCH} decisions between updates\n")
    for name, (source, run) in PARTS.items():
        if options.only not in (None, name):
            continue
        if not source.exists():
            print(f"{name}: left out, {source.name} is not beside the repository\n")
            continue
        began = time.perf_counter()
        run()
        print(f"{name}: {time.perf_counter() - began:.0f} s\n", flush=True)
    return 0


# --- Upworthy ------------------------------------------------------------------------


def print_upworthy() -> None:
    """Every test, observed rates for the truth."""
    tests = read_tests()
    print_gains("Upworthy, observed rates", tests, flat_policies(tests, SEED))


def print_less_noise() -> None:
    """Some of the tests, their noise taken out of their rates."""
    tests = read_tests()
    some = np.random.default_rng(SEED).choice(len(tests), N_LESS_NOISE, replace=False)
    kept = sorted(some.tolist())
    shrunk = [_upworthy.shrunk(tests[index]) for index in kept]
    policies = of_kept(flat_policies(tests, SEED), kept)
    print_gains("Upworthy, rates less noise", shrunk, policies)


def print_crossed() -> None:
    """Tests that tried every headline with every image, each played many times."""
    tests = read_tests()
    kept = [index for index, test in enumerate(tests) if _upworthy.is_factorial(test)]
    crossed = [tests[index] for index in kept]
    policies = of_kept(flat_policies(tests, SEED), kept) | regressions(crossed)
    print_gains("Upworthy, headline x image", crossed, policies, CROSSED_SEEDS)


def print_gains(
    title: str,
    tests: Sequence[HeadlineTest],
    policies: dict[str, Make],
    seeds: Sequence[int] = (SEED,),
) -> None:
    """A table of the gap that each policy captures, one column a floor."""
    uniform = sum(_upworthy.uniform_clicks(test) for test in tests)
    oracle = sum(_upworthy.oracle_clicks(test) for test in tests)
    print(f"\n### {title}")
    print(
        f"{len(tests):,} tests, {sum(len(t.rates) for t in tests):,} variants, "
        f"{sum(t.horizon for t in tests):,} decisions; clicks of uniform {uniform:,.0f}, "
        f"of the best in hindsight {oracle:,.0f} (+{oracle / uniform - 1:.1%})\n"
    )
    heads = (f"floor {f:g}: gap captured | mean of tests | lost" for f in MIN_SHARES)
    print(
        f"| policy | {' | '.join(heads)} | s |\n|---|{'---|' * 3 * len(MIN_SHARES)}---|"
    )
    for name, make in policies.items():
        began, cells = time.perf_counter(), []
        for floor in MIN_SHARES:
            gains, lost = play_all(make, tests, BATCH, floor, seeds)
            cells.append(
                f"{gains.of_all:z.1%} ± {gains.of_all_error:.1%} | "
                f"{gains.mean:z.1%} ± {gains.mean_error:.1%} | {lost:.1%}"
            )
        took = time.perf_counter() - began
        print(f"| {name} | {' | '.join(cells)} | {took:.0f} |", flush=True)


# --- replay --------------------------------------------------------------------------


def print_open_bandit() -> None:
    """Replay of Open Bandit's random log, by item and by groups of items."""
    log, items = _logs.open_bandit(), _logs.open_bandit_items()
    print(
        f"### Open Bandit, campaign all, random log\n{len(log.arms):,} rows, "
        f"{log.rewards.sum():.0f} clicks, {log.features.shape[1]} features, "
        f"{len(OPEN_SEEDS)} orders of the log"
    )
    groups = _logs.grouped(log, items.number, GROUPS)
    policies = contextual_policies(log.features.shape[1])
    print_replays(
        f"{GROUPS} groups of items by item_feature_0", groups, policies, BATCH
    )
    print()
    print_nothing_to_learn(groups, policies)
    policies = policies | with_items(items)
    # An arm in eighty is accepted: with more between updates nothing would be learned.
    print_replays(f"{log.n_arms} items", log, policies, BATCH // 10)


def print_nothing_to_learn(log: Log, policies: dict[str, Any]) -> None:
    """Gains by weights where clicks are shuffled over rows: what chance alone makes."""
    rng = np.random.default_rng(SEED)
    for name in ("linear_thompson", "logistic_thompson"):
        gains = []
        for _ in range(N_SHUFFLED):
            shuffled = log._replace(rewards=rng.permutation(log.rewards))
            _, weights = replays(policies[name], shuffled, BATCH)
            gains.append(100.0 * value(weights, shuffled.rewards).gain)
        told = f"{np.mean(gains):+.3f}, standard deviation {np.std(gains, ddof=1):.3f}"
        print(f"{name}, clicks shuffled {N_SHUFFLED} times: gain by weights {told}")


def print_replays(what: str, log: Log, policies: dict[str, Any], every: int) -> None:
    """A table of replayed click rates, in %."""
    print(f"\n{what}, learned every {every} accepted rows; click rates in %\n")
    print("| policy | accepted | replayed | over the log | by weights | over the log |")
    print("|---|---|---|---|---|---|")
    for name, policy in policies.items():
        accepted, weights = replays(policy, log, every)
        cells = [f"{accepted.sum():,.0f}"]
        for estimate in (value(accepted, log.rewards), value(weights, log.rewards)):
            cells += percent(estimate)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def replays(policy: Any, log: Log, every: int) -> tuple[Any, Any]:
    """Share of the runs that accepted each row, and its mean weight, (n,) each."""
    accepted, weights = np.zeros(len(log.arms)), np.zeros(len(log.arms))
    for seed in OPEN_SEEDS:
        order = np.random.default_rng([seed, 0]).permutation(len(log.arms))
        run = replay(policy, log.take(order), every, [seed, 1])
        accepted[order] += run.accepted / len(OPEN_SEEDS)
        weights[order] += run.weights / len(OPEN_SEEDS)
    return accepted, weights


def percent(estimate: Value) -> list[str]:
    """Mean and gain with their errors."""
    mean, error, gain, gain_error = (100.0 * x for x in estimate)
    return [f"{mean:.3f} ± {error:.3f}", f"{gain:+.3f} ± {gain_error:.3f}"]


def print_bank() -> None:
    """Bank marketing by job: replay of uniform logs beside what playing earns."""
    features, table = _logs.bank()
    print(
        f"### Bank marketing, an arm a job\n{len(table):,} rows, {table.shape[1]} arms, "
        f"{features.shape[1]} features; the best arm for all earns "
        f"{table.mean(axis=0).max():.1%}; {len(BANK_SEEDS)} orders and logs, rewards in %\n"
    )
    print(
        "| policy | accepted | replayed | by weights | played as long | played on all |"
    )
    print("|---|---|---|---|---|---|")
    for name, policy in contextual_policies(features.shape[1]).items():
        runs = np.array([bank_run(policy, features, table, s) for s in BANK_SEEDS])
        error = runs.std(axis=0, ddof=1) / len(runs) ** 0.5
        means = zip(runs.mean(axis=0)[1:], error[1:], strict=True)
        cells = [f"{100 * mean:.2f} ± {100 * e:.2f}" for mean, e in means]
        print(
            f"| {name} | {runs[:, 0].mean():,.0f} | {' | '.join(cells)} |", flush=True
        )


def bank_run(policy: Any, features: Any, table: Any, seed: int) -> list[float]:
    """One order, one log: rows accepted, and the mean reward by four ways to know it."""
    order = np.random.default_rng([seed, 0]).permutation(len(table))
    x, earned = features[order], table[order]
    log = _logs.uniform_log(x, earned, [seed, 1])
    run = replay(policy, log, BATCH, [seed, 2])
    n = int(run.accepted.sum())
    played = _off_policy.play(policy, x, earned, BATCH, [seed, 3])
    means = (
        value(run.accepted.astype(np.float64), log.rewards).mean,
        value(run.weights, log.rewards).mean,
        float(played[:n].mean()),
        float(played.mean()),
    )
    return [float(n), *means]


PARTS: dict[str, tuple[Path, Callable[[], None]]] = {
    "upworthy": (_upworthy.ARCHIVE, print_upworthy),
    "less-noise": (_upworthy.ARCHIVE, print_less_noise),
    "crossed": (_upworthy.ARCHIVE, print_crossed),
    "open-bandit": (_logs.OPEN_BANDIT, print_open_bandit),
    "bank": (_logs.BANK, print_bank),
}

if __name__ == "__main__":
    raise SystemExit(main())
