"""What a program pays to begin with the engine: `python -m benchmarks.imports`.

Each row is a fresh interpreter, timed inside it: importing `bandolero`, then building a
snapshot of ten variants (kernels from Numba's cache on disk, which a run before fills),
then the first decision. The last row is the whole process, from start to end.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import print_header, print_row, spread

STEPS = ("import bandolero", "first snapshot of 10 variants", "first decision")
PROGRAM = """
import time
marks = [time.perf_counter()]
import bandolero
marks.append(time.perf_counter())
raw = {"experiment": "hats", "variants": [{"id": f"v{i}"} for i in range(10)]}
spec = bandolero.parse_experiment(raw)
record = bandolero.ExperimentRecord(tenant="acme", spec=spec, status="running")
state = bandolero.policy_of(spec).init(10)
snapshot = bandolero.build_snapshot(record, state, version=1, created_at_ms=0)
marks.append(time.perf_counter())
bandolero.decide(snapshot, b"nonce-01")
marks.append(time.perf_counter())
print(*(1e3 * (b - a) for a, b in zip(marks, marks[1:])))
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    print_header("A program that begins with the engine, in fresh processes")
    one_run()
    timed = [one_run() for _ in range(runs)]
    print_row("", "ms, median (min … max)")
    for what, took in zip(
        (*STEPS, "the whole process"), zip(*timed, strict=True), strict=True
    ):
        print_row(what, spread(took).text())


def one_run() -> tuple[float, ...]:
    """Milliseconds of each step, and of the process."""
    began = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    whole = (time.perf_counter() - began) * 1e3
    return (*map(float, answer.stdout.split()), whole)


if __name__ == "__main__":
    main()
