"""Files of the lake and the manifest that lists them.

A *commit* holds all a shard's log says between two log times, one file per table and day.
Files are written first, then the commit's manifest entry, named by where it starts and
made only if absent: a commit is there whole or not at all, cannot be made twice, and a
re-run after a kill overwrites the same files. Readers read the manifest, never a glob,
and check each file against its hash: Parquet's own checksums are ignored by many
readers, and a damaged page then reads as wrong data.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandolero.epochs import DAY_MS
from bandolero.lake.storage import Storage
from bandolero.log import DECISIONS_TABLE, EVENTS_TABLE

SNAPSHOTS_TABLE = pa.schema(
    [
        ("tenant_id", pa.string()),
        ("experiment_id", pa.string()),
        ("version", pa.int64()),
        ("spec_version", pa.int64()),
        ("created_at_ms", pa.int64()),
        ("folded_to", pa.string()),
        ("variant_ids", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float64())),
        ("posterior", pa.string()),
        ("snapshot", pa.binary()),
        ("log_id", pa.string()),
        ("log_ms", pa.int64()),
    ]
)
CONTROL_TABLE = pa.schema(
    [
        ("tenant_id", pa.string()),
        ("experiment_id", pa.string()),
        ("kind", pa.string()),
        ("body", pa.string()),
        ("log_id", pa.string()),
        ("log_ms", pa.int64()),
    ]
)
TABLES = {
    "decisions": DECISIONS_TABLE,
    "events": EVENTS_TABLE,
    "snapshots": SNAPSHOTS_TABLE,
    "control": CONTROL_TABLE,
}
DISTINCT = ("decision_id", "event_id", "log_id")
"""Columns of texts of which there are nearly as many as rows."""
SCHEMA_VERSION = 1
LAYOUT = "layout.json"
INGESTED = "ingest-"
"""How the name of an ingested file's commit begins, where a shard's would stand."""
_PLACE = re.compile(
    r"(?P<folder>.+/)\.?(?P<file>(?P<shard>[^/]+?)-((?P<after>\d{13})-\d{13}|p\d{6}))"
    r"(-[0-9a-f]{8})?\.parquet(\.[0-9a-f]+)?"
)
"""The path of a file or its draft: by its commit or, of an ingested file, its part; and
by the file it was made from."""
_NO_WRITERS: Mapping[str, Mapping[str, int]] = {}


class LakeFile(NamedTuple):
    """One listed file: its table, its path under the lake's root, what it must be."""

    table: str
    path: str
    rows: int
    bytes: int
    blake2b: str


Writers = Mapping[str, Mapping[str, int]]
"""By stream and writer, the number of the last block it appended."""


class Commit(NamedTuple):
    """What a shard's log says in (after_ms, until_ms], or one ingested file."""

    shard: str
    after_ms: int
    until_ms: int
    files: tuple[LakeFile, ...]
    writers: Writers


class BadFile(NamedTuple):
    """A listed file that cannot be used, and why."""

    path: str
    reason: str


class OverlapError(RuntimeError):
    """Another writer has already committed from the same position."""


class Lake(Storage):
    """A storage that holds a lake."""

    def fix_shards(self, shards: int) -> None:
        """Note the number of shards at first use.

        Raises
        ------
        OverlapError
            When the lake was begun with another number: by another store.
        """
        if not self.exists(LAYOUT):
            body = json.dumps({"shards": shards}).encode()
            with suppress(FileExistsError):
                self.write_bytes(LAYOUT, body, anew=True)
        if (begun := self.shards()) != shards:
            message = f"the lake was begun with {begun} shards, the store has {shards}."
            raise OverlapError(message)

    def shards(self) -> int:
        """The number of shards, as far as the lake knows; 0 for a new one."""
        if self.exists(LAYOUT):
            return int(json.loads(self.read_bytes(LAYOUT))["shards"])
        live = [c.shard for c in self.commits() if not c.shard.startswith(INGESTED)]
        return max((int(shard[1:]) + 1 for shard in live), default=0)

    def commit(
        self,
        shard: str,
        after_ms: int,
        until_ms: int,
        tables: Mapping[str, pa.Table],
        writers: Writers = _NO_WRITERS,
    ) -> Commit:
        """Write tables (by name, with `log_ms`) and list them, whole or not at all.

        Raises
        ------
        OverlapError
            When a commit of this shard from `after_ms` exists.
        """
        entry = _entry(shard, after_ms)
        if self.exists(entry):
            raise OverlapError(f"{entry} exists: another archiver writes this shard.")
        name = f"{shard}-{after_ms:013d}-{until_ms:013d}"
        files = [
            file
            for table, rows in tables.items()
            for file in self._write_by_day(table, name, rows)
        ]
        return self.enlist(Commit(shard, after_ms, until_ms, tuple(files), writers))

    def write_part(
        self, shard: str, part: int, table: str, rows: pa.Table
    ) -> list[LakeFile]:
        """Write some rows of an ingested file, a file a day; listed nowhere yet."""
        return list(self._write_by_day(table, f"{shard}-p{part:06d}", rows))

    def enlist(self, commit: Commit) -> Commit:
        """List the files of a commit, which have been written, all at once.

        Raises
        ------
        OverlapError
            When a commit of this shard from there exists.
        """
        entry = _entry(commit.shard, commit.after_ms)
        body = {
            **commit._asdict(),
            "files": [file._asdict() for file in commit.files],
            "schema_version": SCHEMA_VERSION,
        }
        try:
            self.write_bytes(entry, json.dumps(body, indent=1).encode(), anew=True)
        except FileExistsError:
            raise OverlapError(f"{entry} was made meanwhile by another.") from None
        return commit

    def commits(self, shard: str = "") -> list[Commit]:
        """All commits, by shard and position; or those of one shard."""
        paths = self.paths(f"manifest/{shard}".rstrip("/"), ".json")
        return [self._read_commit(path) for path in sorted(paths)]

    def until_ms(self, shard: str) -> int:
        """Log time up to which a shard is archived without a gap; 0 for a new one."""
        paths = sorted(self.paths(f"manifest/{shard}", ".json"))
        return self._read_commit(paths[-1]).until_ms if paths else 0

    def watermark_ms(self) -> int:
        """Log time up to which the lake is complete on every live shard."""
        latest: dict[str, int] = {}
        for commit in self.commits():
            if not commit.shard.startswith(INGESTED):
                seen = latest.get(commit.shard, 0)
                latest[commit.shard] = max(seen, commit.until_ms)
        return min(latest.values(), default=0)

    def files(
        self, table: str, from_ms: int = 0, to_ms: int | None = None
    ) -> list[LakeFile]:
        """Listed files of a table that may hold rows logged in [from_ms, to_ms]."""
        return [
            file
            for commit in self.commits()
            for file in commit.files
            if file.table == table
            and commit.until_ms >= from_ms
            and (to_ms is None or commit.after_ms < to_ms)
        ]

    def read(
        self, table: str, from_ms: int = 0, to_ms: int | None = None
    ) -> tuple[pa.Table, list[BadFile]]:
        """Rows of a table in log order, and the files that were set aside.

        A damaged, missing or foreign file is copied to `quarantine/` with its reason.
        Log times narrow down the files, not the rows.
        """
        return self._read_files(table, self.files(table, from_ms, to_ms))

    def read_commit(self, commit: Commit, table: str) -> tuple[pa.Table, list[BadFile]]:
        """Rows of a table that one commit brought, as `read` gives them."""
        return self._read_files(table, [f for f in commit.files if f.table == table])

    def read_each(self, table: str) -> Iterator[tuple[Commit, pa.Table | BadFile]]:
        """Rows of a table file by file, as they were written, with their commit."""
        for commit in self.commits():
            for file in commit.files:
                if file.table == table:
                    yield commit, self._read_or_quarantine(file)

    def rewrite(self, commit: Commit, anew: Mapping[LakeFile, pa.Table]) -> None:
        """Put rows in the place of some files of a commit, all or none, and delete those.

        Nobody else may rewrite the commit meanwhile; who reads it finds the old files or
        the new ones.
        """
        if not anew:
            return
        files = {old: self._write_again(old, anew[old]) for old in anew}
        entry = _entry(commit.shard, commit.after_ms)
        body = json.loads(self.read_bytes(entry))
        listed = [files.get(file, file) for file in commit.files]
        body["files"] = [file._asdict() for file in listed]
        self.write_bytes(entry, json.dumps(body, indent=1).encode())
        for old in anew:
            self.delete(old.path)

    def sweep(self, table: str, is_mine: Callable[[str], bool]) -> None:
        """Delete files of some shards, or ingested ones, that are listed nowhere.

        A writer that was killed leaves such. Nobody may be rewriting these shards'
        commits, or be ingesting; those that stand beside no commit of a shard are left,
        for they may be of one that is just being made.
        """
        commits = self.commits()
        begun = {(commit.shard, commit.after_ms) for commit in commits}
        listed = {file.path for commit in commits for file in commit.files}
        for path in set(self.paths(table, "")) - listed:
            place = _PLACE.fullmatch(path)
            if not place or not is_mine(shard := place["shard"]):
                continue
            if shard.startswith(INGESTED) or (shard, int(place["after"])) in begun:
                self.delete(path)

    def _write_by_day(
        self, table: str, name: str, rows: pa.Table
    ) -> Iterator[LakeFile]:
        for day, part in _by_day(rows):
            yield self._write_file(table, name, day, part)

    def _write_file(self, table: str, name: str, day: str, rows: pa.Table) -> LakeFile:
        sink = pa.BufferOutputStream()
        rows = rows.select(TABLES[table].names).cast(TABLES[table])
        pq.write_table(
            rows,
            sink,
            compression="zstd",
            write_page_checksum=True,
            **_encoding(rows.column_names),
        )
        data = bytes(sink.getvalue())
        path = f"{table}/date={day}/{name}.parquet"
        self.write_bytes(path, data)
        return LakeFile(table, path, rows.num_rows, len(data), _hash(data))

    def _read_files(
        self, table: str, files: Iterable[LakeFile]
    ) -> tuple[pa.Table, list[BadFile]]:
        read = [self._read_or_quarantine(file) for file in files]
        bad = [one for one in read if isinstance(one, BadFile)]
        good = [one for one in read if not isinstance(one, BadFile)]
        rows = pa.concat_tables(good) if good else TABLES[table].empty_table()
        return in_log_order(rows), bad

    def _read_or_quarantine(self, file: LakeFile) -> pa.Table | BadFile:
        try:
            return self._read_listed(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:300]
            self.quarantine(file, reason)
            return BadFile(file.path, reason)

    def _read_listed(self, file: LakeFile) -> pa.Table:
        """The rows of a file, or of the one that was written in its place meanwhile."""
        try:
            return self.read_file(file)
        except (OSError, ValueError, pa.ArrowException):
            instead = self._instead_of(file)
            if instead is None:
                raise
            return self._read_listed(instead)

    def _instead_of(self, file: LakeFile) -> LakeFile | None:
        """The file that is listed in a file's place; None where that itself still is."""
        place = _PLACE.fullmatch(file.path)
        if place is None:
            return None
        stem = place["folder"] + place["file"]
        listed = [f for commit in self._commits_at(place) for f in commit.files]
        alike = [f for f in listed if f.path.startswith(stem)]
        return alike[0] if alike and file not in listed else None

    def _commits_at(self, place: re.Match[str]) -> list[Commit]:
        """The commit that a file is of; an ingested file is one commit."""
        if place["after"] is None:
            return self.commits(place["shard"])
        return [self._read_commit(_entry(place["shard"], int(place["after"])))]

    def read_file(self, file: LakeFile) -> pa.Table:
        """The rows of a listed file.

        Raises
        ------
        ValueError
            When it is not as it was written.
        """
        data = self.read_bytes(file.path)
        if _hash(data) != file.blake2b:
            raise ValueError(f"{file.path} does not have the hash of its manifest.")
        table = pq.read_table(pa.BufferReader(data), partitioning=None)
        if not table.schema.equals(TABLES[file.table]):
            raise ValueError(f"{file.path} does not have the schema of its table.")
        return table

    def _write_again(self, old: LakeFile, rows: pa.Table) -> LakeFile:
        """Other rows of a file, under a name that says which one they come from."""
        place = _PLACE.fullmatch(old.path)
        if place is None:
            raise ValueError(f"{old.path} is not named as files of the lake are.")
        day = place["folder"].rstrip("/").rpartition("date=")[2]
        return self._write_file(
            old.table, f"{place['file']}-{old.blake2b[:8]}", day, rows
        )

    def quarantine(self, file: LakeFile, reason: str) -> None:
        """Copy a file that cannot be used aside, with the reason."""
        name = f"quarantine/{file.path}"
        note = {
            "path": file.path,
            "reason": reason,
            "at": datetime.now(UTC).isoformat(),
        }
        self.write_bytes(f"{name}.json", json.dumps(note).encode())
        if self.exists(file.path):
            self.write_bytes(name, self.read_bytes(file.path))

    def _read_commit(self, path: str) -> Commit:
        body = json.loads(self.read_bytes(path))
        files = tuple(LakeFile(**file) for file in body["files"])
        writers = body.get("writers", _NO_WRITERS)
        return Commit(body["shard"], body["after_ms"], body["until_ms"], files, writers)


def rows_of(name: str, rows: Iterable[tuple[Any, ...]]) -> pa.Table:
    """A table of the lake from tuples in the order of its schema."""
    schema = TABLES[name]
    columns = list(zip(*rows, strict=True))
    if not columns:
        return schema.empty_table()
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _entry(shard: str, after_ms: int) -> str:
    """The path of a commit's entry in the manifest."""
    return f"manifest/{shard}/{after_ms:013d}.json"


def _by_day(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Rows by the UTC day of their log time."""
    days = np.asarray(table["log_ms"].to_numpy()) // DAY_MS
    if np.any(days[1:] < days[:-1]):
        order = np.argsort(days, kind="stable")
        table, days = table.take(pa.array(order)), days[order]
    starts = np.flatnonzero(np.diff(days, prepend=-1))
    for start, end in pairwise([*starts.tolist(), len(days)]):
        date = datetime.fromtimestamp(int(days[start]) * DAY_MS / 1000, UTC)
        yield date.strftime("%Y-%m-%d"), table.slice(start, end - start)


def in_log_order(table: pa.Table) -> pa.Table:
    """Rows sorted by log id; ties keep their order within a block."""
    sequence = pc.cast(
        pc.replace_substring_regex(table["log_id"], pattern=r"^.*-", replacement=""),
        pa.int64(),
    )
    keys = np.lexsort((sequence.to_numpy(), np.asarray(table["log_ms"].to_numpy())))
    return table.take(pa.array(keys))


def _encoding(names: Iterable[str]) -> dict[str, Any]:
    """How columns are written: ids and times not by dictionary, for they hardly repeat.

    A third smaller, and a third less work to write and to read.
    """
    own = {name: "DELTA_LENGTH_BYTE_ARRAY" for name in names if name in DISTINCT}
    own |= {name: "DELTA_BINARY_PACKED" for name in names if name.endswith("_ms")}
    rest = [name for name in names if name not in own]
    return {"use_dictionary": rest, "column_encoding": own}


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
