"""Reports where a context decided: weighted, checked, and honest about it."""

import numpy as np
import pytest
from scipy.stats import chi2

from bandolero.inference.sample_ratio import sample_ratio_by_moments
from bandolero.report.html import to_html
from bandolero.report.tabular import to_json
from bandolero.report.text import to_text
from report_cases import busy_report, has_note, report_of
from strategies import Row
from test_contextual import (
    DESKTOP,
    MOBILE,
    clicked,
    folded,
    made,
    record_of,
    spec_of,
)


def simulated(seed: int, n: int = 4000, *, leak: float = 0.0) -> list[Row]:
    """Decisions of which mobile ones mostly draw v1 and desktop ones mostly v2.

    With a leak some decisions that drew v1 are missing.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        mobile = bool(rng.random() < 0.5)
        shares = [0.8, 0.1, 0.1] if mobile else [0.1, 0.8, 0.1]
        arm = int(rng.choice(3, p=shares))
        if arm == 0 and rng.random() < leak:
            continue
        context = MOBILE if mobile else DESKTOP
        rows.append(made(i, arm, context, probabilities=shares, propensity=shares[arm]))
    return rows


def clicks_of(rows: list[Row], seed: int) -> list[Row]:
    """Clicks that the device alone decides: 30 % on mobile, 10 % on desktop."""
    rng = np.random.default_rng(seed)
    rates = [0.3 if "mobile" in row["context"] else 0.1 for row in rows]
    return [
        clicked(int(row["decision_id"][1:]))
        for row, rate in zip(rows, rates, strict=True)
        if rng.random() < rate
    ]


def test_report_compares_what_all_requests_would_earn() -> None:
    """Equal variants shown to unequal contexts: the raw rates differ, the comparison
    does not. Every rate is 20 % if all saw it; v1's raw rate is 28 %, v2's 12 %."""
    rows = simulated(1)
    spec = spec_of()
    fold = folded(spec, rows, clicks_of(rows, 2), [])
    report = report_of(record_of(spec), *fold.epochs.values())
    one, two, _ = report.variants
    assert one.rate is not None
    assert two.rate is not None
    assert one.rate > 0.25
    assert two.rate < 0.15
    for row in (one, two):
        assert row.interval_lower is not None
        assert row.interval_upper is not None
        assert row.interval_lower < 0.2 < row.interval_upper
        assert row.interval_upper - row.interval_lower < 0.1
    assert one.probability_best is not None
    assert one.probability_best < 0.9
    assert report.sample_ratio.verdict == "ok"
    assert has_note(report, "weight every trial by 1 / propensity")
    assert one.mean == pytest.approx(0.2, abs=0.04)
    assert "all requests (95 % interval)" in to_text(report)
    assert "Mark: rate if all requests saw it." in to_html(report)


def test_a_corrected_p_value_says_so() -> None:
    """Three variants tested one by one have a p-value three times the plain one, and every
    format says what it is corrected for; two variants are one test, with the plain one."""
    expected, variance = (
        np.array([500.0, 300.0, 200.0]),
        np.array([250.0, 200.0, 150.0]),
    )
    three = sample_ratio_by_moments(np.array([520, 290, 190]), expected, variance)
    assert (three.chi2, three.n_tests) == (1.6, 3)
    assert three.p_value == pytest.approx(3 * chi2.sf(1.6, 1))
    two = sample_ratio_by_moments(
        np.array([510, 490]), np.full(2, 500.0), np.full(2, 250.0)
    )
    assert two.n_tests == 1
    assert two.p_value == pytest.approx(chi2.sf(0.4, 1))

    spec = spec_of()
    fold = folded(spec, simulated(1), [], [])
    report = report_of(record_of(spec), *fold.epochs.values())
    assert to_json(report)["sample_ratio"]["strata"][0]["n_tests"] == 3
    assert "p = 0.42, corrected for 3 variants)" in to_text(report)
    page = to_html(report)
    assert "0.42<span" in page
    assert page.count('<span class="small">corrected for 3 variants</span>') == 2
    assert "corrected for" not in to_html(busy_report())


def test_intervals_cover() -> None:
    """The interval of v1 covers its 20 % in at least 42 of 50 seeded experiments.

    With a coverage of 95 %, fewer come once in 1,300 sets of seeds.
    """
    spec, covered = spec_of(), 0
    for seed in range(50):
        rows = simulated(seed, 600)
        fold = folded(spec, rows, clicks_of(rows, 1000 + seed), [])
        row = report_of(record_of(spec), *fold.epochs.values()).variants[0]
        assert row.interval_lower is not None
        assert row.interval_upper is not None
        covered += row.interval_lower < 0.2 < row.interval_upper
    assert covered >= 42


def test_a_leak_is_a_mismatch() -> None:
    """Two fifths of v1's decisions missing is found, whatever the context decided."""
    spec = spec_of()
    fold = folded(spec, simulated(3, leak=0.4), [], [])
    report = report_of(record_of(spec), *fold.epochs.values())
    assert report.verdict == "mismatch"


def test_healthy_splits_are_rarely_called_mismatches() -> None:
    """Of 2,000 healthy experiments at most 8 are: expected 2 at most, 9 once in 4,000."""
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(2000):
        p = rng.dirichlet([1.0, 2.0, 3.0, 4.0], size=500)
        arms = (p.cumsum(axis=1) < rng.random((500, 1))).sum(axis=1)
        counts = np.bincount(np.minimum(arms, 3), minlength=4)
        expected, variance = p.sum(axis=0), (p * (1.0 - p)).sum(axis=0)
        result = sample_ratio_by_moments(counts, expected, variance)
        found += result.verdict == "mismatch"
    assert found <= 8


def test_split_by_moments_by_hand() -> None:
    """Surpluses of 60 on a deviation of 10 are far out; a variant that could not be
    drawn must not be; a handful of decisions says nothing."""
    n = np.array([560, 440])
    far = sample_ratio_by_moments(n, np.full(2, 500.0), np.full(2, 100.0))
    assert far.chi2 == pytest.approx(36.0)
    assert far.verdict == "mismatch"
    never = sample_ratio_by_moments(n, np.array([1000.0, 0.0]), np.array([0.0, 0.0]))
    assert never.verdict == "mismatch"
    few = sample_ratio_by_moments(np.array([3, 1]), np.full(2, 2.0), np.full(2, 1.0))
    assert few.verdict == "too few"
