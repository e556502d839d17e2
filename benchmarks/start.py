"""Cold start of `bandolero serve`, and its first decision: `python -m benchmarks.start`.

From starting the process to the first `/readyz` that says 200, with Numba's cache on
disk warm (a start before, not counted) and a key and a running experiment in the data
directory. Then decisions, each over a new connection, the first of them timed alone.
"""

import argparse
import http.client
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import SERVICE_PACKAGES, print_header, print_row, spread
from benchmarks._system import Server, decide_body, free_port, post, prepare, running

N_LATER = 50


class Start(NamedTuple):
    """One start."""

    ready_s: float
    first_ms: float
    later_ms: float
    stop_s: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print_header("Cold start of bandolero serve, one worker", SERVICE_PACKAGES)
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        data_dir = Path(folder)
        key = prepare(data_dir)
        with running(data_dir) as server:
            server.wait_ready()
        starts = [one_start(data_dir, key) for _ in range(runs)]
    print_row("", "median (min … max)", "bar")
    ready = spread([s.ready_s for s in starts])
    first = spread([s.first_ms for s in starts])
    later = spread([s.later_ms for s in starts])
    print_row("start to ready, s", ready.text(), "<= 5 s")
    print_row("first decision after ready, ms", first.text(), "<= 10 ms")
    print_row(f"median of the next {N_LATER}, ms", later.text())
    print_row("SIGTERM to the end, s", spread([s.stop_s for s in starts]).text())


def one_start(data_dir: Path, key: str) -> Start:
    """Start, decide, stop."""
    server = Server(data_dir, free_port())
    try:
        ready_s = server.wait_ready()
        took = [decision_ms(server.port, key, i) for i in range(N_LATER + 1)]
    finally:
        began = time.perf_counter()
        code = server.stop()
    if code != 0:
        raise RuntimeError(f"serve ended with exit code {code}, must be 0.")
    stop_s = time.perf_counter() - began
    return Start(ready_s, took[0], statistics.median(took[1:]), stop_s)


def decision_ms(port: int, key: str, i: int) -> float:
    """Milliseconds of a decision, connecting included."""
    body = decide_body(i)
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    post(connection, "/v1/decide", key, body)
    took = (time.perf_counter() - began) * 1e3
    connection.close()
    return took


if __name__ == "__main__":
    main()
