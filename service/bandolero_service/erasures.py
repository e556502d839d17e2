"""Erasing a unit: asked for once, worked off by the archiver, told by its receipt.

An erasure is a control fact on every shard. From then on whatever is archived loses the
unit, the archiver writes older files anew, and the log, which cannot be edited, forgets
the rest when it is trimmed. Decisions made after the request are no part of it.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa

from bandolero.lake.catalog import INGESTED, Lake
from bandolero.lake.erase import Erasure, erase, without_units
from bandolero.log import log_ms
from bandolero.settle import GRACE_MS
from bandolero_service import keys
from bandolero_service.audit import Act, Author
from bandolero_service.errors import ApiError
from bandolero_service.lease import leased
from bandolero_service.settings import Settings
from bandolero_service.store import (
    NO_POSITION,
    Store,
    StoreDownError,
    name_of,
)

log = logging.getLogger(__name__)

SLACK_MS = 5_000
"""Clocks of workers differ, and blocks are written behind: so much later counts, too."""
TRIES = 5
ERASED = "the unit's pseudonym, and the draw that a sticky unit fixes, of its decisions"
KEPT = (
    "decisions without the unit: time, variant, propensity, declared context",
    "counts, states and reports, which hold no unit",
    "this erasure, with the pseudonym, so that it can be carried on and shown",
)
KEPT_BY_STORE = "kept by the store"
"""The log is trimmed, but the store may not be told to write its file anew."""
NOT_REACHED = (
    "backups, exports, snapshots of disks and other copies of store, lake and spool",
    "blocks on the disk of a worker that is cut off from the store, until it is back",
    "spools that could not be read and were set aside (*.rest), until they are deleted",
    "other systems' files, before and after they were ingested",
    "files of the lake that are damaged and cannot be read; their number is told",
)


class Progress(NamedTuple):
    """How far an erasure has come on a shard.

    `unit` is the pseudonym; `rewrites` are those of its file that each run of a server had
    begun when the log had been trimmed; `is_refused` where one will not begin another.
    """

    unit: str
    asked_at_ms: int
    lake_by_ms: int
    log_by_ms: int
    receipt_hash: str
    rows: int = 0
    files: int = 0
    unreadable: int = 0
    in_lake: bool = True
    in_log: bool = True
    rewrites: Mapping[str, int] = MappingProxyType({})
    is_refused: bool = False

    @property
    def until_ms(self) -> int:
        """Decisions made up to here are erased."""
        return self.asked_at_ms + SLACK_MS


def ask(
    store: Store, settings: Settings, tenant: str, pseudonym: str, author: Author
) -> dict[str, Any]:
    """Have a tenant's unit erased; the receipt. Asked again, it is the same erasure."""
    at_ms = log_ms(store.tick(0))
    erasure_id = erasure_id_of(pseudonym)
    told = {
        "erasure_id": erasure_id,
        "tenant": tenant,
        "requested_at": _time(at_ms),
        "erased": ERASED,
        "from_lake_by": _time(at_ms + _lake_ms(settings)),
        "from_log_by": _time(at_ms + _log_ms(store, settings)),
        "kept": KEPT,
        "not_reached": NOT_REACHED,
    }
    digest = blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16)
    asked = Progress(
        pseudonym,
        at_ms,
        at_ms + _lake_ms(settings),
        at_ms + _log_ms(store, settings),
        digest.hexdigest(),
    )
    name = name_of(tenant, erasure_id)
    for shard in range(store.shards):
        _ask_shard(store, shard, name, asked, author)
    return {**told, "receipt_hash": asked.receipt_hash, "state": "pending"}


def state_of(store: Store, tenant: str, erasure_id: str) -> dict[str, Any]:
    """How far an erasure has come.

    Raises
    ------
    ApiError
        404 where the tenant has asked for no such one.
    """
    name = name_of(tenant, erasure_id)
    bodies = [_bodies(store, s).get(name, "") for s in range(store.shards)]
    if not all(bodies):
        message = f"erasure_id == {erasure_id[:80]!r}, must be one of your erasures."
        raise ApiError(404, "unknown_erasure", message, "erasure_id")
    shards = [_read(body) for body in bodies]
    newest = max(shards, key=lambda one: one.asked_at_ms)
    in_lake = any(one.in_lake for one in shards)
    in_log = any(one.in_log for one in shards)
    return {
        "erasure_id": erasure_id,
        "tenant": tenant,
        "requested_at": _time(newest.asked_at_ms),
        "receipt_hash": newest.receipt_hash,
        "state": "pending" if in_lake or in_log else "done",
        "lake": {
            "state": "pending" if in_lake else "done",
            "by": _time(newest.lake_by_ms),
            "files": sum(one.files for one in shards),
            "rows": sum(one.rows for one in shards),
            "unreadable_files": sum(one.unreadable for one in shards),
        },
        "log": {
            "state": _state_of_log(shards),
            "by": _time(newest.log_by_ms),
        },
    }


def _state_of_log(shards: list[Progress]) -> str:
    if any(one.in_log and one.is_refused for one in shards):
        return KEPT_BY_STORE
    return "pending" if any(one.in_log for one in shards) else "done"


def erasure_id_of(pseudonym: str) -> str:
    """The id of a unit's erasure: always the same, and it does not tell the pseudonym."""
    digest = blake2b(pseudonym.encode(), digest_size=12, person=b"erasure")
    return f"er-{digest.hexdigest()}"


def hidden(store: Store, shard: int, decisions: pa.Table) -> pa.Table:
    """Decisions of a shard without the units that are, or were, to be erased."""
    if decisions.num_rows == 0:
        return decisions
    return without_units(decisions, _erasures(_bodies(store, shard)))[0]


def all_erasures(store: Store) -> list[Erasure]:
    """Whatever units are, or were, to be erased, as asked for last."""
    found = {e for s in range(store.shards) for e in _erasures(_bodies(store, s))}
    return sorted(found, key=lambda one: one.until_ms)


def work_off(
    store: Store, lake: Lake, shard: int, still: Callable[[], None] = lambda: None
) -> None:
    """Do what can be done now of a shard's erasures; `still` raises to stop it."""
    found = _bodies(store, shard)
    in_lake = {n: body for n, body in found.items() if _read(body).in_lake}
    in_log = {n: b for n, b in found.items() if n not in in_lake and _read(b).in_log}
    if in_lake:
        with alone(store, shard, still) as mine:
            if mine is not None:  # else next time
                _clear_lake(store, lake, shard, in_lake, mine)
    if in_log:
        _clear_log(store, shard, in_log)


@contextmanager
def alone(
    store: Store, shard: int, still: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], None] | None]:
    """Be the only one who rewrites a shard's files: a `still` that keeps it so.

    None while they are compacted or, where shard 0 stands for them, files are taken in.
    """
    wanted = [(keys.rewriting(shard), keys.REWRITE_LEASE_MS)]
    if shard == 0:
        wanted.append((keys.INGEST_LEASE, keys.WORK_LEASE_MS))
    with ExitStack() as held:
        asked = [held.enter_context(leased(store, *one)) for one in wanted]
        leases = [lease for lease in asked if lease is not None]

        def mine() -> None:
            still()
            for lease in leases:
                lease.sure()

        yield mine if len(leases) == len(wanted) else None


def _clear_lake(
    store: Store,
    lake: Lake,
    shard: int,
    pending: dict[str, str],
    still: Callable[[], None],
) -> None:
    def is_mine(name: str) -> bool:
        return name == f"s{shard}" or (shard == 0 and name.startswith(INGESTED))

    done = erase(lake, is_mine, _erasures(pending), still)
    for name, body in pending.items():
        was = _read(body)
        unit = (_tenant(name), was.unit)
        cleared = was._replace(
            rows=was.rows + done.rows[unit],
            files=was.files + done.files[unit],
            unreadable=len(done.unreadable),
            in_lake=False,
        )
        store.note_erasure(shard, name, body, _written(cleared))


def _clear_log(store: Store, shard: int, pending: dict[str, str]) -> None:
    """Note whose decisions have been trimmed, and have the store's file forget them."""
    first = next(store.read(keys.decisions(shard), NO_POSITION), None)
    now_ms = log_ms(store.last_id(keys.events(shard)))
    oldest_ms = now_ms if first is None else log_ms(first.log_id)
    gone = {n: b for n, b in pending.items() if _read(b).until_ms < oldest_ms}
    if not gone:
        return
    asked = cache(
        lambda since: store.rewrite_files(dict(since))
    )  # once for those alike
    for name, body in gone.items():
        was = _read(body)
        now = asked(tuple(sorted(was.rewrites.items())))
        if now.is_refused and not was.is_refused:
            log.warning(
                "the store refuses to write its append-only file anew: what was trimmed is kept"
            )
        cleared = was._replace(
            in_log=not now.is_done, rewrites=now.since, is_refused=now.is_refused
        )
        if cleared != was:
            store.note_erasure(shard, name, body, _written(cleared))


def _ask_shard(
    store: Store, shard: int, name: str, asked: Progress, author: Author
) -> None:
    """Ask on one shard; tried again when the archiver was faster."""
    for _ in range(TRIES):
        before = _bodies(store, shard).get(name, "")
        body = _written(_asked_again(_read(before), asked) if before else asked)
        tenant, _, erasure_id = name.partition("/")
        act = Act(tenant, "erasure", f"erasure {erasure_id}", name, body)
        if store.ask_erasure(shard, before, act, author):
            return
    raise StoreDownError("an erasure is being changed by too many at once.")


def _asked_again(old: Progress, asked: Progress) -> Progress:
    """The erasure as asked for now; what was done before still counts."""
    return asked._replace(rows=old.rows, files=old.files)


def _bodies(store: Store, shard: int) -> dict[str, str]:
    """All erasures of a shard as they are kept, by name."""
    found = store.fields(keys.erasures(shard))
    return {name: body.decode() for name, body in found.items()}


def _erasures(bodies: dict[str, str]) -> list[Erasure]:
    found = {name: _read(body) for name, body in bodies.items()}
    return [Erasure(_tenant(n), one.unit, one.until_ms) for n, one in found.items()]


def _tenant(name: str) -> str:
    return name.partition("/")[0]


def _read(body: str) -> Progress:
    return Progress(**json.loads(body))


def _written(progress: Progress) -> str:
    return json.dumps(progress._asdict() | {"rewrites": dict(progress.rewrites)})


def _lake_ms(settings: Settings) -> int:
    """How long the lake may take, while the archiver runs and keeps up.

    The pass that is going on, and the next: each may find the files held by a merge.
    """
    pass_ms = round(1000 * settings.archive_interval_s) + keys.REWRITE_LEASE_MS
    return SLACK_MS + 2 * pass_ms


def _log_ms(store: Store, settings: Settings) -> int:
    """How long the log may take: it is trimmed behind the archive and the learner."""
    windows = (
        record.spec.objective.window_ms
        for shard in range(store.shards)
        for record in store.records(shard).values()
    )
    open_ms = max(windows, default=0) + GRACE_MS
    retained_ms = max(round(1000 * settings.retain_s), open_ms)
    return retained_ms + 2 * _lake_ms(settings)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
