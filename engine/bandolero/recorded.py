"""Recorded contexts, by column: without parsing JSON row by row.

`features.context_encoder` writes each context as its schema's fields in order, so most of
a text is known beforehand. A kernel finds where the values stand in texts written so and
in no others; those are left to who reads JSON.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero._jit import kernel
from bandolero.experiment import CategoricalField, ContextField

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Offsets = NDArray[np.int32]
Bytes = NDArray[np.uint8]
_EXACT_DIGITS = 15
_POWERS = np.array([float(10**n) for n in range(_EXACT_DIGITS + 1)])
_QUOTE, _BACKSLASH, _SPACE, _MINUS, _PLUS, _POINT, _ZERO, _NINE, _END = b'"\\ -+.09}'


class Columns(NamedTuple):
    """Values of the contexts that were written as expected, in order.

    plain: which of the texts these are, (n_texts,). texts: for each field of the schema
    an array of strings (n_plain,); None where it is not categorical. numbers: finite, of
    the other fields, (n_fields, n_plain).
    """

    plain: Bools
    texts: list[pa.Array | None]
    numbers: Floats


def columns_of(texts: pa.ChunkedArray, schema: Sequence[ContextField]) -> Columns:
    """Recorded contexts as columns; none of them is plain where a number is too large."""
    none = Columns(np.zeros(len(texts), np.bool_), [], np.empty((len(schema), 0)))
    if not schema or not len(texts):
        return none
    given = pc.fill_null(texts, "").combine_chunks()
    _, offsets, data = given.buffers()
    ends = np.frombuffer(offsets, np.int32)[given.offset :][: len(given) + 1]
    spans = np.empty((len(given), 2 * len(schema)), np.int32)
    numbers = np.zeros((len(schema), len(given)))
    heads, head_ends = _heads(schema)
    is_text = np.array([isinstance(field, CategoricalField) for field in schema])
    characters = np.frombuffer(data or b"", np.uint8)
    plain = _find_values(characters, ends, heads, head_ends, is_text, spans, numbers)
    if not plain.all():
        spans, numbers = spans[plain], numbers[:, plain]
    # Values and what stands between them take turns: one array over the same bytes.
    n_parts = max(spans.size - 1, 0)
    parts = pa.StringArray.from_buffers(n_parts, pa.py_buffer(spans), data)
    firsts = np.arange(len(spans)) * spans.shape[1]
    for i in np.flatnonzero(np.isnan(numbers).any(axis=1)).tolist():
        left = np.flatnonzero(np.isnan(numbers[i]))
        long = parts.take(pa.array(firsts[left] + 2 * i))
        try:
            numbers[i, left] = pc.cast(long, pa.float64())
        except pa.ArrowInvalid:
            return none
    if not np.isfinite(numbers).all():
        return none
    found = [
        parts.take(pa.array(firsts + 2 * i)) if text else None
        for i, text in enumerate(is_text)
    ]
    return Columns(plain, found, numbers)


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
def _short_decimal(data: Bytes, start: int, end: int) -> float:
    """The number that stands there; nan of one that is long, or has a power of ten.

    Whole numbers and powers of ten below 10^15 are floats themselves, so the one divided
    by the other is rounded once (Clinger 1990, How to Read Floating Point Numbers).
    """
    if end - start > _EXACT_DIGITS:
        return math.nan
    whole, sign, n_after = 0, 1.0, 0
    for j in range(start, end):
        byte = int(data[j])
        if byte == _MINUS:
            sign = -1.0
        elif byte == _POINT:
            n_after = end - j - 1
        elif _ZERO <= byte <= _NINE:
            whole = 10 * whole + byte - _ZERO
        else:
            return math.nan
    return float(sign * whole / _POWERS[n_after])


@kernel
def _find_values(
    data: Bytes,
    ends: Offsets,
    heads: Bytes,
    head_ends: Ints,
    is_text: Bools,
    spans: Offsets,
    numbers: Floats,
) -> Bools:
    """Fill in start and end of every value, and its number where it is a short one.

    Whether a text is as expected, (n_texts,).
    """
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
            if not quote:
                numbers[f, i] = _short_decimal(data, start, at)
        plain[i] = at >= 0 and at == end - 1 and data[at] == _END
    return plain
