"""Decisions that stand in the lake more than once count once, for everybody who reads it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bandolero.evaluate.reading import Asked, read_logged
from bandolero.lake.catalog import INGESTED, Lake
from bandolero.lake.engines import Engine, open_engine
from bandolero.lake.refresh import Refreshed, refresh
from bandolero.replay import fold_lake
from strategies import (
    START_MS,
    Row,
    decision,
    decisions_table,
    event,
    events_table,
)
from test_refresh import CLICKS, UNTIL_MS, lake_of, record_of

RECORD = record_of(CLICKS)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """DuckDB, once for all."""
    with open_engine() as opened:
        yield opened


def taken_in(lake: Lake, *files: list[Row]) -> Lake:
    """The lake with more files of strangers' decisions, each listed by itself."""
    for rows in files:
        shard = f"{INGESTED}decisions-{len(lake.commits()):012d}"
        lake.commit(shard, 0, UNTIL_MS, {"decisions": decisions_table(rows)})
    return lake


def found(lake: Lake, engine: Engine) -> Refreshed:
    """What a refresh finds."""
    return refresh(lake, [RECORD], engine=engine)


def counted(lake: Lake, engine: Engine) -> dict[str, int]:
    """Settled decisions by variant."""
    rows = found(lake, engine).rollups.to_pylist()
    return {row["variant_id"]: row["decisions"] for row in rows}


def test_files_that_overlap_count_once(tmp_path: Path, engine: Engine) -> None:
    """Of d1, d2 and d2, d3 all four rows are stored, three are settled, one click counts."""
    lake = lake_of(tmp_path, [], [event(decision_id="d2")])
    d1, d2, d3 = (decision(decision_id=f"d{i}") for i in (1, 2, 3))
    night = found(taken_in(lake, [d1, d2], [d2, d3]), engine)
    assert (night.decisions, night.settled, night.repeated) == (4, 3, 1)
    assert night.corrections[0].changes["v1"]["trials"] == 3
    assert night.corrections[0].changes["v1"]["hits"] == 1
    assert lake.read("decisions")[0].num_rows == 4


def test_the_first_in_log_order_counts(tmp_path: Path, engine: Engine) -> None:
    """Not the first that was taken in, nor the first of a file."""
    later = decision(variant_id="v2", log_ms=START_MS + 2)
    first = decision(variant_id="v3", log_ms=START_MS + 1)
    lake = taken_in(lake_of(tmp_path, [], []), [later], [later, first])
    assert counted(lake, engine) == {"v3": 1}
    assert found(lake, engine).repeated == 2


def test_a_decision_of_the_log_counts_before_any_file(
    tmp_path: Path, engine: Engine
) -> None:
    """An export of our own log that comes back changes nothing."""
    logged = decision(variant_id="v2", log_ms=START_MS + 9)
    lake = lake_of(tmp_path, [logged, decision(decision_id="d2")], [event()])
    before = found(lake, engine)
    after = found(taken_in(lake, [decision()], [logged]), engine)
    assert (before.repeated, after.repeated) == (0, 2)
    assert after.rollups == before.rollups
    assert after.corrections == before.corrections


def test_ids_are_a_tenants_own(tmp_path: Path, engine: Engine) -> None:
    """The same id of another tenant is another decision."""
    theirs = decision(tenant_id="bolt", variant_id="v2")
    lake = taken_in(lake_of(tmp_path, [], []), [decision()], [theirs])
    assert found(lake, engine).repeated == 0
    assert counted(lake, engine) == {"v1": 1}


def test_nothing_is_looked_for_where_no_file_was_taken_in(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is exactly once, so a lake of it alone is not searched."""
    monkeypatch.delattr("bandolero.lake.refresh.repeats")
    assert found(lake_of(tmp_path, [decision()], []), engine).settled == 1


def test_evaluation_reads_what_the_refresh_counts(
    tmp_path: Path, engine: Engine
) -> None:
    """Of the log and of files alike, the same row of each decision, in any file."""
    logged = [decision(decision_id="d1", variant_id="v2", log_ms=START_MS + 9)]
    made = [decision(decision_id=f"d{i}", variant_id=f"v{i}") for i in (1, 2, 3)]
    elsewhere = decision(decision_id="d3", experiment_id="coats", log_ms=START_MS - 1)
    lake = taken_in(lake_of(tmp_path, logged, []), made, [*made, elsewhere])
    trials = read_logged(RECORD, lake, Asked(UNTIL_MS, UNTIL_MS))
    arms = trials.numbers("arm").tolist()
    assert sorted(arms) == [1, 1]
    assert counted(lake, engine) == {"v2": 2}


def test_replay_folds_what_the_learner_saw(tmp_path: Path) -> None:
    """Decisions and events of files are no part of the live fold, nor of its replay."""
    lake = lake_of(tmp_path, [decision()], [])
    before = fold_lake(RECORD, lake, f"{UNTIL_MS}-0")
    taken_in(lake, [decision(), decision(decision_id="d2")])
    told = {"events": events_table([event()])}
    lake.commit(f"{INGESTED}events-0", 0, UNTIL_MS, told)
    after = fold_lake(RECORD, lake, f"{UNTIL_MS}-0")
    assert (before[1], after[1]) == (1, 1)
    for mine, theirs in zip(before[0].state, after[0].state, strict=True):
        assert mine.tolist() == theirs.tolist()
