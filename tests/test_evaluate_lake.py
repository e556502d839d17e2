"""Evaluating policies on a lake: what is read, what learns, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from bandolero.evaluate.answer import (
    Answer,
    ByPolicy,
    BySnapshot,
    ByTable,
    Target,
    evaluate_experiment,
)
from bandolero.evaluate.reading import Asked, NothingLoggedError, read_logged
from bandolero.evaluate.targets import TargetError, read_probabilities
from bandolero.evaluate.telling import to_json, to_text
from bandolero.experiment import ExperimentRecord, InvalidExperimentError
from bandolero.lake.catalog import INGESTED, Lake, rows_of
from bandolero.lake.refresh import Refreshed, refresh
from bandolero.lake.results import write_results
from bandolero.lake.traffic import TrafficRules
from bandolero.policies import policy_of
from bandolero.snapshot import build_snapshot, snapshot_to_bytes
from evaluate_lakes import (
    LOGGED,
    RATES,
    START_MS,
    STEP_MS,
    by_device,
    filled,
    ingested,
    made,
    plain,
    record_of,
)
from strategies import START_MS as LOG_START_MS
from strategies import decision, event, experiment
from test_refresh import UNTIL_MS, lake_of

NOW_MS = START_MS + 10**9
HALF = {"v1": 0.5, "v2": 0.5, "v3": 0.0}


def asked(record: ExperimentRecord, lake: Lake, target: Target, **when: Any) -> Answer:
    """What a target would have earned."""
    return evaluate_experiment(record, lake, target, NOW_MS, **when)


def table(**shares: float) -> ByTable:
    """A table of probabilities by variant."""
    columns = {"variant_id": list(shares), "probability": list(shares.values())}
    return ByTable(pa.table(columns))


def test_a_split_is_worth_its_rates(tmp_path: Path) -> None:
    """A fixed split is evaluated on the whole log, near what its rates give."""
    found = asked(
        plain(), filled(tmp_path, 1, 4000), ByPolicy({"kind": "fixed", "weights": HALF})
    )
    truth = float(RATES.mean(axis=0)[:2].mean())
    assert (found.n_learned, found.evaluation.n_trials) == (0, 4000)
    low, high = found.evaluation.estimates["dr"].bootstrap
    assert low < truth < high
    assert high - low < 0.06


def test_a_table_says_the_same_as_a_split(tmp_path: Path) -> None:
    """The same probabilities from a table and from a policy give the same numbers."""
    record, lake = plain(), filled(tmp_path, 2, 2000)
    split = asked(record, lake, ByPolicy({"kind": "fixed", "weights": HALF}))
    told = asked(record, lake, table(**HALF))
    assert told.evaluation == split.evaluation


def test_ingested_files_say_the_same(tmp_path: Path) -> None:
    """Decisions of another system's files settle though no shard's log is there."""
    live = asked(plain(), filled(tmp_path / "a", 3, 2000), table(**HALF))
    files = asked(plain(), ingested(tmp_path / "b", 3, 2000), table(**HALF))
    assert files.evaluation == live.evaluation


def test_a_policy_learns_from_the_first_half(tmp_path: Path) -> None:
    """It is evaluated on the other half; `from` says otherwise where the split is."""
    lake = filled(tmp_path, 4, 4000)
    found = asked(plain(), lake, ByPolicy({"kind": "epsilon_greedy"}))
    assert (found.n_learned, found.evaluation.n_trials) == (2000, 2000)
    later = START_MS + 1000 * STEP_MS
    found = asked(plain(), lake, ByPolicy({"kind": "epsilon_greedy"}), from_ms=later)
    assert (found.n_learned, found.evaluation.n_trials) == (1000, 3000)


@pytest.mark.parametrize(
    "kind", ["linear_thompson", "logistic_thompson", "lin_ucb", "beta_thompson"]
)
def test_a_policy_with_context_is_worth_more(tmp_path: Path, kind: str) -> None:
    """Who knows that devices like opposite variants earns 0.3, who does not earns 0.2."""
    n = 4000
    policy = {"kind": kind}
    found = asked(
        by_device(allocation={"min_share": 0.01}),
        filled(tmp_path, 5, n),
        ByPolicy(policy),
    )
    assert found.evaluation.is_supported, found.evaluation.support.reasons
    value = found.evaluation.estimates["dr"].value
    truth = 0.2 if kind == "beta_thompson" else 0.29
    assert value == pytest.approx(truth, abs=0.06)


def test_probabilities_by_decision(tmp_path: Path) -> None:
    """A table by decision that follows the device is worth what the devices like."""
    lake = filled(tmp_path, 6, 3000)
    rows, _ = lake.read("decisions")
    likes = {'{"device":"mobile"}': "v3", '{"device":"desktop"}': "v1"}
    best = [likes[context] for context in rows["context"].to_pylist()]
    columns = {"decision_id": rows["decision_id"], "variant_id": best}
    shares = pa.table(columns | {"probability": np.ones(3000, np.float32)})
    found = asked(by_device(), lake, ByTable(shares))
    low, high = found.evaluation.estimates["dr"].bootstrap
    assert low < 0.3 < high
    missing = ByTable(shares.slice(1))
    with pytest.raises(TargetError, match="decision_id == 'd0' and 0 others have no"):
        asked(by_device(), lake, missing)


def snapshot_rows(record: ExperimentRecord, at_ms: int) -> pa.Table:
    """Snapshot 1 of an experiment of three variants, that has learned nothing."""
    state = policy_of(record.spec).init(3)
    snapshot = build_snapshot(
        record, state, version=1, created_at_ms=at_ms, folded_to=f"{at_ms}-0"
    )
    row: tuple[Any, ...] = ("acme", "hats", 1, 1, at_ms, snapshot.folded_to)
    row += (["v1", "v2", "v3"], list(snapshot.probabilities), "{}")
    row += (snapshot_to_bytes(snapshot), f"{at_ms}-0", at_ms)
    return rows_of("snapshots", [row])


def test_a_served_snapshot_meets_only_what_it_has_not_learned(tmp_path: Path) -> None:
    """A snapshot folded to a log id is evaluated on decisions made after that."""
    record, n = plain(policy={"kind": "uniform"}), 2000
    lake = filled(tmp_path, 7, n, snapshot_version=[1] * n)
    folded_ms = START_MS + 500 * STEP_MS
    rows = snapshot_rows(record, folded_ms)
    lake.commit("1", 0, 10**13 - 1, {"snapshots": rows})
    found = asked(record, lake, BySnapshot(1))
    assert found.evaluation.n_trials == n - 501
    assert found.evaluation.estimates["ips"].value == pytest.approx(0.2, abs=0.05)
    with pytest.raises(
        TargetError, match="snapshot == 2, must be a version in the lake"
    ):
        asked(record, lake, BySnapshot(2))


def test_fallback_decisions_are_left_out(tmp_path: Path) -> None:
    """What was served without a propensity is no trial of an evaluation."""
    modes = ["explore", "holdout", "fallback", "fixed"] * 500
    found = asked(plain(), filled(tmp_path, 8, 2000, mode=modes), table(**HALF))
    assert found.evaluation.n_trials == 1500


def test_pending_decisions_are_counted(tmp_path: Path) -> None:
    """Decisions whose window is open at the watermark are told, not evaluated."""
    columns = {"decided_at_ms": START_MS + STEP_MS * np.arange(2000)}
    lake = filled(tmp_path, 9, 2000, **columns)
    decisions, _ = lake.read("decisions")
    late = decisions.slice(0, 10)
    at = late.column_names.index("log_ms")
    late = late.set_column(at, "log_ms", pa.array([START_MS + 10**8] * 10))
    lake.commit("0", START_MS + 300_000, START_MS + 300_001, {"decisions": late})
    found = asked(plain(), lake, table(**HALF))
    assert (found.evaluation.n_trials, found.pending) == (2000, 10)


def night(lake: Lake, record: ExperimentRecord, rules: TrafficRules) -> Refreshed:
    """A refresh of one experiment, with what it leaves in the lake."""
    found = refresh(lake, [record], rules=rules)
    write_results(lake, found.watermark_ms, {"audit": found.audit})
    return found


def test_invalid_traffic_is_left_out_as_the_night_found_it(tmp_path: Path) -> None:
    """Decisions clicked too fast are none of the trials, and how many is said."""
    record, lake = plain(), filled(tmp_path, 16, 2000)
    before = asked(record, lake, table(**HALF))
    out = night(lake, record, TrafficRules(fastest_click_ms=5)).audit.num_rows
    found = asked(record, lake, table(**HALF))
    assert (before.evaluation.n_trials, before.invalid) == (2000, 0)
    assert out == round(2000 * before.evaluation.logged)
    assert (found.evaluation.n_trials, found.invalid) == (2000 - out, out)
    assert f"{out:,} decisions are left out: invalid traffic" in to_text(found)
    assert to_json(found)["invalid"] == out


def test_a_repeated_click_does_not_count(tmp_path: Path) -> None:
    """Where clicks are counted, those that follow at once are not, as in the night."""
    spec = experiment(
        objective={"reward": "count", "attribution_window_s": 9.0},
        policy={"kind": "poisson_thompson"},
    )
    told = [
        event(event_id=f"e{ms}", at_ms=LOG_START_MS + 100 + ms) for ms in (0, 500, 2000)
    ]
    lake = lake_of(tmp_path, [decision()], told)
    record, until = record_of(spec), Asked(UNTIL_MS, UNTIL_MS)
    assert read_logged(record, lake, until).numbers("reward").tolist() == [3.0]
    night(lake, record, TrafficRules(repeated_click_ms=1_000))
    logged = read_logged(record, lake, until)
    assert (logged.numbers("reward").tolist(), logged.invalid) == ([2.0], 0)


def test_sticky_units_are_clusters(tmp_path: Path) -> None:
    """With sticky units a unit is one observation; a decision without one is its own."""
    units = [None if i % 4 == 0 else f"u{i // 8}" for i in range(2000)]
    record = plain(allocation={"sticky": "unit"})
    found = asked(record, filled(tmp_path, 10, 2000, unit=units), table(**HALF))
    assert found.evaluation.n_clusters == 500 + 250


def test_eligible_sets_bound_a_policy(tmp_path: Path) -> None:
    """Where only two variants were eligible a policy is asked for those two."""
    n = 3000
    decisions = filled(tmp_path / "a", 11, n).read("decisions")[0]
    arms = np.array([int(v[1]) for v in decisions["variant_id"].to_pylist()])
    propensity = np.where(arms == 3, 0.2, LOGGED[arms - 1])
    eligible = [["v1", "v2", "v3"] if arm == 3 else None for arm in arms]
    narrowed = [
        ["v1", "v2"] if i % 2 and arm != 3 else eligible[i]
        for i, arm in enumerate(arms)
    ]
    lake = filled(tmp_path / "b", 11, n, eligible=narrowed, propensity=propensity)
    found = asked(plain(), lake, ByPolicy({"kind": "uniform"}))
    assert found.evaluation.support.unseen == 0.0
    third = asked(plain(), lake, table(v3=1.0))
    share = sum(e == ["v1", "v2"] for e in narrowed) / n
    assert third.evaluation.support.unseen == pytest.approx(share)


def test_a_variant_added_after_files_were_ingested_is_no_fault(tmp_path: Path) -> None:
    """Ingested decisions that tell no eligible set had the variants that they show."""
    n = 2000
    shown = [f"v{1 + i % 2}" for i in range(n)]
    early = {"decision_id": [f"i{i}" for i in range(n)], "variant_id": shown}
    files, _ = made(20, n, **early, propensity=[0.5] * n, snapshot_version=[7] * n)
    lake = filled(tmp_path, 21, n, eligible=[["v1", "v2", "v3"]] * n)
    lake.commit(f"{INGESTED}decisions-a", START_MS, NOW_MS - 1, {"decisions": files})
    found = asked(plain(), lake, ByPolicy({"kind": "uniform"})).evaluation
    assert found.n_trials == 2 * n
    assert found.is_supported, found.support.reasons
    third = asked(plain(), lake, table(v3=1.0)).evaluation.support
    assert third.unseen == pytest.approx(0.5)


def test_a_variant_never_shown_stays_wanted(tmp_path: Path) -> None:
    """A target on a variant that no ingested decision shows has no support."""
    n = 2000
    shown = [f"v{1 + i % 2}" for i in range(n)]
    lake = ingested(tmp_path, 22, n, variant_id=shown, propensity=[0.5] * n)
    found = asked(plain(), lake, ByPolicy({"kind": "uniform"})).evaluation
    assert found.support.unseen == pytest.approx(1 / 3)


def test_wrong_propensities_name_the_variant(tmp_path: Path) -> None:
    """The variant whose propensities do not add up is called by its id."""
    wrong = filled(tmp_path, 23, 2000, propensity=[1 / 3] * 2000)
    reasons = asked(plain(), wrong, table(**HALF)).evaluation.support.reasons
    assert any(one.startswith("1 / propensity of v3 adds up to") for one in reasons)


def test_who_is_held_out_may_see_what_the_policy_never_shows(tmp_path: Path) -> None:
    """A holdout draws among all active variants, also one of weight 0: all possible."""
    record = plain(policy={"kind": "fixed", "weights": HALF})
    lake = filled(tmp_path, 24, 400, snapshot_version=[1] * 400, mode=["holdout"] * 400)
    lake.commit("1", 0, 10**13 - 1, {"snapshots": snapshot_rows(record, START_MS)})
    logged = read_logged(record, lake, Asked(NOW_MS, NOW_MS))
    assert logged.sets.possible.tolist() == [[True, True, True]]


def test_another_tenants_decisions_are_not_read(tmp_path: Path) -> None:
    """Equal names of another tenant add nothing."""
    tenants = ["acme", "other"] * 1000
    found = asked(plain(), filled(tmp_path, 12, 2000, tenant_id=tenants), table(**HALF))
    assert found.evaluation.n_trials == 1000


def test_nothing_logged_is_said(tmp_path: Path) -> None:
    """An empty lake, and a time without decisions, are errors that say so."""
    with pytest.raises(NothingLoggedError, match="hats has no closed decision"):
        asked(plain(), Lake(tmp_path), table(**HALF))
    lake = filled(tmp_path / "b", 13, 100)
    with pytest.raises(NothingLoggedError, match="no closed decision was made in that"):
        asked(plain(), lake, table(**HALF), from_ms=NOW_MS - 1)


def test_a_wrong_policy_lists_its_faults(tmp_path: Path) -> None:
    """A policy is checked as in an experiment's file, before the lake is read."""
    with pytest.raises(InvalidExperimentError, match=r"policy\.prior_alpha == -1"):
        asked(
            plain(),
            Lake(tmp_path),
            ByPolicy({"kind": "beta_thompson", "prior_alpha": -1}),
        )


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"v1": 0.5, "v9": 0.5}, "variant_id == 'v9', must be a variant of hats"),
        ({"v1": 0.5, "v2": 0.4}, "probabilities of the table add up to 0.9, must"),
        ({"v1": 1.5, "v2": -0.5}, r"probability == 1.5, must be in \[0, 1\]"),
    ],
)
def test_a_wrong_table_is_named(
    tmp_path: Path, shares: dict[str, float], message: str
) -> None:
    """Unknown variants, sums and numbers that cannot be are refused."""
    lake = filled(tmp_path, 14, 200)
    with pytest.raises(TargetError, match=message):
        asked(plain(), lake, table(**shares))


def test_tables_are_read_from_parquet_and_csv(tmp_path: Path) -> None:
    """Both say the same; ids of digits stay text; what is no table is refused."""
    ids = pa.array(["007", "007"])
    rows = pa.table(
        {"decision_id": ids, "variant_id": ["v1", "v2"], "probability": [0, 1]}
    )
    pq.write_table(rows, tmp_path / "p.parquet")
    pa.csv.write_csv(rows, tmp_path / "p.csv")
    read = [read_probabilities(tmp_path / name) for name in ("p.parquet", "p.csv")]
    assert read[0].equals(read[1])
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(TargetError, match=r"bad\.parquet cannot be read"):
        read_probabilities(tmp_path / "bad.parquet")
    pq.write_table(rows.drop(["probability"]), tmp_path / "half.parquet")
    with pytest.raises(TargetError, match="has no column probability, must have it"):
        read_probabilities(tmp_path / "half.parquet")
    pa.csv.write_csv(rows, tmp_path / "P.CSV")
    assert read_probabilities(tmp_path / "P.CSV").equals(read[0])


@pytest.mark.parametrize("name", ["decision_id", "variant_id", "probability"])
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, name: str) -> None:
    """In a file and in a table given as such."""
    names = ["decision_id", "variant_id", "probability", name]
    given = {"decision_id": ["d0"], "variant_id": ["v1"], "probability": [1.0]}
    rows = pa.Table.from_arrays([pa.array(given[one]) for one in names], names)
    pa.csv.write_csv(rows, tmp_path / "p.csv")
    with pytest.raises(TargetError, match=f"p.csv has 2 columns {name}, must have one"):
        read_probabilities(tmp_path / "p.csv")
    with pytest.raises(TargetError, match=f"the table has 2 columns {name}, must"):
        asked(plain(), filled(tmp_path, 25, 100), ByTable(rows))


def test_answers_as_text_and_json(tmp_path: Path) -> None:
    """A supported answer is a table of six estimators; another says why and no number."""
    lake = filled(tmp_path, 15, 2000)
    good = asked(by_device(), lake, table(**HALF))
    text, told = to_text(good), to_json(good)
    assert "doubly robust" in text
    assert told["supported"] is True
    assert set(told["estimates"]) == {"ips", "snips", "dm", "dr", "switch_dr", "dros"}
    assert told["estimates"]["ips"]["bootstrap"].keys() == {"low", "high"}
    assert told["support"]["unseen_by_field"] == {"device": 0.0}
    few = asked(by_device(), lake, table(**HALF), from_ms=START_MS + 1950 * STEP_MS)
    text, told = to_text(few), to_json(few)
    assert "not enough support:" in text
    assert "doubly robust" not in text
    assert (told["supported"], told["estimates"]) == (False, {})
    assert told["reasons"]
