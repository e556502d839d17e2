"""One decision in process, and the making of a snapshot: `python -m benchmarks.decision`.

Decisions are timed from the public call `bandolero.decide(snapshot, nonce)`, a fresh
nonce each; snapshots from `bandolero.build_snapshot`, over posteriors as they are at the
start of an experiment, after a week, and when one variant has won.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import (
    Spread,
    print_header,
    print_row,
    spread,
    us_per_call,
)

from bandolero import ExperimentRecord, Snapshot, build_snapshot, decide
from bandolero.policies import (
    BetaState,
    BetaThompson,
    GaussianThompson,
    PoissonThompson,
    Policy,
    TopTwoThompson,
    choose_batch,
)
from bandolero.snapshot import snapshot_from_bytes, snapshot_to_bytes

QUADRATURES: tuple[Policy[Any], ...] = (
    BetaThompson(),
    TopTwoThompson(),
    PoissonThompson(),
    GaussianThompson(),
)
N_DECISIONS = 200_000
N_BUILDS = 40
SEED = 7
N_BATCH = 1_000_000
DECISION_BAR = "<= 2 us"
BATCH_BAR = "<= 50 ms"
SNAPSHOT_BAR = "<= 5 ms"


def main() -> None:
    """Print the tables."""
    print_header("In process: decisions and snapshots, beta_thompson")
    nonces = [os.urandom(8) for _ in range(N_DECISIONS)]
    fifty = snapshot_of(week_old(50))

    print_row("one decision", "us, median (min … max)", "bar")
    for n_arms in (10, 50, 1000):
        snapshot = snapshot_of(week_old(n_arms))
        bar = DECISION_BAR if n_arms == 50 else ""
        took = us_per_call(partial(decide, snapshot), nonces)
        print_row(f"  decide, {n_arms} variants", took.text(3), bar)
    sticky = snapshot_of(week_old(50), {"sticky": "unit", "holdout_share": 0.05})
    narrow = tuple(range(0, 50, 10))
    others: dict[str, Callable[[bytes], object]] = {
        "  decide, 50 variants, unit, sticky, holdout": partial(
            decide, sticky, unit="unit-4711"
        ),
        "  decide, 50 variants, 5 of them eligible": partial(
            decide, fifty, eligible=narrow
        ),
        "  of which: the draw number (the hash)": fifty.draw,
        "  for scale: a call that does nothing": bytes.__len__,
    }
    for what, call in others.items():
        print_row(what, us_per_call(call, nonces).text(3))
    shares, given = fifty.probabilities, np.random.default_rng(SEED).random(N_BATCH)
    each = ms_per_call(lambda: choose_batch(shares, given), N_BUILDS)
    print_row("  choose_batch, 1e6 draws given: ms", each.text(1), BATCH_BAR)

    print()
    print_row("one snapshot", "ms, median (min … max)", "bar")
    for n_arms in (10, 50, 1000):
        for name, posterior in POSTERIORS.items():
            build = partial(snapshot_of, posterior(n_arms))
            bar = SNAPSHOT_BAR if n_arms == 50 else ""
            took = ms_per_call(build, N_BUILDS if n_arms <= 50 else 5)
            print_row(f"  build_snapshot, {n_arms} variants, {name}", took.text(), bar)
    data = snapshot_to_bytes(fifty)
    written = ms_per_call(lambda: snapshot_to_bytes(fifty), N_BUILDS)
    read = ms_per_call(lambda: snapshot_from_bytes(data), N_BUILDS)
    print_row(f"  to bytes, 50 variants ({len(data):,} bytes)", written.text())
    print_row("  from bytes, 50 variants", read.text())

    print()
    print_row("probabilities, the dearest of four states", "ms", "taken as")
    for policy in QUADRATURES:
        for n_arms in (10, 50, 1000):
            took, taken = dearest(policy, n_arms), policy.cost_us(n_arms) / 1e3
            row = f"  {policy.kind}, {n_arms} variants"
            print_row(row, took.text(), f"{taken:.2f}")


def ms_per_call(call: Callable[[], object], n_runs: int) -> Spread:
    """CPU milliseconds per call; the first call, which compiles, is not counted."""
    call()
    took = []
    for _ in range(n_runs):
        began = time.thread_time_ns()
        call()
        took.append((time.thread_time_ns() - began) / 1e6)
    return spread(took)


def dearest(policy: Policy[Any], n_arms: int) -> Spread:
    """Milliseconds of `probabilities` in the state of `POSTERIORS` that takes longest."""
    eligible, took = np.arange(n_arms), []
    for posterior in POSTERIORS.values():
        told = posterior(n_arms)
        counted = policy.correction(
            n_arms, told.trials, told.successes, told.successes * 10**6, told.successes
        )
        state = policy.add(policy.init(n_arms), counted)
        call = partial(policy.probabilities, state, eligible)
        took.append(ms_per_call(call, N_BUILDS if n_arms <= 50 else 5))
    return max(took)


def snapshot_of(state: BetaState, allocation: dict[str, Any] | None = None) -> Snapshot:
    """Build the snapshot of an experiment in this state."""
    return build_snapshot(
        record_of(len(state.trials), allocation), state, version=1, created_at_ms=0
    )


def record_of(n_arms: int, allocation: dict[str, Any] | None) -> ExperimentRecord:
    """An experiment of `n_arms` variants with creatives of ordinary length."""
    variants = [
        {"id": f"v{arm}", "creative": {"headline": f"Spring is here, number {arm}"}}
        for arm in range(n_arms)
    ]
    spec = {
        "experiment": "spring-hero",
        "policy": {"kind": "beta_thompson"},
        "allocation": allocation or {},
        "variants": variants,
    }
    return ExperimentRecord.model_validate({"tenant": "acme", "spec": spec})


def fresh(n_arms: int) -> BetaState:
    """No data."""
    return BetaThompson().init(n_arms)


def first_hour(n_arms: int) -> BetaState:
    """About 2,000 trials an arm at rates of about 2 %: all is open."""
    return _observed(n_arms, np.full(n_arms, 2_000))


def week_old(n_arms: int) -> BetaState:
    """A few thousand to a million trials an arm, as Thompson sampling leaves them."""
    trials = np.geomspace(1_000_000, 4_000, n_arms).astype(np.int64)
    return _observed(n_arms, trials)


def clear_winner(n_arms: int) -> BetaState:
    """One arm twice as good as the others, with nearly all of the traffic."""
    trials = np.full(n_arms, 5_000)
    trials[n_arms // 2] = 50_000_000
    state = _observed(n_arms, trials)
    state.successes[n_arms // 2] = 2_000_000
    return state


def _observed(n_arms: int, trials: Any) -> BetaState:
    """Seeded outcomes of arms with click rates around 2 %, the better ones first."""
    rng = np.random.default_rng(SEED)
    rates = np.sort(rng.beta(40.0, 1960.0, n_arms))[::-1]
    return fresh(n_arms)._replace(
        trials=trials.astype(np.int64), successes=rng.binomial(trials, rates)
    )


POSTERIORS: dict[str, Callable[[int], BetaState]] = {
    "fresh": fresh,
    "first hour": first_hour,
    "week old": week_old,
    "clear winner": clear_winner,
}

if __name__ == "__main__":
    main()
