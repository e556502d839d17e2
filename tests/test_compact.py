"""Compacting the lake: many small commits become few, and nobody reads anything else."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.epochs import DAY_MS
from bandolero.lake import compact as compacting
from bandolero.lake.catalog import INGESTED, TABLES, Commit, Lake
from bandolero.lake.compact import BY_EXPERIMENT, Compacted, compact
from bandolero.lake.erase import Erasure, erase
from bandolero.lake.rebuild import rebuild
from bandolero.lake.refresh import refresh
from bandolero.replay import fold_lake, of_experiment
from small_commits import FIRST_MS, N_COMMITS, NAMES, RECORDS, SHARDS, STEP_MS, fill
from test_refresh_night import agree

WATERMARK_MS = FIRST_MS + 2 * DAY_MS + DAY_MS // 2
ALICE = Erasure("acme", "alice", WATERMARK_MS)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on what a disk has taken; `test_lake` does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def free(shard: str) -> AbstractContextManager[bool]:
    """Nobody else is there; it is asked for shards of the log only."""
    assert shard in SHARDS
    return nullcontext(True)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a lake that nobody has compacted, to be copied."""
    return Path(fill(Lake(tmp_path_factory.mktemp("filled"))).root)


@pytest.fixture
def lake(filled: Path, tmp_path: Path) -> Lake:
    """A lake that nobody has compacted."""
    return copy_of(filled, tmp_path / "lake")


def copy_of(filled: Path, folder: Path) -> Lake:
    """Another lake that holds the same."""
    return Lake(shutil.copytree(filled, folder))


def compacted(lake: Lake) -> Compacted:
    """What compacting it comes to, with nobody about."""
    return compact(lake, WATERMARK_MS, free)


def two_runs(lake: Lake) -> None:
    """What a night merges, and the next one deletes."""
    for _ in range(2):
        compacted(lake)


Content = dict[tuple[str, str, str], list[dict[str, Any]]]


def content(lake: Lake) -> Content:
    """All rows by table and experiment, in log order; nothing may be set aside."""
    found: Content = {}
    for table in TABLES:
        rows, bad = lake.read(table)
        assert bad == []
        assert rows.num_rows == sum(file.rows for file in lake.files(table))
        for row in rows.to_pylist():
            name = row["tenant_id"], row["experiment_id"], table
            found.setdefault(name, []).append(row)
    assert len(found) == len(NAMES) * len(TABLES)
    return found


def on_disk(lake: Lake) -> dict[str, bytes]:
    """All there is in a lake's folder, by path."""
    root = Path(lake.root)
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


# --- what becomes of a lake -------------------------------------------------------------------


def test_days_that_are_over_become_one_commit_each(lake: Lake) -> None:
    """Of each shard two, and today's as they were; a file a table and day, in order."""
    before = lake.commits()
    n_files = sum(len(c.files) for c in before)
    found = compacted(lake)
    after = lake.commits()
    assert (found.commits, found.merged_commits) == (14, 4)
    assert len(after) == len(before) - 10
    assert (
        sum(len(c.files) for c in after) == n_files - found.files + found.merged_files
    )
    for shard in SHARDS:
        mine = [c for c in after if c.shard == shard]
        assert [c.merged for c in mine] == [3, 4, 0, 0]
        assert mine[2:] == [c for c in before if c.shard == shard][7:]
        assert [c.after_ms for c in mine[1:]] == [c.until_ms for c in mine[:-1]]
        assert mine[0].writers["decisions"] == {
            **{f"w{i}": i for i in range(3)},
            "w": 2,
        }
        for commit in mine[:2]:
            assert len(commit.files) == len(
                {f.path.rpartition("/")[0] for f in commit.files}
            )
            for file in commit.files:
                rows = lake.read_file(file)
                assert rows.equals(rows.sort_by(BY_EXPERIMENT))
    assert [c for c in after if c.shard.startswith(INGESTED)] == before[:1]


def test_every_row_is_read_as_before(lake: Lake) -> None:
    """By experiment in the same order, within blocks, too; times still narrow down."""
    before, watermark_ms = content(lake), lake.watermark_ms()
    until = [lake.until_ms(shard) for shard in SHARDS]
    compacted(lake)
    assert content(lake) == before
    assert lake.watermark_ms() == watermark_ms
    assert [lake.until_ms(shard) for shard in SHARDS] == until
    first = {f.path for f in lake.files("decisions", to_ms=FIRST_MS + 1)}
    assert not first & {f.path for f in lake.files("decisions", FIRST_MS + DAY_MS)}


def test_folds_and_nights_come_to_the_same(lake: Lake) -> None:
    """Replay, a restored shard and a refresh; counts to the bit."""
    folds = [fold_lake(record, lake, f"{WATERMARK_MS}-0") for record in RECORDS]
    shards = [rebuild(lake, i, 10_000) for i in range(2)]
    night = refresh(lake, RECORDS)
    compacted(lake)
    for record, before in zip(RECORDS, folds, strict=True):
        assert _fold(*fold_lake(record, lake, f"{WATERMARK_MS}-0")) == _fold(*before)
    for i, shard in enumerate(shards):
        assert _rebuilt(rebuild(lake, i, 10_000)) == _rebuilt(shard)
    agree(night, refresh(lake, RECORDS))


def _fold(fold: Any, *told: Any) -> tuple[Any, ...]:
    return [np.asarray(a).tobytes() for a in fold.state], repr(fold.epochs), told


def _rebuilt(shard: Any) -> dict[str, Any]:
    """Comparable fields."""
    fields: dict[str, Any] = shard._asdict()
    assert fields.pop("folds").keys() == {*NAMES}
    folds = [_fold(shard.folds[name]) for name in NAMES]
    tables = {
        name: fields.pop(name).to_pylist()
        for name in ("snapshots", "decisions", "events")
    }
    by_id = {name: sorted(rows, key=repr) for name, rows in tables.items()}
    return {**fields, **by_id, "folds": folds}


def test_the_same_night_twice_changes_nothing(lake: Lake) -> None:
    """The second run deletes what the first one merged, no more; a third does nothing."""
    compacted(lake)
    merged, listed = lake.commits(), content(lake)
    n_entries = len(list(lake.paths("manifest", ".json")))
    assert compacted(lake) == Compacted()
    assert (lake.commits(), content(lake)) == (merged, listed)
    assert len(list(lake.paths("manifest", ".json"))) == n_entries - 14 == len(merged)
    there = {p for table in TABLES for p in lake.paths(table, ".parquet")}
    assert there == {file.path for commit in merged for file in commit.files}
    before = on_disk(lake)
    assert compacted(lake) == Compacted()
    assert on_disk(lake) == before


def test_the_next_night_takes_the_next_day(lake: Lake) -> None:
    """Days become one commit each as they pass, and are not merged with one another."""
    before = content(lake)
    for days in (1, 2, 3):
        compact(lake, FIRST_MS + days * DAY_MS + 1, free)
    assert content(lake) == before
    for shard in SHARDS:
        assert [c.merged for c in lake.commits(shard)] == [3, 4, 2]


@pytest.mark.parametrize("limit", ["SMALL_BYTES", "MAX_BYTES"])
def test_commits_have_a_size(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """One that is large is left as it is; small ones are merged up to a size, and what was
    merged is not merged any further."""
    sizes = {c.entry: sum(f.bytes for f in c.files) for c in lake.commits()}
    largest = max(sizes.values())
    monkeypatch.setattr(compacting, "FILE_BYTES", 1)
    monkeypatch.setattr(compacting, limit, largest)
    before = content(lake)
    compacted(lake)
    assert content(lake) == before
    made_of = [
        [size for entry, size in sizes.items() if _is_of(entry, commit)]
        for shard in SHARDS
        for commit in lake.commits(shard)
    ]
    assert any(len(some) > 1 for some in made_of)
    if limit == "SMALL_BYTES":
        assert [largest] in made_of
    else:
        assert all(sum(some) <= largest for some in made_of)
    again = lake.commits()
    compacted(lake)
    assert lake.commits() == again
    monkeypatch.undo()
    past_ms = FIRST_MS + 2 * DAY_MS
    left = [c for c in again if c.until_ms < past_ms and not c.merged]
    assert compacted(lake).commits <= len(left)
    assert all(commit in lake.commits() for commit in again if commit.merged)


def test_a_merged_commit_is_made_of_so_many_files(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small they are, as each takes memory of its own."""
    n_files = max(len(commit.files) for commit in lake.commits())
    monkeypatch.setattr(compacting, "MAX_BYTES", n_files * compacting.FILE_BYTES)
    found = compacted(lake)
    assert 0 < found.files <= found.merged_commits * n_files


def _is_of(entry: str, commit: Commit) -> bool:
    shard, after = entry.removesuffix(".json").split("/")[1:]
    return shard == commit.shard and commit.span.holds(int(after))


def test_gaps_and_damage_stay_to_be_told(lake: Lake) -> None:
    """What cannot be read, or is missing, is between the merged and told as before."""
    damaged = lake.commits("s0")[5]
    Path(lake.root, damaged.files[0].path).write_bytes(b"damaged")
    Path(lake.root, lake.commits("s1")[2].entry).unlink()
    before = [rebuild(lake, i, 10_000) for i in range(2)]
    compacted(lake)
    assert [c.merged for c in lake.commits("s0")] == [3, 2, 0, 0, 0, 0]
    assert damaged in lake.commits("s0")
    assert [c.merged for c in lake.commits("s1")] == [2, 4, 0, 0]
    for i, shard in enumerate(before):
        assert shard.bad_files
        assert rebuild(lake, i, 10_000).bad_files == shard.bad_files


# --- faults -----------------------------------------------------------------------------------


def test_cut_off_anywhere_it_reads_the_same_and_goes_on(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every fifth write and deletion of two runs; the next runs leave what others would."""
    whole = copy_of(filled, tmp_path / "whole")
    before = content(whole)
    steps: list[str] = []
    for run in range(2):
        with monkeypatch.context() as patch:
            _watch(patch, whole, steps.append)
            compact(whole, WATERMARK_MS, free)
        assert run or "delete" not in steps
    assert steps.count("delete") > steps.count("write_bytes") > 4
    for n_done in range(0, len(steps), 5):
        lake = copy_of(filled, tmp_path / f"cut-{n_done}")
        with monkeypatch.context() as patch:
            _watch(patch, lake, partial(_cut_off, [None] * n_done))
            with pytest.raises(KeyboardInterrupt):
                two_runs(lake)
        assert content(lake) == before
        assert lake.until_ms("s0") == FIRST_MS + N_COMMITS * STEP_MS
        two_runs(lake)
        assert on_disk(lake) == on_disk(whole)


def _watch(
    patch: pytest.MonkeyPatch, lake: Lake, told: Callable[[str], object]
) -> None:
    """Have each write and deletion told before it is done."""
    for step in ("write_bytes", "delete"):
        real = getattr(lake, step)

        def watched(
            *given: Any, real: Any = real, step: str = step, **named: Any
        ) -> None:
            told(step)
            real(*given, **named)

        patch.setattr(lake, step, watched)


def _cut_off(left: list[None], _: str) -> None:
    if not left:
        raise KeyboardInterrupt
    left.pop()


def test_two_at_once_are_as_one(lake: Lake, filled: Path, tmp_path: Path) -> None:
    """Whoever is first lists a merged commit, the other one does not; nothing is lost."""
    lakes = [lake, Lake(lake.root)]
    alone = copy_of(filled, tmp_path / "alone")
    compacted(alone)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(compacted, lakes))
    assert sum(one.merged_commits for one in found) == 4
    assert content(lakes[0]) == content(alone)
    assert lakes[0].commits() == alone.commits()


def test_a_reader_who_listed_before_misses_nothing(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are merged and deleted between listing and reading: their rows are found
    in the merged ones, each once."""
    before = content(lake)
    real = lake.read_file
    begun: list[int] = []

    def late(file: Any) -> pa.Table:
        if not begun:
            begun.append(1)
            two_runs(Lake(lake.root))
        return real(file)

    monkeypatch.setattr(lake, "read_file", late)
    rows, bad = of_experiment(RECORDS[0], lake, "decisions")
    known = before["acme", "hats", "decisions"]
    logged = [row for row in known if row["decision_id"] != "ingested"]
    assert (rows.to_pylist(), bad) == (logged, [])
    assert not list(lake.paths("quarantine", ""))


def test_entries_deleted_while_they_are_read_are_listed_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of commits is one from before the merge or one from after it."""
    real = lake.read_bytes
    begun: list[int] = []

    def late(path: str) -> bytes:
        if path.startswith("manifest/s1") and not begun:
            begun.append(1)
            two_runs(Lake(lake.root))
        return real(path)

    monkeypatch.setattr(lake, "read_bytes", late)
    assert lake.commits() == Lake(lake.root).commits()


# --- erasures ---------------------------------------------------------------------------------


def units(lake: Lake) -> set[tuple[str, str | None]]:
    """Tenants and units in all files of decisions, listed or not."""
    return {
        (row["tenant_id"], row["unit"])
        for path in Path(lake.root).rglob("decisions/**/*.parquet")
        for row in pq.read_table(path, partitioning=None).to_pylist()
    }


@pytest.mark.parametrize("n_runs", [1, 2])
def test_an_erasure_finds_the_unit_in_what_was_merged(lake: Lake, n_runs: int) -> None:
    """And in files that were merged and are still there; no row is lost, and what comes
    after is as before."""
    for _ in range(n_runs):
        compacted(lake)
    before = lake.read("decisions")[0]
    done = erase(lake, lambda _: True, [ALICE])
    assert done.unreadable == ()
    assert done.rows["acme", "alice"] == sum(
        row["unit"] == "alice" and row["tenant_id"] == "acme"
        for row in before.to_pylist()
    )
    assert ("acme", "alice") not in units(lake)
    assert ("rival", "alice") in units(lake)
    after, bad = lake.read("decisions")
    assert bad == []
    assert after.drop(["unit", "draw"]).equals(before.drop(["unit", "draw"]))
    for _ in range(2):
        assert compacted(lake) == Compacted()
    assert lake.read("decisions")[0].equals(after)


def test_what_was_rewritten_since_it_was_listed_waits(lake: Lake) -> None:
    """With all that it would be merged with, so that a day does not fall to pieces."""
    changed = lake.commits("s0")[5]

    def rewriting(shard: str) -> AbstractContextManager[bool]:
        if lake.is_listed([changed]):
            file = changed.files[0]
            Lake(lake.root).rewrite(changed, {file: lake.read_file(file)})
        return free(shard)

    before = content(lake)
    compact(lake, WATERMARK_MS, rewriting)
    assert [c.merged for c in lake.commits("s0")] == [3, 0, 0, 0, 0, 0, 0]
    compacted(lake)
    assert [c.merged for c in lake.commits("s0")] == [3, 4, 0, 0]
    assert content(lake) == before


def test_nobody_erased_while_commits_are_merged_comes_back(
    lake: Lake, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the lease had passed to the erasure: what was read before it is not listed,
    and what is listed is not what was written then."""
    real = lake.write_merged
    written: list[str] = []

    def late(commits: Any, *given: Any) -> Any:
        files = real(commits, *given)
        written.extend(file.path for file in files if file.table == "decisions")
        erase(Lake(lake.root), lambda shard: shard == commits[0].shard, [ALICE])
        return files

    before = content(lake)
    monkeypatch.setattr(lake, "write_merged", late)
    assert compacted(lake) == Compacted()
    monkeypatch.undo()
    assert compacted(lake).merged_commits == 4
    assert not {file.path for file in lake.files("decisions")} & {*written}
    assert ("acme", "alice") not in units(lake)
    erase(copy := copy_of(filled, tmp_path / "copy"), lambda _: True, [ALICE])
    assert content(lake) == content(copy) != before


def test_a_shard_that_another_rewrites_is_left_alone(lake: Lake) -> None:
    """Until the next run; the other shard is compacted."""
    before = lake.commits("s1")
    compact(lake, WATERMARK_MS, lambda shard: nullcontext(shard == "s0"))
    assert lake.commits("s1") == before
    assert len(lake.commits("s0")) == 4


# --- elsewhere --------------------------------------------------------------------------------


def test_a_lake_that_is_not_local_is_compacted() -> None:
    """Where files cannot be renamed, nor made only if absent: in a store of objects."""
    lake = fill(Lake("mock:///lake"))
    assert not lake.is_local
    before = content(lake)
    for merged_commits in (4, 0):
        assert compacted(lake).merged_commits == merged_commits
        assert content(lake) == before
