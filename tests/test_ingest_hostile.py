"""Files that are broken, lie or attack: told with a reason, and never a crash."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.lake.catalog import Lake
from bandolero.lake.checking import Request
from bandolero.lake.ingest import AS_OURS, ingest
from bandolero.lake.reader import Reader, UnreadableFileError
from bandolero.lake.rules import Checks
from bandolero.lake.sources import sources_of
from ingest_files import NOW_MS, export, quarantined, sale, shown, take_in
from strategies import START_MS

REQUEST = Request("events", AS_OURS, Checks(NOW_MS))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


def reason_of(lake: Lake, table: str, path: Path) -> str:
    """Why a file is refused whole."""
    (file,) = take_in(lake, table, [path]).files
    assert (file.accepted, file.reason is not None) == (0, True)
    assert lake.commits() == []
    return file.reason or ""


def test_bad_files_are_quarantined_and_the_rest_goes_on(
    lake: Lake, tmp_path: Path
) -> None:
    """Corrupt, cut, empty and missing files are told with a reason; good ones are in."""
    good = export(tmp_path / "good.parquet", [sale()])
    whole = good.read_bytes()
    (tmp_path / "corrupt.parquet").write_bytes(whole[:4] + b"\xff" * len(whole))
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    found = take_in(lake, "events", [tmp_path, tmp_path / "missing.parquet"])
    reasons = {Path(file.path).name: file.reason for file in found.files}
    assert reasons.pop("good.parquet") is None
    bad = {f"{n}.parquet" for n in ("corrupt", "cut", "empty", "missing")}
    assert set(reasons) == bad | {"empty.csv", "empty.jsonl"}
    assert all(reasons.values())
    assert (found.accepted, found.bad_files) == (1, 6)
    notes = quarantined(lake, "events", "file")
    told = {(Path(note["source"]).name, note["reason"]) for note in notes}
    assert told == set(reasons.items())


def test_flipped_bytes_are_never_a_crash(lake: Lake, tmp_path: Path) -> None:
    """A file with any single byte changed is refused, or its rows are read or refused."""
    whole = export(tmp_path / "good.parquet", [sale()]).read_bytes()
    for at in range(0, len(whole), 37):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        (tmp_path / "bad.parquet").write_bytes(damaged)
        (file,) = take_in(lake, "events", [tmp_path / "bad.parquet"]).files
        assert file.reason or file.was_there or file.accepted + file.refused == 1
    lake.read("events")[0].to_pylist()


def test_damaged_pages_are_noticed_where_they_have_checksums(
    lake: Lake, tmp_path: Path
) -> None:
    """A flipped bit in a page is an error, not a wrong value, if its writer cared."""
    table = pa.Table.from_pylist([sale(event_id=f"e{i}") for i in range(1000)])
    pq.write_table(
        table, tmp_path / "a.parquet", write_page_checksum=True, compression="none"
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[data.index(b"e500")] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    assert "crc" in reason_of(lake, "events", tmp_path / "a.parquet").lower()


def test_missing_columns_are_named(lake: Lake, tmp_path: Path) -> None:
    """A file without columns it must have is refused whole, and told which."""
    path = export(tmp_path / "a.parquet", {"tenant_id": ["acme"], "type": ["sale"]})
    told = reason_of(lake, "events", path)
    assert told == "columns are missing: event_id, decision_id, at_ms."


def test_columns_that_stand_twice_are_named(lake: Lake, tmp_path: Path) -> None:
    """Nobody can know which is meant."""
    (tmp_path / "a.csv").write_text("type,at_ms,type\n")
    told = reason_of(lake, "events", tmp_path / "a.csv")
    assert told == "columns stand twice: type."


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
        ("variant_id", pa.array([7]).dictionary_encode(), "must be string."),
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
    assert reason in reason_of(lake, "decisions", tmp_path / "a.parquet")


def test_text_that_is_no_utf8_is_refused(lake: Lake, tmp_path: Path) -> None:
    """Bytes that claim to be text and are not would stop every later reader."""
    table = pa.Table.from_pylist([sale()]).drop_columns(["type"])
    lie = pa.StringArray.from_buffers(
        1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(table.append_column("type", lie), tmp_path / "a.parquet")
    assert "UTF8" in reason_of(lake, "events", tmp_path / "a.parquet")


def test_each_file_of_a_folder_has_a_schema_of_its_own(
    lake: Lake, tmp_path: Path
) -> None:
    """One that has other types is refused; none is cast to what another has."""
    folder = tmp_path / "exports"
    folder.mkdir()
    export(folder / "1.parquet", [sale(value_micros=1)])
    export(folder / "2.parquet", [sale(value_micros=2.75)])
    export(folder / "3.parquet", [sale(event_id="e3", note="extra")])
    found = take_in(lake, "events", [folder])
    told = [file.reason for file in found.files]
    assert told == [None, "value_micros is double, must be int64.", None]
    values = lake.read("events")[0]["value_micros"].to_pylist()
    assert sorted(values) == [1, 1_000_000]


def test_links_do_not_lead_out_of_a_folder(lake: Lake, tmp_path: Path) -> None:
    """Links out of it are faults, those within it are passed over; drafts and notes of
    its writer, and files of other kinds, are not meant."""
    folder = tmp_path / "exports"
    (folder / "deep").mkdir(parents=True)
    (folder / "_temporary").mkdir()
    outside = export(tmp_path / "outside.parquet", [sale(event_id="secret")])
    inside = export(folder / "deep/in.parquet", [sale()])
    (folder / "a.parquet").symlink_to(outside)
    (folder / "b.parquet").symlink_to(inside)
    (folder / "c").symlink_to(tmp_path)
    for name in ("e.parquet", ".#lock"):
        (folder / name).symlink_to(folder / "gone.parquet")
    (folder / "deep/d").symlink_to(folder)
    for name in ("_temporary/e.parquet", ".f.parquet", "README.md"):
        (folder / name).write_bytes(outside.read_bytes())
    found = take_in(lake, "events", [folder])
    told = {Path(file.path).name: (file.accepted, file.reason) for file in found.files}
    assert told == {
        "a.parquet": (0, "is a link that leads out of its folder."),
        "c": (0, "is a link that leads out of its folder."),
        "e.parquet": (0, "is a link that leads nowhere."),
        "in.parquet": (1, None),
        "README.md": (0, None),
    }
    assert found.passed_over == 1


@pytest.mark.parametrize("is_remote", [False, True])
def test_a_folder_without_a_file_to_read_is_a_fault(
    lake: Lake, tmp_path: Path, is_remote: bool
) -> None:
    """Empty, or with other files only: said, for a wrong folder is more likely than none."""
    folder = tmp_path / "exports"
    folder.mkdir()
    path = f"file://{folder}" if is_remote else str(folder)
    for n_others in (0, 1):
        found = take_in(lake, "events", [path])
        assert (found.passed_over, found.bad_files) == (n_others, 1)
        told = "is a folder without a file that ends with .parquet, .csv, .json,"
        assert (found.files[-1].reason or "").startswith(told)
        (folder / "notes.txt").write_text("no rows")


def test_a_place_that_is_none_is_told(lake: Lake, tmp_path: Path) -> None:
    """An address that nothing answers to is a fault of its own, told without its secrets."""
    good = export(tmp_path / "a.parquet", [sale()])
    found = take_in(lake, "events", ["tape://me:secret@drive/1?key=secret", good])
    (bad, fine) = found.files
    assert bad.path == "tape://drive/1"
    assert (bad.reason or "").startswith("cannot be reached: ")
    assert fine.accepted == 1
    (note,) = quarantined(lake, "events", "file")
    assert note == {"source": bad.path, "reason": bad.reason}
    assert "secret" not in str(note)


# --- attacks ------------------------------------------------------------------------------


def many_rows(path: Path) -> None:
    """A few hundred bytes that declare ten billion rows."""

    def varint(n: int) -> bytes:
        low, rest = n & 0x7F, n >> 7
        return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])

    pq.write_table(pa.Table.from_pylist([sale()] * 777), path)
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    head, footer = data[: -8 - length], data[-8 - length : -8]
    said = b"\x16" + varint(2 * 777)  # a 64-bit number in Thrift's compact form
    assert said in footer
    footer = footer.replace(said, b"\x16" + varint(2 * 10**10))
    path.write_bytes(head + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def test_a_file_that_declares_ten_billion_rows_is_refused(
    lake: Lake, tmp_path: Path
) -> None:
    """Before a row of it is read: no log holds so many rows in so few bytes."""
    many_rows(tmp_path / "a.parquet")
    told = reason_of(lake, "events", tmp_path / "a.parquet")
    assert told.startswith("file declares 10,000,000,000 rows in 1,")
    assert told.endswith("bytes, must be a log.")


def bomb(path: Path, rows: int, size: int) -> Path:
    """A dictionary page with one long text, which every row points at."""
    same = pa.array([0] * rows, pa.int8())
    table = pa.table(
        {
            name: pa.DictionaryArray.from_arrays(same, [value])
            for name, value in sale(event_id="x" * size).items()
            if name != "at_ms"
        }
    ).append_column("at_ms", pa.array([START_MS] * rows))
    pq.write_table(table, path, compression="zstd", store_schema=False)
    return path


@pytest.mark.slow
def test_a_dictionary_bomb_is_defused(lake: Lake, tmp_path: Path) -> None:
    """700 texts of a megabyte in a few kilobytes: read in small bites, refused by row."""
    path = bomb(tmp_path / "a.parquet", 700, 1_000_000)
    assert path.stat().st_size < 5000
    (file,) = take_in(lake, "events", [path]).files
    assert file.rules == {"event_id must have 1 to 256 characters.": 700}
    assert len(quarantined(lake, "events", "rows")) == 700


@pytest.mark.slow
def test_a_larger_bomb_is_refused_whole(lake: Lake, tmp_path: Path) -> None:
    """Where not even a few rows fit, the process that reads says so; the next file is in."""
    bad = bomb(tmp_path / "a.parquet", 128, 40_000_000)
    good = export(tmp_path / "b.parquet", [sale()])
    first, second = ingest(lake, "events", [bad, good]).files
    assert first.reason == "rows do not fit into 640 MB, must be smaller."
    assert second.accepted == 1


@pytest.mark.parametrize(
    "attack",
    [
        lambda reader: os.kill(reader._child.pid, 9),
        lambda reader: os.kill(reader._child.pid, 11),
    ],
    ids=["killed", "crashed"],
)
def test_a_reader_that_dies_costs_its_file_only(
    tmp_path: Path, attack: Callable[[Reader], None]
) -> None:
    """The file at hand is refused with what ended the process; the next has a new one."""
    path = export(tmp_path / "a.parquet", [sale()])
    (source,) = sources_of([path], Lake(tmp_path / "lake"))
    with Reader() as reader:
        child = reader._running()
        attack(reader)
        child.wait()
        with pytest.raises(UnreadableFileError, match="ended a process by signal"):
            list(reader.read(source, REQUEST))
        assert sum(len(part.rows) for part in reader.read(source, REQUEST)) == 1


def test_deep_json_is_refused_by_row(lake: Lake, tmp_path: Path) -> None:
    """A line that nests beyond all measure is no object; the next line is read."""
    lines = ["[" * 200_000, '{"a":' * 200_000, json.dumps(sale()), "x" * (17 << 20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (file,) = take_in(lake, "events", [tmp_path / "a.jsonl"]).files
    assert (file.accepted, file.refused) == (1, 3)
    told = [(r["row"], r["reason"]) for r in quarantined(lake, "events", "rows")]
    assert told == [(n, "must be one JSON object.") for n in (1, 2, 4)]
