"""A hundred kills under load, and the audit: `python -m benchmarks.faults --minutes 5`.

Two API workers, learner, archiver and store are killed -9 at random times drawn from a
seed, twenty a minute, while three producers decide and click without pause. With power
cuts (the default where there is a C compiler) the store's append-only file is cut back,
at each of its deaths, to what it had synced. Then everything comes to rest, and the
ledger of the producers is compared with the lake and the report.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the harness
sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import SERVICE_PACKAGES, print_header, print_row, spread

from faults.kills import ROLES
from faults.run import Run, killing_run
from faults.shims import COMPILER

KILLS_PER_MINUTE = 20


def main() -> None:
    """Run, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--power", action=argparse.BooleanOptionalAction, default=COMPILER is not None
    )
    given = parser.parse_args()
    print_header("Kills under load", SERVICE_PACKAGES)
    n_kills = round(given.minutes * KILLS_PER_MINUTE)
    run = killing_run(n_kills, 60 * given.minutes, given.seed, power=given.power)
    print_kills(run)
    print_counts(run)


def print_kills(run: Run) -> None:
    """Who was killed how often, and how soon it was back."""
    for role in ROLES:
        back_s = [kill.back_s for kill in run.kills if kill.role == role]
        if back_s:
            print_row(f"{role} killed, back after s", spread(back_s).text())
    print_row("bytes that power cuts took from the store", f"{run.bytes_cut:,}")
    print_row("times a worker went over to its spool", f"{run.n_spooled:,}")


def print_counts(run: Run) -> None:
    """What the producers saw, and what became of it."""
    stream, audit = run.stream, run.audit
    took = sorted(stream.took_s)
    late = f"{took[len(took) // 2] * 1e3:.1f}, {took[-1] * 1e3:,.0f}"
    print_row("decisions answered", f"{len(stream.decisions):,}")
    print_row("ms for ten of them, median and max", late)
    print_row("requests cut with a worker and asked again", f"{stream.n_cut:,}")
    print_row("decisions refused", f"{len(stream.refused):,}", "0")
    print_row("events accepted", f"{len(stream.accepted):,}")
    print_row("accepted events lost", f"{audit.events_lost:,}", "0")
    print_row("decisions logged twice", f"{audit.logged_twice:,}", "0")
    print_row("trials and rewards settled twice", f"{audit.settled_twice:,}", "0")
    print_row("trials and rewards never settled", f"{audit.settled_never:,}", "0")
    print_row("decisions lost with a killed worker", f"{len(audit.decisions_lost):,}")
    print_row("the oldest of them, s before the kill", f"{run.oldest_lost_s:.2f}")
    print_row("decisions lost otherwise", f"{run.unexplained:,}", "0")


if __name__ == "__main__":
    main()
