"""What the demo makes of a play: earnings, checks, tables, page and data."""

import io
import json
import re
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bandolero.simulate import Environment
from bandolero_service.demo.checks import (
    Check,
    end_checks,
    is_settled,
    night_checks,
    prior_check,
    traffic_checks,
)
from bandolero_service.demo.client import Faults
from bandolero_service.demo.page import (
    Record,
    Spoken,
    as_data,
    render_page,
    spoken,
    write_record,
)
from bandolero_service.demo.play import Play
from bandolero_service.demo.results import (
    course,
    earnings,
    outcome,
    timings,
    total_earnings,
)
from bandolero_service.demo.run import DemoOptions
from bandolero_service.demo.screen import (
    Narrator,
    earnings_table,
    leaders_table,
    percent,
)
from bandolero_service.demo.source import (
    SAMPLE_CITATION,
    Source,
)

HATS = Environment("hats", ("Red", "<b>Blue</b>"), ("", ""), (0.01, 0.03), 100)
SHOES = Environment("shoes", ("A", "B", "C"), ("", "", ""), (0.2, 0.2, 0.2), 300)
# Shown at three moments: tests hats and shoes, three arms.
SHOWN = np.array(
    [
        [[0, 0, 0], [0, 0, 0]],
        [[25, 25, 0], [50, 50, 50]],
        [[30, 70, 0], [100, 100, 100]],
    ]
)
CLICKS = np.array([[1, 2, 0], [20, 20, 21]])


def played() -> Play:
    """A play of hats and shoes that took two seconds."""
    return Play(
        seconds=2.0,
        moments_s=np.array([0.0, 1.0, 2.0]),
        shown_over_time=SHOWN,
        clicks=CLICKS,
        single_latencies_s=np.array([0.001] * 99 + [0.101]),
        batch_latencies_s=np.array([0.25, 0.25, 0.5]),
        served=Counter(live=400),
    )


def reported(test: Environment, shown: Any, clicks: Any) -> dict[str, Any]:
    """A report as the server gives it, with made-up inference: the last arm leads."""
    n_arms = test.n_arms
    variants = [
        {
            "variant_id": f"p{arm + 1}",
            "decisions": int(shown[arm]),
            "trials": int(shown[arm]),
            "rewards": int(clicks[arm]),
            "rate": clicks[arm] / shown[arm],
            "pending": 0,
            "interval_lower": 0.001,
            "interval_upper": 0.3,
            "probability_best": (arm + 1) / (n_arms * (n_arms + 1) / 2),
            "expected_loss": 0.002,
        }
        for arm in range(n_arms)
    ]
    totals = {
        "decisions": int(shown.sum()),
        "rewards": int(clicks.sum()),
        "pending": 0,
    }
    return {"experiment": f"demo-{test.name}", "totals": totals, "variants": variants}


def recorded() -> Record:
    """A whole record of hats and shoes."""
    play, tests = played(), (HATS, SHOES)
    outcomes = tuple(
        outcome(
            test,
            f"demo-{test.name}",
            earnings(test, shown, clicks),
            reported(test, shown, clicks),
        )
        for test, shown, clicks in zip(tests, play.shown, play.clicks, strict=True)
    )
    return Record(
        options=DemoOptions(),
        source=Source("made.parquet", SAMPLE_CITATION, tests),
        play=play,
        outcomes=outcomes,
        total=total_earnings(tests, play.shown, play.clicks),
        course=course(tests, play),
        timings=timings(play),
        checks=(Check("hats fit", passed=False, seen="<too small>"),),
        night=(Spoken("bandolero refresh", "10 decisions <settled>"),),
    )


# --- results --------------------------------------------------------------------------


def test_gap_captured_by_hand() -> None:
    """30 x 1% + 70 x 3% is 2.4 clicks: 0.4 of the 1.0 between uniform 2 and oracle 3."""
    earned = earnings(HATS, SHOWN[-1, 0], CLICKS[0])
    assert (earned.decisions, earned.clicks) == (100, 3)
    assert earned.uniform == pytest.approx(2.0)
    assert earned.bandolero == pytest.approx(2.4)
    assert earned.oracle == pytest.approx(3.0)
    assert earned.gap_captured == pytest.approx(0.4)


def test_no_gap_where_all_variants_are_alike() -> None:
    """With equal rates there is nothing to capture, and no share of it."""
    assert earnings(SHOES, SHOWN[-1, 1], CLICKS[1]).gap_captured is None


def test_total_is_the_sum_of_tests() -> None:
    """Alike tests add clicks to all three, and leave the gap as it is."""
    total = total_earnings((HATS, SHOES), SHOWN[-1], CLICKS)
    assert total.bandolero == pytest.approx(62.4)
    assert total.clicks == 64
    assert total.gap_captured == pytest.approx(0.4)


def test_course_by_hand() -> None:
    """Cumulative clicks end at the totals; the best variant's share is step by step."""
    run = course((HATS, SHOES), played())
    assert run.decisions.tolist() == [200, 400]
    assert run.bandolero == pytest.approx([31.0, 62.4])
    assert run.oracle - run.uniform == pytest.approx([0.5, 1.0])
    # Best are Blue and, first of equals, A: 25 + 50 of 200, then 45 + 50 of 200.
    assert run.best_share == pytest.approx([0.375, 0.475])
    assert run.uniform_share == pytest.approx([0.375, 0.5 * 0.25 + 0.75 / 3])


def test_leader_is_judged_by_the_truth() -> None:
    """Blue leads and is best; of the three alike shoes any leader is best."""
    hats, shoes = recorded().outcomes
    assert (hats.leading["variant_id"], hats.leader_is_best) == ("p2", True)
    assert (shoes.leading["variant_id"], shoes.leader_is_best) == ("p3", True)
    swapped = Environment("hats", ("Red", "Blue"), ("", ""), (0.03, 0.01), 100)
    report = reported(swapped, SHOWN[-1, 0], CLICKS[0])
    wrong = outcome(swapped, "x", hats.earnings, report)
    assert not wrong.leader_is_best


def test_timings_by_hand() -> None:
    """100 single decisions, 300 in three batches that took a second in all."""
    speed = timings(played())
    assert speed.decisions_per_s == 200
    assert speed.batch_decisions_per_s == 300
    assert speed.single_ms_p50 == pytest.approx(1.0)
    assert speed.single_ms_p99 == pytest.approx(2.0)
    assert speed.batch_ms_p50 == pytest.approx(250)


# --- checks ---------------------------------------------------------------------------


def passed(checks: tuple[Check, ...]) -> list[bool]:
    """Which of the checks passed."""
    return [check.passed for check in checks]


def test_traffic_passes_only_without_fault_pending_or_loss() -> None:
    """A fault, a pending decision and lost clicks fail their own check each."""
    play = played()
    reports = [
        reported(test, shown, clicks)
        for test, shown, clicks in zip((HATS, SHOES), play.shown, CLICKS, strict=True)
    ]
    assert passed(traffic_checks(Faults(), play, reports)) == [True, True, True]
    faults = Faults()
    faults.add("events answered 503")
    reports[0]["totals"] |= {"pending": 1, "rewards": 1}
    checks = traffic_checks(faults, play, reports)
    assert passed(checks) == [False, False, False]
    assert [check.seen for check in checks] == [
        "events answered 503: 1",
        "1 pending",
        "62 of 64",
    ]


def test_settled_means_all_there_and_none_pending() -> None:
    """A report that does not yet know all decisions is not settled."""
    report = {"totals": {"pending": 0, "decisions": 99}}
    assert is_settled(report, 99)
    assert not is_settled(report, 100)


def test_a_kept_prior_is_no_failure() -> None:
    """Refresh may end with 3, replay only with 0; the last line said is what is shown."""
    kept = CompletedProcess([], 3, "", "working\nkept the old prior\n")
    differs = CompletedProcess([], 1, "", "arm p2 differs")
    good = CompletedProcess([], 0, "…\nagrees\n\n", "")
    assert passed(night_checks([good], kept, good, good)) == [True] * 4
    assert passed(night_checks([good, kept], good, differs, kept)) == [
        False,
        True,
        False,
        False,
    ]
    seen = [check.seen for check in night_checks([good, good], kept, good, good)]
    said = "exit code 3: kept the old prior"
    assert seen == ["agrees; agrees", said, "agrees", "agrees"]


def test_a_value_is_told_or_why_there_is_none() -> None:
    """Of an evaluation the line of its best estimator, or the first thing that lacks."""
    table = "2 trials, worth 0.01 each\n\ndoubly robust   0.02  [0.01, 0.03]\nDR, shrunk 1\n"
    few = "2 trials\n\nnot enough support:\n  2 trials, must be >= 100.\n"
    good = CompletedProcess([], 0, "", "")
    for output, seen in (
        (table, "doubly robust 0.02 a trial, worth 0.01 each"),
        (few, "not enough support: 2 trials, must be >= 100."),
    ):
        done = CompletedProcess([], 0, output, "")
        assert night_checks([], good, good, done)[3].seen == seen


def test_commands_are_told_without_folders() -> None:
    """As somebody would have typed them beside their files, and what they printed."""
    command = ("python", "-m", "bandolero_service", "ingest", "events", "/tmp/x/a.csv")
    done = CompletedProcess(
        (*command, "--data-dir", "/tmp/x"), 0, "/tmp/x/a.csv: 5\n", ""
    )
    assert spoken(done) == ("bandolero ingest events a.csv", "a.csv: 5")


def test_a_new_experiment_takes_what_was_published_and_only_that() -> None:
    """With a prior published it must have one, and without it none; what it has is told."""
    published = {"priors": {"demo/click.binary.decision": {"outcome": "published"}}}
    variant: dict[str, Any] = {"id": "p1", "prior": None}
    cold: dict[str, Any] = {"spec": {"variants": [variant]}, "prior_sources": {}}
    source = {"objective": "click.binary.decision", "group": "", "version": 1}
    prior = {"alpha": 2.0, "beta": 140.0}
    warm = {
        "spec": {"variants": [variant | {"prior": prior}]},
        "prior_sources": {"p1": source},
    }
    checks = [
        prior_check(night, record)
        for night in (published, {})
        for record in (warm, cold)
    ]
    assert passed(tuple(checks)) == [True, False, False, True]
    assert checks[0].seen == "Beta(2.00, 140.0), version 1 of click.binary.decision"
    assert checks[3].seen == "too little history for a prior"


def test_end_is_clean_only_with_code_0_and_nobody_left() -> None:
    """A killed server and a process left behind each fail."""
    assert passed(end_checks(0, [])) == [True, True]
    assert passed(end_checks(None, [41])) == [False, False]
    assert passed(end_checks(-15, [])) == [False, True]


# --- what people see ------------------------------------------------------------------


def test_without_a_terminal_progress_is_a_line_per_tenth() -> None:
    """A thousand reports of a stage become its start, nine tenths and its end."""
    console = Console(file=io.StringIO(), width=120)
    with Narrator(console).stage("Playing") as report:
        for step in range(1000):
            report(step / 1000, f"{step} decisions")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "Playing …"
    assert lines[1] == "  10%, 100 decisions"
    assert len(lines) == 11


def test_on_a_terminal_progress_is_a_bar() -> None:
    """The bar has the stage's title and its note."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    narrator = Narrator(console)
    with narrator.live(), narrator.stage("Playing") as report:
        report(0.5, "half")
    assert isinstance(console.file, io.StringIO)
    assert "Playing" in console.file.getvalue()
    assert "half" in console.file.getvalue()


def test_tables_fit_a_file_and_show_markup_as_text() -> None:
    """At 120 columns no cell but a headline is cut, and brackets are just brackets."""
    console = Console(file=io.StringIO(), width=120)
    name = "546d88fb84ad38b2ce000024"
    test = Environment(name, ("[bold]x" * 9, "y"), ("", ""), (0.03, 0.01), 100)
    report = reported(test, SHOWN[-1, 0], CLICKS[0])
    report["variants"][0]["probability_best"] = 0.99999
    each = outcome(test, "x", earnings(test, SHOWN[-1, 0], CLICKS[0]), report)
    console.print(earnings_table([each], each.earnings))
    console.print(leaders_table([each]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count(name) == 2
    assert "p1 [bold]x[bold]x" in text
    assert text.count("…") == 2  # the headline and the interval
    assert "0.10% … 30.00%" in text


def test_a_share_that_is_not_there_is_a_dash() -> None:
    """None is a dash, a number a percentage."""
    assert (percent(None), percent(0.541), percent(0.0213, 2)) == ("-", "54%", "2.13%")


def test_page_needs_nothing_from_elsewhere() -> None:
    """No script, no address to load from, every id once, every figure with its title."""
    page = render_page(recorded())
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "@import" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", page)) <= set(ids)
    assert page.count("<svg") == page.count('role="img" aria-labelledby=') == 4
    assert page.count("<svg") == page.count("<desc id=")


def test_page_has_two_themes_and_no_colour_outside_them() -> None:
    """Every colour of a figure is one of the page's, which has a dark set too."""
    page = render_page(recorded())
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"#0102\d\d", page)
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", drawn)) <= {"#ffffff"}


def test_page_shows_texts_as_text() -> None:
    """Markup in a headline or a message is shown, not obeyed."""
    page = render_page(recorded())
    assert "&lt;b&gt;Blue&lt;/b&gt;" in page
    assert "&lt;too small&gt;" in page
    assert "<b>Blue" not in page


def test_record_as_data_is_strict_json(tmp_path: Path) -> None:
    """report.json parses without NaN, and holds totals, tests, course and checks."""
    page, data = write_record(recorded(), tmp_path / "out")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    content = json.loads(data.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["total"]["gap_captured"] == pytest.approx(0.4)
    assert content["tests"][1]["gap_captured"] is None
    assert content["tests"][0]["variants"][1]["click_rate"] == 0.03
    assert content["over_time"]["decisions"] == [200, 400]
    assert content["checks"][0]["passed"] is False


def test_data_has_null_for_what_is_not_a_number() -> None:
    """A rate of nothing shown is NaN in Python and null in JSON."""
    record = recorded()
    record.outcomes[0].variants[0]["rate"] = float("nan")  # type: ignore[index]
    assert as_data(record)["tests"][0]["variants"][0]["rate"] is None
