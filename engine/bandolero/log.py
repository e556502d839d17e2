"""Decisions and events as columnar blocks: their schemas, bytes and reading back.

A block is one Arrow record batch, appended to the log in one entry. Its log id is the
store's, so every row of a block has the same `log_id` and `log_ms` (the id's time).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

DECISIONS = pa.schema(
    [
        ("tenant_id", pa.string()),
        ("decision_id", pa.string()),
        ("experiment_id", pa.string()),
        ("spec_version", pa.int32()),
        ("engine_version", pa.string()),
        ("variant_id", pa.string()),
        ("unit", pa.string()),
        ("decided_at_ms", pa.int64()),
        ("snapshot_version", pa.int64()),
        ("eligible", pa.list_(pa.string())),
        ("draw", pa.float64()),
        ("propensity", pa.float64()),
        ("probabilities", pa.list_(pa.float32())),
        ("rule", pa.string()),
        ("mode", pa.string()),
        ("serving", pa.string()),
        ("context", pa.string()),
    ]
)
"""One row a decision.

unit: pseudonym or null. eligible: null means all active variants of the snapshot.
probabilities: of the eligible, in order; null means the snapshot's own. rule: how
probabilities of a narrowed set were had (`exact` or `renormalised`), else null.
context: the declared fields as JSON, or null.
"""

EVENTS = pa.schema(
    [
        ("tenant_id", pa.string()),
        ("event_id", pa.string()),
        ("decision_id", pa.string()),
        ("experiment_id", pa.string()),
        ("type", pa.string()),
        ("value_micros", pa.int64()),
        ("retracts", pa.string()),
        ("decided_at_ms", pa.int64()),
        ("at_ms", pa.int64()),
        ("received_at_ms", pa.int64()),
    ]
)
"""One row an event; `at_ms` is the event's time as design 1.1 resolves it."""

MAX_UNIT_CHARACTERS = 256
"""What may stand as a unit has that many, and one at least."""
LAST_SEQUENCE = 2**64 - 1
"""The greatest that may stand after the time in a log id."""
LOG_POSITION = [("log_id", pa.string()), ("log_ms", pa.int64())]
_POSITION = [pa.field(name, kind) for name, kind in LOG_POSITION]
DECISIONS_TABLE = pa.schema([*DECISIONS, *_POSITION])
EVENTS_TABLE = pa.schema([*EVENTS, *_POSITION])

_IPC_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
"""Not zstd, which takes half a millisecond a block, however small, to save a third."""


def warm_up() -> None:
    """Have Arrow load what its first conversion loads, which takes a third of a second."""
    pa.array([""])


def write_block(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> bytes:
    """Bytes of a block; each row is a tuple in the schema's order."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return block_of(pa.record_batch(arrays, schema=schema))


def block_of(batch: pa.RecordBatch) -> bytes:
    """Bytes of a block that holds the rows of `batch`."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_IPC_OPTIONS) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def blocks_of_rows(rows: pa.Table, schema: pa.Schema) -> Iterator[tuple[str, bytes]]:
    """(log id, block) of rows that have been read, by the blocks they came in."""
    ids = rows["log_id"].to_pylist()
    starts = [i for i, log_id in enumerate(ids) if i == 0 or log_id != ids[i - 1]]
    for start, end in pairwise([*starts, len(ids)]):
        mine = rows.slice(start, end - start).select(schema.names).combine_chunks()
        yield ids[start], block_of(mine.to_batches()[0])


def read_block(data: bytes, log_id: str) -> pa.Table:
    """Rows of a block with their position in the log."""
    known = pa.ipc.read_schema(pa.py_buffer(data))
    return read_blocks([(log_id, data)], pa.schema([*known, *_POSITION]))


def read_blocks(entries: Iterable[tuple[str, bytes]], schema: pa.Schema) -> pa.Table:
    """Rows of (log id, block) entries, in log order, each column in one chunk.

    `schema` is `DECISIONS_TABLE`, `EVENTS_TABLE` or some of their fields: columns that
    are not asked for are not even decompressed.
    """
    blocks = list(entries)
    if not blocks:
        return schema.empty_table()
    fields = [field for field in schema if field.name not in dict(LOG_POSITION)]
    known = pa.ipc.read_schema(pa.py_buffer(blocks[0][1]))
    wanted = [known.get_field_index(field.name) for field in fields]
    options = pa.ipc.IpcReadOptions(
        use_threads=False, included_fields=sorted(i for i in wanted if i >= 0)
    )
    tables = [_rows(data, pa.schema(fields), options) for _, data in blocks]
    table = pa.concat_tables(tables)
    block = np.repeat(np.arange(len(blocks)), [len(rows) for rows in tables])
    ids = [log_id for log_id, _ in blocks]
    times = np.array([log_ms(log_id) for log_id in ids])
    if "log_id" in schema.names:
        table = table.append_column("log_id", pa.array(ids).take(pa.array(block)))
    table = table.append_column("log_ms", pa.array(times[block]))
    return table.select(schema.names).combine_chunks()


def _rows(data: bytes, schema: pa.Schema, options: pa.ipc.IpcReadOptions) -> pa.Table:
    with pa.ipc.open_stream(data, options=options) as reader:
        table = reader.read_all()
    if table.column_names == schema.names:
        return table
    with pa.ipc.open_stream(data) as reader:  # a block of another layout
        table = reader.read_all()
    there, n = set(table.column_names), table.num_rows
    columns = [
        table[f.name] if f.name in there else pa.nulls(n, f.type) for f in schema
    ]
    return pa.table(columns, schema)


def log_ms(log_id: str) -> int:
    """The store's clock at a log id, in milliseconds."""
    return int(log_id.partition("-")[0])


def before(log_id: str) -> str:
    """The greatest log id below `log_id`, for reading from it inclusively."""
    ms, _, sequence = log_id.partition("-")
    if int(sequence) > 0:
        return f"{ms}-{int(sequence) - 1}"
    return f"{int(ms) - 1}-{LAST_SEQUENCE}"


def log_id_at(ms: int) -> str:
    """The greatest log id below a log time, for reading from it inclusively."""
    return before(f"{max(ms, 1)}-0")


def log_order(log_id: str) -> tuple[int, int]:
    """A log id as a sortable pair."""
    ms, _, seq = log_id.partition("-")
    return int(ms), int(seq or 0)
