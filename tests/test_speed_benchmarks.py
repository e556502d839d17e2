"""The pure parts of `benchmarks.peers` and `benchmarks.snapshots`: no test times anything."""

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import snapshots  # noqa: E402 - needs the path
from benchmarks.peers._tables import Row, print_bars, slowest_of_ours  # noqa: E402


def row(package: str, method: str, us: float, *, logs: bool = False) -> Row:
    """A decision of W1 at 50 variants that took `us` microseconds."""
    return Row(package, "W1", method, 50, us, us, us, logs, False, "")


def test_age_of_what_is_served_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two experiments in turn, 1 s and 2 s to publish: each is replaced 4 s or 5 s old.

    At 4 s the first is published anew and was 4 s old; the second, begun at 1 s, is 3 s.
    At 6 s the second is replaced 5 s old, while the first, begun at 3 s, is 3 s old.
    """
    monkeypatch.setattr(snapshots, "N_EXPERIMENTS", 2)
    ages = snapshots.served_ages(np.array([1.0, 2.0, 1.0, 2.0]))
    assert_allclose(ages, [4.0, 3.0, 3.0, 5.0])


def test_eligible_sets_are_distinct_and_ascending() -> None:
    """A thousand sets, no two alike, each ascending and of two arms or more."""
    sets = snapshots.eligible_sets(50)
    assert len(set(sets)) == len(sets) == snapshots.N_SETS
    assert all(len(one) >= 2 and sorted(set(one)) == list(one) for one in sets)


def test_bars_go_by_the_fastest_peer(capsys: pytest.CaptureFixture[str]) -> None:
    """1 us of ours is 9 times faster than the fastest peer: short of 10, and it says so."""
    rows = [
        row("ours", "beta_thompson", 1.0),
        row("swift", "swift epsilon", 9.0),
        row("exact", "exact epsilon", 30.0, logs=True),
    ]
    print_bars(rows)
    told = capsys.readouterr().out
    assert "10 times swift epsilon: 9.0" in told
    assert "FAILS" in told
    assert "exact epsilon: 30.0" in told
    print_bars([row("ours", "beta_thompson", 0.9), *rows[1:]])
    assert "holds" in capsys.readouterr().out


def test_ours_is_judged_by_its_slowest_policy() -> None:
    """Of ours the slowest counts, whatever the peers take; of no row there is none."""
    rows = [
        row("ours", "linear_thompson", 3.0),
        row("ours", "lin_ucb", 4.0),
        row("swift", "swift epsilon", 99.0),
    ]
    assert slowest_of_ours(rows, "W1", 50) == rows[1]
    assert slowest_of_ours(rows, "W2", 50) is None
