"""The real system on loopback, as a benchmark needs it: prepared, started, pinned, ended."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "bandolero_service")
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
TENANT = "acme"
EXPERIMENT = "spring-hero"
CONTEXTUAL = "by-context"
D = 32
HEADLINES = (
    "Spring is here: new arrivals every day",
    "Your garden called. It wants you back",
    "Up to 40 % off everything that blooms",
    "Free shipping on all orders until Sunday",
    "The last days of our spring sale have begun",
    "Gärtnern ohne Rücken: Hochbeete ab 79 €",
)


def experiment_spec() -> dict[str, Any]:
    """Six variants with creatives of ordinary length, two context fields, defaults."""
    variants = [
        {
            "id": f"v{i}",
            "creative": {
                "headline": headline,
                "description": "Plants, pots and tools, delivered to your door in two days.",
                "cta": "Shop now",
                "image": f"https://cdn.example.com/spring/hero-{i}-1200x628.webp",
            },
            "attributes": {"tone": "warm" if i % 2 else "urgent"},
        }
        for i, headline in enumerate(HEADLINES, 1)
    ]
    devices = ["mobile", "desktop", "tablet"]
    return {
        "experiment": EXPERIMENT,
        "tenant": TENANT,
        "policy": {"kind": "beta_thompson"},
        "context": [
            {"name": "device", "kind": "categorical", "levels": devices},
            {"name": "hour", "kind": "cyclic", "period": 24},
        ],
        "variants": variants,
    }


def contextual_spec(n_variants: int = 100) -> dict[str, Any]:
    """A `linear_thompson` experiment of 32 features."""
    variants = [
        {"id": f"v{i}", "creative": {"headline": HEADLINES[i % len(HEADLINES)]}}
        for i in range(n_variants)
    ]
    levels = [f"l{i}" for i in range(9)]
    context = [
        {"name": name, "kind": "categorical", "levels": levels}
        for name in ("site", "region")
    ]
    context += [{"name": f"x{i}", "kind": "numeric"} for i in range(D - 1 - 20)]
    return {
        "experiment": CONTEXTUAL,
        "tenant": TENANT,
        "policy": {"kind": "linear_thompson"},
        "context": context,
        "variants": variants,
    }


def contextual_body(i: int) -> bytes:
    """Body of the i-th decide request for the contextual experiment: no two alike."""
    context: dict[str, Any] = {"site": f"l{i % 9}", "region": f"l{i % 7}"}
    context |= {f"x{j}": (i * (j + 3)) % 101 / 101 for j in range(D - 1 - 20)}
    request = {"experiment": CONTEXTUAL, "unit": f"u-{i:07d}", "context": context}
    return json.dumps(request).encode()


def decide_body(i: int) -> bytes:
    """Body of the i-th decide request of a run."""
    device = ("mobile", "desktop", "tablet")[i % 3]
    context = {"device": device, "hour": i % 24}
    request = {"experiment": EXPERIMENT, "unit": f"u-{i:07d}", "context": context}
    return json.dumps(request).encode()


def prepare(data_dir: Path, *specs: dict[str, Any]) -> str:
    """Make a key and running experiments in a data directory; the key."""
    folder = data_dir / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for spec in specs or (experiment_spec(),):
        files.append(folder / f"{spec['experiment']}.json")
        files[-1].write_text(json.dumps(spec))
    _command(data_dir, "experiment", "apply", *map(str, files), "--start")
    scopes = ("--scopes", "decide,events,report,admin")
    return _command(data_dir, "keys", "create", "--tenant", TENANT, *scopes).split()[-1]


class Server:
    """A running `bandolero serve` on the embedded store."""

    def __init__(self, data_dir: Path, port: int, n_workers: int = 1) -> None:
        self.port = port
        self.began = time.perf_counter()
        with (data_dir / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *COMMAND, "serve", "--data-dir", str(data_dir),
                    "--port", str(port), "--workers", str(n_workers),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_ready(self) -> float:
        """Seconds from the start to the first `/readyz` that says 200.

        The port listens early and the request waits in it, so nothing is polled once a
        connection is made.
        """
        while time.perf_counter() - self.began < READY_TIMEOUT_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"serve ended with {self.process.returncode}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return time.perf_counter() - self.began
            except OSError:
                time.sleep(0.005)
            finally:
                connection.close()
        raise RuntimeError(f"not ready after {READY_TIMEOUT_S} s")

    def pids(self) -> dict[int, str]:
        """The processes of the system, each with its command line."""
        parents, commands = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue  # it ended just now
            pid = int(folder.name)
            parents[pid], commands[pid] = int(stat[1]), command.decode()
        own = {self.process.pid}
        while grown := {p for p, parent in parents.items() if parent in own} - own:
            own |= grown
        return {pid: commands[pid] for pid in own}

    def worker_pid(self) -> int:
        """The API worker, or one of them."""
        return self.worker_pids()[0]

    def worker_pids(self) -> list[int]:
        """The API workers."""
        return self.role_pids("api")

    def role_pids(self, role: str) -> list[int]:
        """The processes of a role: `api`, `learner` or `archiver`."""
        return sorted(p for p, line in self.pids().items() if f"--role {role}" in line)

    def stop(self) -> int:
        """End by SIGTERM; by force where that does not help. The exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def running(data_dir: Path, n_workers: int = 1) -> Iterator[Server]:
    """A system on a free port, ended at the end."""
    server = Server(data_dir, free_port(), n_workers)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(
    connection: http.client.HTTPConnection, path: str, key: str, body: bytes
) -> bytes:
    """POST a body over a connection that is kept; the answer, which must be a 200."""
    return ask(connection, "POST", path, key, body, 200)


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    key: str,
    body: bytes,
    *expected: int,
) -> bytes:
    """Send a request over a connection that is kept; the answer, of a status expected."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status not in expected:
        raise RuntimeError(f"{path} answered {response.status}: {answer[:300]!r}")
    return answer


def _command(data_dir: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments, "--data-dir", str(data_dir)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"bandolero {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
