"""Open-loop load: arrivals are fixed in advance, and time counts from the scheduled one.

A server that stops for a second is asked all the same, so that second shows: every
request that was due in it is late. A closed loop would wait with the server and tell of
one slow request a connection (coordinated omission).
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import uvloop
from benchmarks._load import MAX_SECONDS, ROOT, Job, job_of, requests_of

N_CONNECTIONS = 64
TICK_S = 0.001
"""Arrivals are looked at so often; the loop's timers are no finer."""
DRAIN_S = 3.0
"""How long answers are waited for after the last arrival; what is missing is bad."""

RETRY_S = 0.05


class OpenLoad(NamedTuple):
    """What a run got: percentiles from the scheduled time; `n_bad` of `n_due` failed.

    late_p99_ms: how late the generator itself was to look at an arrival. It is part of
    the others: where it is large, they tell of the generator's core.
    """

    n_due: int
    n_bad: int
    per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    late_p99_ms: float


def run_open_load(
    job: Job, per_s: float, seconds: float, place: Callable[[int], None]
) -> OpenLoad:
    """Load from a process of its own, which `place` puts on its core."""
    command = [sys.executable, "-m", "benchmarks._open_loop", str(seconds), str(per_s)]
    command += [str(job.port), job.path, job.key, str(job.bodies)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        place(process.pid)
        output, _ = process.communicate(timeout=seconds + DRAIN_S + 60.0)
    return OpenLoad(**json.loads(output))


async def open_load(job: Job, per_s: float, seconds: float) -> OpenLoad:
    """Ask at `per_s` for some seconds, at times drawn from a Poisson process."""
    n_due = int(per_s * seconds)
    gaps = np.random.default_rng(7).exponential(1.0 / per_s, n_due)
    field = _Field(job, requests_of(job), np.cumsum(gaps).tolist())
    return await field.run()


class _Field:
    """All connections, and the arrivals that wait for a free one."""

    def __init__(self, job: Job, requests: list[bytes], due_s: list[float]) -> None:
        self.requests = requests
        self.free: deque[_Asker] = deque()
        self.waiting: deque[float] = deque()
        self.took_s: list[float] = []
        self.n_bad = 0
        self.n_sent = 0
        self._job = job
        self._due_s = due_s
        self._all: set[_Asker] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._ended = False

    async def run(self) -> OpenLoad:
        await asyncio.gather(*(self.connect() for _ in range(N_CONNECTIONS)))
        began, n = time.perf_counter(), len(self._due_s)
        late_s: list[float] = []
        while len(self.took_s) + self.n_bad < n:
            now = time.perf_counter()
            while len(late_s) < n and began + self._due_s[len(late_s)] <= now:
                self.waiting.append(began + self._due_s[len(late_s)])
                late_s.append(now - self.waiting[-1])
            self.serve()
            if now > began + self._due_s[-1] + DRAIN_S:
                break
            await asyncio.sleep(TICK_S)
        seconds = time.perf_counter() - began
        self._end()
        await asyncio.sleep(TICK_S)  # so that connections are closed
        took_ms = np.array(self.took_s) * 1e3
        told = np.percentile(took_ms, [50, 99, 99.9, 100]).tolist()
        told.append(float(np.percentile(late_s, 99)) * 1e3)
        n_good = len(self.took_s)
        return OpenLoad(n, n - n_good, n_good / seconds, *told)

    def serve(self) -> None:
        """Send what waits, as far as connections are free."""
        while self.waiting and self.free:
            self.free.popleft().ask(self.waiting.popleft())

    async def connect(self) -> None:
        """Add a connection; a server that is gone is tried again and again."""
        loop = asyncio.get_running_loop()
        while not self._ended:
            try:
                where = "127.0.0.1", self._job.port
                _, asker = await loop.create_connection(lambda: _Asker(self), *where)
                self._all.add(asker)
                return
            except OSError:
                await asyncio.sleep(RETRY_S)

    def lost(self, asker: "_Asker") -> None:
        """Replace a connection that the server has closed."""
        self._all.discard(asker)
        if asker in self.free:
            self.free.remove(asker)
        if not self._ended:
            task = asyncio.get_running_loop().create_task(self.connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _end(self) -> None:
        self._ended = True
        for asker in self._all:
            asker.close()


class _Asker(asyncio.Protocol):
    """A connection with at most one request on its way."""

    def __init__(self, field: _Field) -> None:
        self._field = field
        self._due_s: float | None = None
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._field.free.append(self)

    def ask(self, due_s: float) -> None:
        """Send the next request, which was due at `due_s`."""
        field = self._field
        self._due_s = due_s
        self._transport.write(field.requests[field.n_sent % len(field.requests)])
        field.n_sent += 1

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        head, _, rest = data.partition(b"\r\n\r\n")
        _, _, length = head.partition(b"content-length: ")
        if not length or len(rest) < int(length.partition(b"\r\n")[0]):
            self._buffer = data
            return
        self._buffer = b""
        self._told(good=data.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202")))
        self._field.free.append(self)
        self._field.serve()

    def connection_lost(self, error: Exception | None) -> None:
        if self._due_s is not None:
            self._told(good=False)
        self._field.lost(self)

    def close(self) -> None:
        """Close the connection; what it was asked is not waited for."""
        self._due_s = None
        self._transport.close()

    def _told(self, *, good: bool) -> None:
        due_s, self._due_s = self._due_s, None
        if good and due_s is not None:
            self._field.took_s.append(time.perf_counter() - due_s)
        else:
            self._field.n_bad += 1


def main() -> None:
    """Load as the command line says, and print the result for `run_open_load`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seconds", type=float)
    parser.add_argument("per_s", type=float)
    job, given = job_of(parser)
    seconds = min(given.seconds, MAX_SECONDS)
    print(json.dumps(uvloop.run(open_load(job, given.per_s, seconds))._asdict()))


if __name__ == "__main__":
    main()
