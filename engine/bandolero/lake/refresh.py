"""The nightly job: settle everything the lake holds, once more and with hindsight.

What the live fold learned stays as it was; the refresh says by how much it was wrong.
A `Correction` is (settled at the watermark) - (settled live), per variant: late events,
refunds, retractions, what was excluded, and what only the lake holds. The learner adds
the newest one to its counts, so applying the same night twice changes nothing. Where
data fade it is said twice: as the facts it corrects, for reports, and as what is left
of them at the watermark, for the learner.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.experiment import ExperimentRecord
from bandolero.fold import Correction
from bandolero.lake.catalog import BadFile, Lake
from bandolero.lake.corrections import AUDIT_TABLE, audit_of, corrections_of
from bandolero.lake.engines import Engine, open_engine
from bandolero.lake.listing import Listing, checked_files, undisturbed
from bandolero.lake.measures import in_order
from bandolero.lake.metric_sums import metric_sums
from bandolero.lake.repeats import PLACE, repeats
from bandolero.lake.rollups import roll_up
from bandolero.lake.settling import (
    DECISION,
    closed_decisions,
    objectives_of,
    settle_twice,
)
from bandolero.lake.splits import splits_by_day
from bandolero.lake.stages import stages_by
from bandolero.lake.traffic import NO_RULES, TrafficRules, without_invalid
from bandolero.log import DECISIONS_TABLE, EVENTS_TABLE
from bandolero.metric import MetricSums
from bandolero.settle import GRACE_MS

Progress = Callable[[str], None]
READ = (
    *DECISION,
    "experiment_id",
    "variant_id",
    "unit",
    "decided_at_ms",
    "snapshot_version",
    "mode",
    "log_ms",
    "context",
    "propensity",
)
"""Columns of decisions that a refresh needs, as they are."""


class Refreshed(NamedTuple):
    """All a refresh found.

    decisions, events: rows listed, those of bad files too. settled: decisions that closed
    by the watermark. repeated: rows of a decision that is counted already
    (`lake.repeats`). unmatched_events: those of decisions that the lake does not hold.
    rollups, segments: rows of `ROLLUPS_TABLE` and `SEGMENTS_TABLE` of `lake.rollups`.
    splits: of `SPLITS_TABLE` of `lake.splits`.
    audit: of `AUDIT_TABLE` of `lake.corrections`. metrics: by tenant and experiment.
    """

    watermark_ms: int
    decisions: int
    events: int
    settled: int
    repeated: int
    late_events: int
    unmatched_events: int
    corrections: list[Correction]
    rollups: pa.Table
    segments: pa.Table
    stages: pa.Table
    splits: pa.Table
    metrics: dict[tuple[str, str], MetricSums]
    audit: pa.Table
    bad_files: list[BadFile]


def refresh(
    lake: Lake,
    records: Sequence[ExperimentRecord],
    until_ms: int | None = None,
    progress: Progress = lambda _: None,
    rules: TrafficRules = NO_RULES,
    engine: Engine | None = None,
) -> Refreshed:
    """Settle the lake up to its watermark (or `until_ms`, if that is earlier).

    Parameters
    ----------
    records
        Experiments to refresh; decisions of others are left alone.
    progress
        Told the name of each step as it begins.
    engine
        Who computes; default: DuckDB.
    """
    if engine is None:
        with open_engine() as engine:
            return refresh(lake, records, until_ms, progress, rules, engine)
    watermark_ms = _watermark_ms(lake, records)
    if until_ms is not None:
        watermark_ms = min(watermark_ms, until_ms)
    night = partial(_night, lake, records, watermark_ms, progress, rules, engine)
    return undisturbed(lake, night, progress)


def _night(
    lake: Lake,
    records: Sequence[ExperimentRecord],
    watermark_ms: int,
    progress: Progress,
    rules: TrafficRules,
    engine: Engine,
) -> Refreshed:
    """Refresh what is listed now; fails where a file is written anew meanwhile."""
    with tempfile.TemporaryDirectory(prefix="bandolero-lake-") as folder:
        progress("checking files")
        made, told = (
            checked_files(lake, t, Path(folder)) for t in ("decisions", "events")
        )
        progress("looking for repeats")
        rows, repeated = _each_once(engine, made)
        n_eligible = rows.eligible.length().cast("int32")  # as Spark has it
        decisions = rows.select(*READ, "is_live", n_eligible=n_eligible)
        events = _rows(engine, told, EVENTS_TABLE)
        asked = engine.table(objectives_of(records))
        closed = closed_decisions(decisions, asked, watermark_ms)
        progress("settling")
        named = engine.keep(_named(events, watermark_ms))
        few = engine.keep(decisions.semi_join(named, DECISION))
        unmatched = engine.to_arrow(named.anti_join(few, DECISION))
        told_of = engine.keep(closed_decisions(few, asked, watermark_ms))
        settled = _settled(engine, told_of, closed, events, watermark_ms, rules)
        progress("rolling up")
        rolled = roll_up(engine, closed, settled, records)
        stages = stages_by(engine, closed, settled, rolled.untold)
        progress("settling metrics")
        out = settled.filter(settled.excluded.notnull()).select(*DECISION)
        metrics = metric_sums(engine, decisions, events, out, records, watermark_ms)
        progress("correcting")
        late = engine.to_arrow(settled.aggregate(n=settled.n_late.sum()))
        splits = splits_by_day(engine, closed)
        corrections = corrections_of(
            engine, closed, settled, rolled.untold, splits, records, watermark_ms
        )
        audit = engine.to_arrow(audit_of(settled)).cast(AUDIT_TABLE)
    return Refreshed(
        watermark_ms=watermark_ms,
        decisions=made.n_rows,
        events=told.n_rows,
        settled=_sum(rolled.rollups, "decisions"),
        repeated=repeated,
        late_events=_sum(late, "n"),
        unmatched_events=_sum(unmatched, "n"),
        corrections=corrections,
        rollups=rolled.rollups,
        segments=rolled.segments,
        stages=stages,
        splits=splits,
        metrics=metrics,
        audit=in_order(audit, AUDIT_TABLE.names[:3]),
        bad_files=made.bad + told.bad,
    )


def _named(events: ir.Table, watermark_ms: int) -> ir.Table:
    """Decisions that events name, with the number of these before the watermark."""
    is_seen = events.log_ms < watermark_ms
    return events.group_by(DECISION).aggregate(n=is_seen.sum())


def _settled(
    engine: Engine,
    told_of: ir.Table,
    closed: ir.Table,
    events: ir.Table,
    watermark_ms: int,
    rules: TrafficRules,
) -> ir.Table:
    """Closed decisions that something was told of, and all that are taken out."""
    twice = settle_twice(told_of, events, watermark_ms, rules.repeated_click_ms)
    return engine.keep(without_invalid(engine, engine.keep(twice), closed, rules))


def _watermark_ms(lake: Lake, records: Sequence[ExperimentRecord]) -> int:
    """Up to where nothing is missing; of ingested files alone, nothing ever is."""
    commits = lake.commits()
    if not commits or any(not c.is_ingested for c in commits):
        return lake.watermark_ms()
    windows = (record.spec.objective.window_ms for record in records)
    return max(c.until_ms for c in commits) + max(windows, default=0) + GRACE_MS + 1


def _each_once(engine: Engine, files: Listing) -> tuple[ir.Table, int]:
    """Decisions as `_rows` gives them, each once; and how many rows are repeats."""
    rows = _rows(engine, files, DECISIONS_TABLE)
    if not files.ingested:
        return rows, 0
    again = repeats(engine, files)
    n = _sum(engine.to_arrow(again.aggregate(n=again.count())), "n")
    return (rows.anti_join(again, PLACE) if n else rows), n


def _rows(engine: Engine, files: Listing, schema: pa.Schema) -> ir.Table:
    """All rows of a table, and `is_live`: whether each came by the log."""
    live = engine.read(files.live, schema).mutate(is_live=True)
    if not files.ingested:
        return live
    return live.union(engine.read(files.ingested, schema).mutate(is_live=False))


def _sum(rows: pa.Table, name: str) -> int:
    return pc.sum(rows[name]).as_py() or 0
