"""The learner: a fold over the log, one writer per shard, resumed where it committed.

Per shard it keeps one decision cursor for each window length and, in memory, only the
events of open windows. Position and output are written in one step under a fence, so a
crash or a second learner never folds a decision twice or loses one.
"""

import json
import logging
import os
import secrets
import time
from collections import defaultdict, deque
from contextlib import suppress
from threading import Event as Flag
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.codec import unpack
from bandolero.experiment import ExperimentRecord
from bandolero.fold import Fold, advance, grown, init_fold, with_correction
from bandolero.log import (
    DECISIONS_TABLE,
    EVENTS_TABLE,
    before,
    log_ms,
    log_order,
    read_blocks,
)
from bandolero.policies import aged, policy_of
from bandolero.policy_specs import CONTEXTUAL
from bandolero.settle import GRACE_MS, LOST_AFTER_MS
from bandolero.snapshot import Snapshot, build_snapshot, snapshot_to_bytes
from bandolero_service import keys
from bandolero_service.folding import (
    correction_state,
    epoch_from_bytes,
    epoch_to_bytes,
    state_from_bytes,
    state_to_bytes,
)
from bandolero_service.metrics import (
    COMMITS,
    EVENTS_LATE,
    FENCED,
    FOLD_FAILURES,
    SNAPSHOT_FAILURES,
    count,
)
from bandolero_service.settings import Settings
from bandolero_service.store import (
    NO_POSITION,
    Commit,
    FencedError,
    Store,
    StoreDownError,
    blocks_of,
    name_of,
)

log = logging.getLogger(__name__)

STEP_S = 0.1
TICK_S = 1.0
IDLE_COMMIT_S = 10.0
MOVED = 0.005
REPUBLISH_S = 60.0
LOOK_BY_CONTEXT_S = 3.0
"""A snapshot by context is built, and published, this often while data come in: preparing
it is dear, and what has moved is seen for a request that says nothing only."""
BUILD_S = 1.0
"""A step builds snapshots for so long at most, for the lease must be kept."""
HEARTBEAT_S = 1800.0
"""A snapshot is published anew after this long, moved or not, so that the log always
holds the probabilities of what is being served."""


class ShardLearner:
    """The fold of one shard, in memory, since the lease was taken."""

    def __init__(
        self, store: Store, shard: int, fence: int, settings: Settings
    ) -> None:
        self._store = store
        self._shard = shard
        self._fence = fence
        self._settings = settings
        self._committed = store.cursors(shard)
        cursors = json.loads(self._committed or "{}")
        self._windows: dict[int, str] = {
            int(window): at for window, at in cursors.get("decisions", {}).items()
        }
        self._read_to = cursors.get("events", NO_POSITION)
        self._held = EVENTS_TABLE.empty_table()
        self._records: dict[str, ExperimentRecord] = {}
        self._corrections: dict[str, dict[str, Any]] = {}
        self._generation = -1
        self._folds: dict[str, Fold] = {}
        self._vectors: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        self._aging: deque[tuple[int, str, int]] = deque()
        self._looked: dict[str, tuple[int, float]] = {}
        """Version of the record, and when its snapshot was last built, by name."""
        self._published: dict[str, tuple[Snapshot, float]] = {}
        self._shown: dict[str, tuple[Fold | None, dict[str, Any] | None]] = {}
        self._ticked_at = 0.0
        self._committed_at = time.monotonic()
        self._load()

    def step(self) -> None:
        """Read what is new, fold what has closed, publish what has moved, commit."""
        self._see_changes()
        if time.monotonic() - self._ticked_at >= TICK_S:
            self._store.tick(self._shard)
            self._ticked_at = time.monotonic()
        self._read_events()
        changed = self._fold_closed()
        snapshots = self._due_snapshots(self._folds | changed)
        is_due = time.monotonic() - self._committed_at >= IDLE_COMMIT_S
        if changed or snapshots or is_due:
            self._commit(changed, snapshots)

    def _load(self) -> None:
        """Take over what was committed."""
        self._see_changes()
        for name, data in self._store.folds(self._shard).items():
            if (record := self._records.get(name)) is not None:
                state, learned_to_ms = state_from_bytes(record.spec.policy.kind, data)
                stored = self._store.rollups(self._shard, name)
                epochs = {key: epoch_from_bytes(one) for key, one in stored.items()}
                self._folds[name] = Fold(state, epochs, learned_to_ms)
        for entry in self._store.read(keys.history(self._shard), NO_POSITION):
            name = entry.fields[b"name"].decode()
            arrays = unpack(entry.fields[b"snapshot"]).arrays
            version = int(entry.fields[b"version"])
            self._know(name, version, arrays["probabilities"], log_ms(entry.log_id))

    def _see_changes(self) -> None:
        generation = self._store.generation(self._shard)
        if generation == self._generation:
            return
        self._records = self._store.records(self._shard)
        fresh = self._store.corrections(self._shard)
        # The same correction stays the same object: see `_has_learned`.
        self._corrections = {
            name: old if (old := self._corrections.get(name)) == body else body
            for name, body in fresh.items()
        }
        self._generation = generation
        for record in self._records.values():
            self._windows.setdefault(record.spec.objective.window_ms, NO_POSITION)

    def _read_events(self) -> None:
        entries = list(self._store.read(keys.events(self._shard), self._read_to))
        if entries:
            self._read_to = entries[-1].log_id
            fresh = read_blocks(blocks_of(entries), EVENTS_TABLE)
            self._held = pa.concat_tables([self._held, fresh])

    def _fold_closed(self) -> dict[str, Fold]:
        """Fold every decision that has closed by now; the folds that changed."""
        changed: dict[str, Fold] = {}
        done: list[pa.ChunkedArray] = []
        for window_ms, cursor in self._windows.items():
            until_ms = log_ms(self._read_to) - window_ms - GRACE_MS
            if until_ms < 0:
                continue
            entries = list(
                self._store.read(keys.decisions(self._shard), cursor, until_ms)
            )
            if not entries:
                continue
            self._windows[window_ms] = entries[-1].log_id
            rows = read_blocks(blocks_of(entries), DECISIONS_TABLE)
            for name, record in self._of_window(rows, window_ms).items():
                mine = rows.filter(_is(rows, record))
                fold = changed.get(name) or self._folds.get(name)
                try:
                    changed[name] = self._advance(
                        name, record, fold or init_fold(record.spec), mine
                    )
                except Exception:  # one experiment's fault must not stop the others
                    count(FOLD_FAILURES)
                    rows_lost = f"{mine.num_rows} decisions are not learned"
                    log.exception("%s cannot be folded, %s", name, rows_lost)
                done.append(mine["decision_id"])
        if done:
            self._forget_events(done)
        return changed

    def _advance(
        self, name: str, record: ExperimentRecord, fold: Fold, rows: pa.Table
    ) -> Fold:
        vectors = self._vectors[name]
        return advance(record.spec, fold, rows, self._held, vectors)

    def _of_window(self, rows: pa.Table, window_ms: int) -> dict[str, ExperimentRecord]:
        """Experiments of the rows that have this window length."""
        pairs = rows.group_by(["tenant_id", "experiment_id"]).aggregate([]).to_pylist()
        names = [name_of(p["tenant_id"], p["experiment_id"]) for p in pairs]
        found = {name: self._records[name] for name in names if name in self._records}
        return {
            name: record
            for name, record in found.items()
            if record.spec.objective.window_ms == window_ms
        }

    def _forget_events(self, done: list[pa.ChunkedArray]) -> None:
        """Drop events of settled decisions, and those whose decision must be lost."""
        ids = pa.concat_arrays([chunk for column in done for chunk in column.chunks])
        settled = pc.is_in(self._held["decision_id"], value_set=ids)
        longest = max(self._windows) + GRACE_MS + LOST_AFTER_MS
        oldest = log_ms(self._read_to) - longest
        lost = pc.less(self._held["decided_at_ms"], oldest)
        count(EVENTS_LATE, n=pc.sum(pc.and_not(lost, settled)).as_py() or 0)
        self._held = self._held.filter(pc.invert(pc.or_(settled, lost)))

    def _due_snapshots(self, folds: dict[str, Fold]) -> dict[str, Snapshot]:
        """Snapshots of the folds to publish now, as far as the time of a step goes.

        An experiment whose snapshot cannot be built keeps its last one, and the others
        theirs: it is told, and tried again in a minute, or when it changes.
        """
        due, until = {}, time.monotonic() + BUILD_S
        for name in sorted(self._records, key=self._looked_at):
            record, fold = self._records[name], folds.get(name)
            if time.monotonic() > until:
                break
            if not self._is_to_look_at(name, record, fold):
                continue
            try:
                snapshot = self._due_snapshot(name, record, fold)
                self._looked[name] = (record.spec_version, time.monotonic())
            except StoreDownError:
                raise
            except Exception:  # one experiment's fault must not stop the others
                count(SNAPSHOT_FAILURES)
                log.exception("%s: no snapshot can be built, the last one stays", name)
                wait = time.monotonic() + REPUBLISH_S
                self._looked[name] = (record.spec_version, wait)
                continue
            if snapshot is not None:
                due[name] = snapshot
        return due

    def _looked_at(self, name: str) -> float:
        return self._looked.get(name, (0, 0.0))[1]

    def _is_to_look_at(
        self, name: str, record: ExperimentRecord, fold: Fold | None
    ) -> bool:
        """Whether it is time to see if an experiment's probabilities have moved.

        Beliefs that fade move without data; it is enough to look every `REPUBLISH_S`.
        """
        if record.status not in ("running", "paused"):
            return False
        version, looked = self._looked.get(name, (0, 0.0))
        if version != record.spec_version:
            return True
        by_context = record.spec.policy.kind in CONTEXTUAL
        pause = LOOK_BY_CONTEXT_S if by_context else self._settings.publish_interval_s
        if time.monotonic() - looked < pause:
            return False
        _, at = self._published.get(name, (None, 0.0))
        return time.monotonic() - at >= REPUBLISH_S or self._has_learned(name, fold)

    def _due_snapshot(
        self, name: str, record: ExperimentRecord, fold: Fold | None
    ) -> Snapshot | None:
        """A snapshot worth publishing: the record changed, or the probabilities moved."""
        last, at = self._published.get(name, (None, 0.0))
        age = time.monotonic() - at
        same_spec = last is not None and last.spec_version == record.spec_version
        now_ms = log_ms(self._read_to)
        fold = grown(record.spec, fold or init_fold(record.spec))
        policy = policy_of(record.spec)
        state = aged(policy, fold.state, now_ms - fold.learned_to_ms)
        correction = self._correction(name, record, now_ms)
        state = with_correction(record.spec, state, correction)
        if last is not None and same_spec and age < HEARTBEAT_S:  # noqa: SIM102
            if _same(last.state, state):
                return None
        snapshot = build_snapshot(
            record,
            state,
            version=self._next_version(name),
            created_at_ms=now_ms,
            folded_to=self._windows[record.spec.objective.window_ms],
            correction=correction,
        )
        # By context more may have moved than is seen for a request that says nothing.
        is_seen = snapshot.prepared is None
        if is_seen and same_spec and last is not None and age < REPUBLISH_S:
            moved = np.abs(snapshot.probabilities - last.probabilities).max()
            if moved <= MOVED:
                return None
        return snapshot

    def _next_version(self, name: str) -> int:
        last, _ = self._published.get(name, (None, 0.0))
        if last is not None:
            return last.version + 1
        return self._store.versions(self._shard).get(name, 0) + 1

    def _has_learned(self, name: str, fold: Fold | None) -> bool:
        """Whether fold or correction is another than that of the last snapshot."""
        shown, correction = self._shown.get(name, (None, None))
        return fold is not shown or self._corrections.get(name) is not correction

    def _correction(
        self, name: str, record: ExperimentRecord, now_ms: int
    ) -> tuple[Any, ...] | None:
        body = self._corrections.get(name)
        return None if body is None else correction_state(record.spec, body, now_ms)

    def _commit(self, changed: dict[str, Fold], snapshots: dict[str, Snapshot]) -> None:
        cursors = self._cursors()
        commit = Commit(
            cursors,
            {
                name: state_to_bytes(fold.state, fold.learned_to_ms)
                for name, fold in changed.items()
            },
            {
                name: (snapshot.version, snapshot_to_bytes(snapshot))
                for name, snapshot in snapshots.items()
            },
            {name: self._changed_epochs(name, fold) for name, fold in changed.items()},
        )
        self._store.commit(self._shard, self._fence, self._committed, commit)
        count(COMMITS)
        self._committed = cursors
        self._committed_at = time.monotonic()
        self._folds |= changed
        for name, snapshot in snapshots.items():
            self._published[name] = (snapshot, time.monotonic())
            self._shown[name] = (self._folds.get(name), self._corrections.get(name))
            version, at_ms = snapshot.version, log_ms(self._read_to)
            self._know(name, version, snapshot.probabilities, at_ms)
        self._forget_vectors()

    def _know(self, name: str, version: int, vector: np.ndarray, at_ms: int) -> None:
        """Keep the probabilities of a version, for decisions that are still open."""
        self._vectors[name][version] = vector
        self._aging.append((at_ms, name, version))

    def _forget_vectors(self) -> None:
        """Drop versions that no open decision can have been made from."""
        served_ms = round(2000 * HEARTBEAT_S)
        longest = max(self._windows, default=0) + GRACE_MS + LOST_AFTER_MS
        oldest = log_ms(self._read_to) - longest - served_ms
        while self._aging and self._aging[0][0] < oldest:
            _, name, version = self._aging.popleft()
            self._vectors[name].pop(version, None)

    def _changed_epochs(self, name: str, fold: Fold) -> dict[str, bytes]:
        old = self._folds[name].epochs if name in self._folds else {}
        return {
            key: epoch_to_bytes(epoch)
            for key, epoch in fold.epochs.items()
            if old.get(key) is not epoch
        }

    def _cursors(self) -> str:
        """Where to go on after a restart: before the oldest event still held."""
        held = [log_order(i) for i in pc.unique(self._held["log_id"]).to_pylist()]
        oldest = min(held, default=None)
        events = self._read_to
        if oldest is not None:
            events = before(f"{oldest[0]}-{oldest[1]}")
        decisions = {str(window): at for window, at in self._windows.items()}
        read = self._read_to  # only told, for the lag
        return json.dumps({"events": events, "decisions": decisions, "read": read})


def run_learner(store: Store, settings: Settings, stop: Flag) -> None:
    """Learn every shard whose lease can be had, until told to stop."""
    owner = f"{os.getpid()}-{secrets.token_hex(6)}"
    learners: dict[int, tuple[int, ShardLearner]] = {}
    while not stop.wait(STEP_S):
        for shard in range(store.shards):
            try:
                _step_shard(store, settings, shard, owner, learners)
            except StoreDownError as error:
                learners.pop(shard, None)
                log.warning("shard %d: %s", shard, error)
            except FencedError as error:
                learners.pop(shard, None)
                count(FENCED)
                log.warning("shard %d is another learner's now: %s", shard, error)
    for shard in learners:
        with suppress(StoreDownError):  # then it ends by itself
            store.drop_lease(shard, "learner", owner)


def _step_shard(
    store: Store,
    settings: Settings,
    shard: int,
    owner: str,
    learners: dict[int, tuple[int, ShardLearner]],
) -> None:
    """One step of one shard; a new fence means that what we hold is out of date."""
    fence = store.take_lease(shard, "learner", owner)
    if fence is None:
        learners.pop(shard, None)
        return
    held = learners.get(shard)
    if held is None or held[0] != fence:
        held = (fence, ShardLearner(store, shard, fence, settings))
        learners[shard] = held
    held[1].step()


def _is(rows: pa.Table, record: ExperimentRecord) -> pa.ChunkedArray:
    return pc.and_(
        pc.equal(rows["tenant_id"], record.tenant),
        pc.equal(rows["experiment_id"], record.experiment_id),
    )


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
