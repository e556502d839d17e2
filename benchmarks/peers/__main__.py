"""Ours against nine peers, every one timed the same way: `python -m benchmarks.peers`.

Each peer is installed in the version named in `_environments.py` into an environment of
its own (the first time some minutes and gigabytes), and its adapter runs there: on one
core, with one thread, CPU time by the process's clock, medians of stretches. A peer that
cannot be installed or fails is said to, and is in no table. `p` marks a decision that
comes with its propensity.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # when run as a script

from benchmarks._machine import print_header
from benchmarks.peers._environments import PEERS, NotInstalledError, Peer, python_of
from benchmarks.peers._tables import Row, print_bars, print_tables

ROOT = Path(__file__).parents[2]
CACHE = Path(__file__).parents[1] / ".peers"
RUN_S = 600
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
    ),
    "1",
)


def main() -> None:
    """Install, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--only", default="", help="some peers: river,gittins")
    parser.add_argument("--cache", type=Path, default=CACHE, help="their environments")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else [peer.name for peer in PEERS]
    unknown = set(names) - {peer.name for peer in PEERS}
    if unknown:
        parser.error(f"--only == {unknown}, must be of {[p.name for p in PEERS]}")

    print_header("Decisions and updates, ours and peers'")
    rows, faults = measured("ours", sys.executable)
    for peer in PEERS:
        if peer.name in names:
            more, bad = _of_peer(peer, given.cache)
            rows, faults = rows + more, faults + bad
    print_tables(rows)
    print_bars(rows)
    print("\nNot measured" if faults else "")
    for fault in faults:
        print(f"  {fault}")


def measured(name: str, python: str) -> tuple[list[Row], list[str]]:
    """Run an adapter; what it measured, and what it could not."""
    print(f"  running {name}", flush=True)
    own = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")} if name == "ours" else {}
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    try:
        ran = subprocess.run(
            [python, "-m", f"benchmarks.peers.{name}"],
            cwd=ROOT,
            env=kept | ONE_THREAD | own,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], [f"{name}: not done after {RUN_S} s"]
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line[:1] == "{"]
    faults = [_fault(line) for line in lines if "error" in line]
    if ran.returncode:
        faults.append(f"{name}: {(ran.stderr.strip().splitlines() or ['failed'])[-1]}")
    return [Row(name, **line) for line in lines if "error" not in line], faults


def _of_peer(peer: Peer, cache: Path) -> tuple[list[Row], list[str]]:
    try:
        python = python_of(peer, cache)
    except NotInstalledError as error:
        return [], [f"{peer.name} {peer.version}: not installed: {error}"]
    return measured(peer.name, str(python))


def _fault(line: dict[str, Any]) -> str:
    return (
        f"{line['method']}, {line['n_arms']} variants, {line['work']}: {line['error']}"
    )


if __name__ == "__main__":
    main()
