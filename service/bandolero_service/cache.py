"""What was last seen of the store, on local disk: to start from while that is down.

A file for each experiment holds its record and its snapshot, and one what they share. It
is written beside its place, synced and renamed, so it is there whole, and a checksum
shows damage. Of the workers that share a folder one writes, as much at a time as leaves
the disk to others: records at once, snapshots in their turn.
"""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from bandolero.codec import pack, unpack
from bandolero.experiment import ExperimentRecord
from bandolero.snapshot import Snapshot, snapshot_from_bytes, snapshot_to_bytes
from bandolero_service.store import ApiKey

log = logging.getLogger(__name__)

SHARED = "shared"
WRITE_S = 0.02
"""Time for writing, of one poll."""
SNAPSHOT_RESTS_S = 10.0
"""A snapshot waits so long at most before it is written; meanwhile newer ones replace it."""
STAMP_EVERY_S = 5.0
DISK_RESTS_S = 60.0
"""How long a disk that refused is left alone."""


class Shared(NamedTuple):
    """What is not of one experiment; `seen_at` is a Unix time in seconds."""

    shards: int
    api_keys: list[ApiKey]
    seen_at: float


class SeenCache:
    """The files of one store in a cache folder."""

    def __init__(self, folder: Path, store_url: str) -> None:
        where = urlsplit(store_url)
        place = f"{where.hostname}:{where.port}{where.path}"  # and no password
        self._folder = folder / _hash(place)
        self._lock: int | None = None
        self._due: dict[str, float] = {}
        self._stamped_at = 0.0

    def changed(self, name: str, within_s: float = 0.0) -> None:
        """Note that an experiment, or `SHARED`, is to be written."""
        due = time.monotonic() + within_s
        self._due[name] = min(due, self._due.get(name, due))

    def write(
        self, names: Iterable[str], content: Callable[[str], bytes | None]
    ) -> None:
        """Write what is due, as far as the time goes, if it is for us to write.

        Parameters
        ----------
        names
            All experiments, for the first time; later only what changes is written.
        content
            Bytes for a name; None where there is no such experiment any more.
        """
        if self._lock is None:
            self._due.clear()
            if not self._locked():
                return
            for name in (SHARED, *names):
                self.changed(name)
        until = time.monotonic() + WRITE_S
        for name, due in sorted(self._due.items(), key=lambda item: item[1]):
            if due > time.monotonic() or time.monotonic() > until:
                break
            del self._due[name]
            try:
                self._write_file(self._path(name), content(name))
            except OSError as error:
                log.warning("%s is not kept on disk: %s", name, error)
                self.changed(name, DISK_RESTS_S)

    def stamp(self) -> None:
        """Note that what is here was true a moment ago."""
        if self._lock is None or time.monotonic() - self._stamped_at < STAMP_EVERY_S:
            return
        if (path := self._path(SHARED)).exists():
            os.utime(path)
            self._stamped_at = time.monotonic()

    def shared(self) -> Shared | None:
        """What all experiments share; None where nothing was ever seen."""
        path = self._path(SHARED)
        try:
            seen_at = path.stat().st_mtime
            header = unpack(path.read_bytes()).header
            api_keys = [ApiKey(**fields) for fields in header["api_keys"]]
            return Shared(int(header["shards"]), api_keys, seen_at)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s is refused: %s", path, error)
            return None

    def experiments(self) -> Iterator[tuple[ExperimentRecord, Snapshot | None]]:
        """Records and snapshots; those that are damaged are passed over."""
        for path in sorted(self._folder.glob("*.seen")):
            if path == self._path(SHARED):
                continue
            try:
                yield _read_experiment(path.read_bytes())
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("%s is refused: %s", path, error)

    def close(self) -> None:
        """Leave the writing to others."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, name: str) -> Path:
        return self._folder / f"{_hash(name)}.seen"

    def _locked(self) -> bool:
        """Take the folder's lock, if nobody has it and the disk lets us."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            log.debug("%s cannot be used: %s", self._folder, error)
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _write_file(self, path: Path, data: bytes | None) -> None:
        if data is None:
            path.unlink(missing_ok=True)
            return
        draft = path.with_suffix(".draft")  # there is one writer
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def pack_shared(shards: int, api_keys: Iterable[ApiKey]) -> bytes:
    """The content of `SHARED`."""
    told = [key._asdict() for key in api_keys]
    return pack({"shards": shards, "api_keys": told}, {})


def pack_experiment(record: ExperimentRecord, snapshot: Snapshot) -> bytes:
    """The content of an experiment's file; a snapshot made from the prior is left out."""
    arrays = {}
    if snapshot.version > 0:
        arrays["snapshot"] = np.frombuffer(snapshot_to_bytes(snapshot), np.uint8)
    return pack({"record": record.model_dump(mode="json")}, arrays)


def _read_experiment(data: bytes) -> tuple[ExperimentRecord, Snapshot | None]:
    header, arrays = unpack(data)
    record = ExperimentRecord.model_validate(header["record"])
    if "snapshot" not in arrays:
        return record, None
    return record, snapshot_from_bytes(arrays["snapshot"].tobytes())


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()
