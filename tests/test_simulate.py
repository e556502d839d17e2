"""Environments with known truth, and the sample that is made from them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandolero.simulate import (
    SAMPLE_N_TESTS,
    SAMPLE_SEED,
    Environment,
    main,
    sample_table,
    synthetic_tests,
)

SAMPLE = Path(__file__).parents[1] / "data" / "sample_tests.parquet"

seeds = st.integers(0, 2**32)


def hats(*click_rates: float, horizon: int = 1000) -> Environment:
    """An environment of so many hats."""
    texts = tuple(f"Hat {arm}" for arm in range(len(click_rates)))
    return Environment("hats", texts, texts, click_rates, horizon)


def test_earnings_by_hand() -> None:
    """Uniform serving earns horizon x mean rate, the oracle horizon x highest rate."""
    test = hats(0.01, 0.03, 0.02)
    assert test.uniform_clicks == pytest.approx(20.0)
    assert test.oracle_clicks == pytest.approx(30.0)
    assert test.best == 1


def test_first_of_equals_is_best() -> None:
    """Of equally good variants the first is called the best."""
    assert hats(0.01, 0.02, 0.02).best == 1


def test_rates_are_read_only() -> None:
    """The truth cannot be changed by who reads it."""
    with pytest.raises(ValueError, match="read-only"):
        hats(0.01, 0.02).rates[0] = 1.0


@pytest.mark.parametrize(
    ("click_rates", "horizon", "rule"),
    [
        ((), 1, r"sizes .* == \[0\], must be one number > 0"),
        ((0.1, 1.5), 1, r"click_rates == \(0.1, 1.5\), must be in \[0, 1\]"),
        ((0.1, float("nan")), 1, r"must be in \[0, 1\]"),
        ((0.1,), 0, "horizon == 0, must be >= 1"),
    ],
)
def test_impossible_environments_are_refused(
    click_rates: tuple[float, ...], horizon: int, rule: str
) -> None:
    """A fault is named with its value and the rule it breaks."""
    with pytest.raises(ValueError, match=rule):
        hats(*click_rates, horizon=horizon)


def test_texts_and_rates_are_of_one_size() -> None:
    """A rate without a text is refused."""
    with pytest.raises(ValueError, match=r"sizes .* == \[1, 2\]"):
        Environment("hats", ("Red",), ("",), (0.1, 0.2), 10)


@given(seed=seeds, n_tests=st.integers(1, 4), n_more=st.integers(0, 3))
def test_more_tests_do_not_change_the_first(
    seed: int, n_tests: int, n_more: int
) -> None:
    """The tests of a seed are a sequence: asking for more adds to its end."""
    more = synthetic_tests(seed, n_tests + n_more)
    assert more[:n_tests] == synthetic_tests(seed, n_tests)


@given(seed=seeds)
def test_stories_are_told_in_different_ways(seed: int) -> None:
    """Within a test no headline repeats, every blank is filled, and a capital leads."""
    (test,) = synthetic_tests(seed, 1)
    assert len(set(test.headlines)) == test.n_arms
    for text in (*test.headlines, *test.descriptions):
        assert "{" not in text
        assert text[0] == text[0].upper()


def test_shape_is_that_of_real_headline_tests() -> None:
    """Over 2,000 tests the medians are the archive's: 14,400 decisions, 1.5%, 4 arms.

    The tolerances are over four standard errors wide: a fresh seed fails one in 10,000.
    """
    tests = synthetic_tests(seed=11, n_tests=2000)
    means = np.array([test.rates.mean() for test in tests])
    spreads = np.array([test.rates.std(ddof=1) for test in tests]) / means
    assert np.median([test.horizon for test in tests]) == pytest.approx(
        14_400, rel=0.05
    )
    assert np.median(means) == pytest.approx(0.015, rel=0.06)
    assert np.median([test.n_arms for test in tests]) == 4
    assert {test.n_arms for test in tests} == {3, 4, 5, 6, 7, 8}
    # A relative spread is drawn from 0.1 to 0.35; few arms make its estimate noisy.
    assert np.sqrt(np.mean(spreads**2)) == pytest.approx(0.237, rel=0.1)


def test_sample_splits_a_test_evenly_and_clicks_with_its_rates() -> None:
    """Impressions sum to horizons; chi-squares of split and clicks are unremarkable.

    Both are sums of about 250 squared standard scores; the bound of five standard
    deviations is passed by a fresh seed less than once in 100,000 runs.
    """
    tests = synthetic_tests(seed=5, n_tests=60)
    rows = sample_table(tests, seed=5).to_pylist()
    split, luck = [], []
    for test in tests:
        mine = [row for row in rows if row["clickability_test_id"] == test.name]
        shown = np.array([row["impressions"] for row in mine])
        clicks = np.array([row["clicks"] for row in mine])
        assert shown.sum() == test.horizon
        even = test.horizon / test.n_arms
        split.append(((shown - even) ** 2 / even).sum() / (test.n_arms - 1))
        expected = shown * test.rates
        luck += list((clicks - expected) ** 2 / (expected * (1 - test.rates)))
    assert np.mean(split) == pytest.approx(1.0, abs=5 * np.sqrt(2 / 200))
    assert np.mean(luck) == pytest.approx(1.0, abs=5 * np.sqrt(2 / len(luck)))


@pytest.mark.skipif(not SAMPLE.is_file(), reason="no data folder beside the tests")
def test_committed_sample_is_what_the_command_makes() -> None:
    """data/sample_tests.parquet holds exactly the rows that a fresh run makes."""
    fresh = sample_table(synthetic_tests(SAMPLE_SEED, SAMPLE_N_TESTS), SAMPLE_SEED)
    assert pq.read_table(SAMPLE).equals(fresh)
    assert SAMPLE.stat().st_size < 200_000


def test_command_writes_the_same_bytes_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of the command agree to the byte, and say what was written."""
    files = [tmp_path / "one.parquet", tmp_path / "deep" / "two.parquet"]
    for file in files:
        assert main(["--out", str(file), "--tests", "3"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "variants in 3 tests" in capsys.readouterr().out
