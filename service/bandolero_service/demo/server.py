"""The demo's private server: real processes, started, asked, and ended without a trace."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Self

from bandolero_service.demo.client import Client, DemoError, ServerGoneError

ARCHIVE_INTERVAL_S = 5
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 120.0
COMMAND = (sys.executable, "-m", "bandolero_service")


class Process(NamedTuple):
    """A running process; pid and start time together name it for good."""

    pid: int
    parent: int
    session: int
    started: str


class PrivateServer:
    """`bandolero serve` on the embedded store, with a free port and its own data directory.

    Parameters
    ----------
    data_dir
        Holds the store, the lake and `serve.log`.
    port
        0 takes a free one.
    workers
        API worker processes.
    """

    def __init__(self, data_dir: Path, port: int = 0, workers: int = 1) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.log = data_dir / "serve.log"
        self._serve = (
            *COMMAND, "serve", "--store", "embedded", "--data-dir", str(data_dir),
            "--port", str(self.port), "--workers", str(workers),
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None
        self._family: set[Process] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, _: object, fault: BaseException | None, __: object) -> None:
        if isinstance(fault, DemoError):
            fault.add_note(self.last_words())
        try:
            self.stop()
        finally:
            self.kill()

    def start(self) -> None:
        """Start the processes in a session of their own, output to `serve.log`."""
        environment = os.environ | {
            "BANDOLERO_ARCHIVE_INTERVAL_S": str(ARCHIVE_INTERVAL_S)
        }
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._serve, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Return when `/readyz` answers 200."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        with contextlib.closing(Client(self.port)) as client:
            while time.monotonic() < deadline:
                self.check_alive()
                with contextlib.suppress(ServerGoneError):
                    if client.call("GET", "/readyz").status == 200:
                        return
                time.sleep(0.1)
        raise DemoError(f"The server was not ready after {READY_TIMEOUT_S:.0f} s.")

    def check_alive(self) -> None:
        """Raise when the server has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            raise DemoError(f"The server ended with exit code {code}.")

    def last_words(self, n_lines: int = 15) -> str:
        """The end of the server's log."""
        lines = self.log.read_text(errors="replace").splitlines()[-n_lines:]
        return "\n  ".join(["The server's log ends:", *lines])

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `bandolero` command on the same data directory."""
        try:
            return subprocess.run(
                (*COMMAND, *arguments, "--data-dir", str(self.data_dir)),
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=COMMAND_TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise DemoError(
                f"bandolero {arguments[0]} took over {late.timeout:.0f} s."
            ) from late

    def create_key(self, tenant: str) -> str:
        """Make a key with every scope."""
        scopes = "decide,events,report,admin"
        done = self.command("keys", "create", "--tenant", tenant, "--scopes", scopes)
        if done.returncode != 0 or not done.stdout.strip():
            words = done.stderr.strip()[-1000:]
            raise DemoError(
                f"keys create ended with exit code {done.returncode}: {words}"
            )
        return done.stdout.split()[-1]

    def stop(self) -> int | None:
        """End the server by SIGTERM and wait; its exit code, None if it had to be killed."""
        process = self._process
        if process is None:
            return 0
        self._family |= family(process.pid)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(STOP_TIMEOUT_S)
        return None

    def left_behind(self, patience_s: float = 2.0) -> list[int]:
        """Process ids of the server's that are still there after a little patience."""
        deadline = time.monotonic() + patience_s
        while (alive := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return alive

    def _alive(self) -> list[int]:
        if self._process is None:
            return []
        known = {(member.pid, member.started) for member in self._family}
        return sorted(
            process.pid
            for process in processes()
            if process.session == self._process.pid
            or (process.pid, process.started) in known
        )

    def kill(self) -> None:
        """Last resort: kill whatever of the server's is still there."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._family |= family(self._process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pid in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> set[Process]:
    """A process, its descendants, and who shares its session."""
    members = {
        process for process in processes() if pid in (process.pid, process.session)
    }
    while True:
        pids = {member.pid for member in members}
        grown = members | {process for process in processes() if process.parent in pids}
        if grown == members:
            return members
        members = grown


def processes() -> list[Process]:
    """All running processes but zombies; none where the system has no /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                pid = int(path.parent.name)
                found.append(Process(pid, int(fields[1]), int(fields[3]), fields[19]))
    return found
