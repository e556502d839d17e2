"""Restoring: a new store from the lake alone.

Every shard is put where its learner and archiver stood when the lake was last written:
states, rollups and counts up to there, and back in the log, under the ids they had,
what was still open. The lake's position then covers just that, so nothing is archived
again; the learner's cursors stand between the two, so nothing is learned twice or lost.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from bandolero.experiment import ExperimentRecord
from bandolero.lake.catalog import BadFile, Lake
from bandolero.lake.rebuild import Name, Rebuilt, by_experiment, rebuild
from bandolero.log import DECISIONS, EVENTS, LAST_SEQUENCE, before, blocks_of_rows
from bandolero.settle import GRACE_MS
from bandolero_service import keys, priors
from bandolero_service.audit import Act, Author
from bandolero_service.folding import epoch_to_bytes, state_to_bytes
from bandolero_service.learner import HEARTBEAT_S, STEP_S
from bandolero_service.new_store import NewStore
from bandolero_service.store import (
    Entry,
    RefusedStoreError,
    name_of,
)

SERVED_MS = round(2000 * HEARTBEAT_S)


class Restored(NamedTuple):
    """What was restored of one experiment; `decisions` are the settled ones."""

    record: ExperimentRecord
    decisions: int
    open_decisions: int
    snapshot_version: int | None
    is_corrected: bool


def restore(
    store: NewStore,
    lake: Lake,
    author: Author,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Restored], list[BadFile]]:
    """Rebuild everything but API keys; what was restored, and files that were unusable.

    Raises
    ------
    RefusedStoreError
        When the store is not empty, has another number of shards than the lake, or a
        clock behind it.
    """
    if store.shards != lake.shards():
        message = f"the store has {store.shards} shards, must have the lake's {lake.shards()}: take a new one."
        raise RefusedStoreError(message)
    for shard in range(store.shards):
        _check_clock(store, shard, lake.until_ms(f"s{shard}"))
    store.begin_restore()
    restored: list[Restored] = []
    bad: list[BadFile] = []
    for shard in range(store.shards):
        rebuilt = rebuild(lake, shard, SERVED_MS, progress)
        progress(f"writing shard {shard}")
        _write(store, rebuilt)
        _act(store, rebuilt, author)
        restored += _told(rebuilt)
        bad += rebuilt.bad_files
    store.end_restore()
    return restored, bad


def _check_clock(store: NewStore, shard: int, until_ms: int) -> None:
    """Refuse a clock behind the lake: log time would stand still until it is reached."""
    behind_ms = until_ms - store.clock_ms(shard)
    if behind_ms >= 0:
        message = f"the store's clock is {behind_ms / 1000:.1f} s behind the lake: set it, or wait."
        raise RefusedStoreError(message)


def _write(store: NewStore, rebuilt: Rebuilt) -> None:
    """Put a shard where its learner and archiver stood."""
    shard = rebuilt.shard
    for stream, entries in _streams(rebuilt):
        store.put_entries(stream, entries)
        store.move_past(stream, rebuilt.until_ms)
    for key, values in _hashes(rebuilt):
        store.put_hash(key, values)
    for stream, numbers in rebuilt.writers.items():
        for writer_id, number in numbers.items():
            store.put_last_number(shard, writer_id, stream, number)
    now_ms = store.clock_ms(shard)
    versions = _versions(rebuilt, now_ms - rebuilt.until_ms)
    store.put_hash(keys.versions(shard), versions)
    # A time, so that workers who outlived the store cannot know this number already.
    moved = dict.fromkeys(keys.GENERATIONS, now_ms)
    store.put_hash(keys.meta(shard), {"cursors": _cursors(rebuilt), **moved})


def _act(store: NewStore, rebuilt: Rebuilt, author: Author) -> None:
    """Put what was decided there, as acts that the audit log begins with."""
    for record in rebuilt.records.values():
        store.put_record(record, None, "restored", author)
    for name, body in rebuilt.corrections.items():
        store.put_correction(*name, body, author)
    for tenant, bodies in rebuilt.priors.items():
        priors.rebuild(store, author, tenant, bodies)
    for (tenant, erasure_id), erasure in rebuilt.erasures.items():
        where, thing = name_of(tenant, erasure_id), f"erasure {erasure_id}"
        act = Act(tenant, "restored", thing, where, erasure)
        store.ask_erasure(rebuilt.shard, "", act, author)


def _streams(rebuilt: Rebuilt) -> Iterator[tuple[str, Iterator[Entry]]]:
    """What is still needed of each stream, as it was logged."""
    shard = rebuilt.shard
    yield keys.decisions(shard), _blocks(rebuilt.decisions, DECISIONS)
    yield keys.events(shard), _blocks(rebuilt.events, EVENTS)
    yield keys.history(shard), _history(rebuilt.snapshots)
    yield keys.control(shard), iter(())


def _blocks(rows: pa.Table, schema: pa.Schema) -> Iterator[Entry]:
    for log_id, block in blocks_of_rows(rows, schema):
        yield Entry(log_id, {b"block": block})


def _history(rows: pa.Table) -> Iterator[Entry]:
    for row in rows.to_pylist():
        name = name_of(row["tenant_id"], row["experiment_id"])
        fields = {b"name": name.encode(), b"version": b"%d" % row["version"]}
        yield Entry(row["log_id"], {**fields, b"snapshot": row["snapshot"]})


def _hashes(rebuilt: Rebuilt) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is looked up by name."""
    shard = rebuilt.shard
    newest = _newest(rebuilt).items()
    yield keys.snapshots(shard), {name_of(*n): row["snapshot"] for n, row in newest}
    folds = rebuilt.folds.items()
    states = {n: state_to_bytes(fold.state, fold.learned_to_ms) for n, fold in folds}
    yield keys.folds(shard), {name_of(*n): state for n, state in states.items()}
    for name, fold in folds:
        epochs = {key: epoch_to_bytes(epoch) for key, epoch in fold.epochs.items()}
        yield keys.rollups(shard, name_of(*name)), epochs
    for name, counts in rebuilt.decided.items():
        yield keys.decided(shard, name_of(*name)), counts


def _newest(rebuilt: Rebuilt) -> dict[Name, dict[str, Any]]:
    """The row of the newest snapshot of each experiment."""
    rows = rebuilt.snapshots.to_pylist()
    return {(row["tenant_id"], row["experiment_id"]): row for row in rows}


def _versions(rebuilt: Rebuilt, lost_ms: int) -> dict[str, int]:
    """Snapshot versions to go on from: above all that may have been published.

    The lost store may have published, since the lake was written, one a step of the
    learner; a version stands for one vector of probabilities for ever.
    """
    lost = lost_ms // round(1000 * STEP_S) + 1
    newest = _newest(rebuilt)
    return {
        name_of(*name): lost + (newest[name]["version"] if name in newest else 0)
        for name in rebuilt.records
    }


def _cursors(rebuilt: Rebuilt) -> str:
    """The learner's cursors: before the oldest open decision and event.

    And how far the lake goes: what is learned again from before that is not published.
    """
    windows = {r.spec.objective.window_ms for r in rebuilt.records.values()}
    closed = {w: max(0, rebuilt.until_ms - w - GRACE_MS) for w in windows}
    ids = rebuilt.events["log_id"]
    last = f"{rebuilt.until_ms}-{LAST_SEQUENCE}"
    events = before(ids[0].as_py()) if len(ids) else last
    decisions = {str(w): f"{ms}-{LAST_SEQUENCE}" for w, ms in closed.items()}
    return json.dumps({"events": events, "decisions": decisions, "log": last})


def _told(rebuilt: Rebuilt) -> Iterator[Restored]:
    newest, still_open = _newest(rebuilt), dict(by_experiment(rebuilt.decisions))
    for name, record in sorted(rebuilt.records.items()):
        fold = rebuilt.folds.get(name)
        epochs = fold.epochs.values() if fold is not None else ()
        yield Restored(
            record,
            sum(int(epoch.decisions.sum()) for epoch in epochs),
            still_open[name].num_rows if name in still_open else 0,
            newest[name]["version"] if name in newest else None,
            name in rebuilt.corrections,
        )
