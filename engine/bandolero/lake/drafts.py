"""What an ingested file becomes: files of the lake, and of the quarantine, part by part."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandolero.lake.catalog import INGESTED, Commit, Lake, LakeFile
from bandolero.lake.checking import REFUSAL

TIME = {"decisions": "decided_at_ms", "events": "received_at_ms"}
ROWS_PER_FILE = 1_000_000
BYTES_PER_FILE = 96 << 20
"""In memory; a file of the lake is written when so much, or so many rows, have come."""
MICROS = 1_000_000


class Drafts:
    """What is drafted of one file: files of the lake that are listed nowhere yet.

    Entered, it forgets what was refused of the same file before; left by an error, what it
    has drafted.
    """

    def __init__(self, lake: Lake, table: str, shard: str, source: str) -> None:
        self.accepted = 0
        self.rules: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self._lake = lake
        self._table = table
        self._shard = shard
        self._source = source
        self._files: list[LakeFile] = []
        self._good: list[pa.Table] = []
        self._odd: list[pa.Table] = []
        self._parts = 0
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[list[LakeFile]] | None = None
        self._after_ms, self._until_ms = 0, 0

    def __enter__(self) -> Self:
        self._lake.delete_folder(quarantine_of(self._table, self._shard))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()

    @property
    def refused(self) -> int:
        """Rows that break a rule."""
        return self.rules.total()

    @property
    def seen(self) -> int:
        """Rows that were to be taken in."""
        return self.accepted + self.refused

    def add(self, rows: pa.Table) -> None:
        """Take over checked rows; write files when enough have come."""
        is_good = rows["reason"].is_null()
        good = rows
        if rows["reason"].null_count < len(rows):
            good = rows.filter(is_good)
            odd = rows.filter(pc.invert(is_good))
            rules = _told(odd)
            self.rules.update(rules)
            for rule, value in zip(rules, odd["value"].to_pylist(), strict=True):
                if value is not None:
                    self.examples.setdefault(rule, value)
            self._odd.append(odd)
        if len(good):
            self.accepted += len(good)
            self._good.append(_placed(good.drop_columns(REFUSAL.names), self._table))
        if _is_enough(self._good):
            self._write_good()
        if _is_enough(self._odd):
            self._write_odd()

    def finish(self) -> None:
        """Write what has come since."""
        self._write_good()
        self._write_odd()
        self._wait()
        self._writer.shutdown()

    def commit(self) -> Commit:
        """What was drafted, to be listed."""
        files = tuple(self._files)
        span = self._after_ms, self._until_ms
        return Commit(self._shard, *span, files, {}, refused=self.refused)

    def discard(self) -> None:
        """Delete the files for good rows; what was refused stays to be looked at."""
        with suppress(OSError, pa.ArrowException):  # then there is nothing to delete
            self._wait()
        self._writer.shutdown()
        for file in self._files:
            self._lake.delete(file.path)
        self._files, self._good = [], []

    def _write_good(self) -> None:
        """Have a file written beside what is read meanwhile; one at a time."""
        if not self._good:
            return
        self._wait()
        rows = pa.concat_tables(self._good)
        self._good = []
        span = pc.min_max(rows["log_ms"]).as_py()
        first = max(0, span["min"] - 1)
        self._after_ms = min(first, self._after_ms) if self._parts else first
        self._until_ms = max(span["max"], self._until_ms)
        self._parts += 1
        self._writing = self._writer.submit(
            self._lake.write_part, self._shard, self._parts, self._table, rows
        )

    def _wait(self) -> None:
        """Until what is being written is there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._files += writing.result()

    def _write_odd(self) -> None:
        if not self._odd:
            return
        rows = pa.concat_tables(self._odd)
        self._odd = []
        source = pa.array([self._source]).take(pa.array([0] * len(rows)))
        where = quarantine_of(self._table, self._shard)
        path = f"{where}/{rows['row'][0].as_py():012d}-rows.parquet"
        write_quarantine(self._lake, path, rows.append_column("source", source))


def _told(odd: pa.Table) -> list[str]:
    """The rule that each row breaks, with the column it is about."""
    told = pc.binary_join_element_wise(
        odd["column"].fill_null("row"), odd["reason"], " "
    )
    texts: list[str] = told.to_pylist()
    return texts


def _is_enough(tables: Sequence[pa.Table]) -> bool:
    rows = sum(len(table) for table in tables)
    n_bytes = sum(int(table.nbytes) for table in tables)
    return rows >= ROWS_PER_FILE or n_bytes >= BYTES_PER_FILE


def _placed(rows: pa.Table, table: str) -> pa.Table:
    """The rows with a position in log time: their own."""
    times = rows[TIME[table]]
    if table == "events":
        times = pc.coalesce(times, rows["at_ms"])
        rows = _set(rows, "received_at_ms", times)
        rows = _set(rows, "value_micros", pc.fill_null(rows["value_micros"], MICROS))
    ids = pc.binary_join_element_wise(times.cast(pa.string()), "0", "-")
    return rows.append_column("log_id", ids).append_column("log_ms", times)


def _set(rows: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, column)


def quarantine_of(table: str, shard: str) -> str:
    """The folder of the rows that are refused of an ingested file."""
    return f"quarantine/{table}/{shard.removeprefix(f'{INGESTED}{table}-')}"


def write_quarantine(lake: Lake, path: str, rows: pa.Table) -> None:
    """Write rows, or a note, of what is refused."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    lake.write_bytes(path, bytes(sink.getvalue()))
