"""A report for programs: JSON-able dict, CSV, Parquet; all without NaN."""

import csv
import dataclasses
import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bandolero.report.model import LevelRow, MetricTable, Report, Segment, VariantRow
from bandolero.report.wording import day_name

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
INERT = ("level", "headline")
"""Columns with texts that are not ours."""
TYPES = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
}


def _columns(row: type[VariantRow | LevelRow]) -> pa.Schema:
    return pa.schema(
        (field.name, TYPES[getattr(field.type, "__name__", str(field.type))])
        for field in dataclasses.fields(row)
    )


COLUMNS = _columns(VariantRow)
LEVEL_COLUMNS = pa.schema([("level", pa.string()), *_columns(LevelRow)])
"""Of a report by segment; level is null where the smaller ones are put together."""
METADATA_KEY = b"bandolero.report"


def to_json(report: Report) -> dict[str, Any]:
    """The report as what JSON knows: no NaN, times as ISO 8601 in UTC."""
    told = _about(report)
    if report.segment is not None:
        told["segment"] |= _levels(report.segment)
    told["variants"] = [dataclasses.asdict(row) for row in report.variants]
    return told


def to_csv(report: Report) -> str:
    """A line a variant, by segment a line a level and variant; empty where not known.

    A text that a spreadsheet would run as a formula gets a leading apostrophe: creatives
    and levels are not ours.
    """
    schema, rows = _rows(report)
    out = io.StringIO()
    writer = csv.DictWriter(out, schema.names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        inert = {name: _inert(row[name]) for name in INERT if row.get(name)}
        writer.writerow(row | inert)
    return out.getvalue()


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def to_parquet(report: Report) -> bytes:
    """The rows of the CSV; all else of the report as JSON in the file's metadata."""
    schema, rows = _rows(report)
    about = json.dumps(_about(report), ensure_ascii=False, allow_nan=False)
    table = pa.Table.from_pylist(
        rows, schema=schema.with_metadata({METADATA_KEY: about.encode()})
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _rows(report: Report) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """What a table of the report has: by segment the levels, which add up to all."""
    if report.segment is None:
        return COLUMNS, [dataclasses.asdict(row) for row in report.variants]
    rows = [
        {"level": level.level, **dataclasses.asdict(row)}
        for level in report.segment.all_levels
        for row in level.variants
    ]
    return LEVEL_COLUMNS, rows


def _about(report: Report) -> dict[str, Any]:
    """Everything but the rows."""
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
        "segment": None if report.segment is None else _segment(report.segment),
    }


def _levels(segment: Segment) -> dict[str, Any]:
    """Each level with its rows, what is put together, and the sum of all."""
    told: dict[str, Any] = {
        name: None if level is None else dataclasses.asdict(level)
        for name, level in (("rest", segment.rest), ("whole", segment.whole))
    }
    return {"levels": [dataclasses.asdict(one) for one in segment.levels], **told}


def _segment(segment: Segment) -> dict[str, Any]:
    """Everything but the levels."""
    found, at_ms = segment.interaction, segment.watermark_ms
    return {
        "field": segment.field,
        "watermark": None if at_ms is None else _iso(at_ms),
        "headline": segment.headline,
        "names_from": segment.names_from,
        "interaction": None if found is None else found._asdict(),
        "smaller": segment.smaller,
        "unseen": list(segment.unseen),
        "notes": list(segment.notes),
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
