"""The figures of all processes of a machine, through a folder that they share.

Each process writes its own once a second, and any of them can tell of all: the API
workers share one socket, and learner and archiver have none. A process holds a lock as
long as it lives. What a dead one counted goes on counting, so that totals never go back;
its gauges are gone with it.
"""

import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from bandolero_service.metrics import (
    FAMILIES,
    FIGURES_AGE,
    PROCESSES,
    Figures,
    exposition,
    merged,
)

log = logging.getLogger(__name__)

WRITE_S = 1.0
ENDED = "ended"
MAX_NAMES = 1000
_GAUGES = frozenset(family.name for family in FAMILIES if family.kind == "gauge")


class _Written(NamedTuple):
    """A file. names: of ended processes, those whose figures are in it."""

    role: str
    figures: Figures
    names: list[str] = []  # noqa: RUF012  # never changed


_decode = msgspec.msgpack.Decoder(_Written).decode


class MetricFiles:
    """A file of one's own figures, and the reading of everybody's.

    Parameters
    ----------
    read
        The figures of this process now.
    """

    def __init__(self, folder: Path, role: str, read: Callable[[], Figures]) -> None:
        self._folder = folder
        self._role = role
        self._read = read
        self._name = f"{role}-{os.getpid()}-{secrets.token_hex(4)}"
        self._lock: int | None = None
        self._refused = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Take over what the dead have counted; then write, once a second."""
        with self._told():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(self._folder / f"{self._name}.lock")
            _gather(self._folder)
        self._write()
        self._thread.start()

    def stop(self) -> None:
        """Write once more, and end."""
        self._stop.set()
        self._thread.join()
        self._write()
        if self._lock is not None:
            os.close(self._lock)

    def tell(self, accept: str) -> tuple[bytes, str]:
        """The text of all metrics and its content type; see `Accept` of HTTP."""
        return exposition(self.machine(), accept)

    def machine(self) -> Figures:
        """The figures of all processes that share the folder, as one."""
        now = time.time()
        parts = [self._read(), _of_process(self._role, 0.0)]
        found = [f for f in _files(self._folder) if f.stem != self._name]
        contents = {file.stem: _content(file) for file in found}
        ended = _content(self._folder / ENDED)  # last: whatever moved there is in it
        gone = set(ended.names) if ended else set()
        if ended:
            parts.append(ended.figures)
        for file in found:
            written = contents[file.stem]
            if written is None or file.stem in gone:
                continue
            if _is_alive(file):
                with suppress(OSError):
                    age_s = max(0.0, now - file.stat().st_mtime)
                    parts += [written.figures, _of_process(written.role, age_s)]
            else:
                parts.append(_lasting(written.figures))
        return merged(parts)

    def _run(self) -> None:
        while not self._stop.wait(WRITE_S):
            self._write()

    def _write(self) -> None:
        with self._told():
            written = _Written(self._role, self._read())
            _replace(self._folder / f"{self._name}.figures", written)
            self._refused = False

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Metrics are no reason to end: a disk that refuses is told of, once."""
        try:
            yield
        except OSError as error:
            if not self._refused:
                log.warning("metrics cannot be shared: %s", error)
            self._refused = True


def _gather(folder: Path) -> None:
    """Move the counts of ended processes into one file, so that files do not pile up."""
    guard = _locked(folder / "lock")
    if guard is None:
        return  # another process is at it
    try:
        dead = [file for file in _files(folder) if not _is_alive(file)]
        if not dead:
            return
        old = _content(folder / ENDED) or _Written(ENDED, {})
        fresh = {
            f.stem: w for f in dead if (w := _content(f)) and f.stem not in old.names
        }
        counts = merged([old.figures, *(_lasting(w.figures) for w in fresh.values())])
        names = [*old.names, *fresh][-MAX_NAMES:]
        _replace(folder / ENDED, _Written(ENDED, counts, names))
        for file in dead:
            file.unlink(missing_ok=True)
            file.with_suffix(".lock").unlink(missing_ok=True)
    finally:
        os.close(guard)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.figures"))


def _content(file: Path) -> _Written | None:
    """What a file says; None where it is gone, or a crash of the machine cut it."""
    try:
        return _decode(file.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return None


def _replace(path: Path, written: _Written) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_bytes(msgspec.msgpack.encode(written))
    draft.replace(path)


def _lasting(figures: Figures) -> Figures:
    """What of a process's figures outlives it."""
    return {name: values for name, values in figures.items() if name not in _GAUGES}


def _of_process(role: str, age_s: float) -> Figures:
    return {PROCESSES.name: {(role,): 1.0}, FIGURES_AGE.name: {(role,): age_s}}


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of a file; None where another has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_alive(file: Path) -> bool:
    """Whether the process of a file of figures still holds its lock."""
    try:
        lock = os.open(file.with_suffix(".lock"), os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
