"""A new store from the lake alone: what it holds, how it goes on, when it is refused."""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from bandolero.epochs import DAY_MS
from bandolero.experiment import ExperimentRecord
from bandolero.lake.catalog import Lake, rows_of
from bandolero.lake.compact import compact
from bandolero.log import DECISIONS, EVENTS, log_ms, write_block
from bandolero.snapshot import snapshot_from_bytes
from bandolero_service import keys
from bandolero_service.archive import archive
from bandolero_service.audit import Author
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.learner import ShardLearner
from bandolero_service.new_store import NewStore
from bandolero_service.restore import restore
from bandolero_service.settings import Settings
from bandolero_service.store import ApiKey, Block, RefusedStoreError, Store
from bandolero_service.trail import verified
from service_helpers import needs_server, wait_for
from strategies import Row, decision, event

pytestmark = needs_server
MAX_BYTES = 10_000_000
ROOT = b"root"
AUTHOR = Author("test", ROOT)
SETTINGS = Settings(publish_interval_s=0.0)


@pytest.fixture
def fresh(store: Store, embedded: EmbeddedStore) -> Iterator[NewStore]:
    """Another empty store, of four shards."""
    connection = NewStore(f"{embedded.url}?db=1")
    connection.open(4)
    yield connection
    connection.close()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


def begin(store: Store, experiment_id: str, window_s: float = 1.0) -> int:
    """Start an experiment of two variants; its shard."""
    spec = {
        "experiment": experiment_id,
        "tenant": "acme",
        "objective": {"attribution_window_s": window_s},
        "variants": [{"id": "v1"}, {"id": "v2"}],
    }
    raw = {"tenant": "acme", "spec": spec, "status": "running"}
    assert store.put_record(
        ExperimentRecord.model_validate(raw), None, "created", AUTHOR
    )
    return store.shard("acme", experiment_id)


class Worker:
    """A worker that decides, and tells of clicks, one block at a time."""

    def __init__(self, shard: int, experiment_id: str, name: str = "w") -> None:
        self.shard, self.experiment_id, self.name = shard, experiment_id, name
        self.number = 0
        self.made: list[str] = []

    def decide(self, store: Store, n: int, variant_id: str = "v1") -> None:
        """Append a block of decisions."""
        self.number += 1
        store.append(self.name, [self.block(self.number, n, variant_id)])

    def block(self, number: int, n: int, variant_id: str = "v1") -> Block:
        """A block of decisions, their ids named by its number."""
        ids = [f"{self.name}-{number}-{i}" for i in range(n)]
        self.made += ids
        now_ms = time.time_ns() // 1_000_000
        fields = {"experiment_id": self.experiment_id, "decided_at_ms": now_ms}
        rows = [
            decision(decision_id=i, variant_id=variant_id, spec_version=1, **fields)
            for i in ids
        ]
        counts = {f"acme/{self.experiment_id}": {variant_id: n}}
        return Block("decisions", self.shard, number, _bytes(rows, DECISIONS), counts)

    def click(self, store: Store, decision_ids: list[str]) -> None:
        """Append a block of clicks."""
        self.number += 1
        now_ms = time.time_ns() // 1_000_000
        fields = {"decided_at_ms": now_ms - 1, "at_ms": now_ms}
        name = self.experiment_id
        rows = [
            event(decision_id=i, experiment_id=name, **fields) for i in decision_ids
        ]
        data = _bytes(rows, EVENTS)
        store.append(self.name, [Block("events", self.shard, self.number, data, {})])


def _bytes(rows: list[Row], schema: Any) -> bytes:
    return write_block(
        [tuple(row.get(n) for n in schema.names) for row in rows], schema
    )


def learner_of(store: Store, shard: int) -> ShardLearner:
    """The learner of a shard, from what is committed."""
    fence = store.take_lease(shard, "learner", "test")
    assert fence is not None
    return ShardLearner(store, shard, fence, SETTINGS)


def learned(store: Store, shard: int, n: int) -> None:
    """Let a learner step until so many decisions have settled, and a little longer."""
    learner = learner_of(store, shard)

    def done() -> bool:
        learner.step()
        return trials(learner) >= n

    wait_for(done, 40, f"{n} trials")
    learner.step()
    assert trials(learner) == n


def trials(learner: ShardLearner) -> int:
    """Decisions that a learner has settled."""
    folds = learner._folds.values()
    return sum(int(e.trials.sum()) for fold in folds for e in fold.epochs.values())


def archived(store: Store, lake: Lake) -> None:
    """Archive all that has been logged by now."""
    time.sleep(0.002)
    for shard in range(store.shards):
        archive(store, lake, shard, MAX_BYTES)


def held(store: Store, shard: int, name: str) -> dict[str, Any]:
    """What a store holds of an experiment, as bytes."""
    return {
        "record": store.fields(keys.records(shard)),
        "fold": store.folds(shard),
        "rollups": store.rollups(shard, name),
        "decided": store.decided(shard, name),
        "snapshot": store.snapshots(shard, [name]),
        "corrections": store.corrections(shard),
    }


def test_settled_decisions_are_there_bit_for_bit(
    store: Store, fresh: NewStore, lake: Lake
) -> None:
    """Record, state, rollups, counts, snapshot and correction are the same bytes; the
    learner learns nothing again and goes on with versions above. API keys may be there."""
    shard = begin(store, "hats")
    worker = Worker(shard, "hats")
    worker.decide(store, 5)
    worker.click(store, worker.made[:2])
    worker.decide(store, 3, "v2")
    store.put_correction("acme", "hats", {"watermark_ms": 1, "changes": {}}, AUTHOR)
    learned(store, shard, 8)
    archived(store, lake)
    fresh.put_api_key(ApiKey("id", "acme", ["decide"], "hash", 1), AUTHOR)
    restore(fresh, lake, AUTHOR)
    assert held(fresh, shard, "acme/hats") == held(store, shard, "acme/hats")
    before = store.versions(shard)["acme/hats"]
    learned(fresh, shard, 8)
    assert held(fresh, shard, "acme/hats")["fold"] == store.folds(shard)
    assert [chain.faults for chain in verified(fresh, ROOT, None)] == [[], []]
    data = fresh.snapshots(shard, ["acme/hats"])["acme/hats"]
    assert snapshot_from_bytes(data).version > before


def test_a_compacted_lake_restores_the_same(
    store: Store, fresh: NewStore, lake: Lake
) -> None:
    """State, rollups and what is open are as from the small commits; the archiver goes on
    where the merged one ends, and a writer's blocks are known by their number."""
    shard = begin(store, "hats")
    worker = Worker(shard, "hats")
    for _ in range(3):
        worker.decide(store, 2)
        worker.click(store, worker.made[-1:])
        archived(store, lake)
    learned(store, shard, 6)
    worker.decide(store, 1, "v2")
    archived(store, lake)
    n_rows = lake.read("decisions")[0].num_rows
    in_days_ms = lake.watermark_ms() + 2 * DAY_MS
    compact(lake, in_days_ms, lambda _: nullcontext(True))
    assert [c.merged for c in lake.commits(f"s{shard}")] == [4]
    restored, bad = restore(fresh, lake, AUTHOR)
    assert ([(r.decisions, r.open_decisions) for r in restored], bad) == ([(6, 1)], [])
    assert held(fresh, shard, "acme/hats")["rollups"] == store.rollups(
        shard, "acme/hats"
    )
    fresh.append("w", [worker.block(worker.number, 1)])
    archived(fresh, lake)
    before, after = lake.commits(f"s{shard}")
    assert after.after_ms == before.until_ms
    assert lake.read("decisions")[0].num_rows == n_rows


def test_open_decisions_are_learned_once_they_close(
    store: Store, fresh: NewStore, lake: Lake
) -> None:
    """What was archived but open is learned by the new learner, with its events from
    before and after; both stores come to the same state, and the lake has each row once."""
    shard = begin(store, "hats", window_s=3.0)
    worker = Worker(shard, "hats")
    worker.decide(store, 4)
    worker.click(store, worker.made[:1])
    worker.decide(store, 3, "v2")
    archived(store, lake)
    restored, bad = restore(fresh, lake, AUTHOR)
    assert ([(r.decisions, r.open_decisions) for r in restored], bad) == ([(0, 7)], [])
    for each in (store, fresh):
        worker.click(each, worker.made[4:6])
        worker.number -= 1
    learned(store, shard, 7)
    learned(fresh, shard, 7)
    assert fresh.folds(shard) == store.folds(shard)
    archived(fresh, lake)
    ids = lake.read("decisions")[0]["decision_id"]
    assert (len(ids), pc.count_distinct(ids).as_py()) == (7, 7)
    assert lake.read("events")[0].num_rows == 3


def test_nothing_is_published_from_before_the_lakes_end(
    store: Store, fresh: NewStore, lake: Lake
) -> None:
    """The learner of a new store knows how far the log had been read when it was archived."""
    shard = begin(store, "hats")
    archived(store, lake)
    restore(fresh, lake, AUTHOR)
    read_to = json.loads(fresh.cursors(shard))["log"]
    assert log_ms(read_to) == lake.until_ms(f"s{shard}")


def test_a_block_from_the_spool_is_not_appended_again(
    store: Store, fresh: NewStore, lake: Lake
) -> None:
    """A writer's blocks that the lake holds are known by their number; later ones count."""
    shard = begin(store, "hats")
    worker = Worker(shard, "hats")
    for _ in range(3):
        worker.decide(store, 1)
    archived(store, lake)
    restore(fresh, lake, AUTHOR)
    fresh.append("w", [worker.block(n, 1) for n in (2, 3, 4)])
    assert fresh.decided(shard, "acme/hats") == {"v1": 4}
    fresh.append("other", [worker.block(1, 1)])
    assert fresh.decided(shard, "acme/hats") == {"v1": 5}


def test_log_time_goes_on_after_the_lake(
    store: Store, fresh: NewStore, lake: Lake
) -> None:
    """Every stream of a new store, also an empty one, is logged after the lake's end."""
    begin(store, "hats")
    archived(store, lake)
    restore(fresh, lake, AUTHOR)
    for shard in range(4):
        until_ms = lake.until_ms(f"s{shard}")
        for stream in (keys.decisions, keys.events, keys.history, keys.control):
            fresh.move_past(stream(shard), until_ms + 1_000_000)
            log_id = fresh._redis.xadd(stream(shard), {"tick": "1"}).decode()
            assert log_ms(log_id) == until_ms + 1_000_001


def test_a_store_that_holds_anything_is_refused(
    fresh: NewStore, store: Store, lake: Lake
) -> None:
    """Nothing is restored over a record, nor beside a learner at work."""
    archived(store, lake)
    begin(fresh, "hats")
    with pytest.raises(RefusedStoreError, match="not empty"):
        restore(fresh, lake, AUTHOR)
    fresh._redis.flushdb()
    fresh.open(4)
    fresh.tick(2)
    with pytest.raises(RefusedStoreError, match="not empty"):
        restore(fresh, lake, AUTHOR)


def test_a_clock_behind_the_lake_is_refused(fresh: NewStore, lake: Lake) -> None:
    """A store whose clock has not reached the lake's end is left as it was."""
    ahead_ms = fresh.clock_ms(0) + 60_000
    lake.fix_shards(4)
    lake.commit("s2", 0, ahead_ms, {"control": rows_of("control", [])})
    with pytest.raises(RefusedStoreError, match="behind the lake"):
        restore(fresh, lake, AUTHOR)
    fresh.begin_restore()


def test_another_number_of_shards_is_refused(fresh: NewStore, lake: Lake) -> None:
    """An experiment must be found on the shard that its decision ids name."""
    lake.fix_shards(8)
    with pytest.raises(RefusedStoreError, match="must have the lake's 8"):
        restore(fresh, lake, AUTHOR)


def test_a_restore_cut_short_keeps_all_out(fresh: NewStore) -> None:
    """A half restored store is opened by nobody; once the restore has ended, by all."""
    fresh.begin_restore()
    with pytest.raises(RefusedStoreError, match="has not ended"):
        fresh.open(4)
    fresh.end_restore()
    fresh.open(4)


def test_a_damaged_file_is_told_and_the_rest_restored(
    store: Store, fresh: NewStore, lake: Lake
) -> None:
    """Of two experiments both are there; the decisions of the damaged file are missing."""
    shard = begin(store, "hats")
    worker = Worker(shard, "hats")
    worker.decide(store, 2)
    archived(store, lake)
    worker.decide(store, 3)
    archived(store, lake)
    file = lake.files("decisions")[0]
    Path(lake.root, file.path).write_bytes(b"damaged")
    restored, bad = restore(fresh, lake, AUTHOR)
    assert [b.path for b in bad] == [file.path]
    assert [r.open_decisions for r in restored] == [3]


def test_a_missing_commit_is_told(store: Store, fresh: NewStore, lake: Lake) -> None:
    """A gap between two commits is named by the entry that should be there."""
    shard = begin(store, "hats")
    for _ in range(3):
        archived(store, lake)
    entries = sorted(Path(lake.root, f"manifest/s{shard}").iterdir())
    entries[1].unlink()
    _, bad = restore(fresh, lake, AUTHOR)
    assert [b.path for b in bad] == [f"manifest/s{shard}/{entries[1].name}"]
