"""Ingestion of large files: rows a second, and memory that stays flat.

`python -m benchmarks.ingesting`, `--rows 100000000` for a larger file. Decisions as another
system may log them: distinct ids, a unit, a context, 100 experiments of 10 variants, 30 days
in order. Each file is taken in by a fresh process, whose peak is told with its reader's.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import print_header, print_row

from bandolero.lake.catalog import Lake
from bandolero.lake.ingest import Terms, ingest

AT_ONCE = 1_000_000
START_MS = 1_704_067_200_000
DAYS_MS = 30 * 86_400_000
N_UNITS = 2_000_000
CONTEXTS = [
    f'{{"device":"{device}","hour":{hour}.0}}'
    for device in ("mobile", "desktop", "tablet")
    for hour in range(24)
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingesting")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument(
        "--units", action="store_true", help="hide units, as the command does"
    )
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        print(json.dumps(take_in(options.one, options.units)))
        return 0
    print_header("Ingestion of Parquet files", ("bandolero", "pyarrow", "numpy"))
    print_row("decisions", "", "bar: >= 1,000,000 rows/s, <= 1,000 MB")
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        for rows in (options.rows // 10, options.rows):
            path = write_file(Path(folder, f"{rows}.parquet"), rows)
            print_row(
                f"{rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB",
                measured(path, options.units),
            )
            path.unlink()
    return 0


def measured(path: Path, is_hidden: bool) -> str:
    """How a fresh process fares with a file."""
    command = [sys.executable, __file__, "--one", str(path), *(["--units"] * is_hidden)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout)
    return (
        f"{found['rows'] / found['wall_s']:,.0f} rows/s; {found['cpu_us']:.2f} us CPU a row, "
        f"{found['reader_cpu_us']:.2f} of it the reader's; peak {found['own_mb']:,.0f} + "
        f"{found['reader_mb']:,.0f} MB; {found['files']} files"
    )


def take_in(path: Path, is_hidden: bool) -> dict[str, float]:
    """Ingest a file into a new lake; what it took."""
    if is_hidden:
        from bandolero_service.ingesting import pseudonyms

        hide = pseudonyms(b"root")
    else:
        hide = lambda rows: rows  # noqa: E731
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        lake = Lake(folder)
        began = time.perf_counter()
        found = ingest(lake, "decisions", [path], Terms(), conceal=hide)
        took = time.perf_counter() - began
        n_files = len(lake.files("decisions"))
    own = resource.getrusage(resource.RUSAGE_SELF)
    reader = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime
    reader_cpu = reader.ru_utime + reader.ru_stime
    return {
        "rows": found.accepted,
        "wall_s": took,
        "cpu_us": (cpu + reader_cpu) / found.accepted * 1e6,
        "reader_cpu_us": reader_cpu / found.accepted * 1e6,
        "own_mb": own.ru_maxrss / 1e3,
        "reader_mb": reader.ru_maxrss / 1e3,
        "files": n_files,
    }


def write_file(path: Path, rows: int) -> Path:
    """A Parquet file of decisions, written piece by piece."""
    with pq.ParquetWriter(path, next(pieces(1)).schema, compression="snappy") as writer:
        for piece in pieces(rows):
            writer.write_table(piece)
    return path


def pieces(rows: int) -> Iterator[pa.Table]:
    """Decisions in the order of their time, a million at once."""
    rng = np.random.default_rng(7)
    for start in range(0, rows, AT_ONCE):
        n = min(AT_ONCE, rows - start)
        number = np.arange(start, start + n)
        arms = rng.integers(0, 10, n)
        yield pa.table(
            {
                "tenant_id": _named("tenant", np.zeros(n, np.int64)),
                "decision_id": _numbered(rng.integers(0, 2**63, n)),
                "experiment_id": _named("experiment", rng.integers(0, 100, n)),
                "variant_id": _named("v", arms),
                "unit": _numbered(rng.integers(0, N_UNITS, n)),
                "decided_at_ms": START_MS + number * DAYS_MS // rows,
                "propensity": 0.05 + 0.05 * arms,
                "mode": _named("explore", np.full(n, -1)),
                "context": pa.array(CONTEXTS).take(pa.array(rng.integers(0, 72, n))),
            }
        )


def _named(what: str, numbers: np.ndarray) -> pa.Array:
    if numbers[0] < 0:
        return pa.array([what]).take(pa.array(np.zeros(len(numbers), np.int64)))
    names = pa.array([f"{what}{i}" for i in range(int(numbers.max()) + 1)])
    return names.take(pa.array(numbers))


def _numbered(numbers: np.ndarray) -> pa.Array:
    return pc.cast(pa.array(numbers), pa.string())


if __name__ == "__main__":
    raise SystemExit(main())
