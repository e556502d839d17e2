"""A report for programs: JSON-able dict, CSV, Parquet; all without NaN."""

import csv
import dataclasses
import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bandolero.report.model import MetricTable, Report, VariantRow
from bandolero.report.wording import day_name

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
}
COLUMNS = pa.schema(
    (field.name, TYPES[getattr(field.type, "__name__", str(field.type))])
    for field in dataclasses.fields(VariantRow)
)
METADATA_KEY = b"bandolero.report"


def to_json(report: Report) -> dict[str, Any]:
    """The report as what JSON knows: no NaN, times as ISO 8601 in UTC."""
    return {
        **_about(report),
        "variants": [dataclasses.asdict(row) for row in report.variants],
    }


def to_csv(report: Report) -> str:
    """One line a variant under a line of column names; empty where not known.

    A headline that a spreadsheet would run as a formula gets a leading apostrophe:
    creatives are not ours.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS.names)
    for row in report.variants:
        headline = row.headline
        if headline.startswith(FORMULA_STARTS):
            headline = f"'{headline}"
        writer.writerow(
            dataclasses.astuple(dataclasses.replace(row, headline=headline))
        )
    return out.getvalue()


def to_parquet(report: Report) -> bytes:
    """One row a variant; all else of the report as JSON in the file's metadata."""
    rows = [dataclasses.asdict(row) for row in report.variants]
    about = json.dumps(_about(report), ensure_ascii=False, allow_nan=False)
    table = pa.Table.from_pylist(
        rows, schema=COLUMNS.with_metadata({METADATA_KEY: about.encode()})
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _about(report: Report) -> dict[str, Any]:
    """Everything but the variants."""
    return {
        "experiment": report.experiment_id,
        "tenant": report.tenant,
        "placement": report.placement,
        "status": report.status,
        "policy": report.policy,
        "control": report.control,
        "objective": {
            "event": report.event,
            "reward": report.reward,
            "trial": report.trial,
        },
        "currency": report.currency,
        "generated_at": _iso(report.generated_at_ms),
        "from": None if report.from_day is None else day_name(report.from_day),
        "to": None if report.to_day is None else day_name(report.to_day),
        "spec_version": report.spec_version,
        "snapshot_version": report.snapshot_version,
        "credibility": report.credibility,
        "verdict": report.verdict,
        "headline": report.headline,
        "totals": dataclasses.asdict(report.totals),
        "sample_ratio": _sample_ratio(report),
        "correction": _correction(report),
        "notes": list(report.notes),
        "metrics": [_metric(table) for table in report.metrics],
    }


def _metric(table: MetricTable) -> dict[str, Any]:
    shown = dataclasses.asdict(table)
    return {"watermark": _iso(shown.pop("watermark_ms")), **shown}


def _sample_ratio(report: Report) -> dict[str, Any]:
    check = report.sample_ratio
    return {
        "verdict": check.verdict,
        "reason": check.reason or None,
        "unknown_decisions": check.unknown,
        "strata": [dataclasses.asdict(stratum) for stratum in check.strata],
    }


def _correction(report: Report) -> dict[str, Any] | None:
    added = report.correction
    if added is None:
        return None
    changed = dataclasses.asdict(added)
    return {"watermark": _iso(changed.pop("watermark_ms")), **changed}


def _iso(ms: int) -> str:
    at = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"
