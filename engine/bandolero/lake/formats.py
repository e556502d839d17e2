"""Parquet, CSV and JSON lines, read a bounded number of rows at a time.

Parquet keeps its types. The others are text, all of it, so that nothing is guessed from
the first rows: 007 stays 007, and an id above the range of int64 stays what it is.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from bandolero.lake.columns import Broken
from bandolero.lake.sources import PACKED, Source

ROWS_AT_ONCE = (65_536, 2048, 64)
"""Of Parquet; fewer where so many do not fit into memory."""
BATCH_BYTES = 16 << 20
MAX_LINE_BYTES = 16 << 20
MAX_ROWS_PER_BYTE = 64
"""A file that says it holds more is no log: a row has an id of its own."""

Missing = Callable[[Sequence[str]], None]
"""Told the columns of a file before its rows are read; raises where some are missing."""


class Rows(NamedTuple):
    """Some rows of a file, in order.

    numbers
        Which rows of the file, from 1, (n_rows,); CSV's heading is none.
    share
        How much of the file is read, from 0 to 1.
    unread
        Rows that cannot be taken apart; `rows` has nulls in their places.
    """

    rows: pa.RecordBatch
    numbers: NDArray[np.int64]
    share: float
    unread: tuple[Broken, ...] = ()


def read_rows(
    source: Source, wanted: Sequence[str], check: Missing = lambda _: None
) -> Iterator[Rows]:
    """Rows of a file, of the columns wanted that it has; once, if it has no rows.

    Raises
    ------
    ValueError, OSError, pyarrow.ArrowException
        When it is no such file, or says what cannot be.
    MemoryError
        When even a few rows do not fit.
    """
    readers = {"parquet": _parquet, "csv": _csv, "json": _json}
    return readers[source.format](source, wanted, check)


def is_text(source: Source) -> bool:
    """Whether all columns of a file are text, whatever they stand for."""
    return source.format != "parquet"


# --- Parquet --------------------------------------------------------------------------------


def _parquet(source: Source, wanted: Sequence[str], check: Missing) -> Iterator[Rows]:
    done = 0
    for tries, rows_at_once in enumerate(ROWS_AT_ONCE):
        try:
            for rows in _batches(source, wanted, check, rows_at_once, done):
                yield rows
                done += len(rows.rows)
        except MemoryError:
            if tries == len(ROWS_AT_ONCE) - 1:
                raise
        else:
            return


def _batches(
    source: Source, wanted: Sequence[str], check: Missing, rows_at_once: int, done: int
) -> Iterator[Rows]:
    """Rows after the first `done`, so many at once."""
    with source.filesystem.open_input_file(source.path) as file:
        parquet = pq.ParquetFile(
            file,
            buffer_size=1 << 20,  # or a whole column of a row group is read at once
            pre_buffer=False,
            page_checksum_verification=True,
        )
        names, n_rows = parquet.schema_arrow.names, parquet.metadata.num_rows
        if n_rows > MAX_ROWS_PER_BYTE * file.size():
            size = f"{n_rows:,} rows in {file.size():,} bytes"
            raise ValueError(f"file declares {size}, must be a log.")
        check(names)
        columns = [name for name in wanted if name in names]
        rows_at_once = min(rows_at_once, _fitting(parquet.metadata, columns))
        start = 0
        if n_rows == 0:
            empty = parquet.schema_arrow.empty_table().select(columns)
            yield _some(empty.combine_chunks().to_batches() or [_none(empty)], 0, 1.0)
        for batch in parquet.iter_batches(
            rows_at_once, columns=columns, use_threads=False
        ):
            fresh = batch.slice(max(0, done - start))
            first, start = max(start, done), start + len(batch)
            if start > n_rows:
                raise ValueError(f"file has more than the {n_rows:,} rows it declares.")
            if len(fresh):
                yield _some([fresh], first, start / n_rows)
        if start != n_rows:
            raise ValueError(f"file declares {n_rows:,} rows, has {start:,}.")


def _none(table: pa.Table) -> pa.RecordBatch:
    arrays = [pa.array([], field.type) for field in table.schema]
    return pa.record_batch(arrays, schema=table.schema)


def _some(batches: list[pa.RecordBatch], first: int, share: float) -> Rows:
    (batch,) = batches
    return Rows(batch, np.arange(first + 1, first + 1 + len(batch)), share)


def _fitting(metadata: pq.FileMetaData, columns: Sequence[str]) -> int:
    """How many rows make a batch, as wide as the file says its rows are."""
    n_bytes = 1
    for group in range(min(metadata.num_row_groups, 8)):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            column = row_group.column(i)
            if column.path_in_schema.partition(".")[0] in columns:
                per_row = column.total_uncompressed_size / max(1, row_group.num_rows)
                n_bytes = max(n_bytes, per_row)
    return int(max(64, BATCH_BYTES / n_bytes))


# --- text -----------------------------------------------------------------------------------


def _csv(source: Source, wanted: Sequence[str], check: Missing) -> Iterator[Rows]:
    odd: list[int] = []

    def note(row: csv.InvalidRow) -> str:
        odd.append(row.number - 1)  # the heading is no row
        return "skip"

    parsing = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note)
    reading = csv.ReadOptions(block_size=BATCH_BYTES, use_threads=False)
    with _Text(source) as text:
        names = csv.open_csv(text.stream, reading, parsing).schema.names
    check(names)
    odd.clear()
    columns = [name for name in wanted if name in names]
    rule = f"must have {len(names)} values."
    converting = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=columns,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    done = 0
    with _Text(source) as text:
        for batch in csv.open_csv(text.stream, reading, parsing, converting):
            after = np.arange(done + 1, done + 1 + len(batch) + len(odd))
            numbers = np.setdiff1d(after, odd)[: len(batch)]
            yield Rows(batch, numbers, text.share)
            done = int(numbers[-1]) if len(numbers) else done
            passed = [number for number in odd if number < done]
            if passed:
                yield _unread(columns, passed, rule)
                odd[:] = [number for number in odd if number > done]
    if odd:
        yield _unread(columns, odd, rule)


def _json(source: Source, wanted: Sequence[str], _: Missing) -> Iterator[Rows]:
    # No row can tell which columns a file has not.
    done = 0
    with _Text(source) as text, io.BufferedReader(text.stream, 1 << 20) as stream:
        lines = _lines(stream)
        while some := _as_many(lines):
            good: dict[int, list[str | None]] = {}
            odd: list[int] = []
            for number, line in enumerate(some, done + 1):
                if line.isspace():
                    continue
                row = _object(line)
                if row is None:
                    odd.append(number)
                else:
                    good[number] = [_as_text(row.get(name)) for name in wanted]
            done += len(some)
            numbers = np.array(list(good), np.int64)
            yield Rows(_texts(wanted, list(good.values())), numbers, text.share)
            if odd:
                yield _unread(wanted, odd, "must be one JSON object.")


class _Text:
    """The unpacked bytes of a file, and how much of it has been read."""

    def __init__(self, source: Source) -> None:
        self._size = max(1, source.version().size)
        self._raw = source.filesystem.open_input_file(source.path)
        kind = PACKED.get(Path(source.path.lower()).suffix)
        self.stream = pa.CompressedInputStream(self._raw, kind) if kind else self._raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self._raw.close()

    @property
    def share(self) -> float:
        """How much has been read, from 0 to 1."""
        if self._raw.closed:  # by who has read all of it
            return 1.0
        return min(1.0, int(self._raw.tell()) / self._size)


def _lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """Lines of a file; of one that is too long, what is no object."""
    while line := stream.readline(MAX_LINE_BYTES):
        rest = line
        while rest and len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_LINE_BYTES)
            line = line[:1]
        yield line


def _as_many(lines: Iterator[bytes]) -> list[bytes]:
    """The next lines, as many as are parsed together."""
    some: list[bytes] = []
    n_bytes = 0
    for line in lines:
        some.append(line)
        n_bytes += len(line)
        if n_bytes >= BATCH_BYTES or len(some) == ROWS_AT_ONCE[0]:
            break
    return some


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _texts(
    names: Sequence[str], rows: Sequence[Sequence[str | None]]
) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.record_batch(arrays, names=list(names))


def _unread(names: Sequence[str], odd: Sequence[int], rule: str) -> Rows:
    """Rows of which nothing is known, and nothing told: a unit may be anywhere in them."""
    nothing = _texts(names, [[None] * len(names)] * len(odd))
    all_of_it = np.ones(len(odd), np.bool_)
    broken = Broken("", rule, all_of_it, pa.nulls(len(odd), pa.string()))
    return Rows(nothing, np.array(odd, np.int64), 1.0, (broken,))
