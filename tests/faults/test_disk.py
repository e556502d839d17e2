"""A full disk: events are refused rather than lost, and all goes on when there is room.

A process may not make a file longer than its limit; without room for one byte every
write to disk fails, as on a full one, and the limit can be lifted again.
"""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bandolero.lake.catalog import Lake
from faults.audit import audited, logged, settled
from faults.run import begin
from faults.stream import Stream
from service_helpers import SLOWER, Running, click, linux, needs_server, wait_for
from traffic import now

pytestmark = [
    needs_server,
    linux,
    pytest.mark.slow,
    pytest.mark.timeout(180 * SLOWER),
]


@contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """No room for what a process writes."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def silent(pid: int) -> Iterator[None]:
    """A process that lives and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_no_store_and_no_disk_means_503(server: Running) -> None:
    """Events are not accepted then; decisions are served. With room they are spooled."""
    begin(server, "full-spool")
    early, at = server.decide_many("full-spool", 40), now()
    logged(server, "full-spool", 40)
    events = [click(d, d["decision_id"][-20:], at=at) for d in early]
    told = {"events": events}
    (store,), (worker,) = server.of_role("store"), server.of_role("api")
    with silent(store.pid):
        with full_disk(worker.pid):
            answer = server.call("POST", "/v1/events", told, server.key())
            assert answer.status == 503
            assert answer.body["error"]["code"] == "not_durable"
            assert len(server.decide_many("full-spool", 10)) == 10
            time.sleep(2.0)  # the store's time-out, and some more
        answer = server.call("POST", "/v1/events", told, server.key())
        assert (answer.status, answer.body["accepted"]) == (202, len(events))
        assert server.call("GET", "/readyz").body["spool_bytes"] > 0
    dropped = server.call("GET", "/metrics", key=server.key()).body.decode()
    assert "bandolero_rows_dropped_total" in dropped
    rows = settled(server, "full-spool")
    assert sum(trials for trials, _ in rows.values()) == len(early)
    assert sum(rewards for _, rewards in rows.values()) == len(early)


def test_a_lake_that_is_full_holds_up_nobody(server: Running) -> None:
    """Nothing is archived meanwhile, all else goes on; then the lake catches up."""
    begin(server, "full-lake")
    lake = Lake(server.data_dir / "lake")
    (archiver,) = server.of_role("archiver")
    with Stream(server, "full-lake") as stream:
        with full_disk(archiver.pid):
            time.sleep(1.0)
            stuck_ms, n_before = lake.watermark_ms(), len(stream.accepted)
            time.sleep(3.0)
            assert lake.watermark_ms() == stuck_ms
            assert len(stream.accepted) > n_before
    wait_for(lambda: lake.watermark_ms() > stuck_ms, 30, "the lake goes on")
    assert server.of_role("archiver") == [archiver]
    assert stream.refused == []
    assert audited(server, "full-lake", stream) == (0, 0, 0, 0, [])
