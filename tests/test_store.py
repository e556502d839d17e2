"""The store's acts against a real server: once, whole, and only by who holds the lease."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bandolero.experiment import ExperimentRecord
from bandolero.log import before, log_id_at
from bandolero_service import keys
from bandolero_service.audit import Author
from bandolero_service.embedded import EmbeddedStore, EmbeddedStoreError
from bandolero_service.store import (
    NO_POSITION,
    READ_COUNT,
    ApiKey,
    Block,
    Commit,
    Entry,
    FencedError,
    ShardsDownError,
    Store,
    StoreDownError,
    blocks_of,
    name_of,
)
from service_helpers import needs_server, short_folder, wait_for

AUTHOR = Author("test", b"root")
pytestmark = needs_server
NOTHING = Commit("{}", {}, {}, {})


@pytest.fixture(params=["server", "cluster"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A connection to an empty store of four shards: on one server, and on a cluster."""
    if request.param == "server":
        url = request.getfixturevalue("embedded").url
    else:
        url = request.getfixturevalue("cluster").nodes[1].url
    connection = Store(url)
    connection._redis.flushall()
    connection.open(4)
    yield connection
    connection.close()


def block(number: int, payload: bytes = b"x", stream: str = "decisions") -> Block:
    """A block for shard 1 with two decisions for one variant."""
    return Block(stream, 1, number, payload, {"acme/hats": {"v0": 2}})


def payloads(store: Store, stream: str = "decisions") -> list[bytes]:
    """The blocks logged on shard 1, in order."""
    where = {"decisions": keys.decisions, "events": keys.events}[stream](1)
    return [data for _, data in blocks_of(store.read(where, NO_POSITION))]


def record(version: int = 1, experiment_id: str = "hats") -> ExperimentRecord:
    """A record of an experiment with one variant."""
    spec = {"experiment": experiment_id, "tenant": "acme", "variants": [{"id": "v0"}]}
    return ExperimentRecord.model_validate(
        {"tenant": "acme", "spec": spec, "spec_version": version}
    )


# --- the log ----------------------------------------------------------------------------


def test_a_block_is_appended_once_by_its_number(store: Store) -> None:
    """Sending blocks again adds neither entries nor counts; only a new number does."""
    store.append("w", [block(1, b"one"), block(2, b"two")])
    store.append("w", [block(1, b"one"), block(2, b"two")])
    store.append("w", [block(2, b"two"), block(3, b"three")])
    assert payloads(store) == [b"one", b"two", b"three"]
    assert store.decided(1, "acme/hats") == {"v0": 6}


def test_numbers_are_counted_by_writer_stream_and_shard(store: Store) -> None:
    """Another writer's, another stream's or another shard's same number is another block."""
    store.append("w", [block(1), block(1, stream="events"), block(1)._replace(shard=2)])
    store.append("other", [block(1)])
    assert len(payloads(store)) == 2
    assert len(payloads(store, "events")) == 1
    assert len(list(store.read(keys.decisions(2), NO_POSITION))) == 1


def test_appending_from_two_threads_keeps_each_block_once(store: Store) -> None:
    """Two deliveries of the same blocks that race leave each block once, in order."""
    blocks = [block(n, str(n).encode()) for n in range(1, 201)]
    threads = [
        threading.Thread(target=store.append, args=("w", blocks)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(data) for data in payloads(store)] == list(range(1, 201))


@pytest.mark.parametrize("n", [0, 1, READ_COUNT - 1, READ_COUNT, 2 * READ_COUNT + 1])
def test_reading_in_pages_gives_every_entry_once(store: Store, n: int) -> None:
    """A stream longer than a page is read whole, in order, whatever its length."""
    store.append("w", [block(i, str(i).encode()) for i in range(1, n + 1)])
    assert [int(data) for data in payloads(store)] == list(range(1, n + 1))


def test_reading_goes_on_after_a_position_and_up_to_a_time(store: Store) -> None:
    """Reading is exclusive of where it starts and inclusive of the log time it ends at."""
    store.append("w", [block(1, b"one")])
    time.sleep(0.005)
    store.append("w", [block(2, b"two")])
    first, second = store.read(keys.decisions(1), NO_POSITION)
    ms = int(first.log_id.partition("-")[0])
    assert list(store.read(keys.decisions(1), first.log_id)) == [second]
    assert list(store.read(keys.decisions(1), NO_POSITION, ms)) == [first]
    assert list(store.read(keys.decisions(1), before(first.log_id))) == [first, second]
    assert list(store.read(keys.decisions(1), log_id_at(ms))) == [first, second]
    assert list(store.read(keys.decisions(1), log_id_at(ms + 1))) == [second]
    assert store.last_id(keys.decisions(1)) == second.log_id
    assert store.last_id(keys.decisions(3)) == NO_POSITION


def test_ticks_move_log_time_and_hold_no_block(store: Store) -> None:
    """A tick is a new entry of the event stream that readers of blocks pass over."""
    ids = [store.tick(1), store.tick(1)]
    assert ids == sorted(ids)
    assert store.last_id(keys.events(1)) == ids[-1]
    assert payloads(store, "events") == []


def test_after_a_tick_nothing_is_logged_before_it(store: Store) -> None:
    """On no stream of the shard, also where the store's clock is set back after it."""
    store.append("w", [block(1, b"one")])
    ahead_ms = int(store.tick(1).partition("-")[0]) + 3_600_000
    store._redis.xadd(keys.events(1), {"tick": "1"}, id=f"{ahead_ms}-0")
    tick = store.tick(1)  # as if the clock had been set back by an hour
    assert int(tick.partition("-")[0]) == ahead_ms
    store.append("w", [block(2, b"two"), block(2, b"event", stream="events")])
    store._redis.xadd(keys.control(1), {"name": "x"})
    store._redis.xadd(keys.history(1), {"name": "x"})
    for stream in (keys.decisions, keys.events, keys.control, keys.history):
        assert int(store.last_id(stream(1)).partition("-")[0]) >= ahead_ms
    assert payloads(store) == [b"one", b"two"]
    assert len(list(store.read(keys.decisions(1), NO_POSITION))) == 2


def test_trimming_forgets_only_what_is_older(store: Store) -> None:
    """Entries from a log time on stay; most older ones go."""
    store.append("w", [block(n) for n in range(1, 1001)])
    time.sleep(0.005)
    store.append("w", [block(n, b"new") for n in range(1001, 1011)])
    entries = list(store.read(keys.decisions(1), NO_POSITION))
    first_new = next(e for e in entries if e.fields[b"block"] == b"new")
    store.trim(keys.decisions(1), int(first_new.log_id.partition("-")[0]))
    left = list(store.read(keys.decisions(1), NO_POSITION))
    assert entries[-len(left) :] == left
    assert 10 <= len(left) < 300


def test_a_block_that_is_refused_holds_up_those_behind_it(store: Store) -> None:
    """None is passed over, for its number would look like one that was taken; nor does
    one shard's trouble stop another's blocks."""
    store._redis.set(keys.decisions(1), "not a stream")
    blocks = [block(1, b"one"), block(2, b"two")]
    with pytest.raises(StoreDownError) as failure:
        store.append("w", [*blocks, block(1)._replace(shard=2)])
    if isinstance(failure.value, ShardsDownError):
        assert failure.value.shards == {1}
    assert not store._redis.exists(keys.writer(1, "w", "decisions"))
    store._redis.delete(keys.decisions(1))
    store.append("w", blocks)
    assert payloads(store) == [b"one", b"two"]
    assert len(list(store.read(keys.decisions(2), NO_POSITION))) == 1


def test_a_server_that_forgot_the_scripts_is_told_again(store: Store) -> None:
    """Every script runs on a server that has not seen it, as one does after a restart."""
    store.append("w", [block(1)])
    store._redis.script_flush()
    store.append("w", [block(n)._replace(shard=s) for s in range(4) for n in (2, 3)])
    store._redis.script_flush()
    assert store.take_lease(1, "learner", "one") is not None
    for shard in range(4):
        assert len(list(store.read(keys.decisions(shard), NO_POSITION))) >= 2


def test_every_server_writes_its_file_anew(store: Store) -> None:
    """It is done when each has begun a rewrite after it was asked, and ended it well."""
    servers = store._connection.servers()
    before = [server.info("persistence")["aof_rewrites"] for server in servers]
    asked = store.rewrite_files({})
    assert (asked.is_done, asked.is_refused) == (False, False)
    assert sorted(asked.since.values()) == sorted(before)
    wait_for(lambda: store.rewrite_files(asked.since).is_done, 20, "all have ended")
    for server, begun in zip(servers, before, strict=True):
        told = server.info("persistence")
        assert told["aof_rewrites"] > begun
        assert told["aof_last_bgrewrite_status"] == "ok"
    assert not store.rewrite_files({"another run": 0}).is_done


# --- leases and the learner's commit --------------------------------------------------------


def test_one_owner_at_a_time_holds_a_lease(store: Store) -> None:
    """A lease is renewed under the same fence, refused to others, and free once dropped."""
    fence = store.take_lease(1, "learner", "one")
    assert fence is not None
    assert store.take_lease(1, "learner", "one") == fence
    assert store.take_lease(1, "learner", "other") is None
    assert store.take_lease(1, "archiver", "other") is not None
    assert store.take_lease(2, "learner", "other") is not None
    store.keep(keys.lease(1, "learner"), "other", 0)
    assert store.take_lease(1, "learner", "other") is None
    store.keep(keys.lease(1, "learner"), "one", 0)
    assert store.take_lease(1, "learner", "other") == fence + 1


def test_a_lease_ends_by_itself(store: Store) -> None:
    """A lease nobody renews is free after its time, under a higher fence."""
    fence = store.take_lease(1, "learner", "one")
    assert fence is not None
    store._redis.pexpire(keys.lease(1, "learner"), 20)
    time.sleep(0.05)
    assert store.take_lease(1, "learner", "other") == fence + 1


def test_a_zombie_learner_cannot_commit(store: Store) -> None:
    """Who held the lease before, and does not know that it ran out, writes nothing."""
    zombie = store.take_lease(1, "learner", "zombie") or 0
    store.commit(1, zombie, "", Commit("a", {"n": b"zombie"}, {}, {}))
    store._redis.pexpire(keys.lease(1, "learner"), 20)
    time.sleep(0.05)
    heir = store.take_lease(1, "learner", "heir") or 0
    store.commit(1, heir, "a", Commit("b", {"n": b"heir"}, {}, {}))
    for expected in ("a", "b"):
        late = Commit("z", {"n": b"late"}, {"n": (9, b"late")}, {"n": {"e": b"l"}})
        with pytest.raises(FencedError, match="FENCED"):
            store.commit(1, zombie, expected, late)
    assert store.cursors(1) == "b"
    assert store.folds(1) == {"n": b"heir"}
    assert store.versions(1) == {}
    assert store.rollups(1, "n") == {}


def test_a_commit_from_another_position_writes_nothing(store: Store) -> None:
    """A commit that expects other cursors than are there is refused as moved."""
    fence = store.take_lease(1, "learner", "one") or 0
    store.commit(1, fence, "", Commit("a", {}, {}, {}))
    with pytest.raises(FencedError, match="POSITION"):
        store.commit(1, fence, "", Commit("b", {"n": b"x"}, {}, {}))
    assert store.cursors(1) == "a"
    assert store.folds(1) == {}


def test_a_commit_writes_position_and_output_together(store: Store) -> None:
    """Cursors, folds, snapshots, versions, history, rollups and generation move as one."""
    fence = store.take_lease(1, "learner", "one") or 0
    generation = store.changes(1).served
    snapshots = {"a/x": (3, b"snap-x"), "a/y": (4, b"snap-y")}
    rollups = {"a/x": {"e1": b"1", "e2": b"2"}, "a/y": {"e1": b"3"}}
    store.commit(1, fence, "", Commit("at", {"a/x": b"fold"}, snapshots, rollups))
    assert store.cursors(1) == "at"
    assert store.folds(1) == {"a/x": b"fold"}
    assert store.versions(1) == {"a/x": 3, "a/y": 4}
    assert store.snapshots(1, ["a/x", "a/y", "a/z"]) == {
        "a/x": b"snap-x",
        "a/y": b"snap-y",
    }
    assert store.rollups(1, "a/x") == {"e1": b"1", "e2": b"2"}
    assert store.rollups(1, "a/y") == {"e1": b"3"}
    assert store.changes(1).served == generation + 1
    history = list(store.read(keys.history(1), NO_POSITION))
    assert [_published(entry) for entry in history] == [
        ("a/x", 3, b"snap-x"),
        ("a/y", 4, b"snap-y"),
    ]


def test_a_commit_without_snapshots_changes_nothing_served(store: Store) -> None:
    """Workers are not woken by a commit that publishes nothing."""
    fence = store.take_lease(1, "learner", "one") or 0
    generation = store.changes(1).served
    store.commit(1, fence, "", NOTHING)
    assert store.changes(1).served == generation


def _published(entry: Entry) -> tuple[str, int, bytes]:
    fields = entry.fields
    return fields[b"name"].decode(), int(fields[b"version"]), fields[b"snapshot"]


# --- records, corrections, keys -----------------------------------------------------------


def test_a_record_is_written_only_over_the_version_it_was_read_at(store: Store) -> None:
    """Of two changes from the same version one is written; the other learns of it."""
    shard = store.shard("acme", "hats")
    assert store.put_record(record(1), None, "created", AUTHOR)
    assert not store.put_record(record(1), None, "created", AUTHOR)
    assert store.put_record(record(2), 1, "changed", AUTHOR)
    assert not store.put_record(record(3), 1, "changed", AUTHOR)
    assert store.record("acme", "hats") == record(2)
    assert store.records(shard) == {"acme/hats": record(2)}
    kinds = [e.fields[b"kind"] for e in store.read(keys.control(shard), NO_POSITION)]
    assert kinds == [b"created", b"changed"]


def test_of_racing_writers_of_a_record_one_wins(store: Store) -> None:
    """Eight threads that change one version of a record write it once."""
    store.put_record(record(1), None, "created", AUTHOR)
    won: list[bool] = []

    def change() -> None:
        won.append(store.put_record(record(2), 1, "changed", AUTHOR))

    threads = [threading.Thread(target=change) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [False] * 7 + [True]


def test_the_newest_correction_stands_and_wakes_workers(store: Store) -> None:
    """A correction replaces the one before, is a fact in the log, and is noticed."""
    shard = store.shard("acme", "hats")
    generation = store.changes(shard).served
    for watermark_ms in (1, 2):
        store.put_correction("acme", "hats", {"watermark_ms": watermark_ms}, AUTHOR)
    assert store.corrections(shard) == {"acme/hats": {"watermark_ms": 2}}
    assert store.changes(shard).served == generation + 2
    assert len(list(store.read(keys.control(shard), NO_POSITION))) == 2


def test_a_record_that_cannot_be_read_is_told_and_the_others_stay(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is passed over, or the last that could be read stays; told once for its bytes."""
    assert store.put_record(record(1), None, "created", AUTHOR)
    shard = store.shard("acme", "hats")
    assert store.records(shard) == {"acme/hats": record(1)}
    for name in ("acme/hats", "acme/caps"):
        store._redis.hset(keys.records(shard), name, b'{"tenant": 3}')
    for _ in range(3):
        assert store.records(shard) == {"acme/hats": record(1)}
    told = [
        r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()
    ]
    assert len(told) == 2
    assert any("acme/hats cannot be read, the last one stays" in text for text in told)


def test_changes_of_records_and_corrections_are_told_apart(store: Store) -> None:
    """Each moves its own number and that of all."""
    shard = store.shard("acme", "hats")
    before = store.changes(shard)
    store.put_record(record(1), None, "created", AUTHOR)
    store.put_correction("acme", "hats", {"watermark_ms": 1}, AUTHOR)
    store.put_correction("acme", "hats", {"watermark_ms": 2}, AUTHOR)
    after = store.changes(shard)
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 1, 2]
    assert store.correction(shard, "acme/hats") == {"watermark_ms": 2}
    assert store.correction(shard, "acme/none") is None
    assert (
        store.corrections(shard)["acme/hats"] is store.corrections(shard)["acme/hats"]
    )


def test_one_refresh_at_a_time(store: Store) -> None:
    """The refresh lease is refused while it is held, and free afterwards."""
    lease = keys.REFRESH_LEASE
    with store.alone(lease, "a", 60_000) as first, store.alone(lease, "b", 1) as second:
        assert (first, second) == (True, False)
    with store.alone(lease, "c", 60_000) as third:
        assert third


def test_api_keys_are_kept_and_their_changes_noticed(store: Store) -> None:
    """A key comes back as it was written, and every change raises the generation."""
    key = ApiKey("id", "acme", ["decide"], "hash", 1)
    assert store.api_keys_generation() == 0
    store.put_api_key(key, AUTHOR)
    store.put_api_key(key._replace(revoked=True), AUTHOR)
    assert store.api_keys() == [key._replace(revoked=True)]
    assert store.api_keys_generation() == 2


def test_the_number_of_shards_is_fixed_at_first_use(embedded: EmbeddedStore) -> None:
    """A store that was opened with four shards has four, whatever is asked later."""
    first, second = Store(embedded.url), Store(embedded.url)
    first._redis.flushall()
    first.open(4)
    second.open(16)
    assert (first.shards, second.shards) == (4, 4)
    assert first.shard("acme", "hats") == second.shard("acme", "hats")
    first.close()
    second.close()


# --- a store that does not answer ----------------------------------------------------------


def test_a_store_that_is_down_says_so_at_once() -> None:
    """A refused connection is a StoreDownError within a tenth of the time-out."""
    with short_folder() as folder:
        store = Store(f"unix://{folder}/nobody.sock", timeout_s=50.0)
        began = time.monotonic()
        with pytest.raises(StoreDownError):
            store.open(4)
        with pytest.raises(StoreDownError):
            store.append("w", [block(1)])
        assert time.monotonic() - began < 5.0
        store.close()


def test_a_store_that_hangs_is_given_up_after_the_time_out() -> None:
    """A server that takes the connection and never answers costs one time-out."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        store = Store(f"redis://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2)
        began = time.monotonic()
        with pytest.raises(StoreDownError):
            store.tick(0)
        assert time.monotonic() - began < 10.0
        store.close()


def test_a_store_that_hangs_is_connected_to_once_for_all_blocks() -> None:
    """However many shards and streams blocks go to, one time-out is spent on them."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        store = Store(f"redis://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.1)
        streams = [(n, stream) for n in range(4) for stream in ("decisions", "events")]
        with pytest.raises(StoreDownError):
            store.append("w", [Block(stream, n, 1, b"x", {}) for n, stream in streams])
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()
        store.close()


def test_a_store_that_refuses_is_a_store_that_is_down(store: Store) -> None:
    """An error of the server, such as a key of the wrong kind, is a StoreDownError."""
    store._redis.set(keys.decisions(1), "not a stream")
    with pytest.raises(StoreDownError, match="WRONGTYPE"):
        store.append("w", [block(1)])


def test_a_client_goes_on_after_the_store_was_restarted() -> None:
    """What was written is there after a restart, and the same client reads it."""
    with short_folder() as folder:
        server = EmbeddedStore(folder)
        server.start()
        store = Store(server.url)
        store.open(4)
        store.append("w", [block(1, b"kept")])
        server.stop()
        with pytest.raises(StoreDownError):
            store.tick(1)
        server.start()
        assert payloads(store) == [b"kept"]
        store.append("w", [block(1, b"kept")])
        assert payloads(store) == [b"kept"]
        store.close()
        server.stop()


def test_a_folder_has_one_server_at_a_time(embedded: EmbeddedStore) -> None:
    """A second server on the same folder is refused, and the first goes on."""
    data_dir: Path = embedded.folder.parent
    with pytest.raises(EmbeddedStoreError, match="in use"):
        EmbeddedStore(data_dir).start()
    assert embedded.running()


def test_names_join_tenant_and_experiment() -> None:
    """The name of an experiment in keys is its tenant, a slash and its id."""
    assert name_of("acme", "hats") == "acme/hats"


def test_a_lease_renewed_late_keeps_its_fence(store: Store) -> None:
    """A holder that was slow goes on, unless another took over; then it must load anew."""
    fence = store.take_lease(1, "learner", "slow")
    store._redis.delete(keys.lease(1, "learner"))  # as if it had run out
    assert store.take_lease(1, "learner", "slow") == fence
    store._redis.delete(keys.lease(1, "learner"))
    heir = store.take_lease(1, "learner", "heir")
    assert heir is not None
    assert heir != fence
    assert store.take_lease(1, "learner", "slow") is None
    store.keep(keys.lease(1, "learner"), "heir", 0)
    assert store.take_lease(1, "learner", "slow") == heir + 1
