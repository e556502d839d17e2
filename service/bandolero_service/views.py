"""What a worker holds in memory: a view of every experiment, kept fresh by a thread.

A view joins an experiment's record with its newest snapshot. Views are immutable and
swapped by reference, so the decision path takes no lock. Where no snapshot exists yet
the worker builds one from the prior and says `cold`.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bandolero.codec import DamagedBytesError
from bandolero.draws import NONCE_BYTES
from bandolero.experiment import ExperimentRecord
from bandolero.features import context_encoder
from bandolero.policies import policy_of
from bandolero.snapshot import (
    Snapshot,
    build_snapshot,
    decide,
    snapshot_from_bytes,
)
from bandolero_service import auth
from bandolero_service.ids import Signer
from bandolero_service.secret import read_secrets
from bandolero_service.settings import Settings
from bandolero_service.store import ApiKey, Store, StoreDownError, name_of

log = logging.getLogger(__name__)

STALE_AFTER_S = 30.0
MAX_WARMED_SETS = 256
WARM_S = 0.1
"""Eligible sets are computed for so long at a time: changes must not wait for them."""
MISSING_KEYS_PER_S = 20


@dataclass(frozen=True, eq=False)
class View:
    """All a worker needs to answer for one experiment.

    eligible: None when every arm of the snapshot is active now; else those that are.
    outcomes: remembered by (arm, mode, serving); see `bandolero_service.record`.
    """

    record: ExperimentRecord
    snapshot: Snapshot
    shard: int
    signer: Signer
    eligible: tuple[int, ...] | None = field(init=False)
    arms: dict[str, int] = field(init=False)
    answers: list[bytes] = field(init=False)
    context_names: frozenset[str] = field(init=False)
    encode_context: Callable[[Mapping[str, object]], str] = field(init=False)
    outcomes: dict[tuple[int, str, str], Any] = field(init=False)

    def __post_init__(self) -> None:
        """Derive what is looked up per decision."""
        n_known = len(self.snapshot.experiment.variants)
        active = tuple(arm for arm in self.record.active_arms if arm < n_known)
        same = active == self.snapshot.full.eligible
        object.__setattr__(self, "eligible", None if same else active)
        object.__setattr__(self, "arms", {self.variant_id(a): a for a in active})
        variants = self.record.spec.variants
        answers = [_answer_part(self.record.experiment_id, v) for v in variants]
        object.__setattr__(self, "answers", answers)
        encode = context_encoder(self.record.spec.context)
        names = frozenset(field.name for field in self.record.spec.context)
        object.__setattr__(self, "encode_context", encode)
        object.__setattr__(self, "context_names", names)
        object.__setattr__(self, "outcomes", {})

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
        self._generations: dict[int, int] = {}
        self._keys_generation = -1
        self._next_expiry_ms = auth.NEVER_MS
        self._views: dict[str, View] = {}
        self._by_key: dict[bytes, View] = {}
        self._api_keys: dict[str, ApiKey] = {}
        self.authorised: dict[tuple[bytes, str], ApiKey] = {}
        """Keys by (header, scope) that were checked; a new one for every change, so who
        remembers a check must take the dictionary before it checks."""
        self.stale = True
        """Whether the store has not been seen for too long."""
        self._missing: list[float] = []
        self._seen_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="views", daemon=True)

    def start(self) -> None:
        """Load everything once, then keep it fresh."""
        self.refresh()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def view(self, tenant: str, experiment_id: str) -> View | None:
        """The view of a tenant's experiment."""
        return self._views.get(f"{tenant}/{experiment_id}")

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
        unknown = auth.key_id_of(text) not in self._api_keys
        if key is None and unknown and len(self._missing) < MISSING_KEYS_PER_S:
            self._missing.append(now)
            self._refresh_keys()
            key = self.api_key(text)
        return key

    def refresh(self) -> None:
        """Take over what has changed in the store."""
        for shard in range(self._store.shards):
            generation = self._store.generation(shard)
            if generation != self._generations.get(shard):
                self._refresh_shard(shard)
                self._generations[shard] = generation
        self._refresh_keys()
        self._seen_at = time.monotonic()
        self.stale = False

    def _run(self) -> None:
        while not self._stop.wait(self._settings.poll_interval_s):
            try:
                self._forget_expired()
                self.refresh()
                self._warm_missed_sets()
            except StoreDownError as error:
                self.stale = time.monotonic() - self._seen_at > STALE_AFTER_S
                log.debug("%s", error)
            except (
                Exception
            ):  # the thread must outlive any fault: serving depends on it
                log.exception("views could not be refreshed")

    def _refresh_keys(self) -> None:
        generation = self._store.api_keys_generation()
        if generation == self._keys_generation:
            return
        self._api_keys = {key.key_id: key for key in self._store.api_keys()}
        self.authorised = {}
        self._next_expiry_ms = auth.next_expiry_ms(self._api_keys.values())
        self._keys_generation = generation

    def _forget_expired(self) -> None:
        """Check every key anew once one has expired; needs no store."""
        if time.time_ns() // 1_000_000 >= self._next_expiry_ms:
            self.authorised = {}
            self._next_expiry_ms = auth.next_expiry_ms(self._api_keys.values())

    def _refresh_shard(self, shard: int) -> None:
        records = self._store.records(shard)
        versions = self._store.versions(shard)
        moved = [
            name
            for name, version in versions.items()
            if self._version(name) != version and name in records
        ]
        fresh = self._store.snapshots(shard, moved)
        views = dict(self._views)
        for name, record in records.items():
            try:
                view = self._updated(views.get(name), record, fresh.get(name), shard)
            except Exception:  # one experiment's fault must not stop the others
                log.exception("%s: no view can be made, the last one stays", name)
                continue
            if view is not None:
                views[name] = view
        self._views = views
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
        snapshot = self._snapshot(record, data) or (old.snapshot if old else None)
        if snapshot is None or (snapshot.version == 0 and data is None):
            snapshot = cold_snapshot(record)
        if old is not None and snapshot is not old.snapshot:
            _warm_like(snapshot, old.snapshot)
        return View(record, snapshot, shard, self.signer(record.tenant))

    def _snapshot(
        self, record: ExperimentRecord, data: bytes | None
    ) -> Snapshot | None:
        if data is None:
            return None
        try:
            return snapshot_from_bytes(data)
        except DamagedBytesError as error:
            name = name_of(record.tenant, record.experiment_id)
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


def _answer_part(experiment_id: str, variant: Any) -> bytes:
    """The part of an answer that is the same for every decision for a variant."""
    shown = {"id": variant.id, "creative": variant.creative}
    body = json.dumps(
        {"experiment": experiment_id, "variant": shown}, ensure_ascii=False
    )
    return body[1:-1].encode()
