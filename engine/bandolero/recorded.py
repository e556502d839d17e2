"""Recorded contexts, by column: without parsing JSON row by row.

`features.context_encoder` writes each context as its schema's fields in order, so most of
a text is known beforehand. A kernel finds where the values stand in texts written so and
in no others; those are left to who reads JSON.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero._jit import kernel
from bandolero.experiment import CategoricalField, ContextField

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Offsets = NDArray[np.int32]
Bytes = NDArray[np.uint8]
_QUOTE, _BACKSLASH, _SPACE, _MINUS, _PLUS, _POINT, _ZERO, _NINE, _END = b'"\\ -+.09}'


class Columns(NamedTuple):
    """Values of the contexts that were written as expected, in order.

    plain: which of the texts these are, (n_texts,). values: an array (n_plain,) for each
    field of the schema: of strings where it is categorical, else of finite numbers.
    """

    plain: Bools
    values: list[pa.Array]


def columns_of(texts: pa.ChunkedArray, schema: Sequence[ContextField]) -> Columns:
    """Recorded contexts as columns; none of them is plain where a number is too large."""
    none = Columns(np.zeros(len(texts), np.bool_), [])
    if not schema or not len(texts):
        return none
    given = pc.fill_null(texts, "").combine_chunks()
    _, offsets, data = given.buffers()
    ends = np.frombuffer(offsets, np.int32)[given.offset :][: len(given) + 1]
    spans = np.empty((len(given), 2 * len(schema)), np.int32)
    heads, head_ends = _heads(schema)
    is_text = np.array([isinstance(field, CategoricalField) for field in schema])
    characters = np.frombuffer(data or b"", np.uint8)
    plain = _find_values(characters, ends, heads, head_ends, is_text, spans)
    # Values and what stands between them take turns: one array over the same bytes.
    spans = np.ascontiguousarray(spans[plain])
    n_parts = max(spans.size - 1, 0)
    parts = pa.StringArray.from_buffers(n_parts, pa.py_buffer(spans), data)
    firsts = np.arange(len(spans)) * spans.shape[1]
    values = [parts.take(pa.array(firsts + 2 * i)) for i in range(len(schema))]
    try:
        values = [
            value if text else pc.cast(value, pa.float64())
            for value, text in zip(values, is_text, strict=True)
        ]
    except pa.ArrowInvalid:
        return none
    numbers = [v for v in values if pa.types.is_floating(v.type)]
    finite = all(pc.all(pc.is_finite(v)).as_py() is not False for v in numbers)
    return Columns(plain, values) if finite else none


def _heads(schema: Sequence[ContextField]) -> tuple[Bytes, Ints]:
    """What stands before each value, and where it ends: (n_bytes,), (n_fields + 1,)."""
    heads = [f"{',' if i else '{'}{json.dumps(f.name)}:" for i, f in enumerate(schema)]
    ends = np.cumsum([0, *map(len, heads)])
    return np.frombuffer("".join(heads).encode(), np.uint8), ends


@kernel
def _after(data: Bytes, at: int, end: int, expected: Bytes) -> int:
    """Where what is expected ends; -1 where something else stands there."""
    if end - at < expected.size:
        return -1
    for j in range(expected.size):
        if data[at + j] != expected[j]:
            return -1
    return at + expected.size


@kernel
def _after_text(data: Bytes, at: int, end: int) -> int:
    """Where a string without escapes ends; -1 where none stands there."""
    if at >= end or data[at] != _QUOTE:
        return -1
    for j in range(at + 1, end):
        if data[j] == _QUOTE:
            return j + 1
        if data[j] == _BACKSLASH or data[j] < _SPACE:
            return -1
    return -1


@kernel
def _after_digits(data: Bytes, at: int, end: int) -> int:
    while at < end and _ZERO <= data[at] <= _NINE:
        at += 1
    return at


@kernel
def _after_number(data: Bytes, at: int, end: int) -> int:
    """Where a number, by the grammar of JSON, ends; -1 where none stands there."""
    if at < end and data[at] == _MINUS:
        at += 1
    whole = _after_digits(data, at, end)
    if whole == at or (whole > at + 1 and data[at] == _ZERO):
        return -1
    at = whole
    if at < end and data[at] == _POINT:
        at = _after_digits(data, whole + 1, end)
        if at == whole + 1:
            return -1
    if at < end and (data[at] == 101 or data[at] == 69):  # e, E
        at += 1
        if at < end and (data[at] == _PLUS or data[at] == _MINUS):
            at += 1
        power = _after_digits(data, at, end)
        return -1 if power == at else power
    return at


@kernel
def _find_values(
    data: Bytes,
    ends: Offsets,
    heads: Bytes,
    head_ends: Ints,
    is_text: Bools,
    spans: Offsets,
) -> Bools:
    """Fill in start and end of every value; whether a text is as expected, (n_texts,)."""
    plain = np.zeros(ends.size - 1, np.bool_)
    for i in range(plain.size):
        at, end = int(ends[i]), int(ends[i + 1])
        for f in range(is_text.size):
            start = _after(data, at, end, heads[head_ends[f] : head_ends[f + 1]])
            quote = int(is_text[f])
            if start < 0:
                at = start
            elif quote:
                at = _after_text(data, start, end)
            else:
                at = _after_number(data, start, end)
            if at < 0:
                break
            spans[i, 2 * f], spans[i, 2 * f + 1] = start + quote, at - quote
        plain[i] = at >= 0 and at == end - 1 and data[at] == _END
    return plain
