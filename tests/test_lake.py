"""The lake: commits whole or not at all, damage set aside."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from bandolero.lake.catalog import (
    INGESTED,
    TABLES,
    Commit,
    Lake,
    OverlapError,
    rows_of,
)
from bandolero.log import EVENTS_TABLE
from strategies import START_MS, decision, decisions_table, event, events_table


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


def told(*log_ids: str) -> pa.Table:
    """Events, one at each log id, named by it."""
    rows = [
        event(event_id=f"at {i}", log_id=i, log_ms=int(i.partition("-")[0]))
        for i in log_ids
    ]
    return events_table(rows)


def names(rows: pa.Table) -> list[str]:
    """Event ids in the order read."""
    found: list[str] = rows["event_id"].to_pylist()
    return found


def path_of(lake: Lake, table: str = "events") -> Path:
    """The one listed file of a table."""
    (file,) = lake.files(table)
    return Path(lake.root, file.path)


# --- commits ------------------------------------------------------------------------------


def test_commit_is_read_back(lake: Lake) -> None:
    """Rows of a commit are read as written, under one file per table and day."""
    events = told(f"{START_MS}-0", f"{START_MS + 6000}-0")
    made = decisions_table([decision()])
    commit = lake.commit("0", 0, START_MS + 7000, {"events": events, "decisions": made})
    assert [file.path.split("/")[:2] for file in commit.files] == [
        ["events", "date=2026-11-20"],
        ["events", "date=2026-11-21"],
        ["decisions", "date=2026-11-20"],
    ]
    assert lake.commits() == [commit]
    assert lake.read("events") == (events.combine_chunks(), [])
    assert lake.read("decisions")[0].to_pylist() == made.to_pylist()
    assert lake.read("control")[0].num_rows == 0


def test_commit_is_whole_or_not_at_all(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any write, a commit is not there; made again, it is, and only once."""
    tables = {"events": told("5-0"), "decisions": decisions_table([decision()])}
    write = lake.write_bytes
    for n_written in range(3):
        left = n_written

        def write_some(path: str, data: bytes, *, anew: bool = False) -> None:
            nonlocal left
            if left == 0:
                raise OSError("No space left on device")
            left -= 1
            write(path, data, anew=anew)

        monkeypatch.setattr(lake, "write_bytes", write_some)
        with pytest.raises(OSError, match="No space"):
            lake.commit("0", 0, 9, tables)
        assert lake.commits() == []
        assert lake.read("events")[0].num_rows == 0
        assert lake.until_ms("0") == 0
    monkeypatch.undo()
    lake.commit("0", 0, 9, tables)
    assert names(lake.read("events")[0]) == ["at 5-0"]


def test_half_a_file_is_never_seen(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is drafted, made durable, and then put in its place, folder and all."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    lake.write_bytes("folder/file", b"x")
    assert synced[0].startswith(".file.")
    assert synced[1:] == ["folder", "lake"]
    assert [path.name for path in Path(lake.root, "folder").iterdir()] == ["file"]


def test_same_position_is_committed_once(lake: Lake) -> None:
    """A second commit of a shard from one position is refused, another shard's is not."""
    lake.commit("0", 5, 9, {"events": told("6-0")})
    with pytest.raises(OverlapError, match=r"manifest/0/0000000000005\.json exists"):
        lake.commit("0", 5, 10, {"events": told("7-0")})
    lake.commit("1", 5, 9, {"events": told("8-0")})
    assert names(lake.read("events")[0]) == ["at 6-0", "at 8-0"]


def test_racing_commits_are_one(lake: Lake) -> None:
    """Of eight archivers that commit one position at once, one does; seven are told."""

    def commit(i: int) -> bool:
        try:
            lake.commit("0", 0, 10 + i, {"events": told(f"{i}-0")})
        except OverlapError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(commit, range(8)))
    assert sum(done) == 1
    rows, bad = lake.read("events")
    assert (names(rows), bad) == ([f"at {done.index(True)}-0"], [])


def test_parts_of_a_file_are_listed_at_once(lake: Lake) -> None:
    """What an ingested file became is nowhere until it is listed, and then all of it; a
    part that is written anew is found in its own place."""
    shard = f"{INGESTED}events-ab"
    files = [
        file
        for part, log_id in enumerate(("6-0", "7-0"))
        for file in lake.write_part(shard, part, "events", told(log_id))
    ]
    assert lake.read("events")[0].num_rows == 0
    commit = lake.enlist(Commit(shard, 5, 9, tuple(files), {}))
    assert names(lake.read("events")[0]) == ["at 6-0", "at 7-0"]
    with pytest.raises(OverlapError, match="by another"):
        lake.enlist(commit)
    lake.rewrite(commit, {files[1]: told("8-0")})
    assert names(lake.read_commit(commit, "events")[0]) == ["at 6-0", "at 8-0"]


def test_watermark_is_the_least_of_the_shards(lake: Lake) -> None:
    """The lake is complete up to the shard that is furthest behind; ingest has no say."""
    assert (lake.watermark_ms(), lake.until_ms("0")) == (0, 0)
    lake.commit("0", 0, 50, {})
    lake.commit("0", 50, 90, {})
    lake.commit("1", 0, 70, {})
    lake.commit("ingest-events-ab", 0, 0, {})
    assert lake.watermark_ms() == 70
    assert (lake.until_ms("0"), lake.until_ms("1")) == (90, 70)


def test_rows_are_read_in_log_order(lake: Lake) -> None:
    """Rows of all shards are merged by log id, as numbers; a block keeps its order."""
    lake.commit("1", 0, 20, {"events": told("9-10", "10-0", "10-0")})
    lake.commit("0", 0, 20, {"events": told("9-9", "10-1", "11-0")})
    assert names(lake.read("events")[0]) == [
        f"at {i}" for i in ("9-9", "9-10", "10-0", "10-0", "10-1", "11-0")
    ]


def test_times_narrow_down_the_files(lake: Lake) -> None:
    """Only files that may hold rows of the times asked for are read."""
    for after in (0, 10, 20):
        lake.commit("0", after, after + 10, {"events": told(f"{after + 5}-0")})
    assert names(lake.read("events", from_ms=15)[0]) == ["at 15-0", "at 25-0"]
    assert names(lake.read("events", to_ms=12)[0]) == ["at 5-0", "at 15-0"]
    assert names(lake.read("events", 11, 20)[0]) == ["at 15-0"]


# --- damage -------------------------------------------------------------------------------


def test_damaged_file_is_set_aside(lake: Lake) -> None:
    """A changed byte is noticed; the file is quarantined with its reason, others read."""
    lake.commit("0", 0, 9, {"events": told("5-0")})
    path = path_of(lake)
    lake.commit("0", 9, 19, {"events": told("15-0")})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    rows, bad = lake.read("events")
    assert names(rows) == ["at 15-0"]
    (file,) = bad
    assert file.path == str(path.relative_to(lake.root))
    assert "does not have the hash of its manifest" in file.reason
    copy = Path(lake.root, "quarantine", file.path)
    assert copy.read_bytes() == data
    note = json.loads(Path(f"{copy}.json").read_text())
    assert (note["path"], note["reason"]) == (file.path, file.reason)


def test_missing_file_is_told(lake: Lake) -> None:
    """A listed file that is gone is told with its reason, and the rest is read."""
    lake.commit("0", 0, 9, {"events": told("5-0")})
    gone = path_of(lake)
    lake.commit("0", 9, 19, {"events": told("15-0")})
    gone.unlink()
    rows, (bad,) = lake.read("events")
    assert names(rows) == ["at 15-0"]
    assert Path(bad.path).name == gone.name
    assert Path(lake.root, "quarantine", f"{bad.path}.json").is_file()


def test_foreign_schema_is_set_aside(lake: Lake) -> None:
    """A listed file of another table is whole and yet of no use: it is quarantined."""
    lake.commit("0", 0, 9, {"events": told("5-0")})
    entry = Path(lake.root, "manifest/0/0000000000000.json")
    entry.write_text(
        entry.read_text().replace('"table": "events"', '"table": "control"')
    )
    rows, (bad,) = lake.read("control")
    assert rows.equals(TABLES["control"].empty_table())
    assert "does not have the schema of its table" in bad.reason


def test_unlisted_files_do_not_exist(lake: Lake) -> None:
    """A file that no manifest entry lists is not read, wherever it lies."""
    lake.commit("0", 0, 9, {"events": told("5-0")})
    path = path_of(lake)
    (path.parent / "stray.parquet").write_bytes(path.read_bytes())
    assert names(lake.read("events")[0]) == ["at 5-0"]


def test_rows_of_nothing_have_a_schema() -> None:
    """Rows make a table with the schema of its name, none too."""
    control = ("acme", "hats", "spec", "{}", "5-0", 5)
    assert rows_of("control", [control]).to_pylist()[0]["body"] == "{}"
    assert rows_of("events", []).schema.equals(EVENTS_TABLE)
