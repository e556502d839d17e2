"""Rows of a stranger's file made ours: mapped, in our types, each with the rule it breaks.

This is what the child of `bandolero.lake.reader` does; here no process is needed for it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.lake.columns import Bools, Broken, Reading
from bandolero.lake.formats import Rows, is_text, read_rows
from bandolero.lake.mapping import OURS, Mapping
from bandolero.lake.rules import KEPT_FROM_VIEW, REQUIRED, Checks, broken_cells
from bandolero.lake.sources import Source
from bandolero.log import DECISIONS, EVENTS

SHOWN_CHARACTERS = 200
"""So much is told of a value that is refused."""
PART_BYTES = 32 << 20
"""At most so much is handed over at once."""
SCHEMAS = {"decisions": DECISIONS, "events": EVENTS}
REFUSAL = pa.schema(
    [
        ("row", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
    ]
)
"""Beside each row: which of the file it is, from 1, and what is wrong with it, or nulls."""


class Request(NamedTuple):
    """What is to be made of a file."""

    table: str
    mapping: Mapping
    checks: Checks


class Part(NamedTuple):
    """Rows of a file in our columns and those of `REFUSAL`; `left_out` were not meant."""

    rows: pa.RecordBatch
    left_out: int
    share: float


def checked(source: Source, request: Request) -> Iterator[Part]:
    """Rows of a file in our columns, each with the rule that it breaks, if it does."""
    mapping, table = request.mapping, request.table

    def check(names: Sequence[str]) -> None:
        _check_names(names, request)

    for rows in read_rows(source, mapping.theirs(table), check):
        for some in _slices(rows):
            meant = _meant(some, mapping, is_text(source))
            yield Part(_made(meant, request, is_text(source)), *_left(some, meant))


def _left(some: Rows, meant: Rows) -> tuple[int, float]:
    return len(some.rows) - len(meant.rows), some.share


def _check_names(names: Sequence[str], request: Request) -> None:
    """Refuse a file whose columns are not all it must have, or stand twice."""
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        raise ValueError(f"columns stand twice: {', '.join(twice)}.")
    mapping = request.mapping
    asked = [
        name
        for ours in OURS[request.table]
        if ours in mapping.columns or ours in REQUIRED[request.table]
        for name in mapping.column(ours).theirs
    ]
    there = set(names)
    wanted = dict.fromkeys([*asked, *mapping.where])
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(f"columns are missing: {', '.join(missing)}.")


def _slices(rows: Rows) -> Iterator[Rows]:
    """The same rows in parts that are not too large to hand over."""
    n = max(1, -(-rows.rows.nbytes // PART_BYTES))
    step = max(1, -(-len(rows.rows) // n))
    for start in range(0, max(1, len(rows.rows)), step):
        unread = tuple(
            one._replace(
                mask=one.mask[start : start + step],
                given=one.given[start : start + step],
            )
            for one in rows.unread
        )
        yield rows._replace(
            rows=rows.rows.slice(start, step),
            numbers=rows.numbers[start : start + step],
            unread=unread,
        )


def _meant(rows: Rows, mapping: Mapping, is_text: bool) -> Rows:
    """The rows that `where` means, and those that cannot be taken apart."""
    if rows.unread or not mapping.where:
        return rows
    kept = np.ones(len(rows.rows), np.bool_)
    for name, values in mapping.where.items():
        found = _is_among(name, rows.rows.column(name), values, is_text)
        kept &= np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
    return rows._replace(
        rows=rows.rows.filter(pa.array(kept)), numbers=rows.numbers[kept]
    )


def _is_among(name: str, column: pa.Array, values: Any, is_text: bool) -> pa.Array:
    """Where a column of theirs holds one of some values, (n_rows,)."""
    wanted = values if isinstance(values, list) else [values]
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        texts = [_plain(value) for value in wanted] if is_text else wanted
        return pc.is_in(column, pa.array(texts).cast(column.type))
    except pa.ArrowException:
        rule = f"must be of the type of the column, {column.type}"
        raise ValueError(f"where.{name} == {values!r}, {rule}.") from None


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _made(rows: Rows, request: Request, is_text: bool) -> pa.RecordBatch:
    """Our columns, and those of `REFUSAL`."""
    mapping, schema = request.mapping, SCHEMAS[request.table]
    reading = Reading(rows.rows, is_text)
    columns = [
        reading.column(field, mapping.column(field.name), field.name in mapping.columns)
        for field in schema
    ]
    ours = pa.record_batch(columns, schema=schema)
    ours.validate(full=True)  # text that is no UTF-8 would stop every later reader
    broken = [
        *rows.unread,
        *reading.broken,
        *broken_cells(request.table, ours, request.checks),
    ]
    sound = [
        _without(ours.column(i), schema[i].name, broken) for i in range(len(schema))
    ]
    refusal = _refusal(rows.numbers, [one for one in broken if one.mask.any()])
    return pa.record_batch([*sound, *refusal], schema=pa.schema([*schema, *REFUSAL]))


def _without(column: pa.Array, name: str, broken: Sequence[Broken]) -> pa.Array:
    """A column without its broken cells: they may be of any size."""
    mask = np.zeros(len(column), np.bool_)
    for one in broken:
        if one.column == name:
            mask |= one.mask
    return pc.if_else(pa.array(mask), None, column) if mask.any() else column


def _refusal(numbers: Any, broken: Sequence[Broken]) -> list[pa.Array]:
    """For each row the first rule that it breaks, and what broke it."""
    n = len(numbers)
    if not broken:
        return [pa.array(numbers, pa.int64()), *[pa.nulls(n, pa.string())] * 3]
    told: dict[str, list[str | None]] = {name: [None] * n for name in REFUSAL.names[1:]}
    seen: Bools = np.zeros(n, np.bool_)
    for one in broken:
        for i in np.flatnonzero(one.mask & ~seen).tolist():
            told["column"][i] = one.column or None
            told["value"][i] = _shown(one, i)
            told["reason"][i] = one.rule
        seen |= one.mask
    return [
        pa.array(numbers, pa.int64()),
        *(pa.array(t, pa.string()) for t in told.values()),
    ]


def _shown(broken: Broken, row: int) -> str | None:
    """What a cell held, shortened; a unit is nobody's business."""
    if broken.column == KEPT_FROM_VIEW or not broken.given[row].is_valid:
        return None
    value = broken.given[row].as_py()
    text = value if isinstance(value, str) else repr(value)
    return text[:SHOWN_CHARACTERS]
