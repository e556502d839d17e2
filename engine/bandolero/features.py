"""What is known of a request: context by its schema."""

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite

from bandolero.experiment import CategoricalField, ContextField

OTHER = "other"
Context = dict[str, str | float]


def known_context(
    schema: Sequence[ContextField], given: Mapping[str, object]
) -> Context:
    """The declared fields of a context: known levels or "other", numbers, defaults.

    Undeclared fields are left out; a value of the wrong type counts as missing.
    """
    return {field.name: _value(field, given.get(field.name)) for field in schema}


def _value(field: ContextField, given: object) -> str | float:
    if isinstance(field, CategoricalField):
        if given is None:
            return field.default
        return given if isinstance(given, str) and given in field.levels else OTHER
    return field.default if (number := _number(given)) is None else number


def _number(given: object) -> float | None:
    """A finite number as such; None for anything else."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    try:
        return float(given) if isfinite(given) else None
    except OverflowError:  # an integer beyond all floats
        return None


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
