"""Closed-loop load over keep-alive connections: wrk where it is installed, else our own.

Loopback only, bounded in connections and time. What it tells at saturation is
throughput; its percentiles are those of a closed loop, blind to what an open one sees.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, cast

import uvloop
from benchmarks._machine import pin

ROOT = Path(__file__).parents[1]
N_CONNECTIONS = 32
MAX_SECONDS = 60.0
_SCRIPT = """
local requests, at = {}, 0
init = function(args)
  wrk.headers["Authorization"] = "%s"
  wrk.headers["Content-Type"] = "application/json"
  for body in io.lines("%s") do
    requests[#requests + 1] = wrk.format("POST", "%s", nil, body)
  end
end
request = function()
  at = at %% #requests + 1
  return requests[at]
end
done = function(summary, latency, all)
  local e = summary.errors
  local bad = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format(
    'RESULT {"n_answers": %%d, "seconds": %%.6f, "n_bad": %%d, "p50_ms": %%.3f, "p99_ms": %%.3f}\\n',
    summary.requests, summary.duration / 1e6, bad,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


class Load(NamedTuple):
    """What one run of load got; `n_bad`: refused, cut off or not answered."""

    n_answers: int
    seconds: float
    n_bad: int
    p50_ms: float
    p99_ms: float


class Job(NamedTuple):
    """Whom to load, with what: bodies are taken in turn, a line of the file each."""

    port: int
    path: str
    key: str
    bodies: Path


def tool() -> str:
    """What makes the load here."""
    return "wrk -t1 -c32" if shutil.which("wrk") else "own asyncio generator, 32 conn."


def run_load(job: Job, seconds: float, core: int) -> Load:
    """Load from `core` for some seconds."""
    seconds = min(seconds, MAX_SECONDS)
    wrk = shutil.which("wrk")
    if wrk is not None:
        script = job.bodies.with_suffix(f".{job.port}.lua")
        given = (f"Bearer {job.key}", job.bodies, job.path)
        script.write_text(_SCRIPT % given)
        url = f"http://127.0.0.1:{job.port}"
        flags = ["-t1", f"-c{N_CONNECTIONS}", f"-d{seconds:.0f}s", "-s", str(script)]
        command = [wrk, *flags, url]
    else:
        command = [sys.executable, "-m", "benchmarks._load", str(seconds)]
        command += [str(job.port), job.path, job.key, str(job.bodies)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        pin(process.pid, core)
        output, _ = process.communicate(timeout=seconds + 30.0)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"no result from {command[0]}: {output[-300:]!r}")
    return Load(**json.loads(lines[-1].removeprefix("RESULT ")))


class _Caller(asyncio.Protocol):
    """A connection that sends its next request when the last is answered."""

    def __init__(self, requests: list[bytes], first: int, ends_at: float) -> None:
        self.took_ms: list[float] = []
        self.n_bad = 0
        self.done = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._next = first
        self._ends_at = ends_at
        self._buffer = b""
        self._length = 0
        self._sent_at = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._length == 0:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = self._buffer[:head_end].lower()
            _, _, rest = head.partition(b"content-length: ")
            self._length = head_end + 4 + int(rest.partition(b"\r\n")[0] or 0)
        if len(self._buffer) < self._length:
            return
        now = time.perf_counter()
        self.took_ms.append((now - self._sent_at) * 1e3)
        self.n_bad += not self._buffer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202"))
        self._buffer, self._length = b"", 0
        if now < self._ends_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.n_bad += time.perf_counter() < self._ends_at
        self.done.set_result(None)

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1


def requests_of(job: Job) -> list[bytes]:
    """The requests of a job as they go over the wire."""
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: 127.0.0.1:{job.port}\r\n"
        f"Authorization: Bearer {job.key}\r\nContent-Type: application/json\r\n"
    )
    return [
        f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        for body in job.bodies.read_bytes().splitlines()
    ]


async def _call(seconds: float, job: Job) -> Load:
    requests = requests_of(job)
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    callers = []
    for i in range(N_CONNECTIONS):
        caller = _Caller(requests, i * 97, began + seconds)
        await loop.create_connection(lambda c=caller: c, "127.0.0.1", job.port)  # type: ignore[misc]
        callers.append(caller)
    await asyncio.wait_for(
        asyncio.gather(*(caller.done for caller in callers)), seconds + 10.0
    )
    took = sorted(ms for caller in callers for ms in caller.took_ms)
    n_bad = sum(caller.n_bad for caller in callers)
    p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
    return Load(len(took), time.perf_counter() - began, n_bad, p50, p99)


def job_of(parser: argparse.ArgumentParser) -> tuple[Job, argparse.Namespace]:
    """The job that a generator's command line ends with, and what stands before it."""
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("key")
    parser.add_argument("bodies", type=Path)
    given = parser.parse_args()
    return Job(given.port, given.path, given.key, given.bodies), given


def main() -> None:
    """Load as the command line says, and print the result for `run_load`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    job, given = job_of(parser)
    got = uvloop.run(_call(min(given.seconds, MAX_SECONDS), job))
    print(f"RESULT {json.dumps(got._asdict())}")


if __name__ == "__main__":
    main()
