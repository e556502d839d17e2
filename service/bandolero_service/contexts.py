"""What requests say of themselves, read by an experiment's schema, few texts anew.

Memory is bounded by bytes: of what a client sends only short texts and the fields that
the schema declares are remembered.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from bandolero.experiment import CategoricalField, ContextField
from bandolero.features import context_encoder, is_of_its_type

MAX_CONTEXTS = 256
"""Contexts that are remembered: most experiments see few, over and over."""
MAX_CONTEXT_BYTES = 16_384
"""Of the text of one, as sent: megabytes take seconds to read."""
MAX_REMEMBERED_BYTES = 1_024
"""Of the text of one; longer ones are read every time."""
read_context = msgspec.json.Decoder(dict[str, Any] | None).decode
"""A context from its JSON text."""


class Context(NamedTuple):
    """A request's context, read.

    kept: its declared fields as JSON, as the log keeps them; None where none is
    declared. given: the same, decoded. ignored: what of it was, to be counted: `context`
    for undeclared fields, `context_value` for values that are not of their field's type.
    """

    given: dict[str, Any]
    kept: str | None
    ignored: tuple[str, ...]


class Contexts:
    """Reads the contexts of one experiment."""

    def __init__(self, schema: Sequence[ContextField]) -> None:
        self._schema = schema
        self._encode = context_encoder(schema)
        self._decode_plain = _plain_decoder(schema)
        self._order = [field.name for field in schema]
        self._names = frozenset(self._order)
        self._known: dict[bytes, Context] = {}
        self.none = self._read(b"null")
        """The context of a request that says nothing."""

    def read(self, text: bytes) -> Context:
        """A context from its JSON text, an object or null.

        Raises
        ------
        msgspec.MsgspecError, UnicodeDecodeError, RecursionError
            When it is none.
        """
        return self._known.get(text) or self._read(text)

    def _read(self, text: bytes) -> Context:
        plain = self._plain(text) if self._names else None
        context = plain or self._any(text)
        if len(text) <= MAX_REMEMBERED_BYTES:
            if len(self._known) >= MAX_CONTEXTS:
                self._known.clear()
            self._known[text] = context
        return context

    def _plain(self, text: bytes) -> Context | None:
        """A context that says every field as declared, and no more; None for others."""
        try:
            said = self._decode_plain(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        kept = msgspec.json.encode(said).decode()
        given = zip(self._order, msgspec.structs.astuple(said), strict=True)
        return Context(dict(given), kept, ())

    def _any(self, text: bytes) -> Context:
        said = read_context(text) or {}
        kept = self._encode(said) if self._names else None
        given = read_context(kept) or {} if kept is not None else {}
        return Context(given, kept, tuple(self._ignored(said)))

    def _ignored(self, said: dict[str, Any]) -> Iterator[str]:
        if not said.keys() <= self._names:
            yield "context"
        if not all(is_of_its_type(f, said.get(f.name)) for f in self._schema):
            yield "context_value"


def _plain_decoder(
    schema: Sequence[ContextField],
) -> Callable[[bytes], msgspec.Struct]:
    """Decodes contexts that are as their schema says; raises a MsgspecError for others."""
    fields = [(f"field_{i}", _kind(field)) for i, field in enumerate(schema)]
    names = {f"field_{i}": field.name for i, field in enumerate(schema)}
    plain = msgspec.defstruct(
        "Plain", fields, rename=names, forbid_unknown_fields=True, gc=False
    )
    return msgspec.json.Decoder(plain).decode


def _kind(field: ContextField) -> Any:
    """The type of a field's values; of a level one of those declared."""
    if isinstance(field, CategoricalField):
        return Literal[tuple(field.levels)]
    return float
