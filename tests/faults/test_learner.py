"""A learner that comes back from the dead, and a snapshot that was damaged in the store."""

import os
import signal
import time

import pytest

from bandolero_service import keys
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.store import Store, name_of
from faults.audit import audited
from faults.run import begin
from faults.stream import Stream
from service_helpers import SLOWER, Running, linux, needs_server, wait_for

pytestmark = [
    needs_server,
    linux,
    pytest.mark.slow,
    pytest.mark.timeout(180 * SLOWER),
]


def test_a_learner_that_wakes_up_late_folds_nothing_twice(server: Running) -> None:
    """One sleeps past its lease, another takes over, the first wakes: counts hold."""
    begin(server, "zombie")
    url = EmbeddedStore(server.data_dir).url
    second = Running(
        server.log.parent, "--role", "learner", environment={"BANDOLERO_STORE": url}
    )
    (first,) = server.of_role("learner")
    store = Store(url)
    store.open(4)
    shard = store.shard("acme", "zombie")

    def owner() -> str:
        return str(store._redis.get(keys.lease(shard, "learner")))

    with Stream(server, "zombie") as stream:
        before = owner()
        second.start(wait=False)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: owner() not in (before, "None"), 40, "another learner")
            time.sleep(2.0)
        finally:
            os.kill(first.pid, signal.SIGCONT)
        time.sleep(1.0)
    assert second.process is not None
    second.process.terminate()
    assert second.process.wait(20) == 0
    store.close()
    assert stream.refused == []
    assert audited(server, "zombie", stream) == (0, 0, 0, 0, [])


def test_a_damaged_snapshot_is_refused(server: Running) -> None:
    """The one before goes on serving, and the learner's next one takes its place."""
    begin(server, "damaged")
    store = Store(EmbeddedStore(server.data_dir).url)
    store.open(4)
    shard, name = store.shard("acme", "damaged"), name_of("acme", "damaged")
    version = store.versions(shard)[name]
    (good,) = store.snapshots(shard, [name]).values()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    store._redis.hset(keys.snapshots(shard), name, bytes(bad))
    store._redis.hset(keys.versions(shard), name, version + 1)
    store._redis.hincrby(keys.meta(shard), "generation", 1)
    wait_for(lambda: "damaged is refused" in server.log.read_text(), 10, "it is told")
    assert server.decide("damaged")["snapshot_version"] == version
    with Stream(server, "damaged") as stream:
        wait_for(
            lambda: server.decide("damaged")["snapshot_version"] > version,
            20,
            "the learner publishes the next one",
        )
    store.close()
    assert stream.refused == []
