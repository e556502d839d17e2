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
from collections import Counter, defaultdict, deque
from contextlib import suppress
from itertools import islice
from threading import Event as Flag
from typing import Any

import numpy as np
import pyarrow as pa

from bandolero.codec import DamagedBytesError, unpack
from bandolero.experiment import ExperimentRecord
from bandolero.fold import Fold, advance, grown, init_fold, with_correction
from bandolero.log import before, log_ms, log_order, read_blocks
from bandolero.policies import aged, policy_of
from bandolero.policy_specs import CONTEXTUAL
from bandolero.settle import GRACE_MS, LOST_AFTER_MS
from bandolero.snapshot import Snapshot, build_snapshot, snapshot_to_bytes
from bandolero_service import keys
from bandolero_service.changes import NOTHING_SEEN
from bandolero_service.closed import DECISIONS_LEARNED, by_experiment
from bandolero_service.folding import (
    correction_state,
    epoch_from_bytes,
    epoch_to_bytes,
    state_from_bytes,
    state_to_bytes,
)
from bandolero_service.held import EVENTS_HELD, HeldEvents
from bandolero_service.logs import Told
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
    READ_COUNT,
    Commit,
    Entry,
    FencedError,
    Store,
    StoreDownError,
    blocks_of,
)

log = logging.getLogger(__name__)

STEP_S = 0.1
STEP_ENTRIES = READ_COUNT
"""A step reads so many entries of a stream at most: what a busy worker appends in 5 s."""
FAULT_PAUSE_S = 5.0
UNREADABLE = (pa.ArrowException, OSError)
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
        self._was_at = cursors.get("log", NO_POSITION)
        """How far the log had been read when this was committed."""
        self._folded_to_ms = 0
        """Log time up to which all is folded that had closed by then."""
        self._held = HeldEvents()
        self._records: dict[str, ExperimentRecord] = {}
        self._corrections: dict[str, dict[str, Any]] = {}
        self._seen = NOTHING_SEEN
        self._stored: dict[str, bytes] = {}
        """Folds as committed, of experiments whose record has not been seen yet."""
        self._refused: dict[str, Exception] = {}
        """Why a fold could not be read, by name."""
        self.not_learned: Counter[str] = Counter()
        """Decisions that could not be folded, by name."""
        self._told = Told()
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

    def step(self) -> bool:
        """Read what is new, fold what has closed, publish what has moved, commit.

        No more than `STEP_ENTRIES` entries of a stream, for the lease must be kept;
        whether there is more to read.
        """
        self._see_changes()
        if time.monotonic() - self._ticked_at >= TICK_S:
            self._store.tick(self._shard)
            self._ticked_at = time.monotonic()
        is_more = self._read_events()
        changed, is_more_closed = self._fold_closed()
        snapshots = {}
        if log_order(self._read_to) >= log_order(self._was_at):
            snapshots = self._due_snapshots(self._folds | changed)
        is_due = time.monotonic() - self._committed_at >= IDLE_COMMIT_S
        if changed or snapshots or is_due:
            self._commit(changed, snapshots)
        return is_more or is_more_closed

    def _load(self) -> None:
        """Take over what was committed."""
        self._stored = dict(self._store.folds(self._shard))
        self._see_changes()
        for entry in self._store.read(keys.history(self._shard), NO_POSITION):
            name = entry.fields[b"name"].decode()
            try:
                arrays = unpack(entry.fields[b"snapshot"]).arrays
            except DamagedBytesError as error:
                log.error("a snapshot of %s in the log is passed over: %s", name, error)
                continue
            version = int(entry.fields[b"version"])
            self._know(name, version, arrays["probabilities"], log_ms(entry.log_id))

    def _see_changes(self) -> None:
        changes = self._store.changes(self._shard)
        if changes.records != self._seen.records:
            self._records = self._store.records(self._shard)
            for record in self._records.values():
                self._windows.setdefault(record.spec.objective.window_ms, NO_POSITION)
            for name in self._records.keys() & self._stored.keys():
                self._load_fold(name, self._stored.pop(name))
        if changes.corrections != self._seen.corrections:
            self._corrections = self._store.corrections(self._shard)
        self._seen = changes

    def _load_fold(self, name: str, data: bytes) -> None:
        """Take over an experiment's fold; one that cannot be read is never written over.

        Nothing is learned of its experiment then, until the bytes are mended.
        """
        kind = self._records[name].spec.policy.kind
        stored = self._store.rollups(self._shard, name)
        try:
            state, learned_to_ms = state_from_bytes(kind, data)
            epochs = {key: epoch_from_bytes(one) for key, one in stored.items()}
        except Exception as error:  # noqa: BLE001 - of whatever kind: others go on
            log.error(
                "the fold of %s cannot be read, it is left as it is: %s", name, error
            )
            self._refused[name] = error
            return
        self._folds[name] = Fold(state, epochs, learned_to_ms)

    def _read_events(self) -> bool:
        """Hold what has been told since; whether there is more to read."""
        entries = self._entries(keys.events(self._shard), self._read_to)
        if entries:
            self._read_to = entries[-1].log_id
            self._held.add(self._rows(entries, EVENTS_HELD))
        return len(entries) == STEP_ENTRIES

    def _entries(
        self, stream: str, after: str, until_ms: int | None = None
    ) -> list[Entry]:
        """The next entries of a stream, `STEP_ENTRIES` at most."""
        return list(islice(self._store.read(stream, after, until_ms), STEP_ENTRIES))

    def _rows(self, entries: list[Entry], schema: pa.Schema) -> pa.Table:
        """Rows of blocks; those of a block that cannot be read are passed over."""
        blocks = list(blocks_of(entries))
        try:
            return read_blocks(blocks, schema)
        except UNREADABLE:
            tables = [self._rows_of_one(block, schema) for block in blocks]
            return pa.concat_tables(tables).combine_chunks()

    def _rows_of_one(self, block: tuple[str, bytes], schema: pa.Schema) -> pa.Table:
        try:
            return read_blocks([block], schema)
        except UNREADABLE as error:
            log.error(
                "block %s cannot be read, nobody learns of it: %s", block[0], error
            )
            return schema.empty_table()

    def _fold_closed(self) -> tuple[dict[str, Fold], bool]:
        """Fold decisions that have closed by now.

        The folds that changed, and whether there is more to read.
        """
        changed: dict[str, Fold] = {}
        self._folded_to_ms = read_to_ms = log_ms(self._read_to)
        for window_ms, cursor in self._windows.items():
            until_ms = read_to_ms - window_ms - GRACE_MS
            if until_ms < 0:
                continue
            stream = keys.decisions(self._shard)
            if entries := self._entries(stream, cursor, until_ms):
                self._windows[window_ms] = entries[-1].log_id
                rows = self._rows(entries, DECISIONS_LEARNED)
                self._fold_rows(window_ms, rows, changed)
            if len(entries) == STEP_ENTRIES:
                closed_ms = log_ms(entries[-1].log_id) + window_ms + GRACE_MS
                self._folded_to_ms = min(self._folded_to_ms, closed_ms)
        self._forget_lost()
        return changed, self._folded_to_ms < read_to_ms

    def _fold_rows(
        self, window_ms: int, rows: pa.Table, changed: dict[str, Fold]
    ) -> None:
        """Fold the decisions among the rows whose experiment has this window."""
        done = []
        for name, decisions, events in by_experiment(rows, self._held.of(rows)):
            record = self._records.get(name)
            if record is None or record.spec.objective.window_ms != window_ms:
                continue
            done.append(decisions)
            if name in self._refused:
                self._not_learned(name, decisions.num_rows, self._refused[name])
                continue
            fold = changed.get(name) or self._folds.get(name) or init_fold(record.spec)
            vectors = self._vectors[name]
            try:
                changed[name] = advance(record.spec, fold, decisions, events, vectors)
            except Exception as error:  # noqa: BLE001 - the others must go on
                self._not_learned(name, decisions.num_rows, error)
        if done:
            self._held.forget(pa.concat_tables(done))

    def _not_learned(self, name: str, n: int, why: Exception) -> None:
        self.not_learned[name] += n
        count(FOLD_FAILURES)
        message = "%s cannot be folded, %d decisions are not learned (%d by now): %s"
        if self._told.is_news(name):
            log.error(message, name, n, self.not_learned[name], why, exc_info=why)

    def _forget_lost(self) -> None:
        """Drop events whose decision must be lost."""
        late = self._held.forget_before(self._oldest_ms())
        count(EVENTS_LATE, n=late)

    def _oldest_ms(self) -> int:
        """When the oldest decision that may yet be folded can have been made."""
        longest = max(self._windows, default=0) + GRACE_MS + LOST_AFTER_MS
        return self._folded_to_ms - longest

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
            if name in self._refused or not self._is_to_look_at(name, record, fold):
                continue
            try:
                snapshot = self._due_snapshot(name, record, fold)
                self._looked[name] = (record.spec_version, time.monotonic())
            except StoreDownError:
                raise
            except Exception:  # one experiment's fault must not stop the others
                count(SNAPSHOT_FAILURES)
                if self._told.is_news(f"{name} snapshot"):
                    message = "%s: no snapshot can be built, the last one stays"
                    log.exception(message, name)
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
        state = aged(policy, fold.state, max(0, now_ms - fold.learned_to_ms))
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
        oldest = self._oldest_ms() - round(2000 * HEARTBEAT_S)
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
        oldest = self._held.oldest()
        events = self._read_to if oldest is None else before(oldest)
        was_at = max(self._read_to, self._was_at, key=log_order)
        decisions = {str(window): at for window, at in self._windows.items()}
        return json.dumps(
            {
                "events": events,
                "decisions": decisions,
                "log": was_at,
                "read": self._read_to,  # only told, for the lag
            }
        )


def run_learner(store: Store, settings: Settings, stop: Flag) -> None:
    """Learn every shard whose lease can be had, until told to stop.

    What goes wrong in one shard stops that one for `FAULT_PAUSE_S`, and no other.
    """
    owner = f"{os.getpid()}-{secrets.token_hex(6)}"
    learners: dict[int, tuple[int, ShardLearner]] = {}
    paused: dict[int, float] = {}
    told, is_more = Told(), False
    while not stop.wait(0.0 if is_more else STEP_S):
        is_more = False
        for shard in range(store.shards):
            if time.monotonic() < paused.get(shard, 0.0):
                continue
            try:
                is_more |= _step_shard(store, settings, shard, owner, learners)
                continue
            except StoreDownError as error:
                if told.is_news(f"{shard} down"):
                    log.warning("shard %d: %s", shard, error)
            except FencedError as error:
                count(FENCED)
                log.warning("shard %d is another learner's now: %s", shard, error)
            except Exception:  # one shard's fault must not stop the others
                paused[shard] = time.monotonic() + FAULT_PAUSE_S
                if told.is_news(f"{shard} fault"):
                    log.exception("shard %d cannot be learned, tried again", shard)
            learners.pop(shard, None)
    for shard in learners:
        with suppress(StoreDownError):  # then it ends by itself
            store.keep(keys.lease(shard, "learner"), owner, 0)


def _step_shard(
    store: Store,
    settings: Settings,
    shard: int,
    owner: str,
    learners: dict[int, tuple[int, ShardLearner]],
) -> bool:
    """One step of one shard; a new fence means that what we hold is out of date."""
    fence = store.take_lease(shard, "learner", owner)
    if fence is None:
        learners.pop(shard, None)
        return False
    held = learners.get(shard)
    if held is None or held[0] != fence:
        held = (fence, ShardLearner(store, shard, fence, settings))
        learners[shard] = held
    return held[1].step()


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
