"""Files of the lake and the manifest that lists them.

A *commit* holds all a shard's log says between two log times, one file per table and day.
Files are written first, then the commit's manifest entry, named by where it starts and
made only if absent: a commit is there whole or not at all, cannot be made twice, and a
re-run after a kill overwrites the same files. A *merged* commit stands for small ones
in a row: its entry, named by where it starts and ends, is made beside theirs, and from
then on they do not count, whether or not they have been deleted. Readers read the
manifest, never a glob, and check each file's hash, for many ignore Parquet's checksums.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from bandolero.lake.names import (
    Place,
    Span,
    counted_and_covered,
    entry_of,
    place_of,
    stem_of,
)
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
_NO_WRITERS: Mapping[str, Mapping[str, int]] = {}


class LakeFile(NamedTuple):
    """One listed file: its table, its path under the lake's root, what it must be."""

    table: str
    path: str
    rows: int
    bytes: int
    blake2b: str

    @property
    def is_ingested(self) -> bool:
        """Whether it holds another system's rows."""
        return self.path.rpartition("/")[2].startswith(INGESTED)


Writers = Mapping[str, Mapping[str, int]]
"""By stream and writer, the number of the last block it appended."""


class Commit(NamedTuple):
    """What a shard's log says in (after_ms, until_ms], or one ingested file.

    merged: of how many commits it was made; 0 for one as it was archived or ingested.
    refused: how many rows of an ingested file stand in quarantine instead.
    """

    shard: str
    after_ms: int
    until_ms: int
    files: tuple[LakeFile, ...]
    writers: Writers
    merged: int = 0
    refused: int = 0

    @property
    def span(self) -> Span:
        """What of the shard's log it holds."""
        return Span(self.after_ms, self.until_ms)

    @property
    def entry(self) -> str:
        """The path of its entry in the manifest."""
        end_ms = self.until_ms if self.merged else None
        return entry_of(self.shard, self.after_ms, end_ms)

    @property
    def is_ingested(self) -> bool:
        """Whether it is of another system's file."""
        return self.shard.startswith(INGESTED)


class BadFile(NamedTuple):
    """A listed file that cannot be used, why, and with how many rows it is listed."""

    path: str
    reason: str
    rows: int = 0


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
        live = (int(c.shard[1:]) for c in self.commits() if not c.is_ingested)
        return max(live, default=-1) + 1

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
        made = Commit(shard, after_ms, until_ms, (), writers)
        if self.exists(entry := made.entry):
            raise OverlapError(f"{entry} exists: another archiver writes this shard.")
        files = [
            file
            for table, rows in tables.items()
            for file in self._write_by_day(table, stem_of(shard, made.span), rows)
        ]
        return self.enlist(made._replace(files=tuple(files)))

    def write_part(
        self, shard: str, part: int, table: str, rows: pa.Table
    ) -> list[LakeFile]:
        """Write some rows of an ingested file, a file a day; listed nowhere yet."""
        return list(self._write_by_day(table, f"{shard}-p{part:06d}", rows))

    def write_merged(
        self, commits: Sequence[Commit], table: str, rows: pa.Table
    ) -> list[LakeFile]:
        """Write what commits in a row hold of a table, a file a day; listed nowhere yet.

        Named by the files it was made of: the same again is the same file, and no other.
        """
        made_of = [f.blake2b for c in commits for f in c.files if f.table == table]
        span = Span(commits[0].after_ms, commits[-1].until_ms)
        stem = stem_of(commits[0].shard, span)
        name = f"{stem}-{_hash(repr(made_of).encode())[:8]}"
        return list(self._write_by_day(table, name, rows))

    def enlist(self, commit: Commit) -> Commit:
        """List the files of a commit, which have been written, all at once.

        Raises
        ------
        OverlapError
            When a commit of this shard from there exists.
        """
        entry = commit.entry
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
        """All commits that count, by shard and position; or those of one shard."""
        entries, _ = self._entries(shard)
        try:
            return [self._read_commit(path) for path in entries]
        except FileNotFoundError:
            if self._entries(shard)[0] == entries:
                raise
            return self.commits(shard)  # merged since they were listed, and deleted

    def is_listed(self, commits: Sequence[Commit]) -> bool:
        """Whether commits of a shard all count, each just as it is given."""
        entries = set(self._entries(commits[0].shard)[0])
        return all(
            one.entry in entries and self._read_commit(one.entry) == one
            for one in commits
        )

    def delete_covered(self, shard: str) -> None:
        """Delete the commits of a shard for which merged ones stand, their files first.

        Who still reads them, having listed them before, finds their rows in the merged.
        """
        for entry in self._entries(shard)[1]:
            for file in self._read_commit(entry).files:
                self.delete(file.path)
            self.delete(entry)

    def until_ms(self, shard: str) -> int:
        """Log time up to which a shard is archived without a gap; 0 for a new one."""
        entries, _ = self._entries(shard)
        return self._read_commit(entries[-1]).until_ms if entries else 0

    def watermark_ms(self) -> int:
        """Log time up to which the lake is complete on every live shard."""
        live = (commit for commit in self.commits() if not commit.is_ingested)
        latest = {commit.shard: commit.until_ms for commit in live}
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

    def read_log(self, table: str, from_ms: int = 0) -> tuple[pa.Table, list[BadFile]]:
        """As `read`, but only what the service has logged, nothing that was ingested."""
        files = self.files(table, from_ms)
        return self._read_files(table, [f for f in files if not f.is_ingested])

    def read_commit(self, commit: Commit, table: str) -> tuple[pa.Table, list[BadFile]]:
        """Rows of a table that one commit brought, as `read` gives them."""
        return self._read_files(table, [f for f in commit.files if f.table == table])

    def rewrite(self, commit: Commit, anew: Mapping[LakeFile, pa.Table]) -> None:
        """Put rows in the place of some files of a commit, all or none, and delete those.

        Nobody else may rewrite the commit meanwhile; who reads it finds the old files or
        the new ones.
        """
        if not anew:
            return
        files = {old: self._write_again(old, anew[old]) for old in anew}
        entry = commit.entry
        body = json.loads(self.read_bytes(entry))
        listed = [files.get(file, file) for file in commit.files]
        body["files"] = [file._asdict() for file in listed]
        self.write_bytes(entry, json.dumps(body, indent=1).encode())
        for old in anew:
            self.delete(old.path)

    def sweep(self, table: str, is_mine: Callable[[str], bool]) -> None:
        """Delete files of some shards, or ingested ones, that are listed nowhere.

        A writer that was killed leaves such, and so do merged commits. Nobody may be
        rewriting these shards' commits, or be ingesting; those that begin within no commit
        of a shard are left, for they may be of one that is just being made.
        """
        commits = self.commits()
        listed = {file.path for commit in commits for file in commit.files}
        for path in set(self.paths(table, "")) - listed:
            place = place_of(path)
            if not place or not is_mine(place.shard):
                continue
            if place.shard.startswith(INGESTED) or _over(place, commits):
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
            bad = BadFile(file.path, " ".join(str(error).split())[:300], file.rows)
            self.quarantine(file, bad.reason)
            return bad

    def _read_listed(self, file: LakeFile) -> pa.Table:
        """The rows of a file, or the same from what is listed in its place meanwhile."""
        try:
            return self.read_file(file)
        except (OSError, ValueError, pa.ArrowException):
            place = place_of(file.path)
            instead = None if place is None else self._instead_of(file, place)
            if place is None or instead is None:
                raise
            return _only_of(place.span, self._read_listed(instead))

    def _instead_of(self, file: LakeFile, place: Place) -> LakeFile | None:
        """The file that is listed in a file's place; None where that itself still is."""
        listed = [f for c in _over(place, self.commits(place.shard)) for f in c.files]
        stem = place.folder if place.span else place.folder + place.stem
        alike = [f for f in listed if f.path.startswith(stem)]
        return alike[0] if alike and file not in listed else None

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
        place = place_of(old.path)
        if place is None:
            raise ValueError(f"{old.path} is not named as files of the lake are.")
        name = f"{place.stem}-{old.blake2b[:8]}"
        return self._write_file(old.table, name, place.day, rows)

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
        span = body["shard"], body["after_ms"], body["until_ms"]
        counts = (body.get(name, 0) for name in ("merged", "refused"))
        return Commit(*span, files, writers, *counts)

    def _entries(self, shard: str = "") -> tuple[list[str], list[str]]:
        """Paths of the entries that count, by shard and position, and of those covered."""
        folder = f"manifest/{shard}".rstrip("/")
        return counted_and_covered(self.paths(folder, ".json"))


def rows_of(name: str, rows: Iterable[tuple[Any, ...]]) -> pa.Table:
    """A table of the lake from tuples in the order of its schema."""
    schema = TABLES[name]
    columns = list(zip(*rows, strict=True))
    if not columns:
        return schema.empty_table()
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _over(place: Place, commits: Iterable[Commit]) -> list[Commit]:
    """The commits that hold what a file at that place holds, or would."""
    mine = (commit for commit in commits if commit.shard == place.shard)
    span = place.span
    return [c for c in mine if span is None or c.span.holds(span.after_ms)]


def _only_of(span: Span | None, rows: pa.Table) -> pa.Table:
    """The rows that were logged within a span; all, if there is none."""
    if span is None:
        return rows
    later = pc.greater(rows["log_ms"], span.after_ms)
    return rows.filter(pc.and_(later, pc.less_equal(rows["log_ms"], span.until_ms)))


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
