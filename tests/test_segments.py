"""Reports by level of a context field: by hand, against the whole, and against luck."""

import csv
import io
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.special import digamma, polygamma

from bandolero.fold import Correction
from bandolero.inference.interaction import interaction, log_means, log_rates
from bandolero.lake.refresh import refresh
from bandolero.lake.traffic import TrafficRules
from bandolero.report import Report
from bandolero.report import segments as by_level
from bandolero.report.html import to_html
from bandolero.report.model import LEVELS_SHOWN, Level, Segment
from bandolero.report.segments import COLUMNS, MEASURES, SegmentRows
from bandolero.report.tabular import METADATA_KEY, to_csv, to_json, to_parquet
from bandolero.report.text import to_text
from report_cases import DAY, NOW_MS, epoch, has_note, record_of, report_of
from strategies import START_MS, VARIANTS, Row, decision, event
from test_contextual import folded, spec_of
from test_contextual import record_of as running
from test_contextual_report import clicks_of, simulated
from test_refresh import lake_of
from test_refresh import record_of as refreshable
from test_refresh_night import SEGMENTED

DEVICE = {"name": "device", "kind": "categorical", "levels": ["mobile", "desktop"]}
HOUR = {"name": "hour", "kind": "cyclic", "period": 24.0}
Cell = tuple[str, str, int, float] | tuple[str, str, int, float, float]
UNLIKE: tuple[Cell, ...] = (
    ("mobile", "v1", 2000, 40),
    ("mobile", "v2", 2000, 120),
    ("desktop", "v1", 2000, 120),
    ("desktop", "v2", 2000, 80),
)
"""v2 earns three times as much on mobile, and less on desktop."""


def rows_of(*cells: Cell, day: int = DAY) -> pa.Table:
    """Rows of a night: level, variant, trials, rewards, and their squares if not hits."""
    zeros = dict.fromkeys(MEASURES, 0.0)
    made = [
        zeros
        | {
            "level": level,
            "variant_id": variant_id,
            "day": day,
            "decisions": trials,
            "trials": trials,
            "rewards_micros": rewards * 1e6,
            "rewards_squared": [rewards, *squared][-1],
        }
        for level, variant_id, trials, rewards, *squared in cells
    ]
    return pa.Table.from_pylist(made).select(COLUMNS)


def segmented(*cells: Cell, **given: Any) -> Report:
    """A report of two variants by device, of evenly split decisions."""
    record = record_of("One", "Two", context=[DEVICE, HOUR])
    segment = SegmentRows("device", NOW_MS, rows_of(*(cells or UNLIKE)))
    least = {"segment": segment} | given
    return report_of(record, epoch([5000, 5000], [100.0, 150.0]), **least)


def segment_of(report: Report) -> Segment:
    """The segment of a report that has one."""
    assert report.segment is not None
    return report.segment


def level_of(report: Report, name: str) -> Level:
    """One level of a report."""
    (found,) = (one for one in segment_of(report).levels if one.level == name)
    return found


# --- by hand ------------------------------------------------------------------------------


def test_levels_are_compared_by_hand() -> None:
    """Of 2,000 trials 40 and 120 hit: 2 and 6 %, a lift of 200 % and a little for the prior."""
    mobile = level_of(segmented(*UNLIKE), "mobile")
    one, two = mobile.variants
    assert (mobile.decisions, mobile.trials, mobile.rewards) == (4000, 4000, 160.0)
    assert mobile.rate == pytest.approx(0.04)
    assert (one.rate, two.rate) == (0.02, 0.06)
    assert one.mean == pytest.approx(41 / 2002)
    assert two.lift == pytest.approx(121 / 2002 * 2001 / 40 - 1)
    assert mobile.verdict == "best"
    assert mobile.headline.startswith("v2 is probably best: P(best) > 99.9 %; lift")
    assert level_of(segmented(*UNLIKE), "desktop").verdict == "best"


def test_first_thing_told_is_whether_levels_differ() -> None:
    """Unlike lifts are a p-value under 1 %; like ones send the reader to all requests."""
    found = segment_of(segmented(*UNLIKE))
    assert found.interaction is not None
    assert found.interaction.df == 1
    assert found.interaction.p_value < 1e-6
    assert found.headline == "How variants compare depends on device (p < 0.0001)."
    alike = segment_of(
        segmented(
            ("mobile", "v1", 2000, 40),
            ("mobile", "v2", 2000, 60),
            ("desktop", "v1", 2000, 80),
            ("desktop", "v2", 2000, 120),
        )
    )
    assert alike.interaction is not None
    assert alike.interaction.p_value > 0.9
    assert "No sign that device matters" in alike.headline
    one = segment_of(segmented(("other", "v1", 50, 1), ("other", "v2", 50, 3)))
    assert one.interaction is None
    assert "Too little to say whether device matters" in one.headline


def test_more_levels_need_more_to_be_named() -> None:
    """P(best) 97 % names a variant where there is one level, and does not where there are three."""
    cell: tuple[Cell, ...] = (("mobile", "v1", 1000, 20), ("mobile", "v2", 1000, 34))
    alone = segmented(*cell)
    (row,) = (r for r in level_of(alone, "mobile").variants if r.variant_id == "v2")
    assert row.probability_best is not None
    assert 0.95 < row.probability_best < 0.983
    assert level_of(alone, "mobile").verdict == "best"
    three = segmented(*cell, ("desktop", "v1", 900, 30), ("other", "v1", 900, 30))
    assert segment_of(three).names_from == pytest.approx(1 - 0.05 / 3)
    assert level_of(three, "mobile").verdict == "open"
    assert "No variant stands out" in level_of(three, "mobile").headline


def test_few_trials_name_nobody() -> None:
    """However sure a level looks, 99 trials are too few, and it says so."""
    level = level_of(
        segmented(("mobile", "v1", 99, 1), ("mobile", "v2", 99, 60)), "mobile"
    )
    assert level.verdict == "open"
    assert level.headline.endswith("P(best) > 99.9 %, on only 99 trials.")


def test_days_restrict_levels() -> None:
    """Days asked for are days of the decisions; other days are in no level."""
    rows = pa.concat_tables(
        [rows_of(*UNLIKE), rows_of(("mobile", "v1", 7, 1), day=DAY + 1)]
    )
    segment = SegmentRows("device", NOW_MS, rows)
    later = segmented(segment=segment, from_day=DAY + 1)
    assert level_of(later, "mobile").trials == 7
    assert segment_of(later).unseen == ("desktop", "other")
    assert level_of(segmented(segment=segment, to_day=DAY), "mobile").trials == 4000
    assert level_of(segmented(segment=segment), "mobile").trials == 4007
    none = segment_of(segmented(segment=segment, from_day=DAY + 2))
    assert (none.levels, none.whole) == ((), None)
    assert "has counted no decision" in none.headline


def test_before_the_first_night_there_are_no_levels() -> None:
    """The report is as ever; its segment is empty, says why, and has every form."""
    report = segmented(segment=SegmentRows("device", None, None))
    told = to_json(report)
    assert told["totals"]["trials"] == 10_000
    assert told["segment"]["watermark"] is None
    assert told["segment"]["levels"] == told["segment"]["notes"] == []
    said = "No refresh has counted the levels of device yet."
    assert told["segment"]["headline"] == said
    assert said in to_text(report)
    assert said in to_html(report)
    assert to_csv(report).splitlines()[1:] == []
    assert pq.read_table(io.BytesIO(to_parquet(report))).num_rows == 0


def test_lost_decisions_close_the_levels_too() -> None:
    """Where all decisions together did not split as logged no level is to be read."""
    record = record_of("One", "Two", context=[DEVICE])
    lost = epoch([5000, 4000], [100.0, 150.0])
    segment = SegmentRows("device", NOW_MS, rows_of(*UNLIKE))
    report = report_of(record, lost, segment=segment)
    assert report.verdict == "mismatch"
    assert segment_of(report).headline.startswith("Do not act on any level")
    assert {one.verdict for one in segment_of(report).levels} == {"mismatch"}


def test_levels_of_some_days_hold_what_the_totals_leave_out() -> None:
    """Ingested decisions have a day in levels, and none in totals: each says so, and how many."""
    record = record_of("One", "Two", context=[DEVICE])
    segment = SegmentRows("device", NOW_MS, rows_of(*UNLIKE))
    ingested = Correction(
        "acme", "hero", NOW_MS, {}, {}, {}, {"v1": 4000, "v2": 4000}, {}
    )
    report = report_of(record, correction=ingested, segment=segment, from_day=DAY)
    found = segment_of(report)
    assert found.whole is not None
    assert (report.totals.trials, found.whole.trials) == (0, 8000)
    assert report.headline.endswith("what only the refresh counted is left out.")
    assert has_note(report, "8,000 decisions of any day not learned live (ingested")
    for shown in (to_text(report), to_html(report)):
        assert "has settled" not in shown
    assert any("which the totals of these days leave out" in n for n in found.notes)
    whole = report_of(record, correction=ingested, segment=segment)
    assert whole.totals.decisions == 8000
    assert not any("leave out" in note for note in segment_of(whole).notes)
    alone = report_of(record, from_day=DAY)
    assert alone.headline == "Nothing to compare yet: no trial has settled."
    assert not has_note(alone, "left out")


# --- against the whole -------------------------------------------------------------------


def night_of(
    folder: Path, made: list[Row], told: list[Row], spec: Any, rules: TrafficRules
) -> tuple[SegmentRows, pa.Table]:
    """What a night counts by device, and in all."""
    found = refresh(lake_of(folder, made, told), [refreshable(spec)], rules=rules)
    rows = found.segments.filter(pc.field("field") == "device")
    return SegmentRows("device", found.watermark_ms, rows), found.rollups


def test_levels_add_up_to_the_night(tmp_path: Path) -> None:
    """Whatever levels were said, with holdout, robots and two days, every measure adds up."""
    rng = np.random.default_rng(4)
    texts = ['{"device":"mobile"}', '{"device":"desktop"}', '{"device":"tv"}', None]
    made, told = [], []
    for i in range(300):
        at_ms = START_MS + int(rng.integers(0, 10_000))
        mine = {"decision_id": f"d{i}", "decided_at_ms": at_ms}
        mode, text = rng.choice(["explore", "holdout", "fallback"]), texts[i % 4]
        shown = {"variant_id": str(rng.choice(VARIANTS)), "mode": str(mode)}
        made.append(decision(**mine, **shown, context=text))
        if rng.random() < 0.4:
            told.append(event(**mine, at_ms=at_ms + int(rng.integers(0, 1500))))
    rules = TrafficRules(fastest_click_ms=500)
    segment, rollups = night_of(tmp_path, made, told, SEGMENTED, rules)
    assert pc.sum(rollups["excluded"]).as_py() > 10
    report = report_of(refreshable(SEGMENTED), segment=segment)
    found = segment_of(report)
    assert [one.level for one in found.levels] == ["mobile", "desktop", "other"]
    assert found.whole is not None
    for name in ("decisions", "trials", "impressions"):
        parts = [getattr(one, name) for one in found.levels]
        assert sum(parts) == getattr(found.whole, name)
        assert sum(parts) == pc.sum(rollups[name]).as_py()
    hits = pc.sum(rollups["hits"]).as_py()
    assert sum(one.rewards for one in found.levels) == found.whole.rewards == hits


def test_weighted_levels_are_those_of_the_whole_report(tmp_path: Path) -> None:
    """Where a context decided, the night's whole has the live report's weighted rates, and
    each device its own: of six intervals five hold their 30 % of mobile or 10 % of desktop."""
    rows, spec = simulated(1, 2000), spec_of()
    told = clicks_of(rows, 2)
    fold = folded(spec, rows, told, [])
    segment, _ = night_of(tmp_path, rows, told, spec, TrafficRules())
    report = report_of(running(spec), *fold.epochs.values(), segment=segment)
    found = segment_of(report)
    assert found.whole is not None
    for mine, live in zip(found.whole.variants, report.variants, strict=True):
        assert mine.trials == live.trials
        assert mine.mean == pytest.approx(live.mean, rel=1e-5)
        assert mine.interval_lower == pytest.approx(live.interval_lower, rel=1e-4)
    covered = 0
    for name, rate in (("mobile", 0.3), ("desktop", 0.1)):
        for row in level_of(report, name).variants:
            assert row.interval_lower is not None
            assert row.interval_upper is not None
            covered += row.interval_lower < rate < row.interval_upper
    assert covered >= 5
    assert found.interaction is not None
    assert found.interaction.p_value > 0.01
    assert "weighted (95 % interval)" in to_text(report)
    assert '<span class="small">weighted: ' in to_html(report)


def test_many_levels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest levels are compared, the smaller ones put together: nothing is lost."""
    monkeypatch.setattr(by_level, "COMPARED_MAX", 100)
    names = [f"site{i}" for i in range(60)]
    field = {"name": "site", "kind": "categorical", "levels": names}
    record = record_of("One", "Two", context=[field])
    cells = [
        (name, v, 100 + i, 3) for i, name in enumerate(names) for v in ("v1", "v2")
    ]
    report = report_of(record, segment=SegmentRows("site", NOW_MS, rows_of(*cells)))
    found = segment_of(report)
    assert [one.level for one in found.levels] == names[10:]
    assert found.smaller == 10
    assert found.rest is not None
    assert found.rest.trials == 2 * sum(range(100, 110))
    assert found.whole is not None
    assert sum(one.trials for one in found.all_levels) == found.whole.trials
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert sum(int(line["trials"]) for line in lines) == found.whole.trials
    assert [line["level"] for line in lines[-2:]] == ["", ""]
    text = to_text(report)
    assert f"60 levels · the {LEVELS_SHOWN} largest of them" in text
    assert "site59" in text
    assert "site39" not in text
    assert "The 10 smallest levels are put together" in text


def test_rows_of_an_earlier_specification_break_nothing() -> None:
    """Before the start levels and variants may still change: what is gone is "other"."""
    cells: tuple[Cell, ...] = (("watch", "v1", 5, 1), ("other", "v1", 2, 0))
    report = segmented(*cells, ("mobile", "v9", 7, 1))
    (level,) = segment_of(report).levels
    assert (level.level, level.trials) == ("other", 7)


# --- against luck -------------------------------------------------------------------------


def test_luck_names_a_variant_in_a_tenth_of_reports() -> None:
    """Of 120 reports of four levels with two equal variants 5 to 25 name one somewhere.

    12 are expected, more than 25 come once in 10,000 sets of seeds; at P(best) 95 % it
    would be 41.
    """
    rng = np.random.default_rng(11)
    field = {**DEVICE, "levels": ["a", "b", "c", "d"]}
    record = record_of("One", "Two", context=[field])
    named = 0
    for _ in range(120):
        hits = rng.binomial(2000, 0.05, size=(4, 2))
        cells = [
            ("abcd"[i], f"v{j + 1}", 2000, int(hits[i, j])) for i, j in np.ndindex(4, 2)
        ]
        report = report_of(
            record, segment=SegmentRows("device", NOW_MS, rows_of(*cells))
        )
        named += any(one.verdict == "best" for one in segment_of(report).levels)
    assert 5 <= named <= 25


@pytest.mark.parametrize("n_trials", [100, 1_000, 20_000])
def test_like_levels_rarely_seem_to_differ(n_trials: int) -> None:
    """Of 1,000 experiments whose lifts are the same at every level at most 20 have p < 1 %.

    10 are expected at most, more than 20 come once in 600 sets of seeds; thin levels make
    fewer, not more.
    """
    rng = np.random.default_rng(5)
    rates = np.outer([0.01, 0.03, 0.05], [1.0, 1.2, 0.8, 1.5])
    found = 0
    for _ in range(1000):
        hits = rng.binomial(n_trials, rates).astype(float)
        result = interaction(*log_rates(hits, n_trials - hits))
        assert result is not None
        assert result.df == 6
        found += result.p_value < 0.01
    assert found <= 20


def test_interaction_has_power() -> None:
    """A lift of 50 % on one level and none on the other is found in most of 200 tries."""
    rng = np.random.default_rng(6)
    rates = np.array([[0.05, 0.075], [0.05, 0.05]])
    hits = rng.binomial(10_000, rates, size=(200, 2, 2)).astype(float)
    tested = [interaction(*log_rates(one, 10_000.0 - one)) for one in hits]
    assert sum(one is not None and one.p_value < 0.01 for one in tested) > 180


def test_interaction_of_cells_that_are_missing() -> None:
    """A level with one variant says nothing; two pairs without a bridge compare nothing."""
    nan = np.nan
    logs = np.array([[0.0, 0.5, nan], [0.0, 1.0, nan], [nan, nan, 9.0]])
    found = interaction(logs, np.full((3, 3), 0.01))
    assert found is not None
    # Half of the difference, 0.5, on an error of 0.2: (0.5 / 0.2) ** 2.
    assert found.df == 1
    assert found.chi2 == pytest.approx(6.25)
    assert interaction(logs[:1], np.ones((1, 3))) is None
    assert interaction(np.array([[0.0, nan], [nan, 1.0]]), np.ones((2, 2))) is None


def test_unlike_rewards_count_as_fewer_hits() -> None:
    """100 trials earn 50 by hits worth 5: ten hits; a level that lost money has no ratio."""
    trials, mean = np.array([100.0, 200.0]), np.array([0.5, 0.5])
    logs, variances = log_means(mean, trials, 5.0)
    assert variances == pytest.approx(polygamma(1, [11.0, 21.0]))
    assert logs == pytest.approx(digamma([11.0, 21.0]) - np.log(trials))
    assert np.isnan(log_means(-mean, trials, -5.0)).all()


def test_few_large_rewards_do_not_make_levels_differ() -> None:
    """Of 30 experiments with 40 lognormal rewards a cell at most 3 have p < 1 %.

    0.3 are expected, more than 3 come once in 5,000 sets of seeds; with each cell's own
    spread a third would have it.
    """
    rng, found = np.random.default_rng(9), 0
    names = [f"site{i}" for i in range(12)]
    field = {"name": "site", "kind": "categorical", "levels": names}
    objective = {"event": "conversion", "reward": "value"}
    uniform = {"kind": "uniform"}
    record = record_of(
        *"12345678", context=[field], objective=objective, policy=uniform
    )
    for _ in range(30):
        cells = []
        for level, variant in product(names, record.spec.variant_ids):
            spent = rng.lognormal(size=rng.binomial(400, 0.1))
            cells.append((level, variant, 400, spent.sum(), (spent**2).sum()))
        rows = SegmentRows("site", NOW_MS, rows_of(*cells))
        result = segment_of(report_of(record, segment=rows)).interaction
        assert result is not None
        found += result.p_value < 0.01
    assert found <= 3


# --- how it is shown -----------------------------------------------------------------------


def test_every_form_has_the_levels() -> None:
    """Text, page, JSON, CSV and Parquet say the same of each level, and of their sum."""
    report = segmented(*UNLIKE)
    told = json.loads(json.dumps(to_json(report), allow_nan=False))["segment"]
    assert [one["level"] for one in told["levels"]] == ["mobile", "desktop"]
    assert told["whole"]["trials"] == 8000
    assert told["interaction"]["df"] == 1
    assert told["unseen"] == ["other"]
    table = pq.read_table(io.BytesIO(to_parquet(report)))
    assert table["level"].to_pylist() == ["mobile", "mobile", "desktop", "desktop"]
    assert table["trials"].to_pylist() == [2000] * 4
    about = json.loads(table.schema.metadata[METADATA_KEY])
    assert about["segment"]["field"] == "device"
    (first, *_) = csv.DictReader(io.StringIO(to_csv(report)))
    assert (first["level"], first["variant_id"], first["trials"]) == (
        "mobile",
        "v1",
        "2000",
    )
    for shown in (to_text(report), to_html(report)):
        assert "y device · 2 levels · as of the refresh up to" in shown
        assert "all levels" in shown
        assert "Never seen: other." in shown
        assert "18.5 %" not in shown
    narrow = to_text(report, width=100)
    assert max(map(len, narrow.splitlines())) <= 100
    assert "…" not in narrow


def test_a_report_without_segment_is_as_it_was() -> None:
    """Nobody who did not ask sees levels."""
    report = report_of(record_of("One", "Two"), epoch([9, 9], [1, 2]))
    assert report.segment is None
    assert to_json(report)["segment"] is None
    assert to_csv(report).startswith("variant_id,")
    assert "level" not in to_text(report)


def test_levels_that_would_do_harm_are_shown_as_text() -> None:
    """A level may be markup, a formula or an escape code; it is inert wherever it stands."""
    hostile = ["<script>alert(1)</script>", "=HYPERLINK(1)", "\x1b[31m" + "x" * 200, ""]
    field = {**DEVICE, "levels": hostile}
    record = record_of("One", "Two", context=[field])
    cells = [(level, v, 500, 20) for level in hostile for v in ("v1", "v2")]
    report = report_of(record, segment=SegmentRows("device", NOW_MS, rows_of(*cells)))
    page, text = to_html(report), to_text(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert "(empty)" in text
    unseen = SegmentRows("device", NOW_MS, rows_of(*cells[:2]))
    text = to_text(report_of(record, segment=unseen))
    assert "\x1b" not in text
    assert "Never seen: =HYPERLINK(1)," in text
    levels = [line["level"] for line in csv.DictReader(io.StringIO(to_csv(report)))]
    assert levels[2] == "'=HYPERLINK(1)"
