"""The learner's steps over a log in memory, whose clock the test sets."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bandolero.codec import pack
from bandolero.experiment import Experiment, ExperimentRecord
from bandolero.fold import Fold, advance, init_fold
from bandolero.lake.catalog import SNAPSHOTS_TABLE, Lake
from bandolero.log import log_order
from bandolero.policies import BetaState, aged, policy_of
from bandolero.replay import agree, replay
from bandolero.settle import LOST_AFTER_MS
from bandolero.snapshot import (
    Snapshot,
    build_snapshot,
    snapshot_to_bytes,
    state_arrays,
)
from bandolero_service import learner
from bandolero_service.changes import Changes
from bandolero_service.folding import state_from_bytes, state_to_bytes
from bandolero_service.metrics import EVENTS_LATE
from bandolero_service.settings import Settings
from memory_store import (
    CLOSE_AFTER_MS,
    LASTING,
    NAME,
    MemoryStore,
    clicked,
    learner_of,
    step_through,
)
from strategies import (
    START_MS,
    Row,
    decision,
    decisions_table,
    events_table,
    experiment,
)

MINUTE_MS = 60_000
FADING = experiment(
    objective={"attribution_window_s": 2.0},
    policy={"kind": "beta_thompson", "half_life_s": 60.0},
)
BY_CONTEXT = experiment(
    objective={"attribution_window_s": 2.0},
    context=[{"name": "hour", "kind": "cyclic", "period": 24.0}],
    policy={"kind": "linear_thompson", "half_life_s": 60.0},
)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a learner to which every step is a publishing interval."""
    monkeypatch.setattr(learner, "REPUBLISH_S", 0.0)
    monkeypatch.setattr(learner, "LOOK_BY_CONTEXT_S", 0.0)
    return Settings(publish_interval_s=0.0)


def offline(spec: Experiment, made: list[Row], told: list[Row], to: Snapshot) -> Any:
    """The state a snapshot must hold, folded at once from all it says it has folded."""
    end = log_order(to.folded_to)[0]
    rows = decisions_table([row for row in made if row["log_ms"] <= end])
    fold = advance(spec, init_fold(spec), rows, events_table(told), {})
    return aged(policy_of(spec), fold.state, to.created_at_ms - fold.learned_to_ms)


@pytest.mark.parametrize(
    "spec", [LASTING, FADING, BY_CONTEXT], ids=["lasting", "fading", "by context"]
)
def test_every_snapshot_holds_what_it_says_it_has_folded(
    spec: Experiment, at_once: Settings
) -> None:
    """Also those published in mid-traffic: one fold up to `folded_to` gives their state."""
    made, told = clicked(20, gap_ms=20_000)
    store = MemoryStore(spec)
    store.decide(*made)
    shard = learner_of(store, at_once)
    for row in made:
        store.tell(*(e for e in told if e["decision_id"] == row["decision_id"]))
        store.pass_to(row["log_ms"] + CLOSE_AFTER_MS)
        shard.step()
    assert len(store.published) >= 15
    for snapshot in store.published:
        assert agree(offline(spec, made, told, snapshot), snapshot.state)


def test_beliefs_fade_without_traffic(at_once: Settings) -> None:
    """A half-life later half is left of the counts, and the shares are nearer to even."""
    made, told = clicked(20, gap_ms=1)
    store = MemoryStore(FADING)
    store.decide(*made)
    store.tell(*told)
    shard = learner_of(store, at_once)
    end_ms = made[-1]["log_ms"] + CLOSE_AFTER_MS
    for n_minutes in range(3):
        store.pass_to(end_ms + n_minutes * MINUTE_MS)
        shard.step()
    assert [s.created_at_ms for s in store.published] == [
        end_ms + n * MINUTE_MS for n in range(3)
    ]
    for earlier, later in pairwise(store.published):
        assert isinstance(earlier.state, BetaState)
        assert isinstance(later.state, BetaState)
        np.testing.assert_allclose(later.state.trials, earlier.state.trials / 2)
        assert np.ptp(later.probabilities) < np.ptp(earlier.probabilities)
    last: Any = store.snapshot.state
    assert last.trials[0] == pytest.approx(5.0, rel=1e-3)


def test_idle_experiments_are_looked_at_rarely() -> None:
    """With nothing learned a fading belief is published on the long interval only."""
    store = MemoryStore(FADING)
    made, told = clicked(4, gap_ms=1)
    store.decide(*made)
    store.tell(*told)
    shard = learner_of(store, Settings(publish_interval_s=0.0))
    for n_minutes in range(1, 4):
        store.pass_to(START_MS + n_minutes * MINUTE_MS)
        shard.step()
    assert len(store.published) == 1


def test_a_restart_changes_nothing(at_once: Settings) -> None:
    """A learner that takes over between two steps fades and folds from the same time."""
    made, told = clicked(10, gap_ms=15_000)
    once, twice = MemoryStore(FADING), MemoryStore(FADING)
    for store in (once, twice):
        store.decide(*made)
        store.tell(*told)
        shard = learner_of(store, at_once)
        store.pass_to(made[5]["log_ms"] + CLOSE_AFTER_MS)
        shard.step()
        if store is twice:
            shard = learner_of(store, at_once)
        store.pass_to(made[-1]["log_ms"] + 5 * MINUTE_MS)
        shard.step()
    assert once.kept == twice.kept
    assert agree(once.snapshot.state, twice.snapshot.state)


def test_a_correction_fades_from_its_watermark(at_once: Settings) -> None:
    """Half a hit at the watermark is a quarter a half-life later, in state and record."""
    store = MemoryStore(FADING)
    row = decision()
    store.decide(row)
    shard = learner_of(store, at_once)
    close_ms = START_MS + CLOSE_AFTER_MS
    watermark_ms = close_ms + MINUTE_MS
    store.pass_to(watermark_ms)
    store.correct(
        {
            "watermark_ms": watermark_ms,
            "changes": {"v1": {"hits": 1, "rewards_micros": 1_000_000}},
            "faded": {"v1": {"hits": 0.5, "rewards_micros": 500_000.0}},
        }
    )
    shard.step()
    state: Any = store.snapshot.state
    assert state.successes.tolist() == [0.5, 0.0, 0.0]
    store.pass_to(watermark_ms + MINUTE_MS)
    shard.step()
    state, correction = store.snapshot.state, store.snapshot.correction
    assert isinstance(correction, BetaState)
    assert correction.successes.tolist() == [0.25, 0.0, 0.0]
    assert state.successes.tolist() == [0.25, 0.0, 0.0]
    assert state.trials.tolist() == [0.25, 0.0, 0.0]


def lake_of(folder: Path, made: list[Row], told: list[Row], last: Snapshot) -> Lake:
    """A lake with a log and the last snapshot published on it."""
    row = {
        "tenant_id": "acme",
        "experiment_id": "hats",
        "version": last.version,
        "probabilities": last.probabilities.tolist(),
        "snapshot": snapshot_to_bytes(last),
        "log_id": f"{last.created_at_ms}-0",
        "log_ms": last.created_at_ms,
    }
    tables = {
        "decisions": decisions_table(made),
        "events": events_table(told),
        "snapshots": pa.Table.from_pylist([row], SNAPSHOTS_TABLE),
    }
    lake = Lake(folder)
    lake.commit("0", 0, last.created_at_ms + MINUTE_MS, tables)
    return lake


def test_replay_agrees_with_a_faded_snapshot(tmp_path: Path, at_once: Settings) -> None:
    """Folded at once from the lake and faded to the snapshot's time: equal, only then."""
    made, told = clicked(12, gap_ms=5_000)
    store = MemoryStore(FADING)
    store.decide(*made)
    store.tell(*told)
    faded = {"trials": -0.5, "hits": -0.25}
    watermark_ms = made[3]["log_ms"] + CLOSE_AFTER_MS
    store.correct({"watermark_ms": watermark_ms, "changes": {}, "faded": {"v1": faded}})
    shard = learner_of(store, at_once)
    step_through(store, shard, made)
    store.pass_to(made[-1]["log_ms"] + MINUTE_MS)
    shard.step()
    lake = lake_of(tmp_path / "lake", made, told, store.snapshot)
    found = replay(store.record_now, lake)
    assert found.decisions == len(made)
    assert found.snapshot.correction is not None
    assert found.same
    later = replace(store.snapshot, created_at_ms=store.snapshot.created_at_ms + 1)
    lake = lake_of(tmp_path / "other", made, told, later)
    assert not replay(store.record_now, lake).same


def test_fold_time_travels_with_the_state() -> None:
    """Bytes keep the log time a state is as of; those written before it have 0."""
    fold: Fold = init_fold(FADING)
    state, learned_to_ms = state_from_bytes(
        "beta_thompson", state_to_bytes(fold.state, START_MS)
    )
    assert learned_to_ms == START_MS
    assert agree(state, fold.state)
    old = pack({}, state_arrays("state", fold.state))
    assert state_from_bytes("beta_thompson", old)[1] == 0


class TwoExperiments(MemoryStore):
    """The same store with a second experiment, whose snapshots cannot be built."""

    def records(self, shard: int) -> dict[str, ExperimentRecord]:
        """One that works, and one that does not."""
        spec = self.record_now.spec.model_copy(update={"experiment": "broken"})
        broken = self.record_now.model_copy(update={"spec": spec})
        return {"acme/broken": broken, NAME: self.record_now}


def test_one_experiments_fault_does_not_stop_the_others(
    at_once: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no snapshot can be built it is told once, and the others go on learning."""
    build = build_snapshot

    def faulty(record: ExperimentRecord, *given: Any, **named: Any) -> Snapshot:
        if record.experiment_id == "broken":
            raise ArithmeticError("cannot be")
        return build(record, *given, **named)

    monkeypatch.setattr(learner, "build_snapshot", faulty)
    monkeypatch.setattr(learner, "REPUBLISH_S", 60.0)
    store = TwoExperiments(LASTING)
    made, told = clicked(6, gap_ms=10)
    store.decide(*made)
    store.tell(*told)
    shard = learner_of(store, at_once)
    step_through(store, shard, made)
    state: Any = store.snapshot.state
    assert state.trials[0] >= 5
    assert {s.experiment.experiment for s in store.published} == {"hats"}
    told_once = [r for r in caplog.records if "acme/broken" in r.getMessage()]
    assert len(told_once) == 1


def test_a_block_that_cannot_be_folded_is_told_and_the_rest_goes_on(
    at_once: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its decisions are not learned; those that come later are."""
    broken = [True]

    def faulty(*given: Any) -> Fold:
        if broken:
            broken.clear()
            raise ArithmeticError("cannot be")
        return advance(*given)

    monkeypatch.setattr(learner, "advance", faulty)
    store = MemoryStore(LASTING)
    made, told = clicked(2, gap_ms=10_000)
    store.decide(*made)
    store.tell(*told)
    shard = learner_of(store, at_once)
    step_through(store, shard, made)
    state: Any = store.snapshot.state
    assert state.trials[0] == 1
    assert any("1 decisions are not learned" in r.getMessage() for r in caplog.records)


def test_late_events_are_counted_once(
    at_once: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event after its decision has settled is let go and counted; one in time is not."""
    told: list[float] = []
    monkeypatch.setattr(
        learner,
        "count",
        lambda family, n=1.0: told.append(n) if family is EVENTS_LATE else None,
    )
    made, clicks = clicked(6, gap_ms=LOST_AFTER_MS)
    store = MemoryStore(LASTING)
    store.decide(*made)
    shard = learner_of(store, at_once)
    store.tell(clicks[0])
    store.pass_to(made[0]["log_ms"] + CLOSE_AFTER_MS)
    shard.step()
    store.tell(clicks[0] | {"event_id": "late", "log_ms": made[1]["log_ms"]})
    for row in made[1:]:
        store.pass_to(row["log_ms"] + CLOSE_AFTER_MS)
        shard.step()
    assert sum(told) == 1


def test_corrections_are_read_when_they_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record that changes, or a snapshot that is published, reads none of them again."""
    store = MemoryStore(LASTING)
    store.correct({"watermark_ms": 1, "changes": {}, "faded": {}, "by_context": {}})
    shard = learner_of(store, Settings(publish_interval_s=0.0))
    reads: list[int] = []

    def read(shard: int) -> dict[str, dict[str, Any]]:
        reads.append(shard)
        return {}

    monkeypatch.setattr(store, "corrections", read)
    for changes in (Changes(2, 0, 1), Changes(3, 7, 1), Changes(4, 7, 2)):
        monkeypatch.setattr(store, "changes", lambda _, now=changes: now)
        shard.step()
    assert reads == [0]
