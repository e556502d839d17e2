"""How another system's columns become ours, as its owner writes it down: YAML or JSON.

    columns:                                  # ours: theirs
      tenant_id: {constant: acme}             #   the same in every row
      decision_id: "request"                  #   a column of theirs
      variant_id: {template: "item-{sku}"}    #   text with columns of theirs in it
      decided_at_ms: {column: ts, time: iso}  #   iso | s | ms | us | ns
      value_micros: {column: eur, scale: 1000000}
      context: {fields: {device: ua_class, hour: {column: hh, scale: 1}}}
    where: {click: 1}                         # only such rows; others are left out

Columns of ours that are not named are taken as they are, where the file has them.
"""

from collections.abc import Iterator
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from bandolero.documents import UnreadableDocumentError, decoded, faults_of
from bandolero.log import DECISIONS, EVENTS
from bandolero.policy_specs import Fault, Model

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Scalar = str | int | float | bool
KINDS = ("column", "constant", "template", "fields")
OURS = {"decisions": tuple(DECISIONS.names), "events": tuple(EVENTS.names)}
"""Columns that a file may bring, by table."""


class InvalidMappingError(ValueError):
    """A mapping was refused; the message lists everything wrong with it."""


class Column(Model):
    """Where a column of ours comes from: one of the first four says it.

    `fields` makes a JSON object, for `context`: numbers stay numbers, the rest is text.
    `time` is what their times are in, `scale` what their numbers are multiplied by.
    """

    column: Name | None = None
    constant: Scalar | None = None
    template: Annotated[str, Field(max_length=1000)] | None = None
    fields: Annotated[dict[Name, "Column"], Field(max_length=100)] | None = None
    time: Literal["iso", "s", "ms", "us", "ns"] | None = None
    scale: Annotated[float, Field(gt=0.0, le=1e15)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        return {"column": given} if isinstance(given, str) else given

    @property
    def theirs(self) -> list[str]:
        """Names of the columns it is made of."""
        if self.template is not None:
            return [name for _, name in pieces(self.template) if name]
        if self.fields is not None:
            return [name for field in self.fields.values() for name in field.theirs]
        return [self.column] if self.column is not None else []


class Mapping(Model):
    """What each column of ours is made of, and which rows are meant."""

    columns: dict[Name, Column] = Field(default_factory=dict)
    where: Annotated[dict[Name, Scalar | list[Scalar]], Field(max_length=20)] = Field(
        default_factory=dict
    )

    def column(self, ours: str) -> Column:
        """Where a column of ours comes from: if nothing is said, from its namesake."""
        return self.columns.get(ours, Column(column=ours))

    def theirs(self, table: str) -> list[str]:
        """Columns of a file that are asked for, for a table; each once."""
        asked = [name for ours in OURS[table] for name in self.column(ours).theirs]
        return list(dict.fromkeys([*asked, *self.where]))


def load_mapping(text: bytes, table: str) -> Mapping:
    """Read a mapping into a table from the bytes of a YAML or JSON file.

    Raises
    ------
    InvalidMappingError
        When it cannot be read or breaks a rule.
    """
    try:
        given = decoded(text)
        if given is None:
            raise InvalidMappingError("mapping is empty, must have columns or where.")
        mapping = Mapping.model_validate(given)
    except UnreadableDocumentError as error:
        raise InvalidMappingError(str(error)) from None
    except ValidationError as error:
        raise _refused(faults_of(map(dict, error.errors()), "mapping")) from None
    faults = [
        fault
        for ours, column in mapping.columns.items()
        for fault in _faults(table, ours, column)
    ]
    if faults:
        raise _refused(faults)
    return mapping


def pieces(template: str) -> Iterator[tuple[str, str]]:
    """Texts of a template, each with the column that follows it; empty at the end.

    Raises
    ------
    ValueError
        When braces do not match, or hold more than a name.
    """
    for text, name, form, conversion in Formatter().parse(template):
        if name == "" or form or conversion:
            raise ValueError("braces must hold the name of a column, no more.")
        yield text, name or ""


def _faults(table: str, ours: str, column: Column) -> Iterator[Fault]:
    where = f"columns.{ours}"
    if ours not in OURS[table]:
        names = ", ".join(OURS[table])
        yield Fault(where, f"{where} is not a column of {table}: {names}.")
    if column.time is not None and not ours.endswith("_ms"):
        rule = "must be given for a column that ends with _ms"
        yield Fault(where, f"{where}.time == {column.time!r}, {rule}.")
    if column.fields is not None and ours != "context":
        yield Fault(where, f"{where}.fields is given, must be given for context only.")
    yield from _own_faults(where, column)


def _own_faults(where: str, column: Column) -> Iterator[Fault]:
    """Rules of one entry, and of its fields."""
    given = [kind for kind in KINDS if getattr(column, kind) is not None]
    if len(given) != 1:
        rule = f"must say one of {', '.join(KINDS)}"
        yield Fault(where, f"{where} says {' and '.join(given) or 'nothing'}, {rule}.")
    if column.column is None and (column.time or column.scale):
        yield Fault(where, f"{where} has a time or scale, must name a column too.")
    if column.template is not None:
        try:
            list(pieces(column.template))
        except ValueError as error:
            text = f"{where}.template == {column.template!r}: {error}"
            yield Fault(where, text)
    for name, field in (column.fields or {}).items():
        if field.fields is not None or field.time is not None:
            yield Fault(where, f"{where}.{name} must be a number or text.")
        yield from _own_faults(f"{where}.fields.{name}", field)


def _refused(faults: list[Fault]) -> InvalidMappingError:
    return InvalidMappingError("; ".join(fault.message for fault in faults))
