"""Decisions that stand in the lake more than once: one of them counts.

The service logs a decision exactly once. Other systems' files overlap: the same hours are
exported twice, or an export of our own log comes back. All rows are stored; of equal
(tenant, decision id) the one that came by the log counts, else the first in log order,
and the others are *repeats*.
"""

import ibis
import ibis.expr.types as ir

from bandolero.lake.engines import Engine
from bandolero.lake.listing import Listing
from bandolero.lake.settling import DECISION, IN_LOG_ORDER, sequence_of
from bandolero.log import DECISIONS_TABLE

PLACE = ("file", "place")


def repeats(engine: Engine, files: Listing) -> ir.Table:
    """Rows of decisions' ingested files that are repeats, by `PLACE`.

    Ids are looked at as hashes first: of files that do not overlap nearly none is left
    to be compared.
    """
    live = engine.read(files.live, DECISIONS_TABLE)
    ingested = engine.read(files.ingested, DECISIONS_TABLE)
    suspects = engine.keep(_suspects(live, ingested))
    rows = _of_marks(live, suspects, is_live=True)
    rows = engine.keep(rows.union(_of_marks(ingested, suspects, is_live=False)))
    order = [rows.is_live.desc(), *IN_LOG_ORDER]
    by_id = ibis.window(group_by=list(DECISION), order_by=order)
    counted = rows.mutate(nth=ibis.row_number().over(by_id))
    again = counted.filter((counted.nth > 0) & ~counted.is_live)
    return engine.keep(again.select(*PLACE))


def _suspects(live: ir.Table, ingested: ir.Table) -> ir.Table:
    """Marks that an ingested row shares with another row."""
    mine = ingested.select(mark=_mark(ingested))
    twice = mine.group_by("mark").aggregate(n=mine.count())
    twice = twice.filter(twice.n > 1).select("mark")
    logged = live.select(mark=_mark(live)).semi_join(mine, "mark")
    return twice.union(logged, distinct=True)


def _of_marks(rows: ir.Table, marks: ir.Table, *, is_live: bool) -> ir.Table:
    marked = rows.select(
        *DECISION,
        *PLACE,
        "log_ms",
        sequence=sequence_of(rows),
        is_live=ibis.literal(is_live),
        mark=_mark(rows),
    )
    return marked.semi_join(marks, "mark").drop("mark")


def _mark(rows: ir.Table) -> ir.IntegerValue:
    """A number that equal ids share, and few others; it differs from engine to engine."""
    return (rows.tenant_id + "/" + rows.decision_id).hash()
