"""What is known of a request: context by its schema."""

from collections.abc import Mapping, Sequence
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
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if is_number and isfinite(given):  # type: ignore[arg-type]  # a number, see above
        return float(given)  # type: ignore[arg-type]
    return field.default
