"""What a report says: columns a reader can add up, honest checks, plain words."""

import csv
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.policies import BetaState
from bandolero.report.counts import Counts
from bandolero.report.figures import lifts_svg
from bandolero.report.html import to_html
from bandolero.report.model import Stratum
from bandolero.report.posterior import mean_posterior
from bandolero.report.tabular import to_csv, to_json, to_parquet
from bandolero.report.text import to_text
from bandolero.report.wording import evidence
from bandolero.snapshot import build_snapshot
from report_cases import (
    DAY,
    NOW_MS,
    bandit_epochs,
    busy_report,
    epoch,
    has_note,
    record_of,
    report_of,
    value_record,
)


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
    assert (one.probability_beat_control, one.lift, one.lift_lower) == (None,) * 3
    # E[1 / rate of v1] is infinite: the lift has an interval, but no mean.
    assert two.lift is None
    assert two.lift_lower is not None
    assert "– (" in to_text(report)


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
    added = {"variants": 1, "trials": 2, "impressions": 1, "rewards": 3.0}
    assert told == {"decisions": 0, **added}
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


@pytest.mark.parametrize("status", ["draft", "paused", "stopped"])
def test_what_is_not_served_has_no_share(status: str) -> None:
    """Shares are of the active variants of a running experiment, in every format."""
    states = {"variant_states": {"v2": "paused", "v3": "retired"}}
    running = record_of("One", "Two", "Three").model_copy(update=states)
    counts = np.zeros(3, np.int64)
    state = BetaState(np.ones(3), np.ones(3), counts, counts)
    snapshot = build_snapshot(running, state, version=7, created_at_ms=NOW_MS)
    ended = running.model_copy(update={"status": status})
    for record, shares in ((running, [1.0, None, None]), (ended, [None] * 3)):
        report = report_of(record, epoch([9, 9, 9], [1, 2, 3]), snapshot=snapshot)
        rows = pq.read_table(pa.BufferReader(to_parquet(report))).to_pylist()
        lines = csv.DictReader(io.StringIO(to_csv(report)))
        assert [row["share_now"] for row in rows] == shares
        assert [float(x) if (x := line["share_now"]) else None for line in lines] == (
            shares
        )
        for shown in (to_text(report), to_html(report)):
            assert "0.0 %" not in shown.replace("100.0 %", "")


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


@pytest.mark.parametrize("reward", ["value", "count"])
def test_who_earns_nothing_is_compared(reward: str) -> None:
    """No reward in 10,000 trials is data: the one that earned 900 is best, and nobody left out."""
    earned = epoch(
        [10_000, 10_000, 1],
        [900.0, 0.0, 0.0],
        squared=[900.0, 0.0, 0.0],
        probabilities=[0.49995, 0.49995, 0.0001],
    )
    report = report_of(value_record(reward), earned)
    one, two, three = report.variants
    assert (report.verdict, report.leader) == ("best", one)
    assert two.probability_best is not None
    assert two.probability_best < 1e-9
    # All trials together: a mean of 0.045, so a variance of 0.045 - 0.045^2.
    error = ((0.045 - 0.045**2) / 10_000) ** 0.5
    assert two.interval_upper == pytest.approx(1.959964 * error, rel=1e-3)
    assert three.probability_best is None
    assert has_note(report, "Always the same reward: v2. Without a spread")
    assert has_note(report, "Not compared, for having fewer than two trials")


def test_weighted_trials_that_earn_nothing_have_an_error() -> None:
    """Where a context decided, the pooled spread is over Kish's number of trials."""
    w, n = np.full(2, 8.0), np.full(2, 4, np.int64)
    none, rewards, squared = np.zeros(2), np.array([4.0, 0.0]), np.array([16.0, 0.0])
    moments = np.array([none, none, w, 2 * w, 2 * rewards, 4 * rewards, 4 * squared])
    counts = Counts(n, n, n, rewards, squared, moments)
    mean, error = mean_posterior(counts)
    assert mean.tolist() == [1.0, 0.0]
    # Eight rewards, of which one is 4: their mean is 0.5, their variance 2 - 0.5^2.
    assert error[1] == pytest.approx((1.75 / 4) ** 0.5)


def test_who_always_earns_the_most_is_best() -> None:
    """2.0 on each of 1,000 trials beats means of 0.30 and 0.31; so do 0.7, but for rounding."""
    for always in (2.0, 0.7):
        trials, squared = [1000, 1000, 1000], [150.0, 1000 * always**2, 160.0]
        earned = epoch(trials, [300.0, 1000 * always, 310.0], squared=squared)
        report = report_of(value_record("value"), earned)
        assert report.headline.startswith("v2 is probably best: P(best) > 99.9 %")
        assert has_note(report, "Always the same reward: v2.")


def test_where_no_two_rewards_differ_nothing_is_compared() -> None:
    """Without any spread there is nothing to tell variants apart by."""
    for each in (0.0, 0.7):
        squared = [1000 * each**2] * 3
        same = epoch([1000] * 3, [1000 * each] * 3, squared=squared)
        report = report_of(value_record("value"), same)
        assert (report.verdict, report.leader) == ("empty", None)
        assert has_note(report, "no two rewards differ: v1, v2, v3")
        assert not has_note(report, "Always the same")


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


def test_a_leader_of_few_trials_is_named_as_such() -> None:
    """A variant that nobody saw may lead by its prior alone, and then the headline says so."""
    weights = {"kind": "fixed", "weights": {"v1": 0.7, "v2": 0.3, "v3": 0.0}}
    record = record_of("One", "Two", "Three", policy=weights)
    probabilities = [0.7, 0.3, 0.0]
    counts = epoch([700, 300, 0], [70.0, 33.0, 0.0], probabilities=probabilities)
    report = report_of(record, counts)
    assert report.headline.startswith("No variant stands out yet: v3 leads with")
    assert report.headline.endswith(", on only 0 trials.")


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


def test_reports_count_in_full_what_the_policy_forgets() -> None:
    """A half-life changes no number of a report; a note says what it does change."""
    some = epoch([300, 500], [12.0, 9.0])
    policy = {"kind": "beta_thompson", "half_life_s": 604_800.0}
    lasting = report_of(record_of("One", "Two"), some)
    fading = report_of(record_of("One", "Two", policy=policy), some)
    assert fading.variants == lasting.variants
    assert fading.totals == lasting.totals
    assert has_note(fading, "count half after 7 d;")
    assert not has_note(lasting, "count half")


def test_a_correction_of_weights_alone_is_not_told() -> None:
    """Where a refresh changes what has faded and no fact, a report has nothing to say."""
    changes = {"v1": {"trials": 0, "rewards_micros": 0}}
    record = record_of("One", "Two")
    report = report_of(record, epoch([8, 8], [1.0, 1.0]), changes=changes)
    assert report.correction is not None
    assert report.correction.variants == 0
    assert not has_note(report, "Late events")


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


def test_evidence_is_the_number_that_condemns() -> None:
    """A mismatch found by the e-value alone is told by the e-value."""
    stratum = Stratum("explore", 9000, 6.0, 2, 0.05, 1, 9.0, "mismatch")
    assert evidence(stratum) == "e-value > 1,000"
    assert evidence(replace(stratum, p_value=1e-9)) == "p < 0.0001"
