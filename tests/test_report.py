"""What a report says: columns a reader can add up, honest checks, safe pages."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest

from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.fold import Epoch
from bandolero.lake.refresh import Correction
from bandolero.policies import BetaState
from bandolero.report import Report, build_report
from bandolero.report.figures import lifts_svg, rates_svg, traffic_svg
from bandolero.report.html import to_html
from bandolero.report.tabular import METADATA_KEY, to_csv, to_json, to_parquet
from bandolero.report.text import to_text
from bandolero.snapshot import build_snapshot

DAY = 20_778
NOW_MS = 1_795_000_000_123


def record_of(
    *headlines: str, status: str = "running", **spec: Any
) -> ExperimentRecord:
    """An experiment with a variant v1, v2, … for each headline."""
    variants = [
        {"id": f"v{n}", "creative": {"headline": text, "cta": "Go"}}
        for n, text in enumerate(headlines, 1)
    ]
    raw = {"experiment": "hero", "tenant": "acme", "variants": variants, **spec}
    return ExperimentRecord.model_validate(
        {"tenant": "acme", "spec": parse_experiment(raw), "status": status}
    )


def value_record(reward: str, **spec: Any) -> ExperimentRecord:
    """Three variants, evenly shown, whose rewards are not binary."""
    objective = {"event": "conversion", "reward": reward}
    policy = {"kind": "uniform"}
    return record_of("One", "Two", "Three", policy=policy, objective=objective, **spec)


def epoch(
    trials: list[int],
    rewards: list[float],
    *,
    mode: str = "explore",
    probabilities: list[float] | None = None,
    squared: list[float] | None = None,
    day: int = DAY,
    version: int = 1,
) -> Epoch:
    """An epoch in which every decision counts; evenly drawn unless said otherwise."""
    n = np.array(trials)
    even = [1 / len(trials)] * len(trials)
    return Epoch(
        day,
        mode,
        (version, version),
        np.array(even if probabilities is None else probabilities),
        n,
        n,
        n // 2,
        np.round(np.array(rewards) * 1e6).astype(np.int64),
        np.array(rewards if squared is None else squared, dtype=float),
    )


def report_of(
    record: ExperimentRecord,
    *epochs: Epoch,
    changes: Mapping[str, Mapping[str, float]] | None = None,
    **given: Any,
) -> Report:
    """A report; without decisions, correction and snapshot unless given."""
    correction = None
    if changes is not None:
        per_variant = {variant_id: dict(c) for variant_id, c in changes.items()}
        correction = Correction("acme", "hero", NOW_MS, per_variant)
    least: dict[str, Any] = {"decided": {}, "snapshot": None, "correction": correction}
    return build_report(record, epochs, generated_at_ms=NOW_MS, **(least | given))


def has_note(report: Report, part: str) -> bool:
    """Whether some note says this."""
    return any(part in note for note in report.notes)


def busy_report(*headlines: str, **spec: Any) -> Report:
    """Two variants or more with some hundreds of trials each, one clearly best."""
    record = record_of(*(headlines or ("One", "Two")), **spec)
    n = len(record.spec.variants)
    return report_of(record, epoch([1000] * n, [20.0] * (n - 1) + [60.0]))


def bandit_epochs(seed: int, n_epochs: int = 40, size: int = 250) -> list[Epoch]:
    """Epochs of a healthy bandit whose traffic moves to its last variant."""
    rng = np.random.default_rng(seed)
    made = []
    for step in range(n_epochs):
        best = 0.3 + 0.6 * step / n_epochs
        shares = [(1 - best) / 2, (1 - best) / 2, best]
        trials = rng.multinomial(size, shares)
        rewards = rng.binomial(trials, 0.05).astype(float)
        counts = trials.tolist(), rewards.tolist()
        made.append(epoch(*counts, probabilities=shares, version=step))
    return made


def test_columns_by_hand() -> None:
    """Beta(1, 1), one miss for v1 and one hit for v2: P(v2 best) 5/6, losses 11/30, 1/30."""
    report = report_of(record_of("One", "Two"), epoch([1, 1], [0.0, 1.0]))
    one, two = report.variants
    assert (one.trials, one.rewards, one.rate) == (1, 0.0, 0.0)
    assert (two.trials, two.rewards, two.rate) == (1, 1.0, 1.0)
    assert two.probability_best == pytest.approx(5 / 6)
    assert two.probability_beat_control == pytest.approx(5 / 6)
    assert one.probability_best == pytest.approx(1 / 6)
    assert one.expected_loss == pytest.approx(11 / 30)
    assert two.expected_loss == pytest.approx(1 / 30)
    # Beta(1, 2) and Beta(2, 1) have the distribution functions 1 - (1 - x)^2 and x^2.
    assert one.interval_upper == pytest.approx(1 - 0.025**0.5)
    assert two.interval_lower == pytest.approx(0.025**0.5)
    assert (one.probability_beat_control, one.lift) == (None, None)


def test_prior_is_the_policys() -> None:
    """The base prior of the policy counts once: Beta(3, 1) and no hit in two is Beta(3, 3)."""
    policy = {"kind": "beta_thompson", "prior_alpha": 3.0, "prior_beta": 1.0}
    record = record_of("One", "Two", policy=policy)
    row = report_of(record, epoch([2, 0], [0.0, 0.0])).variants[0]
    assert row.interval_lower is not None
    assert row.interval_upper is not None
    assert row.interval_lower == pytest.approx(1 - row.interval_upper)


def test_modes_and_days_add_up() -> None:
    """Explore and holdout of all days are summed, and the totals are the rows' sums."""
    report = report_of(
        record_of("One", "Two"),
        epoch([100, 50], [5.0, 3.0]),
        epoch([10, 20], [1.0, 0.0], mode="holdout"),
        epoch([40, 30], [4.0, 2.0], day=DAY + 1),
    )
    one, two = report.variants
    assert (one.decisions, one.trials, one.rewards) == (150, 150, 10.0)
    assert (two.decisions, two.trials, two.rewards) == (100, 100, 5.0)
    assert (one.rate, two.rate) == (10 / 150, 5 / 100)
    assert (one.impressions, two.impressions) == (75, 50)
    totals = report.totals
    assert (totals.trials, totals.rewards, totals.rate) == (250, 15.0, 15 / 250)


def test_variants_added_later_have_a_row() -> None:
    """Epochs from before a variant existed count nothing for it."""
    report = report_of(
        record_of("One", "Two", "Three"),
        epoch([10, 20], [1.0, 2.0]),
        epoch([3, 3, 4], [0.0, 0.0, 1.0], version=2),
    )
    assert [row.trials for row in report.variants] == [13, 23, 4]


def test_corrections_are_added() -> None:
    """A refresh's differences are in trials, rewards, rate and a note."""
    changes = {"v2": {"trials": 2, "impressions": 1, "rewards_micros": 3_000_000}}
    report = report_of(
        record_of("One", "Two"), epoch([8, 8], [1.0, 1.0]), changes=changes
    )
    row = report.variants[1]
    assert (row.trials, row.rewards, row.rate) == (10, 4.0, 0.4)
    assert row.impressions == 5
    told = to_json(report)["correction"]
    assert told.pop("watermark") == "2026-11-18T11:06:40.123Z"
    assert told == {"variants": 1, "trials": 2, "impressions": 1, "rewards": 3.0}
    assert has_note(report, "+2 trials and +3 rewards")


def test_some_days_leave_corrections_out() -> None:
    """Of some days only their decisions count; corrections do not, and a note says so."""
    changes = {"v1": {"trials": 5, "rewards_micros": 1_000_000}}
    epochs = [epoch([10, 10], [1.0, 1.0], day=DAY + n) for n in range(3)]
    report = report_of(
        record_of("One", "Two"),
        *epochs,
        decided={"v1": 35, "v2": 30},
        changes=changes,
        from_day=DAY + 1,
        to_day=DAY + 1,
    )
    assert [row.trials for row in report.variants] == [10, 10]
    assert [row.pending for row in report.variants] == [5, 0]
    assert report.correction is None
    assert has_note(report, "left out")
    assert to_json(report)["from"] == to_json(report)["to"] == "2026-11-22"


def test_pending_is_what_has_not_settled() -> None:
    """Pending is decided less settled in any mode, and never below zero."""
    report = report_of(
        record_of("One", "Two"),
        epoch([10, 10], [0.0, 0.0]),
        epoch([5, 5], [0.0, 0.0], mode="holdout"),
        decided={"v1": 18, "v2": 11},
    )
    assert [row.pending for row in report.variants] == [3, 0]
    assert report.totals.pending == 3
    assert has_note(report, "3 decisions are pending")


def test_share_now_is_the_snapshots() -> None:
    """Share now is the probability in the snapshot given, None for a newer variant."""
    older, newer = record_of("One", "Two"), record_of("One", "Two", "Three")
    ones, counts = np.ones(2), np.zeros(2, np.int64)
    state = BetaState(ones, ones, counts, counts)
    snapshot = build_snapshot(older, state, version=7, created_at_ms=NOW_MS)
    report = report_of(newer, snapshot=snapshot)
    shares = [row.share_now for row in report.variants]
    assert shares == [pytest.approx(0.5), pytest.approx(0.5), None]
    assert report.snapshot_version == 7


def test_healthy_bandit_passes_the_sample_ratio() -> None:
    """Moving traffic fits its logged propensities, and would fail an even split."""
    record = record_of("One", "Two", "Three")
    epochs = bandit_epochs(seed=5)
    assert report_of(record, *epochs).sample_ratio.verdict == "ok"
    even = [e._replace(probabilities=np.full(3, 1 / 3)) for e in epochs]
    report = report_of(record, *even)
    assert report.sample_ratio.verdict == report.verdict == "mismatch"
    assert report.headline.startswith("Do not act on this report yet")
    assert report.notes[0].startswith("Sample ratio mismatch")


def test_each_mode_is_checked_for_itself() -> None:
    """A holdout that is not even is found, though nearly all traffic is right."""
    skewed = epoch([300, 100, 100], [9.0, 3.0, 3.0], mode="holdout")
    report = report_of(record_of("One", "Two", "Three"), *bandit_epochs(seed=5), skewed)
    verdicts = {s.mode: s.verdict for s in report.sample_ratio.strata}
    assert verdicts["explore"] == "ok"
    assert verdicts["holdout"] == "mismatch"
    assert list(verdicts)[-1] == "combined"
    assert report.sample_ratio.verdict == "mismatch"


def test_unknown_probabilities_are_left_out_and_counted() -> None:
    """Epochs whose probabilities are not known count as data, not in the check."""
    lost = epoch([60, 40, 0], [3.0, 2.0, 0.0], probabilities=[np.nan] * 3)
    report = report_of(record_of("One", "Two", "Three"), *bandit_epochs(seed=5), lost)
    assert report.totals.trials == 10_100
    assert report.sample_ratio.unknown == 100
    assert report.sample_ratio.strata[-1].decisions == 10_000
    alone = report_of(record_of("One", "Two", "Three"), lost)
    assert alone.sample_ratio.verdict == "not checked"
    assert to_json(alone)["sample_ratio"]["reason"]


def test_sticky_draws_are_not_checked() -> None:
    """With sticky units there is no check, and the report says why."""
    report = busy_report(allocation={"sticky": "unit"})
    assert report.sample_ratio.verdict == "not checked"
    assert "units' first decisions" in report.sample_ratio.reason
    assert has_note(report, "not independent")
    assert "Sample ratio: not checked (sticky" in to_text(report)


def test_value_rewards_compare_means() -> None:
    """Of values 1, 2, 3 and 0, 0, 3 the means are 2 and 1, with errors of 1/sqrt(3) and 1."""
    record = value_record("value", currency="EUR")
    report = report_of(
        record, epoch([3, 3, 1], [6.0, 3.0, 5.0], squared=[14.0, 9.0, 25.0])
    )
    one, two, three = report.variants
    assert (one.rate, two.rate, three.rate) == (2.0, 1.0, 5.0)
    assert one.interval_lower == pytest.approx(2 - 1.959964 / 3**0.5, abs=1e-4)
    assert two.interval_upper == pytest.approx(1 + 1.959964, abs=1e-4)
    # P(v1 > v2): a difference of 1 with a standard error of sqrt(1/3 + 1).
    assert one.probability_best == pytest.approx(0.80676, abs=1e-4)
    assert (three.probability_best, three.interval_lower, three.lift) == (None,) * 3
    assert has_note(report, "Not compared")
    assert "EUR per trial" in to_text(report)


def test_control_without_a_posterior() -> None:
    """Where the control cannot be compared, the others are, without lift."""
    record = value_record("count")
    report = report_of(
        record, epoch([1, 3, 3], [6.0, 3.0, 5.0], squared=[36.0, 9.0, 11.0])
    )
    two, three = report.variants[1:]
    assert (two.probability_best or 0) + (three.probability_best or 0) == (
        pytest.approx(1.0)
    )
    assert (two.lift, two.probability_beat_control) == (None, None)
    assert lifts_svg(report) == ""
    assert "<svg" in to_html(report)


@pytest.mark.parametrize(
    ("trials", "rewards", "verdict", "begins"),
    [
        ([0, 0], [0.0, 0.0], "empty", "Nothing to compare yet"),
        ([1000, 1000], [20.0, 60.0], "best", "v2 is probably best: P(best) > 99.9 %"),
        ([200_000, 200_000], [4000.0, 4000.0], "safe", "No variant stands out, but v"),
        ([1000, 1000], [20.0, 22.0], "open", "No variant stands out yet: v2 leads"),
        ([10, 10], [0.0, 8.0], "open", "No variant stands out yet: v2 leads"),
    ],
)
def test_headline(
    trials: list[int], rewards: list[float], verdict: str, begins: str
) -> None:
    """The headline names a best variant only on enough data, a safe one by its loss."""
    report = report_of(record_of("One", "Two"), epoch(trials, rewards))
    assert report.verdict == verdict
    assert report.headline.startswith(begins)


def test_paused_and_retired_variants_stay_in_the_comparison() -> None:
    """A variant with data is compared whatever its state; one that never ran is not."""
    record = record_of("One", "Two", "Three").model_copy(
        update={"variant_states": {"v2": "retired", "v3": "paused"}}
    )
    report = report_of(
        record,
        epoch([1000, 1000, 0], [20.0, 60.0, 0.0], probabilities=[0.5, 0.5, 0.0]),
    )
    assert report.headline.startswith("v2 (retired) is probably best")
    assert report.variants[2].probability_best is None
    assert report.ranked[-1].variant_id == "v3"
    assert has_note(report, "v2 (retired)")


def test_notes_warn_of_few_trials_and_of_adaptive_traffic() -> None:
    """Few trials are named; that traffic followed results is said of bandits only."""
    report = report_of(record_of("One", "Two"), epoch([99, 500], [2.0, 9.0]))
    assert has_note(report, "Fewer than 100 trials: v1 (99)")
    assert has_note(report, "z-test")
    fixed = busy_report(policy={"kind": "uniform"})
    assert not has_note(fixed, "z-test")


def test_nothing_settled_is_nulls_and_no_figure() -> None:
    """Whatever is not known is null in JSON, and a report without data has a page."""
    for report in (report_of(record_of("One")), busy_report()):
        told = json.loads(json.dumps(to_json(report), allow_nan=False))
        assert told["experiment"] == "hero"
        assert len(told["variants"]) == len(report.variants)
    empty = to_json(report_of(record_of("One")))
    assert empty["variants"][0]["rate"] is None
    assert empty["totals"]["rate"] is None
    assert empty["correction"] is None
    page = to_html(report_of(record_of("One", "Two"), decided={"v1": 3}))
    assert "Nothing to compare yet" in page
    assert "<svg" not in page


def test_csv_round_trip() -> None:
    """CSV gives every column back, and no headline runs as a formula."""
    report = busy_report('=HYPERLINK("x")', 'Comma, "quote"\nand line')
    first, second = csv.DictReader(io.StringIO(to_csv(report)))
    assert list(first) == list(to_json(report)["variants"][0])
    assert first["headline"] == '\'=HYPERLINK("x")'
    assert second["headline"] == 'Comma, "quote"\nand line'
    assert float(second["rate"]) == report.variants[1].rate
    assert first["lift"] == first["share_now"] == ""


def test_parquet_round_trip() -> None:
    """Parquet gives the same rows as JSON, and the rest in its metadata."""
    report = busy_report()
    table = pq.read_table(io.BytesIO(to_parquet(report)))
    told = to_json(report)
    assert table.to_pylist() == told.pop("variants")
    assert json.loads(table.schema.metadata[METADATA_KEY]) == told


def test_text_fits_its_width() -> None:
    """The table keeps to its width with numbers whole, and has no escape codes."""
    report = busy_report(
        "A long headline, " * 20, "\x1b[31mred\x1b[0m", "短い見出し" * 20
    )
    for width in (100, 120):
        text = to_text(report, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text
        assert "6.00 %" in text
        assert "> 99.9 %" in text
    assert "\x1b[" in to_text(report, colour=True)


def test_html_escapes_creatives() -> None:
    """A creative's markup is shown as text; the page has no script and fetches nothing."""
    page = to_html(
        busy_report("<script>alert('x')</script>", '"><img src=x onerror=y>')
    )
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    fetched = re.findall(r'(?:\ssrc|\shref)="(?!#)[^"]*"|url\((?!#)[^)]*\)', page)
    assert fetched == []


def test_figures_are_svg_with_text() -> None:
    """Figures are well-formed, small, and their labels are text."""
    report = busy_report("One $x^$ two", "Two")
    for draw in (rates_svg, lifts_svg, traffic_svg):
        svg = draw(report)
        assert len(svg) < 50_000
        texts = [
            element.text
            for element in ET.fromstring(svg).iter()
            if element.tag.endswith("text")
        ]
        assert "v1 (control)" in texts
        assert any("(%)" in (text or "") for text in texts)


def test_figures_are_the_same_from_many_threads() -> None:
    """The same report gives the same bytes, also when threads draw at once."""
    reports = [busy_report(), busy_report("One", "Two", "Three")] * 4
    once = [to_html(report) for report in reports[:2]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(to_html, reports)) == once * 4


def test_page_repeats_no_id() -> None:
    """No two elements of a page share an id, so figures do not borrow each other's."""
    ids = re.findall(r'\sid="([^"]*)"', to_html(busy_report("One", "Two", "Three")))
    assert len(ids) == len(set(ids))


def test_figures_keep_to_their_rows() -> None:
    """Of many variants the first by rank are drawn, and the control whatever its rank."""
    report = busy_report(*(f"Headline {n}" for n in range(60)), control="v7")
    svg = rates_svg(report)
    assert "v60" in svg
    assert "v7 (control)" in svg
    assert svg.count("text-anchor: end") <= 21
    assert "54 others" in traffic_svg(report)


def test_traffic_is_told_by_day_or_by_epochs() -> None:
    """From four days on traffic is by day, idle days too; below by epochs in a row."""
    record = record_of("One", "Two")
    days = [epoch([5, 5], [0.0, 0.0], day=DAY + n, version=n) for n in (0, 1, 2, 4)]
    told = report_of(record, *days).traffic
    assert [stretch.day for stretch in told] == [DAY + n for n in range(5)]
    assert told[3].decisions == (0, 0)
    hours = [epoch([n, 1], [0.0, 0.0], version=n) for n in range(100)]
    told = report_of(record, *hours, epoch([9, 9], [0.0, 0.0], mode="holdout")).traffic
    assert len(told) <= 40
    assert np.sum([s.decisions for s in told], axis=0).tolist() == [4950, 100]


def test_import_is_light() -> None:
    """Building a report needs no plotting, no templates, no terminal, no lake."""
    heavy = ["matplotlib", "jinja2", "rich", "ibis"]
    script = (
        "import sys, bandolero.report\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.browser
def test_page_in_a_browser(chromium: str, tmp_path: Path) -> None:
    """A browser shows a row for each variant and the three figures, and runs nothing."""
    page = tmp_path / "report.html"
    hostile = "<script>document.title='taken'</script>"
    page.write_text(to_html(busy_report(hostile, "Two", "Three")), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    options += ["--disable-background-networking", "--virtual-time-budget=2000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [chromium, *options, page.as_uri()]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=True
    )
    body = ran.stdout.partition('<table id="variants">')[2].partition("</table>")[0]
    rows = body.partition("<tbody>")[2].partition("</tbody>")[0]
    assert re.findall(r'<th scope="row">(v\d)', rows) == ["v3", "v1", "v2"]
    assert ran.stdout.count("<svg") == 3
    assert "<title>hero – Bandolero report</title>" in ran.stdout
