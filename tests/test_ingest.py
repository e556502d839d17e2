"""Other systems' files in the lake: what is taken in, what is refused, nothing twice."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.lake.catalog import Lake
from bandolero.lake.ingest import Terms, ingest
from bandolero.lake.mapping import Column, Mapping
from bandolero.lake.rules import CLOCK_SKEW_MS
from bandolero.lake.sources import Source, Version
from ingest_files import NOW_MS, export, quarantined, reasons, sale, shown, take_in
from strategies import START_MS


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


# --- what is taken in -------------------------------------------------------------------


def test_good_rows_are_in_the_lake(lake: Lake, tmp_path: Path) -> None:
    """A file with the columns it must have is in the lake, each row at its own time."""
    path = export(tmp_path / "a.parquet", [shown(), shown(decision_id="d2")])
    found = ingest(lake, "decisions", [path], Terms(now_ms=NOW_MS))
    assert (found.accepted, found.refused, found.bad_files) == (2, 0, 0)
    first = lake.read("decisions")[0].to_pylist()[0]
    assert (first["decision_id"], first["unit"]) == ("d1", None)
    assert (first["log_ms"], first["log_id"]) == (START_MS, f"{START_MS}-0")


def test_events_take_their_own_time_and_a_value_of_one(
    lake: Lake, tmp_path: Path
) -> None:
    """An event that says no more was received when it happened, and is worth 1."""
    rows = [sale(), sale(event_id="e2", received_at_ms=START_MS + 5, value_micros=7)]
    take_in(lake, "events", [export(tmp_path / "a.parquet", rows)])
    first, second = lake.read("events")[0].to_pylist()
    assert (first["received_at_ms"], first["value_micros"]) == (START_MS, 1_000_000)
    assert (second["log_ms"], second["value_micros"]) == (START_MS + 5, 7)


def test_ingested_rows_are_found_by_their_time(lake: Lake, tmp_path: Path) -> None:
    """A read from a time on holds the ingested rows of that time too."""
    take_in(lake, "events", [export(tmp_path / "a.parquet", [sale()])])
    assert lake.read("events", from_ms=START_MS)[0].num_rows == 1
    assert lake.read("events", from_ms=START_MS + 1)[0].num_rows == 0
    assert lake.read("events", to_ms=START_MS - 10)[0].num_rows == 0


def test_a_large_file_becomes_many_at_once(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file a day and so many rows, all of them listed in one commit."""
    monkeypatch.setattr("bandolero.lake.drafts.ROWS_PER_FILE", 70_000)
    times = [START_MS + i // 20 for i in range(200_000)]
    table = pa.table(
        {
            name: [sale()[name]] * len(times)
            for name in ("tenant_id", "decision_id", "type")
        }
        | {"event_id": [f"e{i}" for i in range(len(times))], "at_ms": times}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert take_in(lake, "events", [tmp_path / "a.parquet"]).accepted == len(times)
    (commit,) = lake.commits()
    days = [file.path.split("/")[1] for file in commit.files]
    assert set(days) == {"date=2026-11-20", "date=2026-11-21"}
    assert len(commit.files) == 3
    assert sum(file.rows for file in commit.files) == len(times)
    ids = lake.read("events")[0]["event_id"].to_pylist()
    assert ids == table["event_id"].to_pylist()


def test_kindred_types_are_cast(lake: Lake, tmp_path: Path) -> None:
    """Narrower numbers, long text and dictionaries of text keep their meaning; columns
    that are not ours are passed over, those of nobody are null."""
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
    assert take_in(lake, "decisions", [tmp_path / "a.parquet"]).accepted == 1
    (row,) = lake.read("decisions")[0].to_pylist()
    got = (row["tenant_id"], row["decided_at_ms"], row["propensity"], row["eligible"])
    assert got == ("acme", 1000, 1, ["v1"])


def test_times_as_timestamps_are_milliseconds(lake: Lake, tmp_path: Path) -> None:
    """A timestamp can mean one thing only, in whatever unit and zone."""
    at = pa.array([START_MS * 1000 + 999]).cast(pa.timestamp("us", "Asia/Tokyo"))
    table = pa.Table.from_pylist([sale()]).set_column(4, "at_ms", at)
    pq.write_table(table, tmp_path / "a.parquet")
    take_in(lake, "events", [tmp_path / "a.parquet"])
    assert lake.read("events")[0]["at_ms"].to_pylist() == [START_MS]


# --- rows that are refused ------------------------------------------------------------------


HUGE = "x" * 10_000_000
SOON = NOW_MS + CLOCK_SKEW_MS
TIMES = "must lie between 1970 and now."
NAMES = "must be 1 to 64 letters, digits, '.', '_' or '-'."
MONEY = f"must lie between 0 and {10**15}: a refund or a retract takes back."
LENGTH = "must have 1 to 256 characters."
CONTEXT = "must be a JSON object of at most 16384 bytes."


@pytest.mark.parametrize(
    ("column", "value", "told", "rule"),
    [
        ("propensity", 0.0, "0.0", "must be > 0 and <= 1."),
        ("propensity", 1.5, "1.5", "must be > 0 and <= 1."),
        ("propensity", float("nan"), "nan", "must be > 0 and <= 1."),
        ("propensity", float("inf"), "inf", "must be > 0 and <= 1."),
        ("propensity", None, None, "must be given."),
        ("decision_id", None, None, "must be given."),
        ("decision_id", "", "", LENGTH),
        ("decision_id", HUGE, HUGE[:200], LENGTH),
        ("variant_id", "v/1", "v/1", NAMES),
        ("tenant_id", "a b", "a b", NAMES),
        ("decided_at_ms", -1, "-1", TIMES),
        ("decided_at_ms", SOON + 1, str(SOON + 1), TIMES),
        (
            "mode",
            "guess",
            "guess",
            "must be one of explore, holdout, fixed, fallback.",
        ),
        ("draw", 1.0, "1.0", "must be >= 0 and < 1."),
        ("context", "[1]", "[1]", CONTEXT),
        ("context", '{"a":}', '{"a":}', CONTEXT),
        ("context", f'{{"a":"{HUGE}"}}', f'{{"a":"{HUGE}'[:200], CONTEXT),
        ("context", "[" * 9000, "[" * 200, CONTEXT),
        ("eligible", [], "[]", "must have 1 to 1000 items."),
        ("eligible", [""], "['']", "must name variants of 1 to 64 characters."),
        (
            "probabilities",
            [0.5],
            "[0.5]",
            "must be given for eligible, one each.",
        ),
    ],
)
def test_a_bad_decision_is_set_aside(
    lake: Lake, tmp_path: Path, column: str, value: Any, told: str, rule: str
) -> None:
    """Refused alone, with its row, column, value (shortened) and rule; the rest is in."""
    rows = [shown(**{column: shown().get(column)}), shown(**{column: value}), shown()]
    path = export(tmp_path / "a.parquet", rows)
    found = take_in(lake, "decisions", [path])
    assert (found.accepted, found.refused, found.bad_files) == (2, 1, 0)
    assert found.files[0].rules == {f"{column} {rule}": 1}
    assert reasons(lake, "decisions") == [(2, column, told, rule)]
    (refused,) = quarantined(lake, "decisions", "rows")
    assert refused["source"] == str(path)
    assert refused[column] is None
    assert refused["mode"] == (None if column == "mode" else "explore")


@pytest.mark.parametrize(
    ("fields", "column", "rule"),
    [
        ({"at_ms": SOON + 1}, "at_ms", TIMES),
        ({"received_at_ms": -5}, "received_at_ms", TIMES),
        ({"type": None}, "type", "must be given."),
        ({"type": "Click!"}, "type", "must be a lower-case word."),
        ({"decided_at_ms": START_MS + 1}, "at_ms", "must not be before the decision."),
        (
            {"value_micros": -1},
            "value_micros",
            MONEY,
        ),
        ({"value_micros": 10**15 + 1}, "value_micros", MONEY),
        (
            {"type": "refund"},
            "value_micros",
            "must be given and > 0 in a refund, which subtracts.",
        ),
        (
            {"type": "refund", "value_micros": 0},
            "value_micros",
            "must be given and > 0 in a refund, which subtracts.",
        ),
        (
            {"type": "retract"},
            "retracts",
            "must name an event_id in a retract, and only there.",
        ),
        (
            {"retracts": "e0"},
            "retracts",
            "must name an event_id in a retract, and only there.",
        ),
        (
            {"type": "retract", "retracts": "e1"},
            "retracts",
            "must name another event.",
        ),
        ({"event_id": "e" * 257}, "event_id", LENGTH),
    ],
)
def test_a_bad_event_is_set_aside(
    lake: Lake, tmp_path: Path, fields: dict[str, Any], column: str, rule: str
) -> None:
    """Refused alone, with the rule; what the service would accept is in."""
    rows = [
        sale(**dict.fromkeys(fields, None)) | sale(),
        sale(event_id="e2", type="retract", retracts="e1"),
        sale() | fields,
    ]
    found = take_in(lake, "events", [export(tmp_path / "a.parquet", rows)])
    assert (found.accepted, found.refused) == (2, 1)
    ((row, told_column, _, told),) = reasons(lake, "events")
    assert (row, told_column, told) == (3, column, rule)


def test_contexts_are_what_python_reads(lake: Lake, tmp_path: Path) -> None:
    """Flat, nested, escaped, spaced and empty objects are taken, and nothing else."""
    good: list[str | None] = [
        "{}",
        '{"a":1}',
        ' { "a" : [1, {"b": null}] } ',
        '{"\\u00e9":"\\"x"}',
    ]
    good += ['{"a":-0.5e-3,"b":true,"c":"é"}', None]
    bad = ['{"a":01}', "{'a':1}", '{"a":1,}', '"a"', "null", "", "{", '{"a":"\n"}']
    rows = [shown(context=text) for text in [*good, *bad]]
    found = take_in(lake, "decisions", [export(tmp_path / "a.parquet", rows)])
    assert (found.accepted, found.refused) == (len(good), len(bad))
    assert lake.read("decisions")[0]["context"].to_pylist() == good


def test_unknown_experiments_and_variants_are_refused(
    lake: Lake, tmp_path: Path
) -> None:
    """Where it is known which there are; a tenant has no part in another's."""
    rows = [
        shown(),
        shown(experiment_id="caps"),
        shown(variant_id="v9"),
        shown(tenant_id="rival"),
    ]
    known = {"acme/hats": frozenset(("v1", "v2"))}
    path = export(tmp_path / "a.parquet", rows)
    assert take_in(lake, "decisions", [path], Terms(known=known)).refused == 3
    assert reasons(lake, "decisions") == [
        (2, "experiment_id", "caps", "must be an experiment of its tenant."),
        (3, "variant_id", "v9", "must be a variant of its experiment."),
        (4, "experiment_id", "hats", "must be an experiment of its tenant."),
    ]


NAMED = ("decision_id", "experiment_id", "variant_id", "unit", "draw", "context")
HATS = Terms(known={"acme/hats": frozenset(("v1",))})


def test_a_file_of_refused_rows_may_come_again(lake: Lake, tmp_path: Path) -> None:
    """What was wrong may have been ours: once the experiment is known, all is taken."""
    path = export(tmp_path / "a.parquet", [shown()])
    (file,) = take_in(lake, "decisions", [path], Terms(known={})).files
    assert file.reason == "1 of 1 rows are refused: none is in."
    assert file.rules == {"experiment_id must be an experiment of its tenant.": 1}
    assert len(quarantined(lake, "decisions", "rows")) == 1
    assert take_in(lake, "decisions", [path], HATS).accepted == 1
    assert quarantined(lake, "decisions", "rows") == []


def test_refused_rows_come_in_once_they_are_known(lake: Lake, tmp_path: Path) -> None:
    """Handed in again, a file brings what was refused for want of an experiment or a
    variant, each row once; what breaks another rule stays, and nothing stands twice."""
    rows = [
        shown(decision_id="d1"),
        shown(decision_id="d2", variant_id="v2", unit="alice", draw=0.5),
        shown(decision_id="d3", experiment_id="caps", context="{}"),
        shown(decision_id="d4", mode="guess"),
    ]
    path = export(tmp_path / "a.parquet", rows)
    told = []
    for known in (
        {"acme/hats": {"v1"}},
        {"acme/hats": {"v1"}},
        {"acme/hats": {"v1", "v2"}},
        {"acme/hats": {"v1", "v2"}, "acme/caps": {"v1"}},
        {"acme/hats": {"v1", "v2"}, "acme/caps": {"v1"}},
    ):
        terms = Terms(known={name: frozenset(ids) for name, ids in known.items()})
        (file,) = take_in(lake, "decisions", [path], terms).files
        told.append((file.was_there, file.accepted, file.still_refused))
        left = len(quarantined(lake, "decisions", "rows"))
        assert left == (file.still_refused if file.was_there else file.refused)
    assert told == [
        (False, 1, 0),
        (True, 0, 3),
        (True, 1, 2),
        (True, 1, 1),
        (True, 0, 1),
    ]
    found = lake.read("decisions")[0].to_pylist()
    given = [tuple(row.get(name) for name in NAMED) for row in rows[:3]]
    assert sorted(tuple(row[name] for name in NAMED) for row in found) == given
    assert reasons(lake, "decisions") == [
        (4, "mode", "guess", "must be one of explore, holdout, fixed, fallback.")
    ]


def test_a_damaged_quarantine_is_told(lake: Lake, tmp_path: Path) -> None:
    """What was refused then can be judged no more; the rest of the file stays in."""
    path = export(tmp_path / "a.parquet", [shown(), shown(variant_id="v2")])
    take_in(lake, "decisions", [path], HATS)
    (part,) = lake.paths("quarantine", "-rows.parquet")
    lake.write_bytes(part, b"PAR1")
    (file,) = take_in(lake, "decisions", [path], HATS).files
    assert (file.reason or "").startswith(f"is in already, but {part} is damaged: ")
    assert lake.read("decisions")[0].num_rows == 1


def test_a_later_try_killed_on_its_way_adds_nothing_twice(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its rows are listed none is in; after that all are, and the next try knows."""
    rows = [shown(), shown(decision_id="d2", variant_id="v2")]
    path = export(tmp_path / "a.parquet", [*rows, shown(decision_id="d3", mode="x")])
    take_in(lake, "decisions", [path], HATS)
    terms = Terms(known={"acme/hats": frozenset(("v1", "v2"))})
    for name, in_lake in (("enlist", 1), ("delete_folder", 2), (None, 2)):
        with monkeypatch.context() as patch:
            if name is not None:
                patch.setattr(lake, name, killed_after(getattr(lake, name), name))
                with pytest.raises(KeyboardInterrupt):
                    take_in(lake, "decisions", [path], terms)
            else:
                take_in(lake, "decisions", [path], terms)
        assert lake.read("decisions")[0].num_rows == in_lake
    assert [row for row, *_ in reasons(lake, "decisions")] == [3]


def killed_after(act: Any, name: str) -> Any:
    """The same, but killed instead: `delete_folder` not before the second one."""
    calls: list[str] = []

    def killed(*given: Any) -> Any:
        calls.append(name)
        if name == "enlist" or len(calls) > 1:
            raise KeyboardInterrupt
        return act(*given)

    return killed


@pytest.mark.parametrize(("limit", "accepted"), [(0.2, 0), (0.25, 3), (1.0, 3)])
def test_too_many_refused_rows_keep_a_file_out(
    lake: Lake, tmp_path: Path, limit: float, accepted: int
) -> None:
    """Over the limit nothing of the file is in the lake, and it may come again; the rows
    are in quarantine all the same."""
    path = export(tmp_path / "a.parquet", [sale(), sale(), sale(), sale(type=None)])
    (file,) = take_in(lake, "events", [path], Terms(max_refused=limit)).files
    assert (file.accepted, file.is_over_limit) == (accepted, accepted == 0)
    assert lake.read("events")[0].num_rows == accepted
    assert len(list(lake.paths("events", ""))) == (accepted > 0)
    assert len(quarantined(lake, "events", "rows")) == 1
    if not accepted:
        assert file.reason == "1 of 4 rows are refused, must be <= 20 %."
        assert take_in(lake, "events", [path]).accepted == 3


def test_a_file_that_is_mended_leaves_no_note(lake: Lake, tmp_path: Path) -> None:
    """What hindered a file is forgotten once it is in."""
    path = tmp_path / "a.parquet"
    for size in (0, 9):
        path.write_bytes(b"x" * size)
        (file,) = take_in(lake, "events", [path]).files
        (note,) = quarantined(lake, "events", "file")
        assert note["reason"] == file.reason
        assert (file.reason == "file is empty: 0 bytes.") == (size == 0)
    assert take_in(lake, "events", [export(path, [sale()])]).accepted == 1
    assert quarantined(lake, "events", "file") == []


# --- nothing twice, nothing lost ----------------------------------------------------------


def test_same_file_again_adds_nothing(lake: Lake, tmp_path: Path) -> None:
    """The same bytes, under whatever name, are in the lake once."""
    path = export(tmp_path / "a.parquet", [sale(), sale(type=None)])
    (tmp_path / "b.parquet").write_bytes(path.read_bytes())
    found = take_in(lake, "events", [path, path, tmp_path])
    # The folder holds the two, and the lake, whose files are its own.
    assert [file.accepted for file in found.files] == [1, 0, 0, 0]
    assert [file.was_there for file in found.files] == [False, True, True, True]
    assert lake.read("events")[0].num_rows == 1
    assert len(quarantined(lake, "events", "rows")) == 1


def test_same_file_counts_once_for_each_tenant(lake: Lake, tmp_path: Path) -> None:
    """Whose the rows are is said by the mapping: another's are other decisions."""
    path = export(tmp_path / "a.parquet", [shown()])
    for tenant, accepted in (("acme", 1), ("rival", 1), ("acme", 0), (None, 1)):
        columns = {} if tenant is None else {"tenant_id": Column(constant=tenant)}
        terms = Terms(Mapping(columns=columns))
        assert take_in(lake, "decisions", [path], terms).accepted == accepted


def test_decisions_that_are_not_meant_may_come_later(
    lake: Lake, tmp_path: Path
) -> None:
    """Other rows of a file are other decisions; the same ones mapped otherwise are in."""
    path = export(tmp_path / "a.parquet", [shown(), shown(decision_id="d2")])
    for meant, variant, accepted in (("d1", "v1", 1), ("d2", "v1", 1), ("d2", "v2", 0)):
        variants = {"variant_id": Column(constant=variant)}
        terms = Terms(Mapping(columns=variants, where={"decision_id": meant}))
        assert take_in(lake, "decisions", [path], terms).accepted == accepted


def test_equal_rows_of_a_file_are_kept(lake: Lake, tmp_path: Path) -> None:
    """Ingest removes nothing that looks equal: `settle` decides by event id."""
    take_in(lake, "events", [export(tmp_path / "a.parquet", [sale(), sale()])])
    assert lake.read("events")[0].num_rows == 2


def test_a_file_that_changes_meanwhile_is_refused(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was hashed is what must be read; nothing of it stays."""
    path = export(tmp_path / "a.parquet", [sale()])
    versions = iter([Version(1, 1), Version(1, 2)])
    monkeypatch.setattr(Source, "version", lambda _: next(versions))
    (file,) = take_in(lake, "events", [path]).files
    assert file.reason == "file was changed while it was being read."
    assert list(lake.paths("events", "")) == []
