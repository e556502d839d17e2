"""The data plane under load, against a bare route: `python -m benchmarks.load`.

The real system with one API worker, pinned to one core with all its threads; the load,
the store, the learner and the archiver are on the other. The bare route (same server,
same settings, an answer of the same size) is loaded in turn with ours, so that both meet
the same noise. CPU time says what the wall clock would on an idle machine. With `--first` (as
root) what answers and what asks are in the real-time class, so that other work on the
machine does not count.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._load import Job, Load, run_load, tool
from benchmarks._machine import (
    SERVICE_PACKAGES,
    cpu_s,
    pin,
    print_header,
    print_row,
    put_first,
    spread,
    two_cores,
)
from benchmarks._open_loop import OpenLoad, run_open_load
from benchmarks._system import (
    ROOT,
    Server,
    contextual_body,
    contextual_spec,
    decide_body,
    experiment_spec,
    free_port,
    post,
    prepare,
    running,
)

N_BODIES = 600
N_BATCHES = 60
BATCH = 100
SHARE = 0.70
"""Of the saturating rate: where latency is looked at."""
CONTEXTUAL_PER_S = 5_000
WITHIN_MS = 5.0
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


class Target(NamedTuple):
    """Something to load: what is sent, and the process that answers."""

    job: Job
    pid: int


@dataclass(frozen=True)
class Bench:
    """A running system and what all parts need of it."""

    server: Server
    key: str
    folder: Path
    n_rounds: int
    seconds: float
    core: int
    other: int
    first: bool

    def target(self, path: str, bodies: list[bytes]) -> Target:
        """Our worker, sent these bodies in turn."""
        file = self.folder / f"{path.replace('/', '-')}-{len(bodies[0])}.bodies"
        file.write_bytes(b"\n".join(bodies))
        job = Job(self.server.port, path, self.key, file)
        return Target(job, self.server.worker_pid())

    @contextmanager
    def bare(self, like: Target) -> Iterator[Target]:
        """The bare route, sent the same and answering as much; ended at the end."""
        with bare_route(self.answer_bytes(like.job), self.core) as (port, pid):
            self.place(pid, self.core)
            yield Target(like.job._replace(port=port), pid)

    def rounds(self, *targets: Target) -> list[list[Round]]:
        """Load each in turn, again and again; the rounds of each."""
        for target in targets:
            self.round(target, 1.0)  # warms up
        turns = [
            [self.round(target, self.seconds) for target in targets]
            for _ in range(self.n_rounds)
        ]
        return [list(rounds) for rounds in zip(*turns, strict=True)]

    def round(self, target: Target, seconds: float) -> Round:
        """Load one server, then let what it wrote behind settle."""
        loop_before, before = cpu_s(target.pid)
        load = run_load(target.job, seconds, self.other)
        time.sleep(0.3)
        loop_after, after = cpu_s(target.pid)
        return Round(load, loop_after - loop_before, after - before)

    def open_rounds(self, per_s: float, *targets: Target) -> list[list[OpenLoad]]:
        """Ask each in turn at a fixed rate, again and again; the rounds of each."""
        place = partial(self.place, core=self.other)
        turns = [
            [run_open_load(t.job, per_s, self.seconds, place) for t in targets]
            for _ in range(self.n_rounds)
        ]
        return [list(rounds) for rounds in zip(*turns, strict=True)]

    def place(self, pid: int, core: int) -> None:
        """Put a process of those that are measured on its core."""
        pin(pid, core)
        if self.first:
            put_first(pid)

    def decision_ids(self, batches: list[bytes]) -> Iterator[bytes]:
        """Ids of decisions, for events to name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
        for body in batches:
            answer = post(connection, "/v1/decide/batch", self.key, body)
            for decision in json.loads(answer)["decisions"]:
                yield decision["decision_id"].encode()
        connection.close()

    def answer_bytes(self, job: Job) -> int:
        """Median size of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", job.port, timeout=10)
        bodies = job.bodies.read_bytes().splitlines()[:60]
        sizes = [len(post(connection, job.path, self.key, body)) for body in bodies]
        connection.close()
        return int(statistics.median(sizes))


def main() -> None:
    """Run the parts that are asked for."""
    parts: dict[str, Callable[[Bench], None]] = {
        "single": single,
        "batch": batch,
        "events": events,
        "contextual": contextual,
        "scaling": scaling,
    }
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6, help="of each server")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--only", default=",".join(parts), help="parts, by commas")
    parser.add_argument("--first", action="store_true", help="before all else; as root")
    options = parser.parse_args()

    print_header("The data plane, one worker on one core", SERVICE_PACKAGES)
    core, other = two_cores()
    print(f"load      {tool()}, core {other}; worker on core {core}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        data_dir = Path(folder) / "data"
        key = prepare(data_dir, experiment_spec(), contextual_spec())
        asked = options.rounds, options.seconds
        given = key, Path(folder), *asked, core, other, options.first
        for name in options.only.split(","):
            with running(data_dir, 2 if name == "scaling" else 1) as server:
                server.wait_ready()
                worker = server.worker_pid()
                for pid in server.pids():
                    pin(pid, other)
                bench = Bench(server, *given)
                bench.place(worker, core)
                parts[name](bench)


def single(bench: Bench) -> None:
    """Single decisions: how many, and how late at 70 % of that."""
    ours = bench.target("/v1/decide", [decide_body(i) for i in range(N_BODIES)])
    with bench.bare(ours) as bare:
        print("\none decision a request, with unit and two context fields", flush=True)
        a, b = bench.rounds(ours, bare)
        compare(a, b)
        rate = SHARE * statistics.median(one.per_s for one in a)
        print_latency(rate, *bench.open_rounds(rate, ours, bare))


def batch(bench: Bench) -> None:
    """Decisions in batches."""
    requests = [decide_body(i) for i in range(N_BATCHES * BATCH)]
    ours = bench.target("/v1/decide/batch", in_batches("requests", requests))
    print(f"\n{BATCH} decisions a request", flush=True)
    (rounds,) = bench.rounds(ours)
    print_items("decisions", rounds, ">= 250,000")


def events(bench: Bench) -> None:
    """Events in batches, acknowledged when the store has synced them."""
    requests = [decide_body(i) for i in range(N_BATCHES * BATCH)]
    ids = bench.decision_ids(in_batches("requests", requests))
    told = [
        b'{"event_id":"e-%07d","decision_id":"%b","type":"click"}' % (i, decision_id)
        for i, decision_id in enumerate(ids)
    ]
    ours = bench.target("/v1/events", in_batches("events", told))
    print(f"\n{BATCH} events a request, appendfsync always", flush=True)
    (rounds,) = bench.rounds(ours)
    print_items("acknowledged events", rounds, ">= 100,000")


def contextual(bench: Bench) -> None:
    """Contextual decisions at a fixed rate."""
    ours = bench.target("/v1/decide", [contextual_body(i) for i in range(N_BODIES)])
    with bench.bare(ours) as bare:
        print("\none contextual decision a request, 100 variants, d = 32", flush=True)
        print_latency(
            CONTEXTUAL_PER_S, *bench.open_rounds(CONTEXTUAL_PER_S, ours, bare)
        )


def scaling(bench: Bench) -> None:
    """Two workers, a core each, which the load and everything else share with them."""
    first, second = bench.server.worker_pids()
    ours = bench.target("/v1/decide", [decide_body(i) for i in range(N_BODIES)])
    print("\ntwo workers on two cores, one decision a request", flush=True)
    rates, costs, shares = [], [], []
    for _ in range(bench.n_rounds):
        before = cpu_s(first)[1], cpu_s(second)[1]
        load = run_load(ours.job, bench.seconds, bench.other)
        used = cpu_s(first)[1] - before[0], cpu_s(second)[1] - before[1]
        rates.append(load.n_answers / load.seconds)
        costs.append(sum(used) / load.n_answers * 1e6)
        shares.append(100 * max(used) / sum(used))
    print_row("  both together, requests/s", spread(rates).text(0))
    print_row("  CPU us a request", spread(costs).text(1), "as one worker's")
    print_row("  of the work, the busier one's share, %", spread(shares).text(0))


def compare(ours: list[Round], bare: list[Round]) -> None:
    """Print both side by side, ratios taken round by round."""
    pairs = list(zip(ours, bare, strict=True))
    of_bare = [100.0 * a.per_s / b.per_s for a, b in pairs]
    quiet = [
        ratio
        for ratio, pair in zip(of_bare, pairs, strict=True)
        if min(one.busy for one in pair) >= QUIET
    ]
    rate = spread([r.per_s for r in ours]).text(0)
    print_row("  requests/s", rate, ">= 25,000 where bare >= 45,000")
    print_row("  bare route, requests/s", spread([r.per_s for r in bare]).text(0))
    print_row("  of the bare route's, %", spread(of_bare).text(1), ">= 70 %")
    told = spread(quiet).text(1) if quiet else "no such round: go by CPU seconds"
    print_row(f"    where both had >= {QUIET:.0%} of the core, %", told, ">= 70 %")
    by_cpu = spread([100 * b.us / a.us for a, b in pairs]).text(1)
    print_row("  of the bare route's per CPU second, %", by_cpu, ">= 70 %")
    print_row("  CPU us a request", spread([r.us for r in ours]).text(1))
    loop = spread([r.loop_us for r in ours]).text(1)
    print_row("    of which the answering thread", loop)
    print_row("  bare route, CPU us a request", spread([r.us for r in bare]).text(1))
    print_bad([*ours, *bare])


def print_items(what: str, rounds: list[Round], bar: str) -> None:
    """Print rounds of batches by the item."""
    print_row(f"  {what}/s", spread([BATCH * r.per_s for r in rounds]).text(0), bar)
    by_cpu = spread([BATCH * 1e6 / r.us for r in rounds]).text(0)
    print_row(f"  {what} a CPU second", by_cpu, bar)
    print_row("  CPU us each", spread([r.us / BATCH for r in rounds]).text(2))
    loop = spread([r.loop_us / BATCH for r in rounds]).text(2)
    print_row("    of which the answering thread", loop)
    busy = spread([100 * r.busy for r in rounds]).text(0)
    print_row("  share of its core used, %", busy)
    print_bad(rounds)


def print_latency(per_s: float, ours: list[OpenLoad], bare: list[OpenLoad]) -> None:
    """Print both at the same rate, counted from the scheduled time."""
    print(f"  at {per_s:,.0f} a second, arrivals fixed in advance", flush=True)
    for name, rounds in (("", ours), ("bare route, ", bare)):
        p50 = statistics.median(r.p50_ms for r in rounds)
        p99 = spread([r.p99_ms for r in rounds]).text(1)
        late = statistics.median(r.late_p99_ms for r in rounds)
        own = f"{late:.1f} of it the generator's own"
        print_row(f"  {name}p99 ms (p50 {p50:.1f})", p99, own)
    more = [a.p99_ms - b.p99_ms for a, b in zip(ours, bare, strict=True)]
    bar = f"<= {WITHIN_MS:.0f} ms"
    print_row("  p99 above the bare route's, ms", spread(more).text(1), bar)
    reached = spread([r.per_s for r in [*ours, *bare]]).text(0)
    print_row("  answered a second, both", reached)
    n_bad = sum(r.n_bad for r in [*ours, *bare])
    print_row("  refused, cut off or unanswered", str(n_bad), "0")


def print_bad(rounds: list[Round]) -> None:
    """Print how many requests failed."""
    n_bad = sum(r.load.n_bad for r in rounds)
    print_row("  refused, cut off or unanswered", str(n_bad), "0")


def in_batches(field: str, items: list[bytes]) -> list[bytes]:
    """Bodies of `BATCH` items each."""
    return [
        b'{"%b":[%b]}' % (field.encode(), b",".join(items[i : i + BATCH]))
        for i in range(0, len(items), BATCH)
    ]


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
