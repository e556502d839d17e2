"""One writer per shard: whoever was late, or is, changes nothing; the log is trimmed last."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandolero.fold import Fold
from bandolero.lake.catalog import Lake, OverlapError
from bandolero.settle import GRACE_MS
from bandolero_service import keys
from bandolero_service.archive import archive, trim
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.learner import HEARTBEAT_S, ShardLearner
from bandolero_service.settings import Settings
from bandolero_service.store import Block, Commit, FencedError, Store
from service_helpers import experiment, needs_server, wait_for
from worker import Worker

A_MS = 0.002
"""So long that the next entry of the log has a later millisecond, in seconds."""

pytestmark = needs_server
MINUTE_MS = 60_000
LARGE = 10**9


def taken_over(store: Store, shard: int, role: str, owner: str) -> int:
    """The fence of a new owner, once the lease of the one before has run out."""
    store._redis.delete(keys.lease(shard, role))
    fence = store.take_lease(shard, role, owner)
    assert fence is not None
    return fence


class LateStore(Store):
    """A store whose commits arrive only after `meanwhile` has happened."""

    def commit(self, shard: int, fence: int, expected: str, commit: Commit) -> None:
        """Be late with what was folded."""
        if commit.folds:
            self.meanwhile()
        super().commit(shard, fence, expected, commit)

    def meanwhile(self) -> None:
        """Set by the test."""


def test_a_late_commit_of_a_learner_is_refused(
    store: Store, embedded: EmbeddedStore, tmp_path: Path
) -> None:
    """A learner is held up between folding and writing while another folds the same
    decisions: its commit is refused, and each decision has been learned once."""
    settings = Settings(data_dir=tmp_path, secret="s")
    worker = Worker(store, settings)
    worker.publish(worker.put(experiment("hats")), 1)
    shard = store.shard("acme", "hats")
    store._redis.delete(keys.meta(shard))  # so that it begins to learn
    for _ in range(40):
        worker.decide("hats")
    assert len(worker.logged()) == 40
    late = LateStore(embedded.url)
    late.open(4)
    zombie = ShardLearner(
        late, shard, taken_over(late, shard, "learner", "a"), settings
    )
    heirs: list[ShardLearner] = []

    def take_over() -> None:
        fence = taken_over(store, shard, "learner", "b")
        heirs.append(ShardLearner(store, shard, fence, settings))
        wait_for(lambda: _learned(heirs[0]) == 40, 20, "the heir learns")

    late.meanwhile = take_over  # type: ignore[method-assign]
    with pytest.raises(FencedError, match="FENCED"):
        wait_for(zombie.step, 20, "the zombie commits")
    committed = store.cursors(shard)
    late.meanwhile = lambda: None  # type: ignore[method-assign]
    with pytest.raises(FencedError, match="FENCED"):
        wait_for(zombie.step, 20, "it tries again")
    assert store.cursors(shard) == committed
    assert _learned(heirs[0]) == 40
    again = ShardLearner(
        store, shard, taken_over(store, shard, "learner", "c"), settings
    )
    assert _learned(again) == 40
    late.close()


def _learned(learner: ShardLearner) -> int:
    """Trials after one more step."""
    learner.step()
    fold: Fold | None = learner._folds.get("acme/hats")
    state: Any = fold.state if fold else None
    return 0 if state is None else round(state.trials.sum())


class LateLake(Lake):
    """A lake whose commits arrive only after `meanwhile` has happened."""

    def write_bytes(self, path: str, data: bytes, *, anew: bool = False) -> None:
        """Be late with the manifest."""
        if path.startswith("manifest/s"):
            self.meanwhile()
        super().write_bytes(path, data, anew=anew)

    def meanwhile(self) -> None:
        """Set by the test."""


def test_a_late_commit_of_an_archiver_is_refused(store: Store, tmp_path: Path) -> None:
    """An archiver is held up before its manifest while another commits more from the same
    position: its commit is refused, and the lake has every entry once."""
    store.append("w", [_event_block(1)])
    late, lake = LateLake(tmp_path), Lake(tmp_path)

    def take_over() -> None:
        late.meanwhile = lambda: None  # type: ignore[method-assign]
        store.append("w", [_event_block(2)])
        time.sleep(A_MS)
        assert archive(store, lake, 1, LARGE) > 0

    late.meanwhile = take_over  # type: ignore[method-assign]
    with pytest.raises(OverlapError):
        archive(store, late, 1, LARGE)
    store.append("w", [_event_block(3)])
    time.sleep(A_MS)
    archive(store, late, 1, LARGE)
    rows, bad = lake.read("events")
    assert bad == []
    assert rows["event_id"].to_pylist() == ["e1", "e2", "e3"]


def _event_block(number: int) -> Block:
    from bandolero.log import EVENTS, write_block
    from log_rows import event_row

    data = write_block([event_row(f"e{number}")], EVENTS)
    return Block("events", 1, number, data, {})


class TrimmedStore(Store):
    """Notes what is trimmed; its learner's cursors and newest event are the test's."""

    def __init__(self, cursors: dict[str, Any], newest_ms: int) -> None:
        self.trimmed: dict[str, int] = {}
        self._cursors = json.dumps(cursors) if cursors else ""
        self._newest_ms = newest_ms

    def cursors(self, shard: int) -> str:
        """As the test says."""
        return self._cursors

    def last_id(self, stream: str) -> str:
        """As the test says."""
        return f"{self._newest_ms}-0"

    def trim(self, stream: str, before_ms: int) -> None:
        """Only note it."""
        self.trimmed[stream] = before_ms


times = st.integers(0, 10 * 24 * 60 * MINUTE_MS)


@given(
    archived_ms=times,
    newest_ms=times,
    events_ms=times,
    decisions_ms=st.dictionaries(st.sampled_from(["1", "2", "3"]), times),
    retain_s=st.floats(0.0, 1e6),
)
def test_nothing_is_trimmed_that_anybody_needs(
    archived_ms: int,
    newest_ms: int,
    events_ms: int,
    decisions_ms: dict[str, int],
    retain_s: float,
) -> None:
    """Whatever the positions: what is trimmed is archived, folded by every window, older
    than what is retained; and published snapshots stay as long as they may be served."""
    cursors = {
        "events": f"{events_ms}-7",
        "decisions": {window: f"{ms}-3" for window, ms in decisions_ms.items()},
    }
    store = TrimmedStore(cursors, newest_ms)
    trim(store, 0, archived_ms, retain_s)
    folded_ms = min(decisions_ms.values(), default=0)
    for stream, before_ms in store.trimmed.items():
        assert before_ms == 0 or before_ms <= archived_ms, stream
        assert before_ms == 0 or before_ms <= newest_ms - retain_s * 1000 + 1, stream
    events, decisions, control, history = (
        store.trimmed[of(0)]
        for of in (keys.events, keys.decisions, keys.control, keys.history)
    )
    assert events <= events_ms
    assert max(decisions, control) <= max(0, folded_ms - GRACE_MS)
    assert history == 0 or history <= decisions - 2000 * HEARTBEAT_S


def test_nothing_is_trimmed_before_a_learner_has_begun() -> None:
    """Without committed cursors nobody knows what is folded: all stays."""
    store = TrimmedStore({}, LARGE)
    trim(store, 0, LARGE, 0.0)
    assert store.trimmed == {}
