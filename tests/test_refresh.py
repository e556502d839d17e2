"""The nightly refresh: what the live fold lacks, by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference
import reference_policies
from bandolero.experiment import Experiment, ExperimentRecord, GaussianThompsonSpec
from bandolero.fold import FALLBACK, MEASURES, Correction, Fold, advance, init_fold
from bandolero.lake.catalog import Lake
from bandolero.lake.refresh import Refreshed, refresh
from bandolero.policies import aged, policy_of
from bandolero.settle import GRACE_MS, LOST_AFTER_MS, settle
from strategies import (
    FAR_MS,
    FORGETFUL,
    START_MS,
    VARIANTS,
    VECTORS,
    Row,
    Story,
    decision,
    decisions_table,
    event,
    events_table,
    experiment,
    forgetting,
    stories,
)

WINDOW_S = 2.0
CLOSE_MS = START_MS + 2000 + GRACE_MS
UNTIL_MS = FAR_MS + 1
CLICKS = experiment(objective={"attribution_window_s": WINDOW_S})
SALES = experiment(
    objective={
        "event": "conversion",
        "reward": "value",
        "attribution_window_s": WINDOW_S,
    },
    policy={"kind": "uniform"},
)


def record_of(spec: Experiment) -> ExperimentRecord:
    """A running experiment."""
    assert spec.tenant is not None
    return ExperimentRecord(tenant=spec.tenant, spec=spec, status="running")


def lake_of(folder: Path, made: list[Row], told: list[Row]) -> Lake:
    """A lake with all of a log, complete up to `UNTIL_MS`."""
    lake = Lake(folder)
    tables = {"decisions": decisions_table(made), "events": events_table(told)}
    lake.commit("0", 0, UNTIL_MS, tables)
    return lake


def refreshed(
    folder: Path, made: list[Row], told: list[Row], spec: Experiment = CLICKS
) -> Refreshed:
    """What a refresh finds in such a lake."""
    return refresh(lake_of(folder, made, told), [record_of(spec)])


def changes(**measures: float) -> dict[str, float]:
    """A change of some measures; the others stay."""
    return dict.fromkeys(MEASURES, 0) | measures


# --- by hand ------------------------------------------------------------------------------


def test_nothing_late_is_nothing_to_correct(tmp_path: Path) -> None:
    """Where all came in time the correction is empty, and yet there is one."""
    found = refreshed(tmp_path, [decision()], [event()])
    assert found.corrections == [
        Correction("acme", "hats", UNTIL_MS, {}, {}, {}, {}, {})
    ]
    assert (found.decisions, found.events, found.settled) == (1, 1, 1)
    assert found.late_events == 0


def test_late_click_is_one_hit_more(tmp_path: Path) -> None:
    """A click in time but told at the close adds a hit, no trial, to its variant."""
    made = [decision(), decision(decision_id="d2", variant_id="v2")]
    late = event(decision_id="d2", log_ms=CLOSE_MS)
    found = refreshed(tmp_path, made, [event(), late])
    one = changes(hits=1, rewards_micros=1_000_000, rewards_squared=1.0)
    assert found.corrections[0].changes == {"v2": one}
    assert found.late_events == 1


def test_second_refresh_finds_the_same(tmp_path: Path) -> None:
    """A correction replaces the last one: the same night twice changes nothing."""
    lake = lake_of(tmp_path, [decision()], [event(log_ms=CLOSE_MS)])
    first, second = (refresh(lake, [record_of(CLICKS)]) for _ in range(2))
    assert first.corrections[0].changes["v1"]["hits"] == 1
    assert second.corrections == first.corrections
    assert second.rollups.equals(first.rollups)


def test_click_after_the_window_corrects_nothing(tmp_path: Path) -> None:
    """A click that came after the window is late for ever: told, and not counted."""
    after = event(at_ms=START_MS + 2000, log_ms=CLOSE_MS)
    found = refreshed(tmp_path, [decision()], [after])
    assert found.corrections[0].changes == {}
    assert found.late_events == 1


def test_late_retract_takes_a_hit_away(tmp_path: Path) -> None:
    """A retract told a day later takes back the click that was learned live."""
    retract = event(event_id="e2", type="retract", retracts="e1", log_ms=FAR_MS)
    found = refreshed(tmp_path, [decision()], [event(), retract])
    less = changes(hits=-1, rewards_micros=-1_000_000, rewards_squared=-1.0)
    assert found.corrections[0].changes == {"v1": less}


def test_late_refund_takes_its_value(tmp_path: Path) -> None:
    """Of 5 earned, 2 given back later: 2 less, and of squares 25 - 9 = 16 less."""
    bought = event(type="conversion", value_micros=5_000_000)
    back = event(event_id="e2", type="refund", value_micros=2_000_000, log_ms=FAR_MS)
    found = refreshed(tmp_path, [decision()], [bought, back], SALES)
    less = changes(rewards_micros=-2_000_000, rewards_squared=-16.0)
    assert found.corrections[0].changes == {"v1": less}


def test_decision_that_was_lost_to_the_live_fold_is_added(tmp_path: Path) -> None:
    """A block that reached the log more than an hour late is a trial of the refresh."""
    made = [decision(log_ms=START_MS + LOST_AFTER_MS + 1)]
    found = refreshed(tmp_path, made, [event()])
    one = changes(trials=1, hits=1, rewards_micros=1_000_000, rewards_squared=1.0)
    assert found.corrections[0].changes == {"v1": one}


def test_fallbacks_and_strangers_are_left_alone(tmp_path: Path) -> None:
    """Fallbacks, and decisions of experiments not asked for, are not settled."""
    made = [decision(mode=FALLBACK), decision(decision_id="d2", experiment_id="coats")]
    late = event(decision_id="d2", log_ms=CLOSE_MS)
    found = refreshed(tmp_path, made, [late])
    assert found.corrections[0].changes == {}
    assert (found.decisions, found.settled) == (2, 0)


def test_open_decisions_wait_for_another_night(tmp_path: Path) -> None:
    """A decision is settled by the first refresh whose watermark is past its close."""
    lake = lake_of(tmp_path, [decision()], [event(log_ms=CLOSE_MS)])
    records = [record_of(CLICKS)]
    assert refresh(lake, records, until_ms=CLOSE_MS - 1).settled == 0
    first = refresh(lake, records, until_ms=CLOSE_MS)
    assert (first.watermark_ms, first.settled) == (CLOSE_MS, 1)
    assert first.corrections[0].changes == {}
    assert refresh(lake, records, until_ms=CLOSE_MS + 1).corrections[0].changes
    assert refresh(lake, records, until_ms=UNTIL_MS + 9).watermark_ms == UNTIL_MS


def test_empty_lake_is_no_fault(tmp_path: Path) -> None:
    """Refreshing nothing, or for nobody, finds nothing."""
    found = refresh(Lake(tmp_path), [record_of(CLICKS)])
    assert (found.watermark_ms, found.settled, found.rollups.num_rows) == (0, 0, 0)
    assert found.corrections == [Correction("acme", "hats", 0, {}, {}, {}, {}, {})]
    lake = lake_of(tmp_path / "full", [decision()], [event()])
    assert refresh(lake, []).corrections == []


def test_damaged_file_is_told_and_the_rest_refreshed(tmp_path: Path) -> None:
    """A refresh goes on without a damaged file, and says which it was."""
    lake = lake_of(tmp_path, [decision()], [event()])
    (file,) = lake.files("events")
    Path(lake.root, file.path).write_bytes(b"PAR1")
    found = refresh(lake, [record_of(CLICKS)])
    assert [bad.path for bad in found.bad_files] == [file.path]
    assert found.settled == 1


def test_rollups_count_by_day_and_mode(tmp_path: Path) -> None:
    """A rollup row holds what a variant did in one mode on one day, late events too."""
    made = [
        decision(),
        decision(decision_id="d2", mode="holdout"),
        decision(decision_id="d3", decided_at_ms=START_MS + 6_000),
        decision(decision_id="d4"),
    ]
    told = [event(), event(decision_id="d4", type="impression")]
    told += [event(decision_id="d4", event_id="e2", log_ms=FAR_MS)]
    rows = refreshed(tmp_path, made, told).rollups.to_pylist()
    today = START_MS // 86_400_000
    columns = ("mode", "day", "decisions", "trials", "hits", "impressions")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("explore", today, 2, 2, 2, 1),
        ("explore", today + 1, 1, 1, 0, 0),
        ("holdout", today, 1, 1, 0, 0),
    ]


# --- against the fold -----------------------------------------------------------------------


def live_fold(story: Story) -> Fold:
    """What the learner learned of a story."""
    spec = story.experiment
    return advance(spec, init_fold(spec), *story.tables, VECTORS)


def corrected(spec: Experiment, state: Any, change: dict[str, dict[str, float]]) -> Any:
    """The state with a correction, as the learner adds it."""
    policy: Any = policy_of(spec)
    trials, hits = (
        np.array([change.get(v, {}).get(name, 0) for v in VARIANTS], np.int64)
        for name in ("trials", "hits")
    )
    return policy.add(state, policy.correction(len(VARIANTS), trials, hits))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=stories(reward="binary"))
def test_correction_makes_live_counts_final(
    tmp_path_factory: pytest.TempPathFactory, story: Story
) -> None:
    """Live state plus correction is the state of settling everything at the watermark."""
    folder = tmp_path_factory.mktemp("lake")
    lake = lake_of(folder, story.decisions, story.events)
    found = refresh(lake, [record_of(story.experiment)])
    (correction,) = found.corrections
    learned = [row for row in story.decisions if row["mode"] != FALLBACK]
    decisions = decisions_table(learned)
    final = settle(decisions, story.tables[1], story.objective, UNTIL_MS)
    arms = np.array([VARIANTS.index(v) for v in decisions["variant_id"].to_pylist()])
    arms = arms.astype(np.int64)[final.row][final.trial]
    rewards = final.reward_micros[final.trial] / 1e6
    policy: Any = policy_of(story.experiment)
    expected = policy.update(policy.init(len(VARIANTS)), arms, rewards)
    live = live_fold(story).state
    got = corrected(story.experiment, live, correction.changes)
    assert [a.tobytes() for a in got] == [a.tobytes() for a in expected]


@pytest.mark.parametrize("half_life_s", [None, 60.0])
def test_unordered_sums_are_no_correction(
    tmp_path: Path, half_life_s: float | None
) -> None:
    """Squares, and what has faded, summed in any order, differ by less than a correction."""
    n = 150_000
    rng = np.random.default_rng(3)
    micros = rng.integers(1, 10**9, n)
    ids = [f"d{i}" for i in range(n)]
    made_ms = np.arange(START_MS, START_MS + n)  # so that none weighs like another
    made = _columns(decision(), n)
    made |= {"decision_id": ids, "decided_at_ms": made_ms, "log_ms": made_ms}
    told = _columns(event(type="conversion"), n) | {
        "decision_id": ids,
        "value_micros": micros,
        "at_ms": made_ms,
        "log_ms": made_ms,
    }
    decisions, events = (
        pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)
        for columns, schema in (
            (made, decisions_table([]).schema),
            (told, events_table([]).schema),
        )
    )
    lake = Lake(tmp_path)
    lake.commit("0", 0, UNTIL_MS, {"decisions": decisions, "events": events})
    policy = GaussianThompsonSpec(kind="gaussian_thompson", half_life_s=half_life_s)
    spec = SALES.model_copy(update={"policy": policy})
    (correction,) = refresh(lake, [record_of(spec)], START_MS + n + 4_000).corrections
    assert (correction.changes, correction.faded) == ({}, {})


# --- forgetting -----------------------------------------------------------------------------

FADING = experiment(
    objective={"attribution_window_s": WINDOW_S},
    policy={"kind": "beta_thompson", "half_life_s": 60.0},
)


def fading(folder: Path, made: list[Row], told: list[Row], until_ms: int) -> Correction:
    """The correction of an experiment with a half-life of a minute."""
    lake = lake_of(folder, made, told)
    (correction,) = refresh(lake, [record_of(FADING)], until_ms).corrections
    return correction


def test_late_click_counts_as_much_as_its_trial_still_does(tmp_path: Path) -> None:
    """Two half-lives after the close a late click is a fourth of a hit; a fact is whole."""
    late = event(log_ms=CLOSE_MS + 1)
    found = fading(tmp_path, [decision()], [late], CLOSE_MS + 120_000)
    one = changes(hits=1, rewards_micros=1_000_000, rewards_squared=1.0)
    assert found.changes == {"v1": one}
    assert found.faded == {"v1": {name: 0.25 * value for name, value in one.items()}}


def test_an_older_and_a_newer_change_do_not_cancel(tmp_path: Path) -> None:
    """A late click and a retraction of an older one sum to no hit, and yet correct."""
    made = [decision(), decision(decision_id="d2", decided_at_ms=START_MS + 60_000)]
    told = [
        event(),
        event(event_id="e2", type="retract", retracts="e1", log_ms=CLOSE_MS + 90_000),
        event(decision_id="d2", at_ms=START_MS + 60_001, log_ms=CLOSE_MS + 90_000),
    ]
    found = fading(tmp_path, made, told, CLOSE_MS + 120_000)
    assert found.changes == {"v1": changes()}
    assert found.faded["v1"]["hits"] == pytest.approx(0.5 - 0.25)
    assert found.faded["v1"]["trials"] == 0.0


def test_only_what_fades_has_a_faded_correction(tmp_path: Path) -> None:
    """Without a half-life the facts are all that is said."""
    found = refreshed(tmp_path, [decision()], [event(log_ms=CLOSE_MS)])
    assert found.corrections[0].changes
    assert found.corrections[0].faded == {}


@pytest.mark.parametrize("reward", sorted(FORGETFUL))
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_correction_makes_a_faded_state_final(
    tmp_path_factory: pytest.TempPathFactory, reward: str, data: st.DataObject
) -> None:
    """Live state, faded to the watermark, plus correction: a twin's weights of all trials."""
    story = forgetting(data.draw(stories(reward=reward)), half_life_s=3600.0)
    folder = tmp_path_factory.mktemp("lake")
    lake = lake_of(folder, story.decisions, story.events)
    (correction,) = refresh(lake, [record_of(story.experiment)]).corrections
    policy: Any = policy_of(story.experiment)
    live = live_fold(story)
    state = aged(policy, live.state, UNTIL_MS - live.learned_to_ms)
    columns = (
        np.array([correction.faded.get(v, {}).get(name, 0.0) for v in VARIANTS])
        for name in ("trials", "hits", "rewards_micros", "rewards_squared")
    )
    got = policy.add(state, policy.correction(len(VARIANTS), *columns))
    told = reference.trials(
        story.decisions, story.events, story.objective, VARIANTS, UNTIL_MS
    )
    exact = np.array(reference_policies.faded(told, len(VARIANTS), UNTIL_MS, 3600.0))
    largest = max((abs(gain) for _, gain, _ in told), default=0.0) + 1e7
    rounding = 1e-9 * (1.0 if reward != "value" else largest)
    np.testing.assert_allclose(got.trials, exact[:, 0], rtol=1e-9, atol=1e-9)
    earned = {"binary": "successes", "count": "counted", "value": "rewards_micros"}
    unit = 1e6 if reward == "value" else 1.0
    sums = getattr(got, earned[reward]) / unit
    np.testing.assert_allclose(sums, exact[:, 1], rtol=1e-9, atol=rounding)


def _columns(row: Row, n: int) -> dict[str, Any]:
    """One row n times, as columns; what it lacks is null."""
    names = {*decisions_table([]).column_names, *events_table([]).column_names}
    return {name: [row.get(name)] * n for name in names}
