"""Blocks on local disk while the store is down: appended, synced, drained in order.

One file a writer. A record is length, CRC-32 and body; the body packs where the block
goes and its number, so that appending it later, even twice, adds it once. A record cut
short by a crash was never acknowledged and ends the file.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from struct import Struct
from zlib import crc32

from bandolero_service.store import Block

log = logging.getLogger(__name__)

_HEAD = Struct("<II")


class SpoolFullError(RuntimeError):
    """The spool has reached its bound."""


class Spool:
    """The spool file of one writer, locked while it is open."""

    def __init__(self, folder: Path, writer_id: str, max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{writer_id}.spool"
        self.writer_id = writer_id
        self.n_blocks = 0
        """Blocks added by this process and not drained yet."""
        self.behind: dict[int, int] = {}
        """Where the blocks begin that shards still miss of what others have drained."""
        self._max_bytes = max_bytes
        self._drained = 0
        self._since = 0.0
        is_new = not self.path.exists()
        where = self.path.with_suffix(".new") if is_new else self.path
        self._file = os.open(where, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _lock(self._file, where)
            if is_new:  # named once it is locked: else another writer could adopt it
                where.rename(self.path)
                sync_folder(folder)
        except OSError:
            os.close(self._file)
            raise

    @property
    def size(self) -> int:
        """Bytes not drained yet."""
        start = min([self._drained, *list(self.behind.values())])
        return os.fstat(self._file).st_size - start

    @property
    def age_s(self) -> float:
        """How long there have been such blocks, in seconds."""
        return time.monotonic() - self._since if self.n_blocks else 0.0

    def append(self, blocks: list[Block]) -> None:
        """Add blocks and sync them to disk.

        Raises
        ------
        SpoolFullError
            When they do not fit; nothing is added.
        OSError
            When the disk refuses.
        """
        data = b"".join(_record(block) for block in blocks)
        start = os.fstat(self._file).st_size
        if start + len(data) > self._max_bytes:
            raise SpoolFullError(
                f"the spool holds {start} bytes, its bound is reached."
            )
        try:
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes fitted.")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, start)
            raise
        if not self.n_blocks:
            self._since = time.monotonic()
        self.n_blocks += len(blocks)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """Blocks not drained yet, in order, each with the offset just after it.

        Those of shards that are behind are passed over: see `blocks_of`.
        """
        start = self._drained
        for end, block in self._blocks_from(start):
            if block.shard not in self.behind:
                yield end, block
            elif self._drained == start:
                self._drained = end
            start = end

    def is_through(self) -> bool:
        """Whether every shard that is not behind has all its blocks in the log."""
        return next(self.blocks(), None) is None

    def drained(self, offset: int, n_blocks: int = 0) -> None:
        """Note that everything before `offset` is in the log; empty the file at its end."""
        self._drained = offset
        self.n_blocks = max(0, self.n_blocks - n_blocks)
        if self.size == 0:
            self.n_blocks = 0
            os.ftruncate(self._file, 0)
            self._drained = 0
            self.behind = dict.fromkeys(self.behind, 0)

    def fall_behind(self, shard: int) -> None:
        """Let a shard's blocks wait, from here on, while the others go on."""
        self.behind.setdefault(shard, self._drained)

    def blocks_of(self, shard: int) -> Iterator[tuple[int, Block]]:
        """Blocks that a shard is behind with, in order, each with the offset after it."""
        for end, block in self._blocks_from(self.behind[shard]):
            if end > self._drained:
                return
            if block.shard == shard:
                yield end, block

    def catch_up(self, shard: int, offset: int, n_blocks: int) -> None:
        """Note that a shard has its blocks before `offset` in the log."""
        self.behind[shard] = offset
        if next(self.blocks_of(shard), None) is None:
            del self.behind[shard]
        self.drained(self._drained, n_blocks)

    def _blocks_from(self, offset: int) -> Iterator[tuple[int, Block]]:
        with self.path.open("rb") as file:
            file.seek(offset)
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                length, check = _HEAD.unpack(head)
                body = file.read(length)
                if len(body) < length or crc32(body) != check:
                    return
                yield file.tell(), _block(body)

    def set_rest_aside(self) -> None:
        """Move what cannot be read to a file beside, and empty the spool.

        A record that a crash cut short was never acknowledged, but one that was damaged
        later may have been, and so may those behind it: nothing is thrown away.
        """
        if self.size == 0:
            return
        with self.path.open("rb") as file:
            file.seek(self._drained)
            rest = file.read()
        aside = self.path.with_suffix(".rest")
        _write_durably(aside, rest)
        log.warning("%d bytes of a spool cannot be read, kept in %s", len(rest), aside)
        self.drained(self._drained + self.size)

    def close(self) -> None:
        """Close; an empty file is removed."""
        try:
            if self.size == 0:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self._file)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def orphans(folder: Path, max_bytes: int) -> Iterator[Spool]:
    """Spools whose writer is gone, now ours."""
    for path in sorted(folder.glob("*.spool")):
        try:
            spool = Spool(folder, path.stem, max_bytes)
        except (BlockingIOError, FileNotFoundError):
            continue  # its writer lives, or another has just adopted it
        except OSError as error:
            log.error("%s cannot be opened, it stays: %s", path, error)
            continue
        yield spool


def bytes_in(folder: Path) -> int:
    """Bytes of all spools of a folder, those of dead writers too."""
    total = 0
    for path in folder.glob("*.spool"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _lock(file: int, path: Path) -> None:
    """Lock an open file, if nobody has it and it still is what its path names."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(file), path.stat()):
        raise FileNotFoundError(f"{path} was removed by the one that had it.")


def _write_durably(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads, and have it survive a power cut."""
    with open(path, "wb", opener=partial(os.open, mode=0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _record(block: Block) -> bytes:
    head = json.dumps([block.stream, block.shard, block.number, block.counts]).encode()
    body = len(head).to_bytes(4, "little") + head + block.payload
    return _HEAD.pack(len(body), crc32(body)) + body


def _block(body: bytes) -> Block:
    end = 4 + int.from_bytes(body[:4], "little")
    stream, shard, number, counts = json.loads(body[4:end])
    return Block(stream, shard, number, body[end:], counts)
