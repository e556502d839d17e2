"""Metrics of days: settled by the refresh, by hand; and shown in every form of the report."""

import json
from pathlib import Path
from typing import Any

import pytest

from bandolero.experiment import Experiment
from bandolero.lake.refresh import Refreshed, refresh
from bandolero.metric import MetricSums
from bandolero.policy_specs import Prior
from bandolero.report import Report
from bandolero.report.html import to_html
from bandolero.report.metrics import metric_tables
from bandolero.report.tabular import METADATA_KEY, to_json, to_parquet
from bandolero.report.text import to_text
from report_cases import DAY, NOW_MS, epoch, report_of, value_record
from report_cases import record_of as reported
from strategies import START_MS, Row, decision, event, experiment
from test_contextual import DESKTOP, MOBILE, made, spec_of
from test_refresh import lake_of, record_of

HOUR_MS = 3_600_000
REVENUE = {
    "name": "revenue",
    "event": "conversion",
    "reward": "value",
    "window_s": 7200.0,
    "guardrail": True,
}
SHARES = {"name": "shared", "event": "share", "window_s": 3600.0}
SPEC = experiment(objective={"attribution_window_s": 2.0}, metrics=[REVENUE, SHARES])


def bought(decision_id: str, after_ms: int, value: int, **fields: Any) -> Row:
    """A conversion of so many units, told as it happens."""
    at_ms = START_MS + after_ms
    given = {"event_id": f"b{after_ms}", "type": "conversion", "at_ms": at_ms}
    value_micros = value * 1_000_000
    row = {"decision_id": decision_id, "value_micros": value_micros, "log_ms": at_ms}
    return event(**(given | row | fields))


def refreshed(
    folder: Path, made: list[Row], told: list[Row], spec: Experiment = SPEC
) -> Refreshed:
    """What a refresh finds, ten hours after the decisions."""
    return refresh(lake_of(folder, made, told), [record_of(spec)])


def sums(found: Refreshed) -> MetricSums:
    """The metrics of the experiment."""
    return found.metrics["acme", "hats"]


def test_a_metric_has_a_window_of_its_own(tmp_path: Path) -> None:
    """Revenue counts for two hours, a share for one; the objective, of seconds, has neither."""
    made = [decision(), decision(decision_id="d2", variant_id="v2")]
    told = [
        event(),
        bought("d1", HOUR_MS + 1, 5),
        bought("d1", HOUR_MS + 2, 2),
        bought("d2", 2 * HOUR_MS, 9),
        bought("d2", HOUR_MS - 1, 0, type="share"),
        bought("d1", HOUR_MS, 0, type="share"),
    ]
    found = refreshed(tmp_path, made, told)
    none = {"trials": 1, "hits": 0, "rewards_micros": 0, "rewards_squared": 0.0}
    both = {"hits": 1, "rewards_micros": 7_000_000, "rewards_squared": 49.0}
    once = {"hits": 1, "rewards_micros": 1_000_000, "rewards_squared": 1.0}
    assert sums(found) == {
        "revenue": {"v1": none | both, "v2": none},
        "shared": {"v1": none, "v2": none | once},
    }
    assert found.corrections[0].changes == {}


def test_a_refund_takes_from_a_metric(tmp_path: Path) -> None:
    """Of five earned three are given back, whenever that was."""
    told = [bought("d1", 1, 5), bought("d1", 3 * HOUR_MS, 3, type="refund")]
    found = sums(refreshed(tmp_path, [decision()], told))
    assert found["revenue"]["v1"]["rewards_micros"] == 2_000_000


def test_an_open_window_waits(tmp_path: Path) -> None:
    """Before its window has closed a decision is no trial of a metric."""
    lake = lake_of(tmp_path, [decision()], [bought("d1", 1, 5)])
    found = refresh(lake, [record_of(SPEC)], START_MS + HOUR_MS + 2_000)
    assert sums(found)["revenue"] == {}
    assert sums(found)["shared"]["v1"]["trials"] == 1


def test_who_has_no_metrics_has_none(tmp_path: Path) -> None:
    """An experiment without metrics is not asked for any."""
    spec = experiment(objective={"attribution_window_s": 2.0})
    assert refreshed(tmp_path, [decision()], [], spec).metrics == {}


def test_a_contexts_metric_is_weighted(tmp_path: Path) -> None:
    """Where a context decides, what all requests would have earned is told: sum w r / sum w."""
    spec = spec_of(metrics=[SHARES])
    rows = [made(i, i % 3, (MOBILE, DESKTOP)[i % 2]) for i in range(12)]
    told = [bought("d0", 600, 0, type="share"), bought("d3", 700, 0, type="share")]
    found = sums(refreshed(tmp_path, rows, told, spec))["shared"]
    w = 1.0 / rows[0]["propensity"]
    assert found["v1"]["weights"] == pytest.approx(4 * w)
    assert found["v1"]["weighted_rewards"] == pytest.approx(2 * w)
    assert found["v1"]["squared_weighted_squares"] == pytest.approx(2 * w**2)
    (table,) = metric_tables(record_of(spec), {"shared": found}, NOW_MS)
    assert table.variants[0].mean == pytest.approx(0.5, abs=0.1)


# --- the report -------------------------------------------------------------------------------

FOUND: MetricSums = {
    "revenue": {
        "v1": {
            "trials": 400,
            "hits": 40,
            "rewards_micros": 400_000_000,
            "rewards_squared": 5_000.0,
        },
        "v2": {
            "trials": 400,
            "hits": 20,
            "rewards_micros": 100_000_000,
            "rewards_squared": 700.0,
        },
    },
    "shared": {
        "v1": {
            "trials": 100,
            "hits": 10,
            "rewards_micros": 10_000_000,
            "rewards_squared": 10.0,
        }
    },
}


def with_metrics(**given: Any) -> Report:
    """A report of two variants with both metrics."""
    record = reported("One", "Two", metrics=[REVENUE, SHARES], currency="EUR")
    tables = metric_tables(record, FOUND, NOW_MS)
    return report_of(record, epoch([9, 9], [1, 2]), metrics=tables, **given)


def test_a_metric_is_compared_by_hand() -> None:
    """Revenue of 1 and 0.25 a trial: less by three quarters; rates have a flat prior."""
    revenue, shared = with_metrics().metrics
    one, two = revenue.variants
    assert [one.rate, two.rate] == [1.0, 0.25]
    assert [one.mean, two.mean] == pytest.approx([1.0, 0.25])
    assert two.lift == pytest.approx(-0.75, abs=0.02)
    assert two.lift_upper is not None
    assert two.lift_upper < 0.0
    assert shared.variants[0].rate == 0.1
    assert shared.variants[0].mean == pytest.approx(11 / 102)
    assert shared.variants[1].trials == 0
    assert shared.variants[1].rate is None
    assert shared.variants[1].mean == pytest.approx(0.5)


def test_priors_are_the_objectives() -> None:
    """What variants were believed to earn by the objective says nothing of a metric."""
    record = reported("One", "Two", metrics=[SHARES])
    sure = Prior(alpha=900.0, beta=100.0)
    variants = [v.model_copy(update={"prior": sure}) for v in record.spec.variants]
    spec = record.spec.model_copy(update={"variants": variants})
    (table,) = metric_tables(
        record.model_copy(update={"spec": spec}), {"shared": FOUND["shared"]}, NOW_MS
    )
    assert table.variants[0].mean == pytest.approx(11 / 102)


def test_every_form_of_the_report_has_the_metrics() -> None:
    """Name, window and figures stand in text, page, JSON and Parquet; guardrails say so."""
    report = with_metrics()
    text, page = to_text(report), to_html(report)
    title = (
        "revenue · guardrail · conversion within 2 h, EUR per trial · as of the refresh"
    )
    assert title in text
    assert title in page
    assert "shared · share within 1 h · as of" in text
    assert "0.67 to 1.33" in text
    for shown in (text, page):
        assert "10.0 %" in shown
        assert "10.8 %" not in shown
    told = to_json(report)["metrics"]
    assert [one["name"] for one in told] == ["revenue", "shared"]
    assert told[0]["variants"][1]["rewards"] == 100.0
    assert told[0]["watermark"].startswith("2026-11-")
    about = _metadata(to_parquet(report))
    assert about["metrics"] == json.loads(json.dumps(told))


def test_counts_are_not_money() -> None:
    """What is counted, by a metric or the objective, is told per trial and in no currency."""
    counted = {**REVENUE, "reward": "count"}
    record = reported("One", "Two", metrics=[counted], currency="EUR")
    tables = metric_tables(record, {"revenue": FOUND["revenue"]}, NOW_MS)
    text = to_text(report_of(record, epoch([9, 9], [1, 2]), metrics=tables))
    assert "within 2 h, count per trial" in text
    two = epoch([9, 9], [3, 6], squared=[5, 9])
    own = report_of(value_record("count", currency="EUR"), two)
    assert "count per trial" in own.headline
    for shown in (text, to_text(own), to_html(own)):
        assert "EUR" not in shown


def _metadata(data: bytes) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(data))
    return json.loads(table.schema.metadata[METADATA_KEY])


def test_some_days_have_no_metrics() -> None:
    """What is not known by day is left out where days are asked for; so before any refresh."""
    assert with_metrics(from_day=DAY).metrics == ()
    assert report_of(reported("One", "Two"), epoch([9, 9], [1, 2])).metrics == ()
    assert "guardrail" not in to_html(with_metrics(from_day=DAY))
