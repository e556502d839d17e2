"""A private `bandolero serve` of real processes, spoken to from outside only."""

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

COMMAND = (sys.executable, "-m", "bandolero_service")
ALL_SCOPES = "decide,events,report,admin"
CREATE_KEY = ("keys", "create", "--tenant", "acme", "--scopes", ALL_SCOPES)
PROC = Path("/proc")

_SLOW = "5" if os.environ.get("NUMBA_DISABLE_JIT") == "1" else "1"
SLOWER = float(os.environ.get("BANDOLERO_TEST_SLOWER", _SLOW))
"""Patience is multiplied by this where kernels run as plain Python, or on a busy machine."""
READY_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 60.0 * SLOWER
RARE = 1e-6
"""A p-value that chance alone hardly gives: decision ids are drawn anew in every run."""

linux = pytest.mark.skipif(not PROC.is_dir(), reason="no /proc to find processes in")
T = TypeVar("T")


def no_server() -> str | None:
    """Why there is no embedded store here, or None where there is one."""
    from bandolero_service.embedded import EmbeddedStoreError, server_binary

    try:
        server_binary()
    except EmbeddedStoreError as error:
        return str(error)
    return None


needs_server = pytest.mark.skipif(no_server() is not None, reason=str(no_server()))


class Answer(NamedTuple):
    """An HTTP answer; `body` is decoded where it is JSON, else bytes."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Process(NamedTuple):
    """A process of a server; pid and start time together name it for good."""

    pid: int
    started: str
    role: str


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A fresh folder with a path short enough for sockets, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bt-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_ports = itertools.count(os.getpid() * 997)


def free_port() -> int:
    """A loopback port that is free now, and below those that the kernel gives out."""
    while True:
        port = 10_000 + next(_ports) % 22_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(what: Callable[[], T], timeout_s: float = 20.0, why: str = "") -> T:
    """The first truthy value of `what`, asked again and again."""
    deadline = time.monotonic() + timeout_s * SLOWER
    while True:
        if found := what():
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s * SLOWER:g} s: {why or what}; {found}")
        time.sleep(0.05)


def experiment(experiment_id: str, n_variants: int = 3, **fields: Any) -> Any:
    """A specification with a window of one second, as a client would send it."""
    variants = [
        {"id": f"v{i}", "creative": {"headline": f"Headline {i}"}}
        for i in range(n_variants)
    ]
    window = {"event": "click", "attribution_window_s": 1.0}
    return {
        "experiment": experiment_id,
        "objective": window,
        "variants": variants,
        **fields,
    }


class Running:
    """`bandolero serve` on a free loopback port, with its own data folder.

    Parameters
    ----------
    folder
        Holds the data folder and the log.
    options
        More options of `serve`.
    environment
        More variables for the server.
    """

    def __init__(
        self, folder: Path, *options: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = folder / "d"
        self.port = free_port()
        self.log = folder / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._options = options
        self._environment = {
            "BANDOLERO_ARCHIVE_INTERVAL_S": "1",
            # Tests that share a server send bad keys on purpose, all from one address.
            "BANDOLERO_FAILED_AUTH_RATE": "100000/m",
            **(environment or {}),
        }
        self._keys: dict[tuple[str, str], str] = {}

    def start(self, *, wait: bool = True) -> None:
        """Start the server; return once it is ready, unless told not to wait."""
        command = [*COMMAND, "serve", "--data-dir", str(self.data_dir)]
        command += ["--port", str(self.port), *self._options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment,
                cwd=self.log.parent,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return when `/readyz` answers 200."""

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.last_words()
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.call("GET", "/readyz", timeout=5).status == 200
            return False

        deadline = time.monotonic() + READY_TIMEOUT_S
        while not ready():
            assert time.monotonic() < deadline, self.last_words()
            time.sleep(0.05)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = None,
        *,
        raw: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Answer:
        """Ask over a connection of its own; an iterable `raw` is sent in chunks."""
        data = json.dumps(body).encode() if raw is None and body is not None else raw
        told = {"content-type": "application/json", **(headers or {})}
        if key is not None:
            told["authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, data, told)
            answer = connection.getresponse()
            content = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        if content and found.get("content-type", "").startswith("application/json"):
            return Answer(answer.status, json.loads(content), found)
        return Answer(answer.status, content, found)

    def ok(
        self, method: str, path: str, body: Any = None, key: str | None = None
    ) -> Any:
        """The body of an answer that must be a success.

        A read is asked again while the store is away, as its `Retry-After` says: a
        worker may see a store that is back a second or two later.
        """
        deadline = time.monotonic() + 10 * SLOWER
        answer = self.call(method, path, body, key or self.key())
        while (method, answer.status) == ("GET", 503) and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = self.call(method, path, body, key or self.key())
        assert answer.status < 300, answer
        return answer.body

    def key(self, tenant: str = "acme", scopes: str = ALL_SCOPES) -> str:
        """A key of a tenant, made by the command line, once."""
        if (tenant, scopes) not in self._keys:
            made = self.cli("keys", "create", "--tenant", tenant, "--scopes", scopes)
            assert made.returncode == 0, made.stderr
            self._keys[tenant, scopes] = made.stdout.strip()
        return self._keys[tenant, scopes]

    def use_key(self, text: str) -> None:
        """Use this key of acme's from now on."""
        self._keys["acme", ALL_SCOPES] = text

    def cli(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run another command on the same data folder, beside the server."""
        where = ("--data-dir", str(self.data_dir))
        return cli(*arguments, *where, environment=self._environment)

    def begin(self, spec: Any, tenant: str = "acme") -> None:
        """Create and start an experiment; return once its first snapshot is served."""
        key, path = self.key(tenant), f"/v1/experiments/{spec['experiment']}"
        self.ok("PUT", path, spec, key)
        self.ok("POST", f"{path}/start", {}, key)
        name = {"experiment": spec["experiment"], "consent": "none"}

        def served() -> bool:
            answer = self.call("POST", "/v1/decide", name, key)
            return answer.status == 200 and answer.body["snapshot_version"] > 0

        wait_for(served, 20, f"{spec['experiment']} is served")

    def decide(self, experiment_id: str, **fields: Any) -> Any:
        """The answer to one decide request that must succeed."""
        return self.ok("POST", "/v1/decide", {"experiment": experiment_id, **fields})

    def decide_many(self, experiment_id: str, n: int, **fields: Any) -> list[Any]:
        """The answers to one batch of `n` decide requests, all of which succeed."""
        request = {"experiment": experiment_id, **fields}
        answer = self.ok("POST", "/v1/decide/batch", {"requests": [request] * n})
        decisions: list[Any] = answer["decisions"]
        assert all("error" not in one for one in decisions), decisions[:3]
        return decisions

    def tell(self, events: list[Any], tenant: str = "acme") -> Any:
        """The answer to events that must be taken, if not all accepted."""
        return self.ok("POST", "/v1/events", {"events": events}, self.key(tenant))

    def report(self, experiment_id: str) -> dict[str, Any]:
        """The rows of the report by variant id."""
        path = f"/v1/experiments/{experiment_id}/report"
        return {row["variant_id"]: row for row in self.ok("GET", path)["variants"]}

    def family(self) -> list[Process]:
        """All living processes of this server: those that work in its folder."""
        found = []
        for folder in PROC.glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if not (folder / "cwd").readlink().is_relative_to(self.log.parent):
                    continue
                command = (folder / "cmdline").read_bytes().split(b"\0")
                started = (folder / "stat").read_text().rpartition(")")[2].split()[19]
                found.append(Process(int(folder.name), started, _role(command)))
        return found

    def of_role(self, role: str) -> list[Process]:
        """Living processes of a role: serve, api, learner, archiver or store."""
        return [process for process in self.family() if process.role == role]

    def kill(self, role: str) -> Process:
        """Kill -9 the oldest process of a role."""
        process = min(self.of_role(role), key=lambda p: int(p.started))
        os.kill(process.pid, signal.SIGKILL)
        return process

    def stop(self) -> None:
        """End by SIGTERM: exit code 0, and no process is left."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(45) == 0, self.last_words()
        assert self.family() == [], self.last_words()

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        for process in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def last_words(self, n_lines: int = 30) -> str:
        """The end of the server's log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(["the server's log ends:", *lines[-n_lines:]])


@contextlib.contextmanager
def running_server(
    *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """A ready server of one's own; ended cleanly, or killed where a test failed."""
    with short_folder() as folder:
        server = Running(folder, *options, environment=environment)
        try:
            server.start()
            yield server
            if server.process is not None and server.process.poll() is None:
                server.stop()
        finally:
            server.end()


@contextlib.contextmanager
def own_store(folder: Path, *options: str, port: int = 0) -> Iterator[str]:
    """A Valkey or Redis server on a loopback port; its URL."""
    from bandolero_service.embedded import server_binary

    port = port or free_port()
    command = [server_binary(), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always"]
    command += ["--save", "", "--logfile", str(folder / "store.log"), *options]
    process = subprocess.Popen(command)
    url = f"redis://127.0.0.1:{port}"
    try:
        wait_for(lambda: _answers(url), 10, "the store answers")
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    from bandolero_service.store import Store, StoreDownError

    store = Store(url, timeout_s=1.0)
    try:
        return bool(store.durability())
    except StoreDownError:
        return False
    finally:
        store.close()


def cli(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a command as a program of its own."""
    return subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
        cwd=tempfile.gettempdir(),
        env=os.environ | dict(environment or {}),
    )


def click(decision: Any, event_id: str = "c", **fields: Any) -> dict[str, Any]:
    """A click on what a decision showed."""
    return {
        "event_id": event_id,
        "decision_id": decision["decision_id"],
        "type": "click",
        **fields,
    }


def _role(command: list[bytes]) -> str:
    if any(b"valkey-server" in part or b"redis-server" in part for part in command[:1]):
        return "store"
    if b"--role" in command:
        return command[command.index(b"--role") + 1].decode()
    return "serve" if b"serve" in command else "other"
