"""A worker's parts in the test's own process, over a real store: no HTTP, no learner."""

import json
from typing import Any

import msgspec
import pyarrow as pa

from bandolero.experiment import ExperimentRecord
from bandolero.log import DECISIONS_TABLE, EVENTS_TABLE, read_blocks
from bandolero.policies import policy_of
from bandolero.snapshot import build_snapshot, snapshot_to_bytes
from bandolero_service import keys
from bandolero_service.audit import Author
from bandolero_service.decide import Decider, DecideRequest
from bandolero_service.experiments import (
    Action,
    acted,
    change,
    checked_spec,
    put_spec,
    variant_acted,
)
from bandolero_service.settings import Settings
from bandolero_service.store import NO_POSITION, Commit, Store, blocks_of, name_of
from bandolero_service.views import Views
from bandolero_service.writer import LogWriter

AUTHOR = Author("test", b"root")


class Worker:
    """Views, decider and writer of one worker; snapshots are published by the test."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.views = Views(store, settings)
        self.writer = LogWriter(store, settings)
        self.writer.start()
        self.decider = Decider(self.views, self.writer, settings.public_url)

    def put(self, spec: Any, action: Action | None = "start") -> ExperimentRecord:
        """Store acme's experiment and see it."""
        checked = checked_spec(spec, "acme", None)
        record = put_spec(self.store, AUTHOR, "acme", checked)
        return record if action is None else self.act(spec["experiment"], action)

    def act(self, experiment_id: str, action: Action) -> ExperimentRecord:
        """Start, pause or stop, and see it."""
        record = change(
            self.store,
            AUTHOR,
            "acme",
            experiment_id,
            action,
            lambda r: acted(r, action),
        )
        self.views.refresh()
        return record

    def pause_variant(self, experiment_id: str, variant_id: str) -> None:
        """Pause a variant, and see it."""
        change(
            self.store,
            AUTHOR,
            "acme",
            experiment_id,
            "variant_pause",
            lambda r: variant_acted(r, variant_id, "pause"),
        )
        self.views.refresh()

    def publish(self, record: ExperimentRecord, version: int) -> None:
        """Publish the prior as a snapshot, as the learner would, and see it."""
        shard = self.store.shard("acme", record.experiment_id)
        state = policy_of(record.spec).init(len(record.spec.variants))
        snapshot = build_snapshot(record, state, version=version, created_at_ms=0)
        fence = self.store.take_lease(shard, "learner", "test") or 0
        name = name_of("acme", record.experiment_id)
        told = {name: (version, snapshot_to_bytes(snapshot))}
        self.store.commit(
            shard, fence, self.store.cursors(shard), Commit("", {}, told, {})
        )
        self.views.refresh()

    def decide(self, experiment_id: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request of acme's."""
        body = json.dumps({"experiment": experiment_id, **fields})
        request = msgspec.json.decode(body, type=DecideRequest)
        answer: dict[str, Any] = json.loads(self.decider.answer("acme", request))
        return answer

    def logged(self) -> list[dict[str, Any]]:
        """Everything decided so far, from the log; no more can be decided then."""
        self.writer.stop()
        rows: list[dict[str, Any]] = self.read("decisions").to_pylist()
        return rows

    def read(self, stream: str) -> pa.Table:
        """Rows of a stream on all shards."""
        schema = {"decisions": DECISIONS_TABLE, "events": EVENTS_TABLE}[stream]
        where = {"decisions": keys.decisions, "events": keys.events}[stream]
        return pa.concat_tables(
            read_blocks(blocks_of(self.store.read(where(s), NO_POSITION)), schema)
            for s in range(self.store.shards)
        )

    def close(self) -> None:
        """End the writer's thread, where it still runs."""
        self.writer.stop()
