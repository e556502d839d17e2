"""The lake: commits whole or not at all, damage set aside, foreign files taken in."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.lake.catalog import (
    INGESTED,
    TABLES,
    Commit,
    Lake,
    OverlapError,
    rows_of,
)
from bandolero.lake.ingest import MAX_MS, REQUIRED, ingest
from bandolero.log import EVENTS_TABLE
from strategies import START_MS, Row, decision, decisions_table, event, events_table


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


# --- ingest -------------------------------------------------------------------------------


def export(path: Path, rows: list[Row] | dict[str, Any]) -> Path:
    """A Parquet file of another system."""
    if isinstance(rows, list):
        columns = dict.fromkeys(name for row in rows for name in row)
        rows = {name: [row.get(name) for row in rows] for name in columns}
    pq.write_table(pa.table(rows), path)
    return path


def sale(**fields: Any) -> Row:
    """An event as another system may know it."""
    known = {"tenant_id": "acme", "event_id": "e1", "decision_id": "d1", "type": "sale"}
    return known | {"at_ms": START_MS} | fields


def shown(**fields: Any) -> Row:
    """A decision as another system may know it."""
    row = decision()
    return {name: row[name] for name in REQUIRED["decisions"]} | fields


def quarantined(lake: Lake, table: str, kind: str) -> list[Row]:
    """Rows of the quarantine: refused `rows`, or notes on refused `file`s."""
    files = sorted(Path(lake.root, "quarantine", table).glob(f"*-{kind}.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_good_rows_are_in_the_lake(lake: Lake, tmp_path: Path) -> None:
    """A file with the columns it must have is in the lake, each row at its own time."""
    path = export(tmp_path / "a.parquet", [shown(), shown(decision_id="d2")])
    found = ingest(lake, "decisions", [path])
    assert (found.accepted, found.refused, found.bad_files) == (2, 0, 0)
    first = lake.read("decisions")[0].to_pylist()[0]
    assert (first["decision_id"], first["unit"]) == ("d1", None)
    assert (first["log_ms"], first["log_id"]) == (START_MS, f"{START_MS}-0")


def test_events_take_their_own_time_and_a_value_of_one(
    lake: Lake, tmp_path: Path
) -> None:
    """An event that says no more was received when it happened, and is worth 1."""
    rows = [sale(), sale(event_id="e2", received_at_ms=START_MS + 5, value_micros=7)]
    ingest(lake, "events", [export(tmp_path / "a.parquet", rows)])
    first, second = lake.read("events")[0].to_pylist()
    assert (first["received_at_ms"], first["value_micros"]) == (START_MS, 1_000_000)
    assert (second["log_ms"], second["value_micros"]) == (START_MS + 5, 7)


def test_ingested_rows_are_found_by_their_time(lake: Lake, tmp_path: Path) -> None:
    """A read from a time on holds the ingested rows of that time too."""
    ingest(lake, "events", [export(tmp_path / "a.parquet", [sale()])])
    assert lake.read("events", from_ms=START_MS)[0].num_rows == 1
    assert lake.read("events", from_ms=START_MS + 1)[0].num_rows == 0
    assert lake.read("events", to_ms=START_MS - 10)[0].num_rows == 0


def test_bad_rows_are_quarantined_with_their_reason(lake: Lake, tmp_path: Path) -> None:
    """Rows that break a rule are set aside, each with its reason and source."""
    rows = [
        shown(),
        shown(propensity=0.0),
        shown(propensity=1.5),
        shown(propensity=float("nan")),
        shown(propensity=None),
        shown(decision_id=None),
        shown(decided_at_ms=-1),
        shown(decided_at_ms=MAX_MS + 1),
    ]
    path = export(tmp_path / "a.parquet", rows)
    found = ingest(lake, "decisions", [path])
    assert (found.accepted, found.refused, found.bad_files) == (1, 7, 0)
    refused = quarantined(lake, "decisions", "rows")
    assert [row["reason"] for row in refused] == [
        *["propensity must be > 0 and <= 1."] * 3,
        "propensity is null.",
        "decision_id is null.",
        *["decided_at_ms must lie between 1970 and 2100."] * 2,
    ]
    assert {row["source"] for row in refused} == {str(path)}
    assert lake.read("decisions")[0].num_rows == 1


def test_bad_times_of_events_are_refused(lake: Lake, tmp_path: Path) -> None:
    """Both times of an event must be of this or the last century."""
    rows = [sale(at_ms=MAX_MS + 1), sale(received_at_ms=-5), sale(type=None)]
    ingest(lake, "events", [export(tmp_path / "a.parquet", rows)])
    assert [row["reason"] for row in quarantined(lake, "events", "rows")] == [
        "at_ms must lie between 1970 and 2100.",
        "received_at_ms must lie between 1970 and 2100.",
        "type is null.",
    ]


def test_bad_files_are_quarantined_and_the_rest_goes_on(
    lake: Lake, tmp_path: Path
) -> None:
    """Corrupt, cut, empty and missing files are told with a reason; good ones are in."""
    good = export(tmp_path / "good.parquet", [sale()])
    whole = good.read_bytes()
    (tmp_path / "corrupt.parquet").write_bytes(whole[:4] + b"\xff" * len(whole))
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.parquet").write_bytes(b"")
    found = ingest(lake, "events", [tmp_path, tmp_path / "missing.parquet"])
    reasons = {Path(file.path).name: file.reason for file in found.files}
    assert reasons.pop("good.parquet") is None
    assert set(reasons) == {
        f"{n}.parquet" for n in ("corrupt", "cut", "empty", "missing")
    }
    assert all(reasons.values())
    assert (found.accepted, found.bad_files) == (1, 4)
    notes = quarantined(lake, "events", "file")
    assert {(Path(note["source"]).name, note["reason"]) for note in notes} == set(
        reasons.items()
    )


def test_flipped_bytes_are_never_a_crash(lake: Lake, tmp_path: Path) -> None:
    """A file with any single byte changed is refused, or its rows are read or refused."""
    whole = export(tmp_path / "good.parquet", [sale()]).read_bytes()
    for at in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        (tmp_path / "bad.parquet").write_bytes(damaged)
        (file,) = ingest(lake, "events", [tmp_path / "bad.parquet"]).files
        assert file.reason or file.accepted + file.refused >= 0
    lake.read("events")[0].to_pylist()


def test_same_file_again_adds_nothing(lake: Lake, tmp_path: Path) -> None:
    """The same bytes, under whatever name, are in the lake once."""
    path = export(tmp_path / "a.parquet", [sale(), sale(type=None)])
    (tmp_path / "b.parquet").write_bytes(path.read_bytes())
    found = ingest(lake, "events", [path, path, tmp_path])
    assert [file.accepted for file in found.files] == [1, 0, 0, 0]  # not the lake's own
    assert found.bad_files == 0
    assert lake.read("events")[0].num_rows == 1
    assert len(quarantined(lake, "events", "rows")) == 1


def test_equal_rows_of_a_file_are_kept(lake: Lake, tmp_path: Path) -> None:
    """Ingest removes nothing that looks equal: `settle` decides by event id."""
    ingest(lake, "events", [export(tmp_path / "a.parquet", [sale(), sale()])])
    assert lake.read("events")[0].num_rows == 2


def test_missing_columns_are_named(lake: Lake, tmp_path: Path) -> None:
    """A file without columns it must have is refused whole, and told which."""
    path = export(tmp_path / "a.parquet", {"tenant_id": ["acme"], "type": ["sale"]})
    (file,) = ingest(lake, "events", [path]).files
    assert file.reason == "columns are missing: event_id, decision_id, at_ms."


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        (
            "decided_at_ms",
            pa.array(["soon"]),
            "decided_at_ms is string, must be int64.",
        ),
        ("decided_at_ms", pa.array([1.5]), "decided_at_ms is double, must be int64."),
        ("decided_at_ms", pa.array([2**63], pa.uint64()), "not in range"),
        ("variant_id", pa.array([7]), "variant_id is int64, must be string."),
        (
            "variant_id",
            pa.array([7]).dictionary_encode(),
            "must be string.",
        ),
        ("propensity", pa.array(["0.5"]), "propensity is string, must be double."),
        ("propensity", pa.array([True]), "propensity is bool, must be double."),
        ("eligible", pa.array([[1, 2]]), "eligible is list<"),
        ("eligible", pa.array(["v1"]), "eligible is string, must be list<"),
        ("context", pa.array([{"hour": 3}]), "context is struct<"),
    ],
)
def test_wrong_types_are_refused(
    lake: Lake, tmp_path: Path, column: str, values: pa.Array, reason: str
) -> None:
    """A column is never cast across kinds: the file is refused, and told which and why."""
    table = pa.Table.from_pylist([shown()])
    if column in table.column_names:
        table = table.drop_columns([column])
    pq.write_table(table.append_column(column, values), tmp_path / "a.parquet")
    (file,) = ingest(lake, "decisions", [tmp_path / "a.parquet"]).files
    assert file.reason is not None
    assert reason in file.reason


def test_kindred_types_are_cast(lake: Lake, tmp_path: Path) -> None:
    """Narrower numbers, long text and dictionaries of text keep their meaning."""
    table = pa.table(
        {
            "tenant_id": pa.array(["acme"]).dictionary_encode(),
            "decision_id": pa.array(["d1"], pa.large_string()),
            "experiment_id": ["hats"],
            "variant_id": ["v1"],
            "decided_at_ms": pa.array([1000], pa.uint32()),
            "propensity": pa.array([1], pa.int8()),
            "mode": ["fixed"],
            "eligible": pa.array([["v1"]], pa.list_(pa.large_string())),
            "unit": pa.nulls(1),
            "colour": ["red"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert ingest(lake, "decisions", [tmp_path / "a.parquet"]).accepted == 1
    (row,) = lake.read("decisions")[0].to_pylist()
    assert (row["tenant_id"], row["decided_at_ms"], row["propensity"]) == (
        "acme",
        1000,
        1,
    )
    assert row["eligible"] == ["v1"]


def test_text_that_is_no_utf8_is_refused(lake: Lake, tmp_path: Path) -> None:
    """Bytes that claim to be text and are not would stop every later reader."""
    table = pa.Table.from_pylist([sale()]).drop_columns(["type"])
    lie = pa.StringArray.from_buffers(
        1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(table.append_column("type", lie), tmp_path / "a.parquet")
    (file,) = ingest(lake, "events", [tmp_path / "a.parquet"]).files
    assert file.reason is not None
    assert "UTF8" in file.reason
