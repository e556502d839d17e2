"""Columns of a file as the types that ours have: the meaning kept, or the cell told.

A file that names our columns must have our types, or narrower ones; nothing is guessed. A
mapping may ask for more: whole numbers as text, times in their units, scaled numbers. In
CSV and JSON lines all is text, so that ids and large numbers stay what they are; there a
cell that cannot be read is refused alone.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero.lake.mapping import Column, pieces

Bools = NDArray[np.bool_]
MAX_NUMBER = 1e18
"""What a scaled number may come to, and a time: an int64 holds it."""
_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_ZONE = r"([Zz]|:\d\d(\.\d+)?[+-]\d\d(:?\d\d)?)$"


class WrongTypeError(ValueError):
    """A column is of a type that ours cannot be made of."""


class Broken(NamedTuple):
    """Cells that break a rule: where, (n_rows,), and what they held, (n_rows,)."""

    column: str
    rule: str
    mask: Bools
    given: pa.Array


class Reading:
    """Some rows of a file, read column by column; `broken` are cells that cannot be.

    Parameters
    ----------
    rows
        Columns as the file has them.
    is_text
        Whether all of them are text, whatever they stand for.
    """

    def __init__(self, rows: pa.RecordBatch, is_text: bool) -> None:
        self.rows = rows
        self.broken: list[Broken] = []
        self._is_text = is_text

    def column(self, wanted: pa.Field, column: Column, is_mapped: bool) -> pa.Array:
        """A column of ours, (n_rows,); null where it is broken, or the file lacks it.

        Raises
        ------
        WrongTypeError
            When it cannot be made of what the file has.
        """
        if not is_mapped and wanted.name not in self.rows.schema.names:
            return pa.nulls(len(self.rows), wanted.type)
        given = self._made(wanted, column)
        if pa.types.is_string(wanted.type) and is_mapped and _is_exact(given.type):
            return given.cast(pa.string())
        is_written = self._is_text and pa.types.is_string(given.type)
        if is_written and not pa.types.is_string(wanted.type):
            return self._parsed(wanted.name, given, wanted.type)
        if not may_cast(given.type, wanted.type):
            raise WrongTypeError(
                f"{wanted.name} is {given.type}, must be {wanted.type}."
            )
        return given.cast(wanted.type)

    def _made(self, wanted: pa.Field, column: Column) -> pa.Array:
        """What a column of ours is made of, before its type is looked at."""
        if column.constant is not None:
            return pa.repeat(pa.scalar(column.constant), len(self.rows))
        if column.template is not None:
            return self._filled(column.template)
        if column.fields is not None:
            return self._object(wanted.name, column.fields)
        given = self.theirs(column.column or wanted.name)
        is_time = pa.types.is_timestamp(given.type) and wanted.name.endswith("_ms")
        if column.time is not None or is_time:
            return self._ms(wanted.name, given, column)
        if column.scale is not None:
            return self._scaled(wanted, given, column.scale)
        return given

    def theirs(self, name: str) -> pa.Array:
        """A column as the file has it, (n_rows,)."""
        if name not in self.rows.schema.names:
            raise WrongTypeError(f"columns are missing: {name}.")
        return self.rows.column(name)

    def _filled(self, template: str) -> pa.Array:
        parts: list[Any] = []
        for text, name in pieces(template):
            parts.append(pa.scalar(text))
            if name:
                parts.append(self._text(name))
        filled = pc.binary_join_element_wise(*parts, "")
        if isinstance(filled, pa.Scalar):
            return pa.repeat(filled, len(self.rows))
        return filled

    def _text(self, name: str) -> pa.Array:
        given = self.theirs(name)
        if not _is_text(given.type) and not _is_exact(given.type):
            rule = "must be text or whole numbers to stand in a template"
            raise WrongTypeError(f"{name} is {given.type}, {rule}.")
        return given.cast(pa.string())

    def _object(self, ours: str, fields: dict[str, Column]) -> pa.Array:
        """A JSON object a row, written as workers write contexts."""
        parts: list[Any] = []
        for name, field in fields.items():
            wanted = pa.field(f"{ours}.{name}", pa.float64())
            head = f"{',' if parts else '{'}{json.dumps(name)}:"
            parts += [pa.scalar(head), _as_json(self._made(wanted, field))]
        if not parts:
            return pa.repeat("{}", len(self.rows))
        return pc.binary_join_element_wise(*parts, "}", "")

    def _ms(self, ours: str, given: pa.Array, column: Column) -> pa.Array:
        """Times in milliseconds since 1970."""
        if _is_text(given.type) and column.time == "iso":
            given = self._parsed(ours, given, pa.timestamp("ns", "UTC"))
        if pa.types.is_timestamp(given.type) and column.time in (None, "iso"):
            return given.cast(pa.timestamp("ms", given.type.tz), safe=False).cast(
                pa.int64()
            )
        if column.time in (None, "iso"):
            raise WrongTypeError(f"{ours} is {given.type}, must be text or timestamps.")
        numbers = self._numbers(ours, given)
        ms = np.clip(numbers * _MS[column.time], -MAX_NUMBER, MAX_NUMBER)
        whole = np.floor(np.round(ms, 3))  # 0.2999… s is 300 ms
        return self._finite(ours, given, whole).cast(pa.int64())

    def _scaled(self, wanted: pa.Field, given: pa.Array, scale: float) -> pa.Array:
        numbers = self._numbers(wanted.name, given) * scale
        if not pa.types.is_integer(wanted.type):
            return self._finite(wanted.name, given, numbers)
        return self._finite(wanted.name, given, np.round(numbers)).cast(wanted.type)

    def _numbers(self, ours: str, given: pa.Array) -> NDArray[np.float64]:
        """Numbers, (n_rows,); nan where there is none."""
        if self._is_text and _is_text(given.type):
            given = self._parsed(ours, given, pa.float64())
        elif not _is_number(given.type):
            raise WrongTypeError(f"{ours} is {given.type}, must be numbers.")
        numbers = given.cast(pa.float64(), safe=False)
        return np.asarray(numbers.to_numpy(zero_copy_only=False), np.float64)

    def _finite(
        self, ours: str, given: pa.Array, numbers: NDArray[np.float64]
    ) -> pa.Array:
        """Numbers, null where they are none; those out of all bounds are broken."""
        odd = ~(np.abs(numbers) <= MAX_NUMBER)
        told = odd & given.is_valid().to_numpy(zero_copy_only=False)
        told &= ~self._is_told(ours)
        if told.any():
            self.broken.append(
                Broken(ours, "must be finite, and no giant.", told, given)
            )
        return pa.array(np.where(odd, 0.0, numbers), mask=odd)

    def _is_told(self, ours: str) -> Bools:
        """Which cells of a column are known to be broken."""
        told = np.zeros(len(self.rows), np.bool_)
        for one in self.broken:
            if one.column == ours:
                told |= one.mask
        return told

    def _parsed(self, ours: str, text: pa.Array, kind: pa.DataType) -> pa.Array:
        """What text stands for; cells that cannot be read are null, and broken."""
        values, rule = _parsers(kind)(text)
        odd = pc.and_(text.is_valid(), values.is_null())
        mask = np.asarray(odd.to_numpy(zero_copy_only=False))
        if mask.any():
            self.broken.append(Broken(ours, rule, mask, text))
        return values


def may_cast(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast keeps the meaning: text to text, number to number, never across."""
    if given.equals(wanted) or pa.types.is_null(given):
        return True
    if pa.types.is_string(wanted):
        return _is_text(given)
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(given))
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_floating(given) or pa.types.is_integer(given))
    if pa.types.is_list(wanted) and pa.types.is_list(given):
        return may_cast(given.value_type, wanted.value_type)
    return False


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    )


def _is_exact(kind: pa.DataType) -> bool:
    """Whether text says all there is to such a number."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    )


Parser = Callable[[pa.Array], tuple[pa.Array, str]]


def _parsers(kind: pa.DataType) -> Parser:
    """What reads text as a type, null where it cannot; and the rule it goes by."""
    if pa.types.is_timestamp(kind):
        return lambda text: (
            _cast(_zoned(text.cast(pa.string())), kind),
            "must be an ISO 8601 time.",
        )
    if pa.types.is_list(kind):
        return lambda text: (_lists(text, kind), "must be a JSON list.")
    if pa.types.is_integer(kind):
        return lambda text: (_whole(text, kind), "must be a whole number.")
    return lambda text: (_cast(text, kind), "must be a number.")


def _whole(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """Whole numbers; 5.0 is one, as those write it who know no others."""
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        plain = pc.replace_substring_regex(text, r"^(-?[0-9]+)\.0+$", r"\1")
        return _cast(plain, kind)


def _cast(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """Text as a type; null where it cannot be, found by halving."""
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        if len(text) == 1:
            return pa.nulls(1, kind)
    half = len(text) // 2
    return pa.concat_arrays([_cast(text[:half], kind), _cast(text[half:], kind)])


def _zoned(text: pa.Array) -> pa.Array:
    """Times with a zone: UTC where they say none."""
    has_zone = pc.match_substring_regex(text, _ZONE)
    return pc.if_else(has_zone, text, pc.binary_join_element_wise(text, "Z", ""))


def _lists(text: pa.Array, kind: pa.DataType) -> pa.Array:
    """JSON lists, each distinct text read once; null where one is none."""
    coded = text.dictionary_encode()
    read = [_list(one, kind) for one in coded.dictionary.to_pylist()]
    return pa.array(read, kind).take(coded.indices)


def _list(text: str, kind: pa.DataType) -> list[Any] | None:
    try:
        read = json.loads(text)
        return pa.array([read], kind)[0].as_py() if isinstance(read, list) else None
    except (ValueError, RecursionError, pa.ArrowException):
        return None


def _as_json(values: pa.Array) -> pa.Array:
    """Each value as JSON, each distinct one written once."""
    if pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        return values.cast(pa.string()).fill_null("null")
    if pa.types.is_floating(values.type):
        finite = pc.if_else(pc.is_finite(values), values, None)
        coded = finite.dictionary_encode()
    else:
        coded = (
            values
            if pa.types.is_dictionary(values.type)
            else values.dictionary_encode()
        )
    told = [json.dumps(one, ensure_ascii=False) for one in coded.dictionary.to_pylist()]
    return pa.array(told, pa.string()).take(coded.indices).fill_null("null")
