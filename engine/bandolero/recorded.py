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
def _differs(row: Bytes, at: int, heads: Bytes, start: int, n: int) -> bool:
    """Whether something else than these n bytes stands there."""
    odd = 0
    for j in range(n):
        odd |= int(row[at + j]) ^ int(heads[start + j])
    return odd != 0


@kernel
def _text_end(row: Bytes, at: int) -> int:
    """Where a string without escapes ends, from its first character on; else -1."""
    size = row.size
    while at < size and row[at] != _QUOTE and row[at] != _BACKSLASH:
        if row[at] < _SPACE:
            return -1
        at += 1
    return at if at < size and row[at] == _QUOTE else -1


@kernel
def _after_power(row: Bytes, at: int) -> int:
    """Where a power of ten ends whose e stands there; -1 where it says none."""
    at += 1
    if at < row.size and (row[at] == _PLUS or row[at] == _MINUS):
        at += 1
    first = at
    while at < row.size and _ZERO <= row[at] <= _NINE:
        at += 1
    return at if at > first else -1


@kernel
def _after_number(row: Bytes, at: int) -> tuple[int, float]:
    """Where a number, by the grammar of JSON, ends, -1 where none stands there; and it.

    nan in place of one that is long, or has a power of ten. Whole numbers and powers of
    ten below 10^15 are floats themselves, so the one divided by the other is rounded once
    (Clinger 1990, How to Read Floating Point Numbers). Digits are read here, not by a
    function: one that returns two numbers would take longer than they do.
    """
    size, is_negative = row.size, at < row.size and row[at] == _MINUS
    first = at + 1 if is_negative else at
    at, value, n_after = first, 0, 0
    while at < size and _ZERO <= row[at] <= _NINE:
        value = 10 * value + int(row[at]) - _ZERO
        at += 1
    n_digits = at - first
    if n_digits == 0 or (n_digits > 1 and row[first] == _ZERO):
        return -1, 0.0
    if at < size and row[at] == _POINT:
        point = at + 1
        at = point
        while at < size and _ZERO <= row[at] <= _NINE:
            value = 10 * value + int(row[at]) - _ZERO
            at += 1
        n_after = at - point
        if n_after == 0:
            return -1, 0.0
    if at < size and (row[at] == 101 or row[at] == 69):  # e, E
        return _after_power(row, at), math.nan
    if n_digits + n_after > _EXACT_DIGITS:
        return at, math.nan
    return at, float((-value if is_negative else value) / _POWERS[n_after])


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
        first, row = int(ends[i]), data[ends[i] : ends[i + 1]]
        size, at = row.size, 0
        for f in range(is_text.size):
            n_head = int(head_ends[f + 1] - head_ends[f])
            if size - at < n_head or _differs(row, at, heads, head_ends[f], n_head):
                at = -1
                break
            start = at + n_head
            if is_text[f]:
                start += 1
                at = -1
                if start <= size and row[start - 1] == _QUOTE:
                    at = _text_end(row, start)
            else:
                at, numbers[f, i] = _after_number(row, start)
            if at < 0:
                break
            spans[i, 2 * f], spans[i, 2 * f + 1] = first + start, first + at
            if is_text[f]:
                at += 1
        plain[i] = at >= 0 and at == size - 1 and row[at] == _END
    return plain
