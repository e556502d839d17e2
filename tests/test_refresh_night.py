"""A night's further findings: who computes it, what is excluded, segments, audit, results."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bandolero.experiment import Experiment
from bandolero.lake.catalog import INGESTED, Lake
from bandolero.lake.engines import Engine, EngineChoice, checked, open_engine
from bandolero.lake.refresh import Refreshed, refresh
from bandolero.lake.results import KEPT, read_result, write_results
from bandolero.lake.traffic import FAST, NO_RULES, REPEATED, UNIT, TrafficRules
from bandolero.settle import GRACE_MS
from bandolero_service.commands import CommandError, Place
from bandolero_service.corrected import list_corrected
from bandolero_service.settings import Settings
from context_rows import BY_CONTEXT, by_context
from strategies import (
    FAR_MS,
    START_MS,
    VARIANTS,
    Row,
    decision,
    decisions_table,
    event,
    events_table,
    experiment,
)
from test_refresh import CLICKS, CLOSE_MS, SALES, UNTIL_MS, changes, lake_of, record_of

COUNTED = experiment(
    objective={"reward": "count", "attribution_window_s": 2.0},
    policy={"kind": "poisson_thompson"},
)
SEGMENTED = experiment(
    objective={"attribution_window_s": 2.0},
    context=[
        {"name": "device", "kind": "categorical", "levels": ["mobile", "desktop"]},
        {
            "name": "tier",
            "kind": "categorical",
            "levels": ["gold", "free"],
            "default": "free",
        },
    ],
)
MEASURED = experiment(
    objective={"attribution_window_s": 2.0},
    metrics=[
        {"name": "revenue", "event": "conversion", "reward": "value", "window_s": 3.0}
    ],
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """DuckDB, once for all."""
    with open_engine() as opened:
        yield opened


def night(
    engine: Engine,
    lake: Lake,
    spec: Experiment = CLICKS,
    rules: TrafficRules = NO_RULES,
) -> Refreshed:
    """What a refresh of one experiment finds."""
    return refresh(lake, [record_of(spec)], rules=rules, engine=engine)


def ingest(lake: Lake, table: str, rows: list[Row], until_ms: int = UNTIL_MS) -> None:
    """List rows as those of a file of strangers."""
    tables = {"decisions": decisions_table, "events": events_table}
    shard = f"{INGESTED}{table}-0123456789ab"
    lake.commit(shard, 0, until_ms, {table: tables[table](rows)})


# --- what came by no log ---------------------------------------------------------------


def test_ingested_decisions_are_all_correction(tmp_path: Path, engine: Engine) -> None:
    """The live fold never saw them, so a correction holds all of their trials and hits."""
    lake = lake_of(tmp_path, [decision()], [event()])
    rows = [decision(decision_id=name, variant_id="v2") for name in ("i1", "i2")]
    ingest(lake, "decisions", rows)
    ingest(lake, "events", [event(decision_id="i1")])
    found = night(engine, lake)
    one = changes(trials=2, hits=1, rewards_micros=1_000_000, rewards_squared=1.0)
    assert found.corrections[0].changes == {"v2": one}
    assert (found.settled, found.late_events, found.audit.num_rows) == (3, 0, 0)


def test_ingested_event_of_a_live_decision_is_late(
    tmp_path: Path, engine: Engine
) -> None:
    """Whatever its time says, the learner was not told of it."""
    lake = lake_of(tmp_path, [decision()], [])
    ingest(lake, "events", [event()])
    found = night(engine, lake)
    assert found.corrections[0].changes["v1"]["hits"] == 1
    assert found.late_events == 1


def test_lake_of_ingested_files_alone_is_settled(
    tmp_path: Path, engine: Engine
) -> None:
    """Where nothing was ever archived nothing is missing: all that was loaded has closed."""
    lake = Lake(tmp_path)
    ingest(lake, "decisions", [decision()], START_MS)
    found = night(engine, lake)
    assert found.watermark_ms > START_MS + 2_000 + GRACE_MS
    assert found.settled == 1


# --- invalid traffic -----------------------------------------------------------------------


def reasons(found: Refreshed) -> dict[str, str]:
    """Why decisions are told otherwise, by id."""
    rows = found.audit.to_pylist()
    return {row["decision_id"]: row["reason"] for row in rows}


def test_click_that_is_too_fast_takes_its_decision_out(
    tmp_path: Path, engine: Engine
) -> None:
    """A click after 199 ms is no person's where 200 are asked; one after 200 is."""
    made = [decision(), decision(decision_id="d2")]
    told = [
        event(at_ms=START_MS + 199),
        event(decision_id="d2", at_ms=START_MS + 200),
    ]
    lake = lake_of(tmp_path, made, told)
    found = night(engine, lake, rules=TrafficRules(fastest_click_ms=200))
    less = changes(trials=-1, hits=-1, rewards_micros=-1_000_000, rewards_squared=-1.0)
    assert found.corrections[0].changes == {"v1": less}
    assert reasons(found) == {"d1": FAST}
    (row,) = found.rollups.to_pylist()
    assert (row["decisions"], row["trials"], row["excluded"]) == (2, 1, 1)
    assert night(engine, lake).corrections[0].changes == {}


def test_repeated_click_does_not_count(tmp_path: Path, engine: Engine) -> None:
    """Of clicks at 0, 999 and 2,000 ms the second is a repeat, the third another click."""
    spec = COUNTED.model_copy(
        update={
            "objective": COUNTED.objective.model_copy(
                update={"attribution_window_s": 9.0}
            )
        }
    )
    told = [
        event(event_id=f"e{ms}", at_ms=START_MS + 100 + ms) for ms in (0, 999, 2_000)
    ]
    lake = lake_of(tmp_path, [decision()], told)
    found = night(engine, lake, spec, TrafficRules(repeated_click_ms=1_000))
    assert found.corrections[0].changes["v1"]["rewards_micros"] == -1_000_000
    assert found.corrections[0].changes["v1"]["trials"] == 0
    assert reasons(found) == {"d1": REPEATED}


def busy(n_units: int, rate: float) -> tuple[list[Row], list[Row]]:
    """Ten decisions a unit; rates differ among units fivefold; and thirty of a robot."""
    rng = np.random.default_rng(2)
    made, told = [], []
    for i in range(n_units):
        mine = 1.0 if i == 0 else rate * rng.uniform(0.2, 1.0)
        for j in range(30 if i == 0 else 10):
            name = f"d{i}-{j}"
            made.append(decision(decision_id=name, unit=f"u{i}"))
            if (j > 0 or i > 0) and rng.random() < mine:
                told.append(event(decision_id=name, at_ms=START_MS + 900))
    return made, told


def test_unit_that_clicks_like_no_other_is_taken_out(
    tmp_path: Path, engine: Engine
) -> None:
    """29 clicks of 30, where others make one of 80: all thirty decisions are out.

    Units within five times the mean rate are left, by a bound of 1 in 1,000 nights; this
    seed is one night.
    """
    made, told = busy(2_000, 0.02)
    lake = lake_of(tmp_path, made, told)
    found = night(engine, lake, rules=TrafficRules(unit_click_times=10.0))
    assert reasons(found) == {f"d0-{j}": UNIT for j in range(30)}
    assert found.corrections[0].changes["v1"]["trials"] == -30
    assert found.corrections[0].changes["v1"]["hits"] == -29


# --- audit ---------------------------------------------------------------------------------

IN_TIME = event()
LATE_CASES = {
    "late event": [event(log_ms=FAR_MS)],
    "retract": [
        IN_TIME,
        event(event_id="e2", type="retract", retracts="e1", log_ms=FAR_MS),
    ],
}


@pytest.mark.parametrize("reason", LATE_CASES)
def test_audit_says_what_changed_a_reward(
    tmp_path: Path, engine: Engine, reason: str
) -> None:
    """A decision that settles otherwise is listed with both rewards and the reason."""
    made = [decision(), decision(decision_id="d2")]
    found = night(engine, lake_of(tmp_path, made, LATE_CASES[reason]))
    (row,) = found.audit.to_pylist()
    assert (row["decision_id"], row["reason"]) == ("d1", reason)
    was, now = (1_000_000, 0) if reason == "retract" else (0, 1_000_000)
    assert (row["was_micros"], row["reward_micros"]) == (was, now)


def test_corrected_rewards_are_listed(
    tmp_path: Path, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a decision, of what is asked for; where there is none that is said."""
    place = Place(Settings(lake=str(tmp_path)))
    lake = lake_of(tmp_path, [decision()], [event(log_ms=FAR_MS)])
    with pytest.raises(CommandError, match="has not been refreshed"):
        list_corrected(place, None, None)
    write_results(lake, UNTIL_MS, {"audit": night(engine, lake).audit})
    for asked in ((None, None), ("hats", "acme"), ("coats", None), (None, "bolt")):
        list_corrected(place, *asked)
    line = f"{'acme/hats':30} d1  v1           0 -> 1  late event\n"
    first, second, *others = capsys.readouterr().out.splitlines(keepends=True)
    assert (first, second) == (line, line)
    assert [other[:38] for other in others] == [
        "all rewards are as they were learned, "
    ] * 2


def test_audit_names_a_refund(tmp_path: Path, engine: Engine) -> None:
    """What was given back later is a refund, and what is left is told."""
    bought = event(type="conversion", value_micros=5_000_000)
    back = event(event_id="e2", type="refund", value_micros=2_000_000, log_ms=FAR_MS)
    found = night(engine, lake_of(tmp_path, [decision()], [bought, back]), SALES)
    (row,) = found.audit.to_pylist()
    assert (row["reason"], row["was_micros"], row["reward_micros"]) == (
        "refund",
        5_000_000,
        3_000_000,
    )


@pytest.mark.parametrize("spec", [CLICKS, COUNTED])
def test_audit_blames_no_refund_that_took_nothing_back(
    tmp_path: Path, engine: Engine, spec: Experiment
) -> None:
    """Only rewards of kind `value` are given back; others changed by what came late."""
    late = [event(log_ms=FAR_MS), event(event_id="e2", type="refund", log_ms=FAR_MS)]
    found = night(engine, lake_of(tmp_path, [decision()], late), spec)
    assert reasons(found) == {"d1": "late event"}


# --- segments ------------------------------------------------------------------------------


def test_segments_count_every_decision_once_a_field(
    tmp_path: Path, engine: Engine
) -> None:
    """Unknown levels are "other", missing ones the default, broken texts as if missing."""
    texts = [
        '{"device":"mobile","tier":"gold"}',
        '{"device":"toaster"}',
        '{"device": "mobile"}',
        "no JSON",
        None,
    ]
    made = [decision(decision_id=f"d{i}", context=text) for i, text in enumerate(texts)]
    lake = lake_of(tmp_path, made, [event(decision_id="d2")])
    found = night(engine, lake, SEGMENTED).segments.to_pylist()
    told = {(r["field"], r["level"]): (r["decisions"], r["hits"]) for r in found}
    assert told == {
        ("device", "mobile"): (2, 1),
        ("device", "other"): (3, 0),
        ("tier", "gold"): (1, 0),
        ("tier", "free"): (4, 1),
    }


def test_moments_weigh_by_the_propensity(tmp_path: Path, engine: Engine) -> None:
    """At propensity 0.25 a trial weighs 4, and its reward of 3 as much."""
    made = [decision(propensity=0.25), decision(decision_id="d2", propensity=0.5)]
    told = [event(type="conversion", value_micros=3_000_000)]
    (row,) = night(engine, lake_of(tmp_path, made, told), SALES).rollups.to_pylist()
    assert (row["weights"], row["weights_squared"]) == (6.0, 20.0)
    assert (row["weighted_rewards"], row["squared_weighted_rewards"]) == (12.0, 48.0)
    assert row["squared_weighted_squares"] == 144.0


# --- engines -----------------------------------------------------------------------------


def test_engine_must_be_known_and_have_memory() -> None:
    """A wrong engine or limit is told by field, value and rule."""
    with pytest.raises(ValueError, match=r"engine == 'abacus', must be one of"):
        checked(EngineChoice("abacus"))
    for limit in ("lots", "5MB", "-1GB"):
        with pytest.raises(ValueError, match=r"memory_limit == .*, must be"):
            checked(EngineChoice(memory_limit=limit))


def rich_lake(folder: Path) -> tuple[Lake, list[Any]]:
    """Seven experiments of three rewards; events late, taken back, twice and ingested.

    Of the ingested decisions, twenty are of the log and ten stand there twice.
    """
    rng = np.random.default_rng(8)
    specs = [CLICKS, SALES, COUNTED, SEGMENTED, MEASURED, *BY_CONTEXT]
    names = [f"x{i}" for i in range(len(specs))]
    records = [
        record_of(spec.model_copy(update={"experiment": name}))
        for spec, name in zip(specs, names, strict=True)
    ]
    made, told = [], []
    for i in range(600):
        at_ms = START_MS + int(rng.integers(0, 10_000))
        mine = {"decision_id": f"d{i}", "decided_at_ms": at_ms}
        text = f'{{"device":"{rng.choice(["mobile", "desktop", "tv"])}"}}'
        made.append(
            decision(
                **mine,
                experiment_id=str(rng.choice(names[:5])),
                variant_id=str(rng.choice(VARIANTS)),
                propensity=float(rng.uniform(0.1, 0.9)),
                mode=str(rng.choice(["explore", "holdout", "fallback"])),
                context=text,
                unit=f"u{i % 50}",
            )
        )
        for j in range(int(rng.integers(0, 4))):
            kinds = ["click", "click", "conversion", "impression", "refund", "retract"]
            seen_ms = at_ms + int(rng.integers(0, 2_500))
            told.append(
                event(
                    **mine,
                    event_id=f"e{rng.integers(0, 3)}",
                    type=str(rng.choice(kinds)),
                    retracts=f"e{j}",
                    value_micros=int(rng.integers(0, 9_000_000)),
                    at_ms=seen_ms,
                    log_ms=int(rng.choice([seen_ms, FAR_MS - 1])),
                )
            )
    also, earned = by_context(rng, names[5:])
    lake = lake_of(folder, made[:500] + also[:60], told[:800] + earned)
    ingest(lake, "decisions", made[480:] + made[590:] + also[60:])
    ingest(lake, "events", told[800:])
    return lake, records


def agree(one: Refreshed, other: Refreshed) -> None:
    """Whole numbers and texts are the same, sums of real numbers to 1e-9."""
    assert one[:6] == other[:6]
    for mine, theirs in zip(one.corrections, other.corrections, strict=True):
        assert mine.changes.keys() == theirs.changes.keys()
        for variant_id, change in mine.changes.items():
            assert change == pytest.approx(theirs.changes[variant_id], rel=1e-9)
        for name in ("faded", "by_context"):
            same_sums(getattr(mine, name), getattr(theirs, name))
    assert one.metrics.keys() == other.metrics.keys()
    for whose, sums in one.metrics.items():
        for metric, by_variant in sums.items():
            for variant_id, each in by_variant.items():
                same = other.metrics[whose][metric][variant_id]
                assert each == pytest.approx(same, rel=1e-9)
    for name in ("rollups", "segments", "stages", "audit"):
        same_rows(getattr(one, name), getattr(other, name))


def same_sums(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Sums by variant and name, to 1e-9."""
    assert mine.keys() == theirs.keys()
    for variant_id, sums in mine.items():
        assert sums.keys() == theirs[variant_id].keys()
        for name, value in sums.items():
            other = theirs[variant_id][name]
            np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-9)


def same_rows(mine: pa.Table, theirs: pa.Table) -> None:
    """Rows in the same order, real numbers to 1e-9."""
    assert mine.schema == theirs.schema
    for field in mine.schema:
        column, other = mine[field.name], theirs[field.name]
        if pa.types.is_floating(field.type):
            np.testing.assert_allclose(column, other, rtol=1e-9, atol=1e-9)
        else:
            assert column.to_pylist() == other.to_pylist(), field.name


ALL_RULES = TrafficRules(500, 100, 0.1)
"""Strict, so that each takes something out of so few decisions."""


def test_little_memory_finds_the_same(tmp_path: Path, engine: Engine) -> None:
    """A refresh that may hold 100 MB says what one with 3 GB does."""
    lake, records = rich_lake(tmp_path)
    most = refresh(lake, records, rules=ALL_RULES, engine=engine)
    with open_engine(EngineChoice(memory_limit="100MB")) as small:
        agree(most, refresh(lake, records, rules=ALL_RULES, engine=small))
    assert most.repeated == 30
    assert {FAST, REPEATED, UNIT} <= set(most.audit["reason"].to_pylist())


@pytest.mark.slow
@pytest.mark.jvm
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # py4j's sockets
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_spark_finds_what_duckdb_does(tmp_path: Path, engine: Engine) -> None:
    """The same expression on Spark: the same counts, rollups, segments and audit."""
    lake, records = rich_lake(tmp_path)
    here = refresh(lake, records, rules=ALL_RULES, engine=engine)
    with open_engine(EngineChoice("spark", "1GB", "local[2]")) as spark:
        agree(here, refresh(lake, records, rules=ALL_RULES, engine=spark))
        gc.collect()


# --- the lake meanwhile, and after ---------------------------------------------------------


def test_files_written_anew_meanwhile_are_read_as_they_are(
    tmp_path: Path, engine: Engine
) -> None:
    """An erasure in the middle of a night makes it begin again, and nobody notices."""
    lake = lake_of(tmp_path, [decision(unit="u1")], [event(log_ms=CLOSE_MS)])
    steps: list[str] = []

    def progress(step: str) -> None:
        steps.append(step)
        if steps.count("settling") == 1 and step == "settling":
            (commit,) = lake.commits("0")
            (file,) = (f for f in commit.files if f.table == "decisions")
            rows = lake.read_file(file)
            at = rows.column_names.index("unit")
            anew = rows.set_column(at, rows.field(at), pa.nulls(1, pa.string()))
            lake.rewrite(commit, {file: anew})

    found = refresh(lake, [record_of(CLICKS)], progress=progress, engine=engine)
    assert steps.count("settling") == 2
    assert found.corrections[0].changes["v1"]["hits"] == 1
    assert found.bad_files == []


def test_results_are_one_night_and_the_newest(tmp_path: Path) -> None:
    """Writing a night twice changes nothing; a later one is read; old ones are forgotten."""
    lake = Lake(tmp_path)
    assert read_result(lake, "audit") == (0, None)
    for _ in range(2):
        write_results(lake, 5, {"audit": pa.table({"a": [1]})})
    before = sorted(p for p in Path(tmp_path).rglob("*") if p.is_file())
    assert len(before) == 2
    write_results(lake, 5, {"audit": pa.table({"a": [2]})})
    watermark_ms, rows = read_result(lake, "audit")
    assert watermark_ms == 5
    assert rows is not None
    assert rows.to_pydict() == {"a": [2]}
    for i in range(KEPT + 3):
        write_results(lake, 10 + i, {"audit": pa.table({"a": [i]})})
    assert len(list(lake.paths("audit", ".parquet"))) == KEPT
    assert read_result(lake, "audit")[0] == 12 + KEPT


def test_a_night_of_one_tenant_hides_nobodys(tmp_path: Path) -> None:
    """Each tenant reads the newest night that it was part of; of its own the last is kept."""
    lake = Lake(tmp_path)
    write_results(lake, 5, {"audit": pa.table({"a": [1]})})
    for watermark_ms in (5, 6, 7):
        write_results(lake, watermark_ms, {"audit": pa.table({"a": [2]})}, "acme")
    assert read_result(lake, "audit", tenant="acme")[0] == 7
    watermark_ms, rows = read_result(lake, "audit", tenant="other")
    assert watermark_ms == 5
    assert rows is not None
    assert rows.to_pydict() == {"a": [1]}
    assert len(list(lake.paths("audit", ".parquet"))) == 2
    write_results(lake, 8, {"audit": pa.table({"a": [3]})})
    assert read_result(lake, "audit", tenant="acme")[0] == 8


def test_damaged_result_is_told(tmp_path: Path) -> None:
    """A table that is not as it was written is refused."""
    lake = Lake(tmp_path)
    write_results(lake, 5, {"audit": pa.table({"a": [1]})})
    (path,) = lake.paths("audit", ".parquet")
    Path(lake.root, path).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="does not have the hash"):
        read_result(lake, "audit")
