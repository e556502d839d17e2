"""What is known of a request: context by its schema, and as numbers.

The numbers of a schema, in its order: 1 (the intercept); of a categorical field one per
level and one for "other", 1 where it is; of a cyclic field the sine and the cosine; a
numeric field as it is. Numeric fields are best given in units that make them about 1 in
size: a coefficient's prior is the same for all.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero._jit import kernel
from bandolero.experiment import OTHER, CategoricalField, ContextField, CyclicField
from bandolero.recorded import Columns, columns_of

NUMERIC_MAX = 1e9
"""Larger features are taken as this large: their squares and sums stay finite."""
ENCODED_AT_ONCE = 16_384
"""Recorded contexts whose features are made together, so that they stay in the cache."""
Context = dict[str, str | float]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def known_context(
    schema: Sequence[ContextField], given: Mapping[str, object]
) -> Context:
    """The declared fields of a context: known levels or "other", numbers, defaults.

    Undeclared fields are left out; of a wrong type a number counts as missing, a level
    as unknown.
    """
    return {field.name: _value(field, given.get(field.name)) for field in schema}


def is_of_its_type(field: ContextField, given: object) -> bool:
    """Whether a field's value is a text or a finite number as declared, or missing.

    An unknown level is a text; what is not of its type `known_context` replaces.
    """
    if isinstance(field, CategoricalField):
        return given is None or isinstance(given, str)
    return given is None or _number(given) is not None


class _Part(NamedTuple):
    """A field of a schema, ready for use.

    columns: by level, none where the field is not categorical. period: 0 where it is not
    cyclic.
    """

    name: str
    start: int
    columns: dict[str, int]
    period: float
    default: str | float


class FeatureMap:
    """Turns contexts into features; made once per experiment, safe to share.

    Parameters
    ----------
    schema
        The experiment's context fields.

    Examples
    --------
    >>> device = CategoricalField(kind="categorical", name="device", levels=["tv", "pc"])
    >>> hour = CyclicField(kind="cyclic", name="hour", period=24.0)
    >>> features = FeatureMap([device, hour])
    >>> features.names
    ('1', 'device=tv', 'device=pc', 'device=other', 'sin(hour)', 'cos(hour)')
    >>> features.encode({"device": "pc", "hour": 6}).round(9)
    array([1., 0., 1., 0., 1., 0.])
    """

    def __init__(self, schema: Sequence[ContextField]) -> None:
        self.schema = tuple(schema)
        names = ["1"]
        self._parts: list[_Part] = []
        for field in self.schema:
            start = len(names)
            columns: dict[str, int] = {}
            if isinstance(field, CategoricalField):
                levels = dict.fromkeys([*field.levels, OTHER])
                columns = {level: start + i for i, level in enumerate(levels)}
            period = field.period if isinstance(field, CyclicField) else 0.0
            part = _Part(field.name, start, columns, period, field.default)
            self._parts.append(part)
            names += field.columns
        self.names = tuple(names)

    @property
    def n_features(self) -> int:
        """Length of what `encode` gives."""
        return len(self.names)

    def encode(self, given: Mapping[str, object]) -> NDArray[np.float64]:
        """Features of a context, (n_features,), always finite.

        Unknown levels, missing fields and values of a wrong type as `known_context` says.
        """
        x = [0.0] * len(self.names)
        x[0] = 1.0
        get = given.get
        for name, start, columns, period, default in self._parts:
            value = get(name)
            if columns:
                x[_column(columns, default if value is None else value)] = 1.0
                continue
            if type(value) is float and not period and abs(value) <= NUMERIC_MAX:
                x[start] = value + 0.0  # nearly always
                continue
            number = _number(value)
            number = float(default) if number is None else number
            if period:
                angle = math.tau * (math.fmod(number, period) / period)
                x[start], x[start + 1] = math.sin(angle), math.cos(angle)
            else:
                x[start] = min(max(number, -NUMERIC_MAX), NUMERIC_MAX)
        return np.array(x)

    def encode_batch(
        self, contexts: Sequence[Mapping[str, object]]
    ) -> NDArray[np.float64]:
        """Features of many contexts, (n_contexts, n_features)."""
        rows = [self.encode(given) for given in contexts]
        return np.array(rows).reshape(len(rows), self.n_features)

    def encode_texts(self, texts: pa.ChunkedArray) -> Floats:
        """Features of recorded contexts, (n_texts, n_features): `encode` of each.

        Texts that are null, or no JSON of an object, say nothing. The same numbers as
        one by one, bit for bit, but by column where a text is as `context_encoder` writes.
        """
        x = np.zeros((len(texts), self.n_features))
        for start in range(0, len(texts), ENCODED_AT_ONCE):
            some = texts.slice(start, ENCODED_AT_ONCE)
            part = x[start : start + len(some)]
            found = columns_of(some, self.schema)
            plain = found.plain
            if plain.all() and plain.size:
                self._fill(part, found)
                continue
            if plain.any():
                part[plain] = self._fill(part[plain], found)
            said = [_said(text) for text in some.filter(pa.array(~plain)).to_pylist()]
            part[~plain] = self.encode_batch(said)
        return x

    def _fill(self, x: Floats, given: Columns) -> Floats:
        """Features into zeros (n, n_features), of n plain contexts."""
        x[:, 0] = 1.0
        for part, texts in zip(self._parts, given.texts, strict=True):
            if texts is not None:
                level = pc.index_in(texts, value_set=pa.array(part.columns))
                other = part.columns[OTHER] - part.start
                at = np.asarray(pc.fill_null(level, other).to_numpy())
                x[np.arange(len(x)), part.start + at] = 1.0
        # A period of -1 is none: there stand texts.
        periods = [-1.0 if part.columns else part.period for part in self._parts]
        starts = np.array([part.start for part in self._parts])
        _fill_numbers(x, starts, np.array(periods), given.numbers)
        return x


def encode(
    schema: Sequence[ContextField], context: Mapping[str, object]
) -> NDArray[np.float64]:
    """Features of one context, (n_features,); `FeatureMap` for more than one."""
    return FeatureMap(schema).encode(context)


def _value(field: ContextField, given: object) -> str | float:
    if isinstance(field, CategoricalField):
        if given is None:
            return field.default
        return given if isinstance(given, str) and given in field.levels else OTHER
    return field.default if (number := _number(given)) is None else number


def _column(columns: dict[str, int], given: object) -> int:
    """The column of a level; that of "other" where it is none."""
    other = columns[OTHER]
    return columns.get(given, other) if isinstance(given, str) else other


def _number(given: object) -> float | None:
    """A finite number as such, zero without a sign; None for anything else."""
    if type(given) is float:  # nearly always
        return given + 0.0 if isfinite(given) else None
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    try:
        return float(given) + 0.0 if isfinite(given) else None
    except OverflowError:  # an integer beyond all floats
        return None


@kernel
def _fill_numbers(x: Floats, starts: Ints, periods: Floats, numbers: Floats) -> None:
    """Features of all fields that are numbers, (n_fields, n) of them, row by row.

    periods: 0 where a field is not cyclic, below 0 where it is no number. Sine and cosine
    are the C library's, as `encode` has them.
    """
    for i in range(len(x)):
        for f in range(starts.size):
            at, number = starts[f], numbers[f, i] + 0.0
            if periods[f] > 0.0:
                angle = math.tau * (np.fmod(number, periods[f]) / periods[f])
                x[i, at], x[i, at + 1] = math.sin(angle), math.cos(angle)
            elif periods[f] == 0.0:
                x[i, at] = min(max(number, -NUMERIC_MAX), NUMERIC_MAX)


def _said(text: str | None) -> dict[str, object]:
    """A recorded context; empty where there is none, or ingested text that is none."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def context_encoder(
    schema: Sequence[ContextField],
) -> Callable[[Mapping[str, object]], str]:
    """`known_context` as JSON text, with all that is the same made once."""
    parts = [_encoded_field(field) for field in schema]

    def encode(given: Mapping[str, object]) -> str:
        return "{" + ",".join([part(given) for part in parts]) + "}"

    return encode


def _encoded_field(field: ContextField) -> Callable[[Mapping[str, object]], str]:
    """A field of a context as `"name":value`."""
    name = field.name
    head = json.dumps(name) + ":"
    default = head + json.dumps(field.default, ensure_ascii=False)
    if not isinstance(field, CategoricalField):

        def number(given: Mapping[str, object]) -> str:
            value = _number(given.get(name))
            return default if value is None else head + repr(value)

        return number
    levels = {x: head + json.dumps(x, ensure_ascii=False) for x in field.levels}
    other = head + json.dumps(OTHER)

    def level(given: Mapping[str, object]) -> str:
        value = given.get(name)
        if isinstance(value, str):
            return levels.get(value, other)
        return default if value is None else other

    return level
