"""What a worker holds in memory: a view of every experiment, kept fresh by a thread.

A view joins an experiment's record with its newest snapshot. Views are immutable and
swapped by reference, so the decision path takes no lock. Where no snapshot exists yet
the worker builds one from the prior and says `cold`.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from bandolero.codec import DamagedBytesError
from bandolero.draws import NONCE_BYTES
from bandolero.experiment import Experiment, ExperimentRecord
from bandolero.policies import policy_of
from bandolero.snapshot import (
    Snapshot,
    build_snapshot,
    decide,
    snapshot_from_bytes,
)
from bandolero_service import auth
from bandolero_service.cache import (
    SHARED,
    SNAPSHOT_RESTS_S,
    SeenCache,
    pack_experiment,
    pack_shared,
)
from bandolero_service.changes import NOTHING_SEEN, Changes
from bandolero_service.contexts import Context, Contexts
from bandolero_service.ids import Signer
from bandolero_service.metrics import SNAPSHOTS_REFUSED, count
from bandolero_service.secret import read_secrets
from bandolero_service.settings import Settings
from bandolero_service.store import ApiKey, Store, StoreDownError, name_of

log = logging.getLogger(__name__)

STALE_AFTER_S = 30.0
MAX_WARMED_SETS = 256
WARM_S = 0.1
"""Eligible sets are computed for so long at a time: changes must not wait for them."""
REST_S = 0.0003
"""The watching thread rests after each view: a round of hundreds in one go would take the
interpreter from the thread that answers for as long as they take."""
MISSING_KEYS_PER_S = 20
NEVER = -math.inf
"""When what was never seen was seen, by a clock that never goes back."""
NO_VIEWS: Mapping[str, "View"] = {}


@dataclass(frozen=True, eq=False)
class View:
    """All a worker needs to answer for one experiment.

    last: an earlier view of the experiment, if there is one; where the record is still
    the same, what comes of it alone is shared.
    eligible: None when every arm of the snapshot is active now; else those that are.
    is_alike: whether nothing but the nonce tells two usual decisions apart.
    outcomes, told: remembered by (arm, mode, serving); see `bandolero_service.record`.
    context: reads the JSON text of a context; see `bandolero_service.contexts`.
    no_context: of a request that says nothing.
    """

    record: ExperimentRecord
    snapshot: Snapshot
    shard: int
    signer: Signer
    last: InitVar["View | None"] = None
    eligible: tuple[int, ...] | None = field(init=False)
    arms: dict[str, int] = field(init=False)
    answers: list[bytes] = field(init=False)
    is_alike: bool = field(init=False)
    is_sticky: bool = field(init=False)
    outcomes: dict[tuple[int, str, str], Any] = field(init=False)
    told: dict[tuple[int, str, str], Any] = field(init=False)
    contexts: Contexts = field(init=False)
    context: Callable[[bytes], Context] = field(init=False)
    no_context: Context = field(init=False)

    def __post_init__(self, last: "View | None") -> None:
        """Derive what is looked up per decision."""
        put, snapshot, spec = object.__setattr__, self.snapshot, self.record.spec
        n_known = len(snapshot.experiment.variants)
        active = tuple(arm for arm in self.record.active_arms if arm < n_known)
        same = active == snapshot.full.eligible
        put(self, "eligible", None if same else active)
        put(self, "arms", {self.variant_id(a): a for a in active})
        if last is not None and last.record is self.record:
            put(self, "answers", last.answers)
            put(self, "contexts", last.contexts)
        else:
            put(self, "answers", _answer_parts(spec))
            put(self, "contexts", Contexts(spec.context))
        is_alike = self.record.status == "running" and same and snapshot.is_alike
        put(self, "is_alike", is_alike)
        sticky = snapshot.experiment.allocation.sticky
        put(self, "is_sticky", sticky == "unit")
        put(self, "outcomes", {})
        put(self, "told", {})
        put(self, "context", self.contexts.read)
        put(self, "no_context", self.contexts.none)

    def variant_id(self, arm: int) -> str:
        """The id of an arm's variant."""
        return self.record.spec.variants[arm].id


class Views:
    """A worker's views and API keys by name; swapped whole by the watching thread."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._secrets = read_secrets(settings)
        self._signers: dict[str, Signer] = {}
        self._seen: dict[int, Changes] = {}
        self._records: dict[int, dict[str, ExperimentRecord]] = {}
        self._keys_generation = -1
        self._next_expiry_ms = auth.NEVER_MS
        self._keys_lock = threading.Lock()
        self._views: dict[str, View] = {}
        self._by_tenant: dict[str, dict[str, View]] = {}
        self._by_key: dict[bytes, View] = {}
        self._api_keys: dict[str, ApiKey] = {}
        self.authorised: dict[tuple[bytes, str], ApiKey] = {}
        """Keys by (header, scope) that were checked; a new one for every change, so who
        remembers a check must take the dictionary before it checks."""
        self.stale_shards: frozenset[int] = frozenset()
        """Shards not seen for too long, or not since this worker began."""
        self._missing: list[float] = []
        self._seen_at: dict[int, float] = {}
        self._recalled_at = NEVER
        self._cache = SeenCache(settings.cache_dir, settings.store)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="views", daemon=True)

    def start(self) -> None:
        """Load everything once, then keep it fresh.

        What the store does not tell now is taken as it was seen last.
        """
        try:
            self.refresh()
        except StoreDownError as error:
            log.warning("going on with what was seen last: %s", error)
            self._recall()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
        self._cache.close()

    @property
    def stale(self) -> bool:
        """Whether anything that is served is stale."""
        return bool(self.stale_shards) or self.is_blank

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known: no store was seen, now or before."""
        return self._store.shards == 0

    @property
    def age_s(self) -> float | None:
        """How long ago the oldest of what is served was known to be true, in seconds.

        None where some of it was never seen.
        """
        shards = range(self._store.shards)
        seen = (self._seen_at.get(shard, self._recalled_at) for shard in shards)
        age_s = time.monotonic() - min(seen, default=NEVER)
        return age_s if math.isfinite(age_s) else None

    @property
    def is_watching(self) -> bool:
        """Whether the thread that keeps the views fresh lives."""
        return self._thread.is_alive()

    def view(self, tenant: str, experiment_id: str) -> View | None:
        """The view of a tenant's experiment."""
        return self.of(tenant).get(experiment_id)

    def of(self, tenant: str) -> Mapping[str, View]:
        """A tenant's views by experiment id; swapped whole at every change."""
        return self._by_tenant.get(tenant, NO_VIEWS)

    def experiment_id(self, tenant: str, key: bytes) -> str | None:
        """The id behind an experiment key of a tenant, where this worker knows it."""
        view = self._by_key.get(key)
        return (
            view.record.experiment_id if view and view.record.tenant == tenant else None
        )

    def view_of_key(self, key: bytes) -> View | None:
        """The view of an experiment key, whoever's it is."""
        return self._by_key.get(key)

    def views(self) -> list[View]:
        """All views."""
        return list(self._views.values())

    def signer(self, tenant: str) -> Signer:
        """The tenant's signer of decision ids."""
        if tenant not in self._signers:
            s = self._secrets
            self._signers[tenant] = Signer(s.current, tenant, s.previous, s.root)
        return self._signers[tenant]

    def api_key(self, text: str) -> ApiKey | None:
        """The key a client sent, if it is one and may be used."""
        key_id = auth.key_id_of(text)
        key = self._api_keys.get(key_id) if key_id else None
        if key is None or not auth.matches(self._secrets.root, text, key):
            return None
        return key

    def api_key_now(self, text: str) -> ApiKey | None:
        """Like `api_key`, but asks the store for keys made a moment ago."""
        key = self.api_key(text)
        now = time.monotonic()
        self._missing = [t for t in self._missing if now - t < 1.0]
        key_id = auth.key_id_of(text)
        unknown = key_id is not None and key_id not in self._api_keys
        if key is None and unknown and len(self._missing) < MISSING_KEYS_PER_S:
            self._missing.append(now)
            self._refresh_keys()
            key = self.api_key(text)
        return key

    def refresh(self) -> None:
        """Take over what has changed in the store.

        Raises
        ------
        StoreDownError
            When part of it does not answer; the rest is fresh then.
        """
        failure = None
        if self.is_blank:
            raise StoreDownError("the store has not been seen yet.")
        down: set[str] = set()
        for shard in range(self._store.shards):
            try:
                if (server := self._store.server_of(shard)) not in down:
                    down.add(server)
                    self._refresh_if_moved(shard)
                    down.remove(server)
            except StoreDownError as error:
                failure = error
            self._judge_shards()
        try:
            self._refresh_keys()
        except StoreDownError as error:
            failure = error
        if failure is not None:
            raise failure
        self._cache.stamp()

    def _refresh_if_moved(self, shard: int) -> None:
        changes, seen = self._store.changes(shard), self._seen.get(shard, NOTHING_SEEN)
        if changes != seen:
            self._refresh_shard(shard, changes.records != seen.records)
            self._seen[shard] = changes
        self._seen_at[shard] = time.monotonic()

    def _judge_shards(self) -> None:
        oldest = time.monotonic() - STALE_AFTER_S
        self.stale_shards = frozenset(
            shard
            for shard in range(self._store.shards)
            if self._seen_at.get(shard, NEVER) < oldest
        )

    def _recall(self) -> None:
        """Take what the store did not tell from the cache."""
        shared = self._cache.shared()
        if shared is None:
            return
        self._recalled_at = time.monotonic() - (time.time() - shared.seen_at)
        if self.is_blank:
            self._store.assume(shared.shards)
        if self._keys_generation < 0:
            self._take_keys(shared.api_keys)
        views = dict(self._views)
        for record, snapshot in self._cache.experiments():
            name = name_of(record.tenant, record.experiment_id)
            shard = self._store.shard(record.tenant, record.experiment_id)
            if shard in self._seen_at:
                continue
            signer = self.signer(record.tenant)
            try:
                views[name] = View(
                    record, snapshot or cold_snapshot(record), shard, signer
                )
            except Exception:  # one experiment's fault must not stop the others
                log.exception("%s: no view can be made of what was seen last", name)
        self._show(views)
        self._judge_shards()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.poll_interval_s):
            try:
                self._forget_expired()
                self.refresh()
                self._warm_missed_sets()
            except StoreDownError as error:
                log.debug("%s", error)
            except Exception:  # whatever it is: serving depends on this thread
                log.exception("views could not be refreshed")
            self._keep()

    def _keep(self) -> None:
        """Write what has changed to the cache, some of it at a time."""
        if not self.is_blank:
            self._cache.write(list(self._views), self._content)

    def _content(self, name: str) -> bytes | None:
        if name == SHARED:
            return pack_shared(self._store.shards, self._api_keys.values())
        view = self._views.get(name)
        return None if view is None else pack_experiment(view.record, view.snapshot)

    def _take_keys(self, api_keys: Iterable[ApiKey]) -> None:
        rate = self._settings.decide_rate
        self._api_keys = {
            key.key_id: key if key.rate else key._replace(rate=rate) for key in api_keys
        }
        self._check_anew()

    def _check_anew(self) -> None:
        """Forget which keys were checked; the next expiry first, that none is missed."""
        self._next_expiry_ms = auth.next_expiry_ms(self._api_keys.values())
        self.authorised = {}

    def _refresh_keys(self) -> None:
        """Take the keys over until none has moved meanwhile; from any thread.

        What was read while another thread took keys over may be older, and is dropped.
        The lock is not held while the store is asked: it may hang.
        """
        while True:
            known, now = self._keys_generation, self._store.api_keys_generation()
            if known == now:
                return
            api_keys = self._store.api_keys()
            with self._keys_lock:
                if self._keys_generation == known:
                    self._take_keys(api_keys)
                    self._keys_generation = now
                    self._cache.changed(SHARED)

    def _forget_expired(self) -> None:
        """Check every key anew once one has expired; needs no store."""
        with self._keys_lock:
            if time.time_ns() // 1_000_000 >= self._next_expiry_ms:
                self._check_anew()

    def _refresh_shard(self, shard: int, records_moved: bool) -> None:
        if records_moved:
            self._records[shard] = self._store.records(shard)
        records, versions = self._records[shard], self._store.versions(shard)
        moved = [
            name
            for name, version in versions.items()
            if self._version(name) != version and name in records
        ]
        fresh = self._store.snapshots(shard, moved)
        old = self._views
        views = {n: v for n, v in old.items() if v.shard != shard or n in records}
        for name in old.keys() - views.keys():
            self._cache.changed(name)
        for name, record in records.items():
            last = views.get(name)
            try:
                view = self._updated(last, record, fresh.get(name), shard)
            except Exception:  # one experiment's fault must not stop the others
                log.exception("%s: no view can be made, the last one stays", name)
                continue
            if view is not None and view is not last:
                self._note(name, last, view)
                views[name] = view
                if last is not None:
                    time.sleep(REST_S)
        self._show(views)

    def _note(self, name: str, old: View | None, new: View) -> None:
        """Have a changed view kept: its record at once, its snapshot before long."""
        same = old is not None and old.record == new.record
        self._cache.changed(name, SNAPSHOT_RESTS_S if same else 0.0)

    def _show(self, views: dict[str, View]) -> None:
        by_tenant: dict[str, dict[str, View]] = {}
        for view in views.values():
            record = view.record
            by_tenant.setdefault(record.tenant, {})[record.experiment_id] = view
        self._views, self._by_tenant = views, by_tenant
        self._by_key = {view.snapshot.key: view for view in views.values()}

    def _updated(
        self,
        old: View | None,
        record: ExperimentRecord,
        data: bytes | None,
        shard: int,
    ) -> View | None:
        """The view after a change; the old one where nothing moved or bytes are bad."""
        if data is None and old is not None and old.record == record:
            return old
        last = old.snapshot if old else None
        snapshot = self._snapshot(record, data, last) or last
        if snapshot is None or (snapshot.version == 0 and data is None):
            snapshot = cold_snapshot(record)
        if old is not None and snapshot is not old.snapshot:
            _warm_like(snapshot, old.snapshot)
        return View(record, snapshot, shard, self.signer(record.tenant), old)

    def _snapshot(
        self, record: ExperimentRecord, data: bytes | None, last: Snapshot | None
    ) -> Snapshot | None:
        if data is None:
            return None
        try:
            return snapshot_from_bytes(data, last)
        except DamagedBytesError as error:
            name = name_of(record.tenant, record.experiment_id)
            count(SNAPSHOTS_REFUSED)
            log.error("snapshot of %s is refused, the old one stays: %s", name, error)
            return None

    def _version(self, name: str) -> int:
        view = self._views.get(name)
        return view.snapshot.version if view is not None else 0

    def _warm_missed_sets(self) -> None:
        """Compute eligible sets that were asked for, as far as the time goes."""
        until = time.monotonic() + WARM_S
        for view in self._views.values():
            misses = view.snapshot.misses
            while misses and time.monotonic() < until:
                view.snapshot.warm(misses.pop())


def cold_snapshot(record: ExperimentRecord) -> Snapshot:
    """Version 0: the prior, for an experiment the learner has not published yet."""
    state = policy_of(record.spec).init(len(record.spec.variants))
    created = record.started_at_ms or record.created_at_ms
    return build_snapshot(record, state, version=0, created_at_ms=created)


def warm_up() -> None:
    """Compile the kernels a decision may need, before the worker says it is ready."""
    variants = [{"id": str(i), "attributes": {"is": i}} for i in range(3)]
    kinds = ("beta_thompson", "linear_thompson", "lin_ucb", "shared_linear_thompson")
    for kind in kinds:
        spec = {"experiment": "warm-up", "policy": {"kind": kind}, "variants": variants}
        record = ExperimentRecord.model_validate({"tenant": "warm-up", "spec": spec})
        decide(cold_snapshot(record), b"\0" * NONCE_BYTES, eligible=(0, 2))


def _warm_like(new: Snapshot, old: Snapshot) -> None:
    """Compute the eligible sets in use for a new snapshot before it is served.

    As far as the time goes, the newest first; the others are noted, for later.
    """
    if new.prepared is not None:
        return
    until = time.monotonic() + WARM_S
    n_arms = len(new.experiment.variants)
    for eligible in list(old.sets)[: -MAX_WARMED_SETS - 1 : -1]:
        if eligible and eligible[-1] < n_arms and eligible not in new.sets:
            if time.monotonic() < until:
                new.warm(eligible)
            else:
                new.misses.add(eligible)


def _answer_parts(spec: Experiment) -> list[bytes]:
    """By arm the part of an answer that is the same for every decision for it."""
    parts = []
    for variant in spec.variants:
        shown = {"id": variant.id, "creative": variant.creative}
        told = {"experiment": spec.experiment, "variant": shown}
        parts.append(json.dumps(told, ensure_ascii=False)[1:-1].encode())
    return parts
