"""`POST /v1/decide` against a bare route: `python -m benchmarks.decide_http`.

The real system with one API worker, pinned to one core with all its threads; the load,
the store, the learner and the archiver are on the other. The bare route (same server,
same settings, same bytes) is loaded in turn with ours, so that both meet the same noise.
CPU time a request says what the wall clock would on an idle machine.

Not named http.py: run as a script, that would hide the standard library's `http`.
"""

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._load import Job, Load, run_load, tool
from benchmarks._machine import (
    SERVICE_PACKAGES,
    Spread,
    cpu_s,
    pin,
    print_header,
    print_row,
    spread,
    two_cores,
)
from benchmarks._system import (
    EXPERIMENT,
    ROOT,
    Server,
    decide_body,
    free_port,
    post,
    prepare,
    running,
)

N_BODIES = 600
BAR = 0.60
QUIET = 0.85
"""A round in which a server got less of its core measures what else the machine did."""


class Round(NamedTuple):
    """One stretch of load on one server, and what it cost the server."""

    load: Load
    loop_cpu_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return self.load.n_answers / self.load.seconds

    @property
    def us(self) -> float:
        """CPU microseconds an answer, all threads."""
        return self.cpu_s / self.load.n_answers * 1e6

    @property
    def loop_us(self) -> float:
        """CPU microseconds an answer, of the thread that answers."""
        return self.loop_cpu_s / self.load.n_answers * 1e6

    @property
    def busy(self) -> float:
        """Share of its core the server used."""
        return self.cpu_s / self.load.seconds


def main() -> None:
    """Print both servers side by side."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="of each server")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    options = parser.parse_args()

    print_header("POST /v1/decide, one worker on one core", SERVICE_PACKAGES)
    core, other = two_cores()
    print(f"load      {tool()}, core {other}; worker on core {core}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        compare(Path(folder), options.rounds, options.seconds, core, other)


def compare(folder: Path, n_rounds: int, seconds: float, core: int, other: int) -> None:
    """Start both, load them in turn with two kinds of bodies, print."""
    data_dir = folder / "data"
    key = prepare(data_dir)
    bodies = {
        "with unit and two context fields": [decide_body(i) for i in range(N_BODIES)],
        "experiment alone": [b'{"experiment":"%b"}' % EXPERIMENT.encode()],
    }
    with running(data_dir) as server:
        server.wait_ready()
        n_bytes = answer_bytes(server, key)
        with bare_route(n_bytes, core) as (bare_port, bare_pid):
            worker = server.worker_pid()
            for pid in server.pids():
                pin(pid, core if pid == worker else other)
            for number, (name, lines) in enumerate(bodies.items()):
                file = folder / f"{number}.bodies"
                file.write_bytes(b"\n".join(lines))
                sizes = f"{len(lines[0])} bytes, answer {n_bytes} bytes"
                print(f"\nrequest {name}: {sizes}", flush=True)
                targets = [(server.port, worker), (bare_port, bare_pid)]
                jobs = [
                    (Job(port, "/v1/decide", key, file), pid) for port, pid in targets
                ]
                for job, pid in jobs:
                    one_round(job, pid, 1.0, other)  # warms up
                pairs = [
                    [one_round(job, pid, seconds, other) for job, pid in jobs]
                    for _ in range(n_rounds)
                ]
                print_comparison([a for a, _ in pairs], [b for _, b in pairs])


def one_round(job: Job, pid: int, seconds: float, core: int) -> Round:
    """Load one server, then let what it wrote behind settle."""
    loop_before, before = cpu_s(pid)
    load = run_load(job, seconds, core)
    time.sleep(0.3)
    loop_after, after = cpu_s(pid)
    return Round(load, loop_after - loop_before, after - before)


def print_comparison(ours: list[Round], bare: list[Round]) -> None:
    """Print a table of medians, ratios taken round by round."""

    def line(what: str, values: list[float], digits: int, bar: str = "") -> Spread:
        told = spread(values)
        print_row(what, told.text(digits), bar)
        return told

    line("  /v1/decide, requests/s", [r.per_s for r in ours], 0)
    line("  bare route, requests/s", [r.per_s for r in bare], 0)
    pairs = list(zip(ours, bare, strict=True))
    of_bare = [100.0 * a.per_s / b.per_s for a, b in pairs]
    line("  of the bare route's requests/s, %", of_bare, 1, f">= {BAR:.0%}")
    quiet = [
        ratio
        for ratio, pair in zip(of_bare, pairs, strict=True)
        if min(one.busy for one in pair) >= QUIET
    ]
    what = f"    where both had >= {QUIET:.0%} of the core, %"
    if quiet:
        line(what, quiet, 1, f">= {BAR:.0%}")
    else:
        print_row(what, "no such round: go by CPU seconds", f">= {BAR:.0%}")
    line(
        "  of the bare route's per CPU second, %",
        [100 * b.us / a.us for a, b in pairs],
        1,
    )
    line("  /v1/decide, CPU us a request", [r.us for r in ours], 1)
    line("    of which the answering thread", [r.loop_us for r in ours], 1)
    line("  bare route, CPU us a request", [r.us for r in bare], 1)
    for name, rounds in (("/v1/decide", ours), ("bare route", bare)):
        p50 = statistics.median(r.load.p50_ms for r in rounds)
        line(f"  {name}, p99 ms (p50 {p50:.2f})", [r.load.p99_ms for r in rounds], 2)
        busy = [100 * r.busy for r in rounds]
        line(f"  {name}, share of its core used, %", busy, 0)
    n_bad = sum(r.load.n_bad for r in [*ours, *bare])
    print_row("  refused, cut off or unanswered", str(n_bad), "0")


def answer_bytes(server: Server, key: str) -> int:
    """Median size of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    sizes = [
        len(post(connection, "/v1/decide", key, decide_body(i))) for i in range(200)
    ]
    connection.close()
    return int(statistics.median(sizes))


@contextmanager
def bare_route(n_bytes: int, core: int) -> Iterator[tuple[int, int]]:
    """The bare route in a process of its own, pinned: its port and process id."""
    port = free_port()
    flags = ["--port", str(port), "--bytes", str(n_bytes)]
    command = [sys.executable, "-m", "benchmarks._bare", *flags]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            for _ in range(1000):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                try:
                    answer = post(connection, "/", "", b"{}")
                    break
                except OSError:
                    time.sleep(0.02)
                finally:
                    connection.close()
            if len(answer) != n_bytes:
                raise RuntimeError(f"answer == {len(answer)} bytes, must be {n_bytes}.")
            pin(process.pid, core)
            yield port, process.pid
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
