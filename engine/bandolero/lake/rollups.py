"""What each variant did, by day, mode and segment: all that a report of a stretch needs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from bandolero.epochs import DAY_MS
from bandolero.experiment import OTHER, CategoricalField, ExperimentRecord
from bandolero.lake.engines import Engine
from bandolero.lake.measures import (
    MEASURES_FIELDS,
    in_order,
    summed,
    untold_by,
    with_told,
)
from bandolero.lake.settling import EXPERIMENT

MAX_CELLS = 5_000
"""Combinations of levels that are counted in one pass over the decisions."""
Fields = dict[str, set[str]]
"""Categorical fields by name, and the levels they have in any experiment."""
_KEYS = (*EXPERIMENT, "variant_id", "mode", "day")
ROLLUPS_TABLE = pa.schema(
    [
        *((name, pa.string()) for name in (*EXPERIMENT, "variant_id", "mode")),
        ("day", pa.int64()),
        *MEASURES_FIELDS,
    ]
)
"""A row a variant, mode and day (since 1970, UTC of the decisions)."""
SEGMENTS_TABLE = pa.schema(
    [("field", pa.string()), ("level", pa.string()), *ROLLUPS_TABLE]
)
"""The same by level of each categorical context field."""


class Rollups(NamedTuple):
    """Rows of `ROLLUPS_TABLE` and `SEGMENTS_TABLE`, in order; and `untold_by` variant."""

    rollups: pa.Table
    segments: pa.Table
    untold: ir.Table


def roll_up(
    engine: Engine,
    closed: ir.Table,
    settled: ir.Table,
    records: Sequence[ExperimentRecord],
) -> Rollups:
    """Measures by day and mode, of all requests and by segment.

    Parameters
    ----------
    closed
        Every closed decision.
    settled
        Those of them that something was told of, from `without_invalid`.
    """
    closed, settled = _dated(closed), _dated(settled)
    wholes, variants, segments = [], [], []
    for fields in _passes(records):
        untold = engine.keep(_untold(engine, closed, fields, are_few(records)))
        told = _with_levels(engine, settled, fields)
        keys = (*_KEYS, *map(_column, fields))
        cells = engine.keep(with_told(untold, told, keys))
        wholes.append(summed(cells, _KEYS))
        variants.append(_by_variant(untold))
        segments += [_by_level(engine, cells, field, records) for field in fields]
    return Rollups(
        _ordered(engine, wholes[:1], ROLLUPS_TABLE),
        _ordered(engine, segments, SEGMENTS_TABLE),
        engine.keep(variants[0]),
    )


def _fields(records: Sequence[ExperimentRecord]) -> Fields:
    """Categorical fields of any experiment, and all levels that one of them has."""
    found: Fields = {}
    for record in records:
        for field in record.spec.context:
            if isinstance(field, CategoricalField):
                found.setdefault(field.name, {OTHER}).update(field.levels)
    return found


def _passes(records: Sequence[ExperimentRecord]) -> Iterator[Fields]:
    """Fields with their levels, so many together that their cells stay few."""
    passing: Fields = {}
    cells = 1
    for name, levels in sorted(_fields(records).items()):
        cells *= len(levels) + 1
        if passing and cells > MAX_CELLS:
            yield passing
            passing, cells = {}, len(levels) + 1
        passing[name] = levels
    yield passing


def are_few(records: Sequence[ExperimentRecord]) -> bool:
    """Whether recorded contexts are: they hold no numbers."""
    fields = (field for record in records for field in record.spec.context)
    return all(isinstance(field, CategoricalField) for field in fields)


def _untold(
    engine: Engine, closed: ir.Table, fields: Fields, contexts_are_few: bool
) -> ir.Table:
    """`untold_by` the levels of some fields.

    Where contexts are few they are counted as texts, and only those that are left read.
    """
    if contexts_are_few:
        by_text = untold_by(closed, (*_KEYS, "context"))
        return _with_levels(engine, by_text, fields)
    rows = _with_levels(engine, closed, fields)
    return untold_by(rows, (*_KEYS, *map(_column, fields)))


def _by_variant(untold: ir.Table) -> ir.Table:
    return untold.group_by(*EXPERIMENT, "variant_id").aggregate(
        began_ms=untold.began_ms.min(),
        unlearned=untold.unlearned.sum().cast("int64"),
        unlearned_trials=untold.unlearned_trials.sum().cast("int64"),
        faded_trials=untold.faded_trials.sum(),
    )


def _dated(rows: ir.Table) -> ir.Table:
    return rows.mutate(day=(rows.decided_at_ms // DAY_MS).cast("int64"))


def _with_levels(engine: Engine, rows: ir.Table, fields: Fields) -> ir.Table:
    """Rows with the levels of some fields: null where not said, "other" where unknown."""
    said = engine.with_said(rows, {_column(name): name for name in fields})
    levels = {}
    for name, known in fields.items():
        text = said[_column(name)]
        is_kept = text.isnull() | text.isin(sorted(known))
        levels[_column(name)] = ibis.ifelse(is_kept, text, OTHER)
    return said.mutate(**levels)


def _column(field: str) -> str:
    return f"level_of_{field}"


def _by_level(
    engine: Engine, cells: ir.Table, field: str, records: Sequence[ExperimentRecord]
) -> ir.Table:
    """By level of a field, for the experiments that have it."""
    defaults, levels = _declared(field, records)
    mine = cells.inner_join(engine.table(defaults), EXPERIMENT)
    mine = mine.mutate(said=mine[_column(field)].coalesce(mine.default_level))
    known = engine.table(levels).mutate(is_known=True)
    mine = mine.left_join(known, [*EXPERIMENT, mine.said == known.known_level])
    level = ibis.ifelse(mine.is_known.fill_null(False), mine.said, OTHER)
    named = mine.mutate(level=level)
    return summed(named, (*_KEYS, "level")).mutate(field=ibis.literal(field))


def _declared(
    field: str, records: Sequence[ExperimentRecord]
) -> tuple[pa.Table, pa.Table]:
    """Of each experiment that has a field: its default, and its levels."""
    defaults, levels = [], []
    for record in records:
        for one in record.spec.context:
            if isinstance(one, CategoricalField) and one.name == field:
                key = (record.tenant, record.experiment_id)
                defaults.append((*key, one.default))
                levels += [
                    (*key, level) for level in dict.fromkeys([*one.levels, OTHER])
                ]
    return _texts(defaults, "default_level"), _texts(levels, "known_level")


def _texts(rows: Sequence[tuple[str, ...]], name: str) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(c, pa.string()) for c in columns], [*EXPERIMENT, name])


def _ordered(engine: Engine, parts: Sequence[ir.Table], schema: pa.Schema) -> pa.Table:
    """Rows of all parts, sorted."""
    if not parts:
        return schema.empty_table()
    whole = ibis.union(*(part.select(*schema.names) for part in parts))
    keys = [n for n in (*EXPERIMENT, "field", "level", *_KEYS[2:]) if n in schema.names]
    return in_order(engine.to_arrow(whole).cast(schema), keys)
