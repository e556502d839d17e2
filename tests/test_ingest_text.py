"""CSV, JSON lines and mappings: what other systems write, loaded as it is."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandolero.lake.catalog import Lake
from bandolero.lake.ingest import Terms
from bandolero.lake.mapping import InvalidMappingError, load_mapping
from ingest_files import NOW_MS, export, quarantined, reasons, sale, shown, take_in
from strategies import START_MS, Row

BIG = 2**64 + 5


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


def mapped(table: str, text: str) -> Terms:
    """Terms with a mapping."""
    return Terms(load_mapping(text.encode(), table))


# --- text -----------------------------------------------------------------------------------


CSV = f"""\ufefftenant_id,event_id,decision_id,type,at_ms,value_micros,note
acme,007,{BIG},sale,{START_MS},5,"two
lines"
acme,e2,d2,sale,{START_MS},,
acme,e3,d3,sale,soon,1,
acme,e4
acme,"e,5",d5,sale,{START_MS},1e3,
acme,e6,d6,sale,{START_MS},6.0,x
"""


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_is_text_until_it_is_ours(lake: Lake, tmp_path: Path, name: str) -> None:
    """Ids stay as written, empty cells are null, and a bad cell costs its row."""
    data = CSV.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name[-1] == "z" else data)
    found = take_in(lake, "events", [tmp_path])
    assert (found.accepted, found.refused, found.bad_files) == (3, 3, 0)
    rows = lake.read("events")[0].to_pylist()
    told = [(r["event_id"], r["decision_id"], r["value_micros"]) for r in rows]
    assert told == [("007", str(BIG), 5), ("e2", "d2", 1_000_000), ("e6", "d6", 6)]
    assert sorted(reasons(lake, "events"), key=lambda one: one[0]) == [
        (3, "at_ms", "soon", "must be a whole number."),
        (4, None, None, "must have 7 values."),
        (5, "value_micros", "1e3", "must be a whole number."),
    ]


def test_json_lines_are_read_one_by_one(lake: Lake, tmp_path: Path) -> None:
    """Numbers keep all their digits, objects are contexts, a bad line is refused, and an
    empty one is none."""
    context = {"device": "tv", "hour": 3.5}
    lists: dict[str, Any] = {"eligible": ["v1", "v2"], "probabilities": [0.25, 0.75]}
    lines = [
        json.dumps(shown(decision_id=BIG, context=context) | lists),
        "{'single': 1}",
        json.dumps(shown(propensity=float("nan"))),
        json.dumps(shown(eligible="v1")),
        json.dumps([1]),
        " \t",
        json.dumps(shown(decision_id="d7", colour="red", decided_at_ms=START_MS + 5.0)),
        "",
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = take_in(lake, "decisions", [tmp_path])
    assert (found.accepted, found.refused) == (2, 4)
    first, last = lake.read("decisions")[0].to_pylist()
    assert (first["decision_id"], last["decision_id"]) == (str(BIG), "d7")
    assert last["decided_at_ms"] == START_MS + 5
    assert json.loads(first["context"]) == context
    assert {name: first[name] for name in lists} == lists
    assert sorted(r[0] for r in reasons(lake, "decisions")) == [2, 3, 4, 5]
    told = {row: (name, rule) for row, name, _, rule in reasons(lake, "decisions")}
    assert told[2] == told[5] == (None, "must be one JSON object.")
    assert told[3] == ("propensity", "must be > 0 and <= 1.")
    assert told[4] == ("eligible", "must be a JSON list.")


def test_a_csv_of_many_blocks_keeps_its_row_numbers(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that cannot be taken apart are counted where they stand."""
    lines = ["tenant_id,event_id,decision_id,type,at_ms"]
    lines += [f"acme,e{i},d,sale,{START_MS}" for i in range(1, 300_001)]
    for row in (2, 150_000, 299_999):
        lines[row] = "too,few"
    lines[200_000] = f"acme,e200000,d,?,{START_MS}"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert take_in(lake, "events", [tmp_path]).refused == 4
    rows = sorted(row for row, *_ in reasons(lake, "events"))
    assert rows == [2, 150_000, 200_000, 299_999]


# --- mappings -------------------------------------------------------------------------------


THEIRS = """
columns:
  tenant_id: {constant: acme}
  decision_id: {template: "web-{shard}/{request}"}
  experiment_id: {constant: hats}
  variant_id: sku
  decided_at_ms: {column: ts, time: s}
  propensity: {column: percent, scale: 0.01}
  mode: {constant: explore}
  context: {fields: {device: ua, hour: {column: hh, scale: 1}, slot: {template: "{pos}"}}}
where: {kind: [view, preview]}
"""


def test_columns_of_theirs_become_ours(lake: Lake, tmp_path: Path) -> None:
    """Constants, renamed and joined columns, units, scales and contexts; rows that are
    not meant are left out, and told."""
    row: Row = {"request": BIG - 10, "shard": 3, "sku": 41, "ts": 1574553617.0045}
    row |= {"percent": 12.5, "ua": 'a "tv"', "hh": 7, "pos": 2, "kind": "view"}
    rows = [row, row | {"kind": "click"}, row | {"percent": float("inf")}]
    table = pa.table(
        {name: [r[name] for r in rows] for name in row if name != "request"}
    )
    requests = pa.array([BIG - 10] * 3, pa.uint64())
    pq.write_table(table.append_column("request", requests), tmp_path / "a.parquet")
    found = take_in(lake, "decisions", [tmp_path], mapped("decisions", THEIRS))
    assert (found.accepted, found.left_out, found.refused) == (1, 1, 1)
    (got,) = lake.read("decisions")[0].to_pylist()
    assert got["decision_id"] == f"web-3/{BIG - 10}"
    assert (got["variant_id"], got["propensity"]) == ("41", 0.125)
    assert got["decided_at_ms"] == 1574553617004
    assert got["context"] == r'{"device":"a \"tv\"","hour":7.0,"slot":"2"}'
    ((row_number, column, value, _),) = reasons(lake, "decisions")
    assert (row_number, column, value) == (3, "propensity", "inf")


@pytest.mark.parametrize(
    ("unit", "value", "ms"),
    [
        ("s", 1574553617, 1574553617000),
        ("s", 0.3, 300),
        ("ms", 1574553617004, 1574553617004),
        ("us", 1574553617004999, 1574553617004),
        ("ns", 1574553617004900000, 1574553617004),
        ("iso", "2019-11-24 00:00:17.004101+00:00", 1574553617004),
        ("iso", "2019-11-24T02:00:17.004+02:00", 1574553617004),
        ("iso", "2019-11-24T00:00:17", 1574553617000),
    ],
)
def test_times_in_their_units(
    lake: Lake, tmp_path: Path, unit: str, value: Any, ms: int
) -> None:
    """The same moment, rounded down to milliseconds, in Parquet and in CSV."""
    rows = sale() | {"at_ms": value}
    export(tmp_path / "a.parquet", [rows])
    head, line = ",".join(rows), ",".join(map(str, rows.values()))
    (tmp_path / "a.csv").write_text(f"{head}\n{line}\n")
    terms = mapped("events", f"columns: {{at_ms: {{column: at_ms, time: {unit}}}}}")
    assert take_in(lake, "events", [tmp_path], terms).accepted == 2
    assert lake.read("events")[0]["at_ms"].to_pylist() == [ms, ms]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (float("nan"), "must be finite, and no giant."),
        (float("inf"), "must be finite, and no giant."),
        (1e300, "must be finite, and no giant."),
        (-0.01, f"must lie between 0 and {10**15}: a refund or a retract takes back."),
    ],
)
def test_rewards_that_are_no_money_are_refused(
    lake: Lake, tmp_path: Path, value: float, rule: str
) -> None:
    """Not numbers, infinite, giant and negative ones; a cent is ten thousand micros."""
    rows = [sale() | {"eur": 0.01}, sale() | {"eur": value}]
    export(tmp_path / "a.parquet", rows)
    terms = mapped("events", "columns: {value_micros: {column: eur, scale: 1000000}}")
    assert take_in(lake, "events", [tmp_path], terms).accepted == 1
    assert lake.read("events")[0]["value_micros"].to_pylist() == [10_000]
    ((row, column, _, told),) = reasons(lake, "events")
    assert (row, column, told) == (2, "value_micros", rule)


def test_events_of_two_kinds_come_from_one_file(lake: Lake, tmp_path: Path) -> None:
    """A mapping each, each once; decisions come once, whatever the mapping."""
    rows = [sale(event_id=f"e{i}", click=i % 2, buy=i == 3) for i in range(4)]
    path = export(tmp_path / "a.parquet", rows)
    clicks = "columns: {type: {constant: click}}\nwhere: {click: 1}"
    buys = 'columns: {type: {constant: buy}, event_id: {template: "{event_id}-b"}}'
    buys += "\nwhere: {buy: true}"
    for text, accepted in ((clicks, 2), (buys, 1), (clicks, 0)):
        found = take_in(lake, "events", [path], mapped("events", text))
        assert found.accepted == accepted
    path = export(tmp_path / "b.parquet", [shown(click=1)])
    assert take_in(lake, "decisions", [path]).accepted == 1
    terms = mapped("decisions", "columns: {variant_id: {constant: v2}}")
    (again,) = take_in(lake, "decisions", [path], terms).files
    assert again.was_there


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "columns: {colour: x}",
            "columns.colour is not a column of events: tenant_id,",
        ),
        ("columns: {log_id: x}", "columns.log_id is not a column of events"),
        ("columns: {type: {}}", "columns.type says nothing, must say one of column,"),
        ("columns: {type: {column: a, constant: b}}", "says column and constant, must"),
        (
            "columns: {type: {column: a, time: s}}",
            "must be given for a column that ends",
        ),
        (
            "columns: {at_ms: {column: a, time: h}}",
            "columns.at_ms.time == 'h', must be",
        ),
        ("columns: {at_ms: {constant: 5, time: s}}", "must name a column too."),
        ("columns: {value_micros: {column: a, scale: 0}}", "must be greater than 0"),
        (
            'columns: {type: {template: "{a!r}"}}',
            "braces must hold the name of a column",
        ),
        ('columns: {type: {template: "{"}}', "columns.type.template == '{'"),
        ("columns: {type: {fields: {a: b}}}", "must be given for context only."),
        ("columns: [type]", "columns == ['type'], must be a mapping of fields."),
        ("colums: {}", "colums is not a known field."),
        ("columns: {type: a", "file is not YAML or JSON"),
        ("", "mapping is empty, must have columns or where."),
    ],
)
def test_a_wrong_mapping_says_what_is_wrong(text: str, told: str) -> None:
    """Before any file is opened: field, value, rule."""
    with pytest.raises(InvalidMappingError) as error:
        load_mapping(text.encode(), "events")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("columns: {variant_id: sku}", "columns are missing: sku."),
        ("where: {clicked: 1}", "columns are missing: clicked."),
        ("columns: {variant_id: propensity}", "variant_id is double, must be string."),
        (
            "columns: {unit: {template: '{propensity}'}}",
            "must be text or whole numbers",
        ),
        (
            "where: {draw: [x]}",
            "where.draw == ['x'], must be of the type of the column",
        ),
        ("columns: {decided_at_ms: {column: mode, time: s}}", "must be numbers."),
        ("columns: {decided_at_ms: {column: draw, time: iso}}", "must be text or time"),
    ],
)
def test_a_mapping_that_does_not_fit_is_told(
    lake: Lake, tmp_path: Path, text: str, told: str
) -> None:
    """The file is refused with what its columns are, and should be."""
    export(tmp_path / "a.parquet", [shown(draw=0.5)])
    (file,) = take_in(lake, "decisions", [tmp_path], mapped("decisions", text)).files
    assert file.reason is not None
    assert told in file.reason
    assert quarantined(lake, "decisions", "file")[0]["reason"] == file.reason


def test_times_after_now_are_refused_by_the_clock(lake: Lake, tmp_path: Path) -> None:
    """By default the clock of this machine says what the future is."""
    path = export(tmp_path / "a.parquet", [sale(at_ms=NOW_MS)])
    assert take_in(lake, "events", [path], Terms(now_ms=START_MS)).bad_files == 1
    assert take_in(lake, "events", [path]).accepted == 1
