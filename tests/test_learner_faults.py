"""What goes wrong in one experiment, block or shard stays there."""

import json
import threading
from collections import Counter
from typing import Any

import pytest

from bandolero.log import log_ms
from bandolero.settle import LOST_AFTER_MS
from bandolero_service import keys, learner
from bandolero_service.settings import Settings
from bandolero_service.store import Commit, Store
from memory_store import (
    CLOSE_AFTER_MS,
    LASTING,
    NAME,
    MemoryStore,
    clicked,
    learner_of,
    step_through,
)
from strategies import START_MS, event, experiment


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a learner to which every step is a publishing interval."""
    monkeypatch.setattr(learner, "REPUBLISH_S", 0.0)
    return Settings(publish_interval_s=0.0)


def test_a_fold_that_cannot_be_read_is_never_written_over(
    at_once: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its experiment learns and publishes nothing, which is told once and counted."""
    store = MemoryStore(LASTING)
    store.kept = {NAME: b"damaged"}
    monkeypatch.setattr(learner, "IDLE_COMMIT_S", 0.0)
    made, told = clicked(4, gap_ms=10_000)
    store.decide(*made)
    store.tell(*told)
    shard = learner_of(store, at_once)
    step_through(store, shard, made)
    assert store.kept == {NAME: b"damaged"}
    assert store.published == []
    assert shard.not_learned == {NAME: 4}
    assert json.loads(store.committed.cursors)["decisions"]["2000"] != "0-0"
    messages = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert sum("cannot be read" in text for text in messages) == 1
    assert sum("decisions are not learned" in text for text in messages) == 1


def test_a_fold_waits_for_its_record(at_once: Settings) -> None:
    """Where the record cannot be read at first, the fold goes on when it can be."""
    store = MemoryStore(LASTING)
    made, told = clicked(2, gap_ms=10_000)
    store.decide(*made)
    store.tell(*told)
    store.pass_to(made[0]["log_ms"] + CLOSE_AFTER_MS)
    learner_of(store, at_once).step()
    store.is_readable = False
    shard = learner_of(store, at_once)
    shard.step()
    store.is_readable = True
    store.moves += 1
    store.pass_to(made[1]["log_ms"] + CLOSE_AFTER_MS)
    shard.step()
    state: Any = store.snapshot.state
    assert state.trials[0] == 2


def test_a_block_that_cannot_be_read_is_passed_over(
    at_once: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Those before and behind it are folded, events and decisions alike."""
    store = MemoryStore(LASTING)
    made, told = clicked(2, gap_ms=10_000)
    for rows, log, stream in (
        (made, store.decide, keys.decisions(0)),
        (told, store.tell, keys.events(0)),
    ):
        log(*rows[:1])
        store.log(stream, rows[0]["log_ms"] + 1, {b"block": b"no block"})
        log(*rows[1:])
    shard = learner_of(store, at_once)
    store.pass_to(made[1]["log_ms"] + CLOSE_AFTER_MS)
    shard.step()
    state: Any = store.snapshot.state
    assert (state.successes[0], state.trials[0]) == (1, 2)
    assert sum("nobody learns of it" in r.getMessage() for r in caplog.records) == 2


def test_a_step_is_bounded_and_nothing_is_published_from_the_past(
    at_once: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes over reads held events again a piece at a time, and publishes after that."""
    monkeypatch.setattr(learner, "STEP_ENTRIES", 3)
    monkeypatch.setattr(learner, "IDLE_COMMIT_S", 0.0)
    store = MemoryStore(LASTING)
    made, _ = clicked(1, gap_ms=1)
    store.tell(event(decision_id="open", decided_at_ms=START_MS))
    store.decide(*made)
    shard = learner_of(store, at_once)
    for i in range(10):
        store.pass_to(START_MS + i * 1_000)
    while shard.step():
        pass
    last = log_ms(json.loads(store.committed.cursors)["log"])
    assert last == START_MS + 9_000
    shard, n_published = learner_of(store, at_once), len(store.published)
    assert shard.step()
    assert len(store.published) == n_published
    while shard.step():
        pass
    assert [s.created_at_ms for s in store.published[n_published:]] == [last]


def test_an_outage_costs_no_event(
    at_once: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many hours what had been told before is still learned, with its probabilities,
    however many steps it takes; then nothing is held, though a window is without decisions."""
    monkeypatch.setattr(learner, "STEP_ENTRIES", 3)
    monkeypatch.setattr(learner, "IDLE_COMMIT_S", 0.0)
    store = MemoryStore(LASTING)
    shard = learner_of(store, at_once)
    store.pass_to(START_MS - 1)
    shard.step()
    made, told = clicked(20, gap_ms=10)
    store.decide(*made)
    store.tell(*told, event(decision_id="lost", decided_at_ms=START_MS))
    store.pass_to(START_MS + 100 * LOST_AFTER_MS)
    shard._windows[1_000] = f"{START_MS + LOST_AFTER_MS}-0"
    while shard.step():
        pass
    state: Any = store.snapshot.state
    assert (state.successes[0], state.trials[0]) == (10, 20)
    (epoch,) = shard._folds[NAME].epochs.values()
    assert epoch.is_known
    assert len(shard._held) == 0


def test_the_past_ages_nothing(at_once: Settings) -> None:
    """Trials that fade are no more than there were where log time is behind the fold."""
    policy = {"kind": "beta_thompson", "half_life_s": 60.0}
    spec = experiment(objective={"attribution_window_s": 2.0}, policy=policy)
    store = MemoryStore(spec)
    made, _ = clicked(2, gap_ms=10)
    store.decide(*made)
    store.pass_to(made[1]["log_ms"] + CLOSE_AFTER_MS)
    learner_of(store, at_once).step()
    store.committed = Commit("", {}, {}, {})
    store.streams.clear()
    store.pass_to(START_MS - 3_600_000)
    learner_of(store, at_once).step()
    state: Any = store.snapshot.state
    assert 1.9 < state.trials[0] <= 2.0


def test_one_shards_fault_does_not_stop_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others step on; the fault is told once, and that shard is tried again later."""
    stop, steps = threading.Event(), Counter[int]()

    def step(store: Store, settings: Settings, shard: int, *_: Any) -> bool:
        steps[shard] += 1
        if shard == 1:
            raise ArithmeticError("cannot be")
        if steps[0] == 5:
            stop.set()
        return True

    monkeypatch.setattr(learner, "_step_shard", step)
    monkeypatch.setattr(learner, "FAULT_PAUSE_S", 0.0)
    learner.run_learner(store, Settings(), stop)
    assert steps[0] == 5
    assert steps[1] >= 4
    assert (
        sum("shard 1 cannot be learned" in r.getMessage() for r in caplog.records) == 1
    )
