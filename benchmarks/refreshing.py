"""The night over lakes of a day's decisions: `python -m benchmarks.refreshing`.

Each run is a process of its own. Seconds are of the whole run but the imports, CPU
seconds of all its threads (Spark's are of another process, so they are left out), memory
the most it held (resident). Lakes are kept in `--folder` for the next run.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._lakes import N_EXPERIMENTS, record_of, write_lake
from benchmarks._machine import print_header, print_row
from benchmarks._plain_refresh import PEERS

from bandolero.lake.catalog import Lake
from bandolero.lake.engines import EngineChoice, open_engine
from bandolero.lake.refresh import refresh

PACKAGES = ("bandolero", "ibis-framework", "duckdb", "pyspark", "pandas", "polars")
ROWS_A_FILE = 50_000
MIN_FILES, MAX_FILES = 20, 1_000
NIGHT_ROWS = 233_000_000
FULL_ROWS = 100_000_000
SMALL = "500MB"
FEATURES = 32
PEER_ROWS = 10_000_000


class Run(NamedTuple):
    """One refresh: of how many decisions, by whom, how long, how much memory; hits."""

    n_decisions: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    hits: int

    def text(self) -> str:
        """Seconds, CPU seconds and memory."""
        return f"{self.wall_s:.1f} s, {self.cpu_s:.1f} s CPU, {self.peak_mb:,.0f} MB"


def main() -> None:
    """Print the tables; or, asked for `--one`, run once and tell it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--decisions", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--folder", type=Path, help="where lakes are kept")
    parser.add_argument("--spark", action="store_true", help="on the smallest, too")
    parser.add_argument("--features", action="store_true", help="by context alone")
    parser.add_argument("--one", nargs=4, metavar=("LAKE", "FEATURES", "WHO", "LIMIT"))
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(run_one(*asked.one)))
        return
    print_header("The night: refreshing a day of decisions", PACKAGES)
    if asked.folder:
        print_tables(asked.folder, asked)
        return
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        print_tables(Path(folder), asked)


def print_tables(folder: Path, asked: argparse.Namespace) -> None:
    """A line for each size and engine."""
    sizes = [int(n) for n in asked.decisions]
    if asked.features:
        print_by_context(folder, sizes)
        return
    runs = []
    for n in sizes:
        lake = lake_of(folder, n, 0)
        runs.append(told(lake, 0, "duckdb", "3GB"))
        print_row(f"{n:>11,} decisions, DuckDB", runs[-1].text(), _bar(n))
        small = told(lake, 0, "duckdb", SMALL)
        same = "equal" if small.hits == runs[-1].hits else "DIFFERENT"
        print_row(f"{n:>11,} decisions, DuckDB, {SMALL}", small.text(), same)
        if n == PEER_ROWS:
            print_peers(lake, runs[-1])
    print_growth(runs, NIGHT_ROWS, "<= 300 s")
    if asked.spark:
        spark = told(lake_of(folder, sizes[0], 0), 0, "spark", "3GB")
        same = "equal" if spark.hits == runs[0].hits else "DIFFERENT"
        print_row(f"{sizes[0]:>11,} decisions, Spark local[2]", spark.text(), same)


def print_by_context(folder: Path, sizes: list[int]) -> None:
    """The same with 32 features: where all was learned live, and where nothing was.

    There the night sums what settled otherwise with hindsight, here every decision.
    """
    for name, is_live in (("learned live", True), ("from files", False)):
        runs = []
        for n in sizes:
            lake = lake_of(folder, n, FEATURES, is_live=is_live)
            runs.append(told(lake, FEATURES, "duckdb", "3GB"))
            row = f"{n:>11,} decisions, d = {FEATURES}, {name}"
            print_row(row, runs[-1].text(), _bar(n, "<= 360 s"))
        print_growth(runs, FULL_ROWS, "<= 360 s")


def print_growth(runs: list[Run], n_rows: int, bar: str) -> None:
    """How time grows with size, and what it would be for so many rows."""
    first, last = runs[0], runs[-1]
    if len(runs) > 1:
        times = n_times(first, last)
        growth = math.log(last.cpu_s / first.cpu_s) / math.log(times)
        print_row("growth of CPU time, exponent", f"{growth:.3f}", "<= 1.05")
    more = n_rows / last.n_decisions
    projected = f"{last.wall_s * more:.0f} s, {last.cpu_s * more:.0f} s CPU"
    print_row(f"projected for {n_rows:,}", projected, bar)


def n_times(first: Run, last: Run) -> float:
    """How many times as many decisions the last has."""
    return last.n_decisions / first.n_decisions


def print_peers(lake: Path, ours: Run) -> None:
    """The same night by pandas and by polars, and ours by theirs."""
    for name in PEERS:
        peer = told(lake, 0, name, "3GB")
        ratio = f"ours takes {ours.cpu_s / peer.cpu_s:.2f} of its CPU time"
        print_row(f"{peer.n_decisions:>11,} decisions, {name}", peer.text(), ratio)


def lake_of(
    folder: Path, n_decisions: int, n_features: int, *, is_live: bool = True
) -> Path:
    """The lake of that size, made if need be."""
    kind = "" if is_live else "-files"
    lake = folder / f"{n_decisions}-{n_features}{kind}"
    done = lake / "done"
    if not done.exists():
        n_files = min(max(n_decisions // ROWS_A_FILE, MIN_FILES), MAX_FILES)
        write_lake(str(lake), n_decisions, n_files, n_features, is_live=is_live)
        done.touch()
    return lake


def told(lake: Path, n_features: int, who: str, limit: str) -> Run:
    """A run in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--one",
        str(lake),
        str(n_features),
        who,
        limit,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return Run(*json.loads(done.stdout.splitlines()[-1]))


def run_one(lake: str, n_features: str, who: str, limit: str) -> Run:
    """A run in this process."""
    began, used = time.perf_counter(), time.process_time()
    n_decisions, hits = counted(Path(lake), int(n_features), who, limit)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return Run(n_decisions, wall, cpu, peak, hits)


def counted(lake: Path, n_features: int, who: str, limit: str) -> tuple[int, int]:
    """Decisions and hits that somebody counts."""
    if who in PEERS:
        return PEERS[who](lake), 0
    records = [record_of(i, n_features) for i in range(N_EXPERIMENTS)]
    with open_engine(EngineChoice(who, limit, "local[2]")) as engine:
        found = refresh(Lake(lake), records, engine=engine)
    return found.settled, sum(found.rollups["hits"].to_pylist())


def _bar(n: int, seconds: str = "<= 90 s") -> str:
    return f"{seconds}, <= 4,000 MB" if n == FULL_ROWS else ""


if __name__ == "__main__":
    main()
