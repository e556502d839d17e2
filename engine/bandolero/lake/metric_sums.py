"""Metrics of experiments, settled by the night: windows of days, that nobody learns from."""

from collections import defaultdict
from collections.abc import Sequence

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from bandolero.experiment import ExperimentRecord
from bandolero.lake.context_changes import is_by_context
from bandolero.lake.engines import Engine
from bandolero.lake.measures import measures_by
from bandolero.lake.settling import (
    DECISION,
    EXPERIMENT,
    closed_decisions,
    objectives_of,
    settle_twice,
)
from bandolero.metric import MEASURES, MOMENTS, MetricSums, as_metric

Name = tuple[str, str]
"""Tenant and experiment."""


def metric_sums(
    engine: Engine,
    decisions: ir.Table,
    events: ir.Table,
    excluded: ir.Table,
    records: Sequence[ExperimentRecord],
    watermark_ms: int,
) -> dict[Name, MetricSums]:
    """Sums by metric and variant, of the experiments that have metrics.

    The first metric of all experiments is settled in one pass, then the second of those
    that have two, and so on.

    Parameters
    ----------
    decisions
        As `closed_decisions` takes them.
    excluded
        Decisions that are no trials, by `DECISION`.
    """
    found: dict[Name, MetricSums] = defaultdict(dict)
    for i in range(max((len(record.spec.metrics) for record in records), default=0)):
        asking = [record for record in records if len(record.spec.metrics) > i]
        asked = [as_metric(record, record.spec.metrics[i]) for record in asking]
        objectives = engine.table(objectives_of(asked))
        closed = closed_decisions(decisions, objectives, watermark_ms)
        closed = closed.anti_join(excluded, DECISION)
        rows = engine.to_arrow(_summed(engine, closed, events, watermark_ms))
        for record in asking:
            name = record.tenant, record.experiment_id
            found[name][record.spec.metrics[i].name] = _by_variant(record, rows)
    return dict(found)


def _summed(
    engine: Engine, closed: ir.Table, events: ir.Table, watermark_ms: int
) -> ir.Table:
    few = closed.semi_join(events.select(*DECISION).distinct(), DECISION)
    settled = settle_twice(engine.keep(few), events, watermark_ms)
    marked = engine.keep(settled.mutate(excluded=ibis.null("string")))
    return measures_by(closed, marked, (*EXPERIMENT, "variant_id"))


def _by_variant(
    record: ExperimentRecord, rows: pa.Table
) -> dict[str, dict[str, float]]:
    names = (*MEASURES, *(MOMENTS if is_by_context(record) else ()))
    whose = (record.tenant, record.experiment_id)
    return {
        row["variant_id"]: {name: row[name] for name in names}
        for row in rows.to_pylist()
        if (row["tenant_id"], row["experiment_id"]) == whose
    }
