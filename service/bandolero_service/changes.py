"""What has changed in the store, and what it holds as JSON, parsed when it has."""

import logging
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Changes(NamedTuple):
    """How often what is served has changed: anything, a record, a correction."""

    served: int
    records: int
    corrections: int


NOTHING_SEEN = Changes(-1, -1, -1)


class Parsed(Generic[T]):
    """Values by name, parsed from bytes once; `parse` raises a ValueError."""

    def __init__(self, what: str, parse: Callable[[bytes], T]) -> None:
        self._what = what
        self._parse = parse
        self._known: dict[str, tuple[bytes, T | None]] = {}

    def of(self, found: Mapping[str, bytes]) -> dict[str, T]:
        """The values; the same object where the bytes are.

        Instead of one that cannot be read, the last one that could, if there was one.
        """
        values = {name: self._value(name, data) for name, data in found.items()}
        return {name: value for name, value in values.items() if value is not None}

    def _value(self, name: str, data: bytes) -> T | None:
        known = self._known.get(name, (b"", None))
        if known[0] == data:
            return known[1]
        try:
            value: T | None = self._parse(data)
        except ValueError as error:
            value = known[1]
            what = "it is passed over" if value is None else "the last one stays"
            message = "the %s of %s cannot be read, %s: %s"
            log.error(message, self._what, name, what, error)
        self._known[name] = (data, value)
        return value
