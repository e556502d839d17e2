"""Decisions while everything else happens: `python -m benchmarks.pauses`.

The real system with 1,000 live experiments of 20 variants, one API worker pinned to one
core, all else on the other. The same open-loop load runs all the time, over all
experiments, in stretches by turns: quiet, and with all of these at once:

- snapshot swaps: the learner folds what the load decides, and clicks that are fed to it,
  and publishes whatever moves; in quiet stretches it is stopped;
- reports, pulled as JSON and HTML;
- specifications changed, variants paused and resumed, invalid specifications refused;
- garbage collection, as it comes about by all this.

Learner and archiver are niced, so that they do not starve the load generator, which
would be told as a pause of the worker. With `--first` they need not be.
"""

import argparse
import http.client
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._load import Job
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
from benchmarks._many import (
    N_EXPERIMENTS,
    N_VARIANTS,
    await_published,
    batch_bodies,
    decide_bodies,
    many_specs,
    versions,
)
from benchmarks._open_loop import OpenLoad, run_open_load
from benchmarks._system import Server, ask, prepare, running

PER_S = 2_000
LIFT_MS = 15.0
FED_PER_S = 10.0
"""Batches of 100 decisions, and clicks on a tenth of them."""
REPORTS_PER_S = 5.0
CHANGES_PER_S = 10.0
SETTLE_S = 60.0
N_MOVED = 100
"""Snapshots by which it shows that the learner is at work again."""
WINDOW = {"event": "click", "attribution_window_s": 1.0}


class Disturbers:
    """Clients that do all but decide, a thread and a connection each."""

    def __init__(self, port: int, key: str, specs: list[dict[str, Any]]) -> None:
        self.port = port
        self.key = key
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self._specs = specs
        self._batches = batch_bodies(len(specs))
        self._stop = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """All of them, until the end."""
        acts: list[tuple[Callable[..., None], float]] = [
            (self.feed, FED_PER_S),
            (self.pull, REPORTS_PER_S),
            (self.change, CHANGES_PER_S),
        ]
        self._stop.clear()
        threads = [threading.Thread(target=self._run, args=act) for act in acts]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def feed(self, connection: http.client.HTTPConnection, i: int) -> None:
        """Decide for 100 experiments, and click on every tenth decision."""
        body = self._batches[i % len(self._batches)]
        answer = ask(connection, "POST", "/v1/decide/batch", self.key, body, 200)
        ids = [one["decision_id"] for one in json.loads(answer)["decisions"]]
        events = [
            {"event_id": f"e-{one}", "decision_id": one, "type": "click"}
            for one in ids[i % 10 :: 10]
        ]
        told = json.dumps({"events": events}).encode()
        ask(connection, "POST", "/v1/events", self.key, told, 202)

    def pull(self, connection: http.client.HTTPConnection, i: int) -> None:
        """A report, as JSON or HTML."""
        path = f"{self._path(i)}/report?format={('json', 'html')[i % 2]}"
        ask(connection, "GET", path, self.key, b"", 200)

    def change(self, connection: http.client.HTTPConnection, i: int) -> None:
        """Pause a variant, resume it, change a specification, have one refused."""
        act, turn = divmod(i, 4)
        path, variant = self._path(act), f"v{act % N_VARIANTS}"
        spec = dict(self._specs[act % len(self._specs)])
        if turn < 2:
            path += f"/variants/{variant}/{('pause', 'resume')[turn]}"
            ask(connection, "POST", path, self.key, b"", 200)
        elif turn == 2:
            spec["allocation"] = {"min_share": 0.01 + act % 7 / 1e3}
            ask(connection, "PUT", path, self.key, json.dumps(spec).encode(), 200)
        else:
            spec["variants"] = [{"id": "not an id", "creative": 1}] * N_VARIANTS
            ask(connection, "PUT", path, self.key, json.dumps(spec).encode(), 422)

    def _path(self, i: int) -> str:
        spec = self._specs[i % len(self._specs)]
        return f"/v1/experiments/{spec['experiment']}"

    def _run(self, act: Callable[..., None], per_s: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        name = act.__name__
        while not self._stop.wait(1.0 / per_s):
            try:
                act(connection, self.done[name])
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                self.faults.append(f"{name}: {error}")
                connection.close()
            self.done[name] += 1
        connection.close()


@dataclass(frozen=True)
class Stretch:
    """Some seconds of load; `busy` is the share of its core that the worker used."""

    load: OpenLoad
    busy: float


@dataclass(frozen=True)
class Bench:
    """The running system and the load on it."""

    server: Server
    data_dir: Path
    job: Job
    per_s: float
    seconds: float
    core: int
    first: bool

    def place(self, pid: int) -> None:
        """Put the generator on its core."""
        pin(pid, self.core)
        if self.first:
            put_first(pid)

    def stretch(self) -> Stretch:
        """Load the worker for a while."""
        worker = self.server.worker_pid()
        before, began = cpu_s(worker)[1], time.perf_counter()
        load = run_open_load(self.job, self.per_s, self.seconds, self.place)
        took = time.perf_counter() - began
        return Stretch(load, (cpu_s(worker)[1] - before) / took)

    def quiet(self) -> Stretch:
        """The load alone: no learner, and nothing that was changed before to be kept."""
        with self.learner_stopped():
            self.settle()
            return self.stretch()

    @contextmanager
    def learner_stopped(self) -> Iterator[None]:
        """Nothing is published."""
        pids = self.server.role_pids("learner")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def settle(self) -> None:
        """Wait until the worker has written what it saw to its cache."""
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until:
            seen = self.data_dir.glob("cache/*/*.seen")
            newest = max((path.stat().st_mtime for path in seen), default=0.0)
            # One file is touched every few seconds, without need.
            if time.time() - newest > 3.0:
                return
            time.sleep(0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=4, help="of stretches")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each stretch")
    parser.add_argument("--per-s", type=float, default=PER_S, help="decisions")
    parser.add_argument("--experiments", type=int, default=N_EXPERIMENTS)
    parser.add_argument(
        "--first",
        action="store_true",
        help="worker and generator in the real-time class: for a machine that is shared",
    )
    options = parser.parse_args()
    n = options.experiments
    print_header(f"Pauses with {n:,} live experiments", SERVICE_PACKAGES)
    core, other = two_cores()
    pin(os.getpid(), other)
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        data_dir, bodies = Path(folder) / "data", Path(folder) / "bodies"
        specs = many_specs(n, objective=WINDOW)
        key = prepare(data_dir, *specs)
        bodies.write_bytes(b"\n".join(decide_bodies(n, 10 * n)))
        with running(data_dir) as server:
            server.wait_ready()
            await_published(data_dir, n)
            job = Job(server.port, "/v1/decide", key, bodies)
            given = options.per_s, options.seconds, other, options.first
            bench = Bench(server, data_dir, job, *given)
            disturbers = Disturbers(server.port, key, specs)
            with disturbers.at_work():
                bench.stretch()  # warms up, and starts the report process
            place(server, core, other, first=options.first)
            print_stretches(*stretches(bench, disturbers, options.pairs), disturbers)


def place(server: Server, core: int, other: int, *, first: bool) -> None:
    """The worker on its core and the others on theirs; who must not wait goes first."""
    worker = server.worker_pid()
    for pid in server.pids():
        pin(pid, core if pid == worker else other)
    if first:
        put_first(worker)
        return
    for pid in server.role_pids("learner") + server.role_pids("archiver"):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 10)


def stretches(
    bench: Bench, disturbers: Disturbers, n_pairs: int
) -> tuple[list[Stretch], list[Stretch], list[float]]:
    """Quiet and disturbed stretches by turns, and snapshots published a second."""
    quiet, busy, swaps = [], [], []
    for _ in range(n_pairs):
        quiet.append(bench.quiet())
        with disturbers.at_work():
            await_publishing(bench.data_dir)
            before, began = sum(versions(bench.data_dir).values()), time.monotonic()
            busy.append(bench.stretch())
            published = sum(versions(bench.data_dir).values()) - before
            swaps.append(published / (time.monotonic() - began))
    return quiet, busy, swaps


def await_publishing(data_dir: Path) -> None:
    """Wait until the learner publishes again: stopped for long, it has lost its lease."""
    until, before = time.monotonic() + SETTLE_S, sum(versions(data_dir).values())
    while time.monotonic() < until:
        time.sleep(1.0)
        if sum(versions(data_dir).values()) > before + N_MOVED:
            return


def print_stretches(
    quiet: list[Stretch],
    busy: list[Stretch],
    swaps: list[float],
    disturbers: Disturbers,
) -> None:
    """Both kinds, and what the one adds to the other."""
    for name, some in (("quiet", quiet), ("all four at once", busy)):
        print_row(f"{name}, ms from the scheduled time", "")
        for what in ("p50", "p99", "p999", "max"):
            values = [getattr(one.load, f"{what}_ms") for one in some]
            print_row(f"  {what.replace('999', '99.9')}", spread(values).text())
        late = spread([one.load.late_p99_ms for one in some]).text()
        print_row("  p99 of the generator's own lateness", late)
        used = spread([100 * one.busy for one in some]).text(0)
        print_row("  share of its core that the worker used, %", used)
        print_row("  answered a second", spread([s.load.per_s for s in some]).text(0))
        n_bad = sum(one.load.n_bad for one in some)
        print_row("  refused, cut off or unanswered", str(n_bad), "0")
    pairs = zip(quiet, busy, strict=True)
    lift = spread([b.load.p99_ms - a.load.p99_ms for a, b in pairs]).text()
    print_row("lift of p99, ms", lift, f"<= {LIFT_MS:.0f} ms")
    print_row("snapshots published a second", spread(swaps).text(0))
    done = ", ".join(f"{name} {n:,}" for name, n in sorted(disturbers.done.items()))
    print_row("acts in all", done)
    print_row("acts that failed", str(len(disturbers.faults)), "0")
    for fault in disturbers.faults[:3]:
        print(f"  {fault}")


if __name__ == "__main__":
    main()
