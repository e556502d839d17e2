"""A report's data from the store: what the HTTP route and the command line share."""

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from bandolero.epochs import Epoch
from bandolero.experiment import ExperimentRecord
from bandolero.fold import Correction
from bandolero.report import Report, build_report, tabular
from bandolero.report.metrics import metric_tables
from bandolero.report.model import MetricTable
from bandolero.report.segments import COLUMNS, SegmentRows, categorical_fields
from bandolero.snapshot import snapshot_from_bytes
from bandolero_service.errors import lake_down, unknown_segment
from bandolero_service.folding import epoch_from_bytes
from bandolero_service.store import Store, name_of

if TYPE_CHECKING:
    from bandolero.lake.catalog import Lake

log = logging.getLogger(__name__)


def report_of(
    store: Store,
    record: ExperimentRecord,
    from_day: int | None = None,
    to_day: int | None = None,
    segment: SegmentRows | None = None,
) -> Report:
    """The report of an experiment as of now, and of a segment as of the newest night."""
    name = name_of(record.tenant, record.experiment_id)
    shard = store.shard(record.tenant, record.experiment_id)
    data = store.snapshots(shard, [name]).get(name)
    found = store.correction(shard, name)
    return build_report(
        record,
        epochs_of(store, shard, name),
        decided=store.decided(shard, name),
        correction=None if found is None else _correction(record, found),
        metrics=() if found is None else _metrics(record, found),
        snapshot=None if data is None else snapshot_from_bytes(data),
        generated_at_ms=time.time_ns() // 1_000_000,
        from_day=from_day,
        to_day=to_day,
        segment=segment,
    )


def segment_rows(lake: "Lake", record: ExperimentRecord, field: str) -> SegmentRows:
    """What the newest night counted of an experiment by level of a field.

    Raises
    ------
    ApiError
        422 where the field is none of its categorical ones; 503 where the lake cannot be
        read.
    """
    from bandolero.lake.results import read_result

    fields = categorical_fields(record)
    if field not in fields:
        raise unknown_segment(field, fields)
    mine = pc.field("tenant_id") == record.tenant
    mine &= pc.field("experiment_id") == record.experiment_id
    mine &= pc.field("field") == field
    try:
        watermark_ms, rows = read_result(lake, "segments", mine, record.tenant)
    except (OSError, ValueError) as error:
        log.warning("segments cannot be read: %s", error)
        raise lake_down() from None
    if rows is None:
        return SegmentRows(field, None, None)
    return SegmentRows(field, watermark_ms, rows.select(COLUMNS))


def rendered(report: Report, kind: str) -> bytes:
    """A report as `json`, `csv`, `html` or `parquet`."""
    if kind == "parquet":
        return tabular.to_parquet(report)
    if kind == "json":
        told = tabular.to_json(report)
        return json.dumps(told, ensure_ascii=False, allow_nan=False).encode()
    if kind == "csv":
        return tabular.to_csv(report).encode()
    from bandolero.report.html import to_html  # imports a plotting library

    return to_html(report).encode()


def epochs_of(store: Store, shard: int, name: str) -> list[Epoch]:
    """The rollups of an experiment, in no order."""
    found = store.rollups(shard, name)
    return [epoch_from_bytes(data) for data in found.values()]


def _correction(record: ExperimentRecord, body: dict[str, Any]) -> Correction:
    return Correction(
        record.tenant,
        record.experiment_id,
        body["watermark_ms"],
        body["changes"],
        body.get("faded", {}),
        body.get("by_context", {}),
        body.get("unlearned", {}),
        body.get("split", {}),
    )


def _metrics(record: ExperimentRecord, body: dict[str, Any]) -> tuple[MetricTable, ...]:
    return metric_tables(record, body.get("metrics", {}), body["watermark_ms"])
