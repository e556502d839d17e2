"""What compacting a day is worth: `python -m benchmarks.compacting`.

A day of decisions in many small commits: the manifest and all events are read and a night
is run, before it is compacted and the night after. CPU seconds are of all threads of this
process; its memory is the most it held up to then, resident.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._lakes import DAY_MS, START_MS, Made, write_lake
from benchmarks._machine import print_header, print_row

from bandolero.lake.compact import compact
from bandolero.lake.engines import open_engine
from bandolero.lake.refresh import refresh

PACKAGES = ("bandolero", "pyarrow", "duckdb")
ROUNDS = 5


def main() -> None:
    """Print before and after, and by how many times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--decisions", type=float, default=1e6)
    parser.add_argument("--files", type=int, default=1000, help="of decisions")
    asked = parser.parse_args()
    print_header("Compacting a day of small files", PACKAGES)
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        print_tables(write_lake(folder, int(asked.decisions), asked.files))


def print_tables(made: Made) -> None:
    """Each use of the lake before and after."""
    before = {name: cpu_ms(use) for name, use in uses(made).items()}
    begun_mb = peak_mb()
    began = time.process_time()
    found = compact(made.lake, START_MS + 2 * DAY_MS, free)
    took_s = time.process_time() - began
    print_row(
        f"{found.files:,} files of {found.commits:,} commits became",
        f"{found.merged_files} of {found.merged_commits}, {took_s:.1f} s CPU",
        f"peak memory {begun_mb:,.0f} -> {peak_mb():,.0f} MB",
    )
    compact(made.lake, START_MS + 2 * DAY_MS, free)  # deletes what was merged
    for name, use in uses(made).items():
        after = cpu_ms(use)
        times = f"{before[name] / after:,.1f} times less"
        print_row(name, f"{before[name]:,.1f} -> {after:,.1f} ms CPU", times)


def free(_: str) -> AbstractContextManager[bool]:
    """Nobody else is there."""
    return nullcontext(True)


def uses(made: Made) -> dict[str, Callable[[], object]]:
    """What reads the lake, by name."""

    def night() -> None:
        with open_engine() as engine:
            refresh(made.lake, made.records, engine=engine)

    return {
        "reading the manifest": made.lake.commits,
        "reading all events": lambda: made.lake.read("events"),
        "a night": night,
    }


def cpu_ms(use: Callable[[], object]) -> float:
    """CPU milliseconds of a use, the median of some rounds."""
    taken = []
    for _ in range(ROUNDS):
        began = time.process_time()
        use()
        taken.append(1000.0 * (time.process_time() - began))
    return median(taken)


def peak_mb() -> float:
    """The most that this process has held, resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
