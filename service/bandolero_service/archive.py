"""The archiver: what the log says, as Parquet in the lake; then the log may forget.

One commit takes all streams of a shard up to one log time, so the lake is complete up to
it. The position is the lake's own: a crash between files and manifest repeats the same
files, and nothing is archived twice or skipped.
"""

import json
import logging
import os
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event as Flag
from typing import Any

import pyarrow as pa

from bandolero.lake.catalog import Lake, OverlapError, rows_of
from bandolero.log import (
    DECISIONS_TABLE,
    EVENTS_TABLE,
    LAST_SEQUENCE,
    log_ms,
    read_blocks,
)
from bandolero.settle import GRACE_MS
from bandolero.snapshot import Snapshot, snapshot_from_bytes
from bandolero_service import keys
from bandolero_service.erasures import hidden, work_off
from bandolero_service.learner import HEARTBEAT_S
from bandolero_service.logs import Told
from bandolero_service.metrics import ARCHIVE_ERRORS, count
from bandolero_service.settings import Settings
from bandolero_service.store import (
    Entry,
    FencedError,
    Store,
    StoreDownError,
    blocks_of,
)

log = logging.getLogger(__name__)

STEP_S = 0.5
STREAMS = {
    "decisions": keys.decisions,
    "events": keys.events,
    "snapshots": keys.history,
    "control": keys.control,
}
READS: dict[str, Callable[[list[Entry]], pa.Table]] = {
    "decisions": lambda entries: read_blocks(blocks_of(entries), DECISIONS_TABLE),
    "events": lambda entries: read_blocks(blocks_of(entries), EVENTS_TABLE),
    "snapshots": lambda entries: rows_of("snapshots", map(_snapshot_row, entries)),
    "control": lambda entries: rows_of("control", map(_control_row, entries)),
}
"""How the entries of each stream become rows of the lake."""


def run_archiver(store: Store, lake: Lake, settings: Settings, stop: Flag) -> None:
    """Archive every shard at its interval until told to stop; then once more."""
    owner = f"{os.getpid()}-{secrets.token_hex(6)}"
    due: dict[int, float] = {}
    told = Told()
    while not stop.wait(STEP_S):
        for shard in range(store.shards):
            if time.monotonic() < due.get(shard, 0.0):
                _renew(store, shard, owner)
                continue
            due[shard] = time.monotonic() + settings.archive_interval_s
            with _contained(shard, told):
                _archive_shard(store, lake, settings, shard, owner)
    for shard in range(store.shards):
        with _contained(shard, told):
            _archive_shard(store, lake, settings, shard, owner)
        _drop(store, shard, owner)


def archive(store: Store, lake: Lake, shard: int, max_bytes: int) -> int:
    """Commit what the log says of a shard beyond the lake; the log time reached.

    Up to the millisecond before a tick of its own: nothing can be logged before that
    any more. Entries that cannot be read are put aside, and the others archived.
    """
    lake.fix_shards(store.shards)
    after_ms = lake.until_ms(f"s{shard}")
    until_ms = log_ms(store.tick(shard)) - 1
    if until_ms <= after_ms:
        return after_ms
    entries, until_ms = _entries(store, shard, after_ms, until_ms, max_bytes)
    rows = {name: _rows(lake, shard, name, some) for name, some in entries.items()}
    rows["decisions"] = hidden(store, shard, rows["decisions"])
    lake.commit(
        f"s{shard}",
        after_ms,
        until_ms,
        rows,
        {name: _writers(entries[name]) for name in ("decisions", "events")},
    )
    return until_ms


def trim(store: Store, shard: int, archived_ms: int, retain_s: float) -> None:
    """Let the log forget what is archived, folded and older than is retained."""
    cursors = json.loads(store.cursors(shard) or "{}")
    if not cursors:
        return
    newest = log_ms(store.last_id(keys.events(shard)))
    keep = min(archived_ms, newest - round(retain_s * 1000))
    store.trim(keys.events(shard), max(0, min(keep, log_ms(cursors["events"]))))
    folded = min(map(log_ms, cursors["decisions"].values()), default=0)
    keep = max(0, min(keep, folded - GRACE_MS))
    store.trim(keys.decisions(shard), keep)
    store.trim(keys.control(shard), keep)
    store.trim(keys.history(shard), max(0, keep - round(2000 * HEARTBEAT_S)))


def _archive_shard(
    store: Store, lake: Lake, settings: Settings, shard: int, owner: str
) -> None:
    if store.take_lease(shard, "archiver", owner) is None:
        return
    before_ms = -1
    archived_ms = lake.until_ms(f"s{shard}")
    while archived_ms > before_ms:
        before_ms = archived_ms
        archived_ms = archive(store, lake, shard, settings.archive_bytes)
        if archived_ms - before_ms < 1000:
            break
    store.note(keys.meta(shard), keys.ARCHIVED_MS, archived_ms)
    trim(store, shard, archived_ms, settings.retain_s)
    work_off(store, lake, shard, lambda: _keep(store, shard, owner))


@contextmanager
def _contained(shard: int, told: Told) -> Iterator[None]:
    """Count and tell what goes wrong in a shard: it must not stop the others."""
    try:
        yield
    except StoreDownError as error:
        count(ARCHIVE_ERRORS, "store")
        log.warning("shard %d: %s", shard, error)
    except (FencedError, OverlapError) as error:
        count(ARCHIVE_ERRORS, "overlap")
        log.warning("shard %d: %s", shard, error)
    except OSError as error:
        count(ARCHIVE_ERRORS, "lake")
        log.error("shard %d: the lake refuses: %s", shard, error)
    except Exception:  # of whatever kind: the other shards go on
        count(ARCHIVE_ERRORS, "fault")
        if told.is_news(f"{shard}"):
            log.exception("shard %d cannot be archived, tried again", shard)


def _rows(lake: Lake, shard: int, name: str, entries: list[Entry]) -> pa.Table:
    """Rows of a stream's entries; those that cannot be read are put aside."""
    read = READS[name]
    try:
        return read(entries)
    except MemoryError:  # says nothing of the entries
        raise
    except Exception:  # noqa: BLE001 - of whatever kind: found one by one
        parts = [_rows_of_one(lake, shard, name, entry) for entry in entries]
        return pa.concat_tables(parts).combine_chunks()


def _rows_of_one(lake: Lake, shard: int, name: str, entry: Entry) -> pa.Table:
    try:
        return READS[name]([entry])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - of whatever kind: put aside
        count(ARCHIVE_ERRORS, "entry")
        log.error("%s %s cannot be read, put aside: %s", name, entry.log_id, error)
        path = f"quarantine/log/{name}/s{shard}-{entry.log_id}.json"
        lake.write_bytes(path, _aside(entry, error))
        return READS[name]([])


def _aside(entry: Entry, why: Exception) -> bytes:
    """An entry that cannot be read, as JSON, for people: the log will forget it."""
    fields = {
        name.decode(errors="backslashreplace"): b64encode(data).decode()
        for name, data in entry.fields.items()
    }
    reason = f"{type(why).__name__}: {why}"
    note = {"log_id": entry.log_id, "reason": reason, "fields": fields}
    return json.dumps(note).encode()


def _entries(
    store: Store, shard: int, after_ms: int, until_ms: int, max_bytes: int
) -> tuple[dict[str, list[Entry]], int]:
    """Entries of every stream, up to a log time that keeps them within a size."""
    after = f"{after_ms}-{LAST_SEQUENCE}"
    entries: dict[str, list[Entry]] = {}
    for name, stream in STREAMS.items():
        taken, size = [], 0
        for entry in store.read(stream(shard), after, until_ms):
            size += sum(map(len, entry.fields.values()))
            if size > max_bytes and log_ms(entry.log_id) - 1 > after_ms:
                until_ms = log_ms(entry.log_id) - 1
                break
            taken.append(entry)
        entries[name] = taken
    within = {
        name: [e for e in some if log_ms(e.log_id) <= until_ms]
        for name, some in entries.items()
    }
    return within, until_ms


def _writers(entries: Iterable[Entry]) -> dict[str, int]:
    """The number of the last block of each writer."""
    return {
        entry.fields[b"writer"].decode(): int(entry.fields[b"number"])
        for entry in entries
        if b"writer" in entry.fields
    }


def _snapshot_row(entry: Entry) -> tuple[Any, ...]:
    data = entry.fields[b"snapshot"]
    snapshot = snapshot_from_bytes(data)
    return (
        snapshot.tenant,
        snapshot.experiment.experiment,
        snapshot.version,
        snapshot.spec_version,
        snapshot.created_at_ms,
        snapshot.folded_to,
        snapshot.experiment.variant_ids,
        snapshot.probabilities.tolist(),
        _posterior(snapshot),
        data,
        entry.log_id,
        log_ms(entry.log_id),
    )


def _posterior(snapshot: Snapshot) -> str:
    """The state as JSON, for people and other tools."""
    names = type(snapshot.state)._fields  # type: ignore[attr-defined]  # a NamedTuple
    pairs: Iterable[tuple[str, Any]] = zip(names, snapshot.state, strict=True)
    return json.dumps({name: array.tolist() for name, array in pairs})


def _control_row(entry: Entry) -> tuple[Any, ...]:
    tenant, _, experiment_id = entry.fields[b"name"].decode().partition("/")
    kind, body = entry.fields[b"kind"].decode(), entry.fields[b"body"].decode()
    return tenant, experiment_id, kind, body, entry.log_id, log_ms(entry.log_id)


def _keep(store: Store, shard: int, owner: str) -> None:
    """Keep the lease, or stop: files may be rewritten by who holds it only."""
    if store.take_lease(shard, "archiver", owner) is None:
        raise FencedError("another archiver has taken over.")


def _renew(store: Store, shard: int, owner: str) -> None:
    try:
        store.take_lease(shard, "archiver", owner)
    except StoreDownError as error:
        log.debug("%s", error)


def _drop(store: Store, shard: int, owner: str) -> None:
    try:
        store.keep(keys.lease(shard, "archiver"), owner, 0)
    except StoreDownError as error:
        log.debug("%s", error)
