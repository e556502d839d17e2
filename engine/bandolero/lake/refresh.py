"""The nightly job: settle everything the lake holds, once more and with hindsight.

What the live fold learned stays as it was; the refresh says by how much it was wrong.
A `Correction` is (settled at the watermark) - (settled live), per variant: late events,
refunds and retractions. The learner adds the newest one to its counts, so applying the
same night twice changes nothing. Where data fade it is said twice: as the facts it
corrects, for reports, and as what is left of them at the watermark, for the learner.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from bandolero.epochs import DAY_MS
from bandolero.experiment import ExperimentRecord
from bandolero.fold import MEASURES, Correction
from bandolero.lake.catalog import BadFile, Lake
from bandolero.lake.context_changes import (
    KEPT,
    changes_by_context,
    is_by_context,
    settled_otherwise,
)
from bandolero.lake.settling import EXPERIMENT, closed_decisions, settle_expr
from bandolero.lake.stages import stages_expr

Progress = Callable[[str], None]
FADED = {name: f"faded_{name}" for name in MEASURES}
ROUNDING = 1e-9
"""Sums of floating-point numbers, added in any order: a share within which two are the
same."""


class Refreshed(NamedTuple):
    """All a refresh found."""

    watermark_ms: int
    decisions: int
    events: int
    settled: int
    late_events: int
    corrections: list[Correction]
    rollups: pa.Table
    stages: pa.Table
    bad_files: list[BadFile]


def refresh(
    lake: Lake,
    records: Sequence[ExperimentRecord],
    until_ms: int | None = None,
    progress: Progress = lambda _: None,
) -> Refreshed:
    """Settle the lake up to its watermark (or `until_ms`, if that is earlier).

    Parameters
    ----------
    records
        Experiments to refresh; decisions of others are left alone.
    progress
        Told the name of each step as it begins.
    """
    watermark_ms = lake.watermark_ms()
    if until_ms is not None:
        watermark_ms = min(watermark_ms, until_ms)
    progress("reading the lake")
    decisions, bad = lake.read("decisions")
    events, bad_events = lake.read("events")
    events = events.append_column("position", pa.array(np.arange(events.num_rows)))
    con = ibis.duckdb.connect()
    try:
        closed, told = _tables(decisions, events, records, watermark_ms)
        progress("settling as the learner did")
        live = settle_expr(closed, told, ibis._.live_cut_ms, KEPT)
        before = con.to_pyarrow(_by_variant(live))
        progress("settling with late events")
        final = settle_expr(closed, told, watermark_ms, KEPT)
        after = con.to_pyarrow(_by_variant(final))
        progress("rolling up")
        rollups = con.to_pyarrow(_rollups(final))
        stages = con.to_pyarrow(stages_expr(final))
        by_context = {}
        if any(map(is_by_context, records)):
            changed = con.to_pyarrow(settled_otherwise(live, final))
            by_context = changes_by_context(records, changed)
        late = int(con.to_pyarrow(_late(closed, told, watermark_ms).count()).as_py())
    finally:
        con.disconnect()
    return Refreshed(
        watermark_ms=watermark_ms,
        decisions=decisions.num_rows,
        events=events.num_rows,
        settled=sum(row["decisions"] for row in after.to_pylist()),
        late_events=late,
        corrections=[
            one._replace(
                by_context=by_context.get((one.tenant_id, one.experiment_id), {})
            )
            for one in _corrections(records, before, after, watermark_ms)
        ],
        rollups=rollups,
        stages=stages,
        bad_files=bad + bad_events,
    )


def _tables(
    decisions: pa.Table,
    events: pa.Table,
    records: Sequence[ExperimentRecord],
    watermark_ms: int,
) -> tuple[ir.Table, ir.Table]:
    """Closed decisions and the events of the lake."""
    objectives = pa.table(
        {
            "tenant_id": pa.array([r.tenant for r in records], pa.string()),
            "experiment_id": pa.array([r.experiment_id for r in records], pa.string()),
            **{
                name: pa.array(
                    [getattr(r.spec.objective, name) for r in records],
                    pa.int64() if name == "window_ms" else pa.string(),
                )
                for name in ("event", "reward", "trial", "window_ms")
            },
            "half_life_s": pa.array([_half_life_s(r) for r in records], pa.float64()),
        }
    )
    columns = ["tenant_id", "decision_id", "experiment_id", "variant_id"]
    columns += ["decided_at_ms", "mode", "log_ms", "context", "propensity"]
    made = decisions.select(columns)
    made = made.append_column("row", pa.array(np.arange(made.num_rows)))
    made = ibis.memtable(made)
    asked = ibis.memtable(objectives)
    return closed_decisions(made, asked, watermark_ms), ibis.memtable(events)


def _half_life_s(record: ExperimentRecord) -> float | None:
    return getattr(record.spec.policy, "half_life_s", None)


def _by_variant(settled: ir.Table) -> ir.Table:
    """Facts, and under the names of `FADED` what is left of them at the watermark."""
    keys = (*EXPERIMENT, "variant_id")
    reward, weight = settled.reward_micros, settled.weight
    units = reward.cast("float64") / 1e6
    values = {
        "trials": settled.is_trial.cast("float64"),
        "hits": (reward > 0).cast("float64"),
        "impressions": settled.is_impression.cast("float64"),
        "rewards_micros": reward.cast("float64"),
        "rewards_squared": units * units,
    }
    faded = {FADED[name]: (weight * value).sum() for name, value in values.items()}
    return settled.group_by(keys).aggregate(**_facts(settled), **faded)


def _rollups(settled: ir.Table) -> ir.Table:
    day = (settled.decided_at_ms / DAY_MS).floor().cast("int64")
    keys = (*EXPERIMENT, "variant_id", "mode", "day")
    dated = settled.mutate(day=day)
    return dated.group_by(keys).aggregate(**_facts(dated)).order_by(keys)


def _facts(settled: ir.Table) -> dict[str, ir.Value]:
    reward = settled.reward_micros
    units = reward.cast("float64") / 1e6
    return {
        "decisions": settled.count(),
        "trials": settled.is_trial.sum(),
        "hits": (reward > 0).sum(),
        "impressions": settled.is_impression.sum(),
        "rewards_micros": reward.sum().cast("int64"),
        "rewards_squared": (units * units).sum(),
    }


def _late(closed: ir.Table, events: ir.Table, watermark_ms: int) -> ir.Table:
    """Events of closed decisions that the live fold did not see."""
    asked = closed.select("tenant_id", "decision_id", "live_cut_ms")
    seen = events.inner_join(asked, ["tenant_id", "decision_id"])
    return seen.filter((seen.log_ms >= seen.live_cut_ms) & (seen.log_ms < watermark_ms))


def _corrections(
    records: Sequence[ExperimentRecord],
    before: pa.Table,
    after: pa.Table,
    watermark_ms: int,
) -> list[Correction]:
    """One correction an experiment, also where nothing changed."""
    live = {_key(row): row for row in before.to_pylist()}
    found = {
        (record.tenant, record.experiment_id): Correction(
            record.tenant, record.experiment_id, watermark_ms, {}, {}, {}
        )
        for record in records
    }
    forgets = {
        (record.tenant, record.experiment_id): _half_life_s(record) is not None
        for record in records
    }
    for row in after.to_pylist():
        experiment = (row["tenant_id"], row["experiment_id"])
        old = live.get(_key(row), {})
        facts = {name: _change(row, old, name) for name in MEASURES}
        faded = {name: _change(row, old, FADED[name]) for name in MEASURES}
        if any(facts.values()) or (forgets[experiment] and any(faded.values())):
            found[experiment].changes[row["variant_id"]] = facts
            if forgets[experiment]:
                found[experiment].faded[row["variant_id"]] = faded
    return list(found.values())


def _change(row: dict[str, Any], old: dict[str, Any], name: str) -> float:
    """By how much a measure changed; 0 where that is rounding."""
    new, was = row[name], old.get(name, 0)
    change: float = new - was
    rounding = isinstance(new, float) and abs(change) <= ROUNDING * max(
        abs(new), abs(was)
    )
    return 0.0 if rounding else change


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["tenant_id"], row["experiment_id"], row["variant_id"]
