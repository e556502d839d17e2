"""Documents that people write: YAML or JSON, read safely, their faults told as we tell all."""

import json
import re
from collections.abc import Iterable, Mapping
from reprlib import Repr
from typing import Any

import yaml

from bandolero.policy_specs import Fault

MAX_FILE_BYTES = 1_000_000


class UnreadableDocumentError(ValueError):
    """What was given is too large, or no document at all."""


def decoded(text: bytes) -> object:
    """What a YAML or JSON file holds.

    Raises
    ------
    UnreadableDocumentError
        When it is too large or cannot be read.
    """
    if len(text) > MAX_FILE_BYTES:
        message = f"file == {len(text)} bytes, must be <= {MAX_FILE_BYTES}."
        raise UnreadableDocumentError(message)
    try:
        return _decoded(text)
    except _UNREADABLE as error:
        message = f"file is not YAML or JSON: {' '.join(str(error).split())[:300]}."
        raise UnreadableDocumentError(message) from None


# PyYAML answers a bad tagged scalar (`!!int ""`) with whatever its code ran into.
_UNREADABLE = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases: a kilobyte of them can stand for 9 ** 30 items."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, spelled out."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) must be spelled out")
        return super().compose_node(parent, index)


def _decoded(text: bytes) -> object:
    """JSON as JSON: YAML reads 1e-05 as text and takes an escaped emoji apart."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except ValueError:
        loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 80, 80


def shown(value: object) -> str:
    """A value as its author would know it again, in at most 80 characters."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"<{type(value).__name__} beyond all measure>"
    return text if len(text) <= 80 else text[:77] + "..."


def faults_of(items: Iterable[Mapping[str, Any]], document: str) -> list[Fault]:
    """Faults that pydantic found, in our grammar: name == value, must be rule.

    `document` stands for what has no name: the whole of it.
    """
    return [_fault(item, document) for item in items]


def _fault(item: Mapping[str, Any], document: str) -> Fault:
    field = _field_name(item["loc"])
    kind = item["type"]
    if kind == "missing":
        return Fault(field, f"{field} is missing.")
    if kind in {"extra_forbidden", "invalid_key"}:
        return Fault(field, f"{field} is not a known field.")
    if kind == "union_tag_not_found":
        return Fault(f"{field}.kind", f"{field}.kind is missing.")
    if kind == "union_tag_invalid":
        tag, tags = item["ctx"]["tag"], item["ctx"]["expected_tags"]
        return Fault(f"{field}.kind", f"{field}.kind == {tag!r}, must be {tags}.")
    given = shown(item["input"])
    rule = _rule(str(item["msg"]))
    return Fault(field, f"{field or document} == {given}, must {rule}.")


def _rule(told: str) -> str:
    """What must be, from pydantic's message, without its own matters."""
    told = re.sub(r"^\w+ should | after validation|, unable to parse .*", "", told)
    return re.sub(r"a valid dictionary( or .*)?$", "a mapping of fields", told)


def _field_name(loc: tuple[str | int, ...]) -> str:
    """Dotted path as an author would write it, without the tags of tagged unions."""
    parts: list[str] = []
    for i, part in enumerate(loc):
        is_tag = (i == 1 and loc[0] == "policy") or (i == 2 and loc[0] == "context")
        if isinstance(part, int):
            parts[-1:] = [f"{parts[-1]}[{part}]" if parts else f"[{part}]"]
        elif not is_tag:
            parts.append(part)
    return ".".join(parts)
