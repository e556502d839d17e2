"""Typed acts on the log and the served state; `bandolero_service.connection` carries them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

from limits import RateLimitItem
from limits.strategies import FixedWindowRateLimiter
from limits.util import WindowStats

from bandolero.draws import experiment_key, shard_of
from bandolero.experiment import ExperimentRecord
from bandolero.log import LAST_SEQUENCE
from bandolero_service import keys
from bandolero_service.audit import Act, Author
from bandolero_service.changes import Changes, Parsed
from bandolero_service.connection import (
    DENIALS,
    FAULTS,
    REFUSALS,
    Call,
    Connection,
    Rewriting,
)

READ_COUNT = 100
"""Entries of a stream in one answer: some 10 MB where workers are busy."""
ACT_TRIES = 50
ACT_OVERTAKEN = -1
NO_POSITION = "0-0"


class StoreDownError(RuntimeError):
    """The store cannot be reached, or refuses to work."""


class RefusedStoreError(RuntimeError):
    """The store is set up in a way that would lose data."""


class StoreDeniedError(StoreDownError):
    """The store does not let us in."""


class ShardsDownError(StoreDownError):
    """Some shards cannot be reached, or refuse to work; the others did what was asked."""

    def __init__(self, failures: Mapping[int, Exception]) -> None:
        first = next(iter(failures.values()))
        super().__init__(f"shards {sorted(failures)} of the store are down: {first}")
        self.shards = frozenset(failures)


class FencedError(RuntimeError):
    """Another process has taken over this shard; what we hold is out of date."""


class Block(NamedTuple):
    """A block on its way to the log; `counts` are decisions by (experiment, variant)."""

    stream: str
    shard: int
    number: int
    payload: bytes
    counts: dict[str, dict[str, int]]


class Entry(NamedTuple):
    """An entry of a stream: its log id and fields."""

    log_id: str
    fields: dict[bytes, bytes]


class Commit(NamedTuple):
    """What a learner writes in one step."""

    cursors: str
    folds: dict[str, bytes]
    snapshots: dict[str, tuple[int, bytes]]
    rollups: dict[str, dict[str, bytes]]


class ApiKey(NamedTuple):
    """An API key as kept: never its secret, only a hash of it."""

    key_id: str
    tenant: str
    scopes: list[str]
    secret_hash: str
    created_at_ms: int
    revoked: bool = False
    expires_at_ms: int | None = None
    rate: str = ""


def name_of(tenant: str, experiment_id: str) -> str:
    """An experiment's name in keys; neither part can hold a slash."""
    return f"{tenant}/{experiment_id}"


class Store:
    """A connection to the store, safe to use from several threads."""

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self._connection = Connection(url, timeout_s)
        self._run = self._connection.run
        self.shards = 0
        self._corrections = Parsed[dict[str, Any]]("correction", json.loads)
        self._records = Parsed("record", ExperimentRecord.model_validate_json)

    def open(self, shards: int) -> None:
        """Fix the number of shards at first use, and read it later."""
        with self._down():
            self._redis.hsetnx(keys.LAYOUT, "shards", str(shards))
            self.shards = int(self._redis.hget(keys.LAYOUT, "shards"))
            if self._redis.hexists(keys.LAYOUT, keys.RESTORING):
                message = (
                    "a restore into this store has not ended: empty it, restore again."
                )
                raise RefusedStoreError(message)

    def keep_root(self, fingerprint: str) -> None:
        """Fix the root secret at first use, by a hash of it.

        Raises
        ------
        RefusedStoreError
            When the store was first used with another.
        """
        with self._down():
            self._redis.hsetnx(keys.LAYOUT, "root", fingerprint)
            first = _text(self._redis.hget(keys.LAYOUT, "root"))
        if first != fingerprint:
            raise RefusedStoreError(
                "the secret is not the one that this store was first used with: units and"
                " API keys would not be known again. Give that one as BANDOLERO_SECRET_ROOT."
            )

    def assume(self, shards: int) -> None:
        """Go by a number of shards known from before, until the store can be opened."""
        self.shards = shards

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    @contextmanager
    def _down(self) -> Iterator[None]:
        """Turn the client's errors into ours."""
        try:
            yield
        except DENIALS as error:
            raise StoreDeniedError(
                f"the store wants another user or password: {error}"
            ) from error
        except REFUSALS as error:
            if str(error).startswith(("FENCED", "POSITION")):
                raise FencedError(str(error)) from None
            raise StoreDownError(f"the store refuses: {error}") from error
        except FAULTS as error:
            self._connection.failed(error)
            raise StoreDownError(f"the store cannot be reached: {error}") from error

    @property
    def _redis(self) -> Any:
        return self._connection.client

    def shard(self, tenant: str, experiment_id: str) -> int:
        """The shard an experiment lives on."""
        return shard_of(experiment_key(tenant, experiment_id), self.shards)

    def server_of(self, shard: int) -> str:
        """Name of the server a shard lives on; its shards can fail together."""
        with self._down():
            return self._connection.server_of(keys.tag(shard))

    def durability(self) -> dict[str, str]:
        """What the store promises: `appendfsync` and `maxmemory-policy`."""
        with self._down():
            return self._connection.durability()

    # The log

    def append(self, writer_id: str, blocks: Sequence[Block]) -> None:
        """Append blocks, each once, however often it is called with it.

        Where one of a shard's stream is not taken, none behind it is; they must be sent
        again before any with a higher number.

        Raises
        ------
        ShardsDownError
            On a cluster; naming the shards whose blocks may not have been taken.
        """
        groups: dict[tuple[int, str], list[Block]] = defaultdict(list)
        for block in blocks:
            groups[block.shard, block.stream].append(block)
        calls = [_append_call(writer_id, group) for group in groups.values()]
        found = self._connection.run_all("append", calls)
        pairs = zip(groups, found, strict=True)
        failures = {shard: error for (shard, _), error in pairs if error}
        if failures and self._connection.is_cluster:
            raise ShardsDownError(failures)
        for error in failures.values():
            with self._down():
                raise error

    def tick(self, shard: int) -> str:
        """Move log time on; returns it as a log id.

        Nothing is logged at an earlier time on the shard then, whatever the clock does.
        """
        streams = (keys.events, keys.decisions, keys.control, keys.history)
        with self._down():
            return _text(self._run("tick", Call([of(shard) for of in streams], [])))

    def read(
        self, stream: str, after: str, until_ms: int | None = None
    ) -> Iterator[Entry]:
        """Entries after a log id (exclusive), up to a log time (inclusive)."""
        end = "+" if until_ms is None else f"{until_ms}-{LAST_SEQUENCE}"
        while True:
            with self._down():
                found = self._redis.xrange(stream, f"({after}", end, count=READ_COUNT)
            for log_id, fields in found:
                after = _text(log_id)
                yield Entry(after, fields)
            if len(found) < READ_COUNT:
                return

    def last_id(self, stream: str) -> str:
        """The newest log id of a stream."""
        with self._down():
            found = self._redis.xrevrange(stream, count=1)
        return _text(found[0][0]) if found else NO_POSITION

    def trim(self, stream: str, before_ms: int) -> None:
        """Forget entries logged before a log time; all, for what is erased must go."""
        with self._down():
            self._redis.xtrim(stream, minid=f"{before_ms}-0", approximate=False)

    def note(self, where: str, name: str, ms: int) -> None:
        """Tell when something was done; nothing depends on it."""
        with self._down():
            self._redis.hset(where, name, ms)

    # Leases and the learner's commit

    def take_lease(self, shard: int, role: str, owner: str) -> int | None:
        """Take or renew a lease; its fence, or None while another holds it."""
        where = [keys.lease(shard, role), keys.meta(shard)]
        call = Call(where, [owner, keys.LEASE_MS, role])
        with self._down():
            return int(self._run("lease", call)) or None

    def cursors(self, shard: int) -> str:
        """The learner's committed cursors, as it wrote them; empty at first."""
        return _text(self.field(keys.meta(shard), "cursors") or b"")

    def commit(self, shard: int, fence: int, expected: str, commit: Commit) -> None:
        """Write position and output in one step.

        Raises
        ------
        FencedError
            When another learner has taken over, or the position is not as expected.
        """
        where = [
            keys.meta(shard),
            keys.lease(shard, "learner"),
            keys.folds(shard),
            keys.snapshots(shard),
            keys.versions(shard),
            keys.history(shard),
        ]
        args: list[Any] = [fence, expected, commit.cursors, keys.LEASE_MS]
        args.append(len(commit.folds))
        args += [part for item in commit.folds.items() for part in item]
        args.append(len(commit.snapshots))
        for name, (version, data) in commit.snapshots.items():
            args += [name, version, data]
        args.append(sum(len(epochs) for epochs in commit.rollups.values()))
        for name, epochs in commit.rollups.items():
            where.append(keys.rollups(shard, name))
            for key, data in epochs.items():
                args += [len(where), key, data]
        with self._down():
            self._run("commit", Call(where, args))

    def folds(self, shard: int) -> dict[str, bytes]:
        """The learner's states by name."""
        return self.fields(keys.folds(shard))

    def rollups(self, shard: int, name: str) -> dict[str, bytes]:
        """An experiment's epochs by key."""
        return self.fields(keys.rollups(shard, name))

    # What is served

    def changes(self, shard: int) -> Changes:
        """Numbers that move whenever something served has changed."""
        with self._down():
            found = self._redis.hmget(keys.meta(shard), keys.GENERATIONS)
        return Changes(*(int(number or 0) for number in found))

    def records(self, shard: int) -> dict[str, ExperimentRecord]:
        """Experiment records of a shard by name; see `Parsed.of`."""
        return self._records.of(self.fields(keys.records(shard)))

    def record(self, tenant: str, experiment_id: str) -> ExperimentRecord | None:
        """One record."""
        where = keys.records(self.shard(tenant, experiment_id))
        data = self.field(where, name_of(tenant, experiment_id))
        return ExperimentRecord.model_validate_json(data) if data else None

    def put_record(
        self, record: ExperimentRecord, expected: int | None, kind: str, author: Author
    ) -> bool:
        """Write a record if the version is still `expected` (None: not there yet)."""
        shard = self.shard(record.tenant, record.experiment_id)
        body = record.model_dump_json()
        name = name_of(record.tenant, record.experiment_id)
        version = "" if expected is None else expected
        where = [keys.records(shard), keys.control(shard), keys.meta(shard)]
        thing = f"experiment {record.experiment_id}"
        act = Act(record.tenant, kind, thing, name, body)
        more = [version, kind]
        return self.acted("put", keys.tag(shard), where, act, author, more) == 1

    def versions(self, shard: int) -> dict[str, int]:
        """Newest snapshot version by name."""
        return {n: int(v) for n, v in self.fields(keys.versions(shard)).items()}

    def snapshots(self, shard: int, names: Sequence[str]) -> dict[str, bytes]:
        """Newest snapshots of some experiments."""
        if not names:
            return {}
        with self._down():
            found = self._redis.hmget(keys.snapshots(shard), list(names))
        return {n: d for n, d in zip(names, found, strict=True) if d is not None}

    def decided(self, shard: int, name: str) -> dict[str, int]:
        """Decisions logged so far by variant id."""
        found = self.fields(keys.decided(shard, name))
        return {variant_id: int(n) for variant_id, n in found.items()}

    # Corrections, refresh

    def put_correction(
        self, tenant: str, experiment_id: str, body: Mapping[str, Any], author: Author
    ) -> None:
        """Publish the newest correction of an experiment."""
        shard = self.shard(tenant, experiment_id)
        name = name_of(tenant, experiment_id)
        where = [keys.corrections(shard), keys.control(shard), keys.meta(shard)]
        thing = f"correction of {experiment_id}"
        act = Act(tenant, "correction", thing, name, json.dumps(body))
        self.acted("correct", keys.tag(shard), where, act, author)

    def corrections(self, shard: int) -> dict[str, dict[str, Any]]:
        """Newest corrections by name; see `Parsed.of`."""
        return self._corrections.of(self.fields(keys.corrections(shard)))

    def correction(self, shard: int, name: str) -> dict[str, Any] | None:
        """The newest correction of one experiment."""
        data = self.field(keys.corrections(shard), name)
        return None if data is None else json.loads(data)

    @contextmanager
    def alone(self, where: str, owner: str, ms: int) -> Iterator[bool]:
        """Hold a lease for so long, or as it is kept; False where another holds it."""
        with self._down():
            held = bool(self._redis.set(where, owner, nx=True, px=ms))
        try:
            yield held
        finally:
            with suppress(StoreDownError):  # then it lapses
                self.keep(where, owner, 0)

    def keep(self, where: str, owner: str, ms: int) -> bool:
        """Hold a lease for so long from now, or give it up at 0; False if not ours."""
        with self._down():
            return bool(self._run("keep", Call([where], [owner, ms])))

    # Erasures

    def ask_erasure(self, shard: int, expected: str, act: Act, author: Author) -> bool:
        """Have a unit erased, if that still is as `expected` (empty: never asked for)."""
        where = [keys.erasures(shard), keys.control(shard)]
        tag = keys.tag(shard)
        return bool(self.acted("erasure", tag, where, act, author, [expected]))

    def note_erasure(self, shard: int, name: str, expected: str, body: str) -> bool:
        """Write how far an erasure has come, if it still is as `expected`."""
        where = [keys.erasures(shard), keys.control(shard)]
        with self._down():
            return bool(self._run("erased", Call(where, [name, body, expected])))

    def rewrite_files(self, since: Mapping[str, int]) -> Rewriting:
        """Have all servers write their files anew, without what was trimmed."""
        with self._down():
            return self._connection.rewrite_files(since)

    # API keys

    def put_api_key(self, key: ApiKey, author: Author) -> None:
        """Write an API key."""
        kind, body = "revoked" if key.revoked else "created", json.dumps(key._asdict())
        act = Act(key.tenant, kind, f"key {key.key_id}", key.key_id, body)
        where = [keys.API_KEYS, keys.API_KEYS_GENERATION]
        self.acted("put_key", keys.KEYS_TAG, where, act, author)

    def api_keys(self) -> list[ApiKey]:
        """All API keys."""
        found = self.fields(keys.API_KEYS)
        return [ApiKey(**json.loads(data)) for data in found.values()]

    def api_keys_generation(self) -> int:
        """A number that moves whenever an API key has changed."""
        with self._down():
            return int(self._redis.get(keys.API_KEYS_GENERATION) or 0)

    def count(self, rate: RateLimitItem, who: str) -> tuple[bool, WindowStats]:
        """Count a request against a rate: whether it is within, and what is left."""
        with self._down():
            limiter = FixedWindowRateLimiter(self._connection.rates())
            return limiter.hit(rate, who), limiter.get_window_stats(rate, who)

    # The audit log

    def acted(
        self,
        script: str,
        hash_tag: str,
        where: Sequence[str],
        act: Act,
        author: Author,
        more: Sequence[Any] = (),
    ) -> int:
        """Do an act on the first hash, and write its audit line, in one step.

        Acts of a tenant on one chain come one after the other: one that was overtaken
        looks again at what it follows.
        """
        heads = keys.audit_heads(hash_tag)
        everything = [heads, keys.audit(hash_tag, act.tenant), *where]
        for _ in range(ACT_TRIES):
            with self._down():
                head = _text(self._redis.hget(heads, act.tenant) or b"")
                before = self._redis.hget(where[0], act.field)
                line = author.line(hash_tag, head, act, before)
                args = [act.tenant, head, line.text, line.mac, line.head]
                args += [act.field, act.body, *more]
                answer = int(self._run(script, Call(everything, args)))
            if answer != ACT_OVERTAKEN:
                return answer
        raise StoreDownError(f"{act.object}: overtaken {ACT_TRIES} times.")

    def field(self, where: str, name: str) -> bytes | None:
        """One field of a hash."""
        with self._down():
            return cast("bytes | None", self._redis.hget(where, name))

    def fields(self, where: str) -> dict[str, bytes]:
        """All fields of a hash."""
        with self._down():
            found = cast("dict[bytes, bytes]", self._redis.hgetall(where))
        return {name.decode(): data for name, data in found.items()}


def _append_call(writer_id: str, blocks: Sequence[Block]) -> Call:
    """Blocks of one stream of one shard."""
    shard, stream = blocks[0].shard, blocks[0].stream
    log = {"decisions": keys.decisions, "events": keys.events}[stream](shard)
    where = [log, keys.writer(shard, writer_id, stream)]
    args: list[Any] = [keys.WRITER_TTL_MS, writer_id]
    for block in blocks:
        counts: list[Any] = []
        for name, by_variant in block.counts.items():
            where.append(keys.decided(shard, name))
            for variant_id, n in by_variant.items():
                counts += [len(where), variant_id, n]
        args += [block.number, block.payload, len(counts) // 3, *counts]
    return Call(where, args)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def blocks_of(entries: Iterable[Entry]) -> Iterator[tuple[str, bytes]]:
    """(log id, block) of the entries that hold one; ticks are passed over."""
    for entry in entries:
        block = entry.fields.get(b"block")
        if block is not None:
            yield entry.log_id, block
