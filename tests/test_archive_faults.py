"""What the archiver cannot read is put aside; what goes wrong in a shard stays there."""

import json
import threading
from base64 import b64decode
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bandolero.lake.catalog import Lake
from bandolero.lake.erase import Erasure, erase
from bandolero.log import EVENTS, write_block
from bandolero_service import archive as module
from bandolero_service.archive import STREAMS, archive, run_archiver
from bandolero_service.settings import Settings
from bandolero_service.store import Block, Store
from service_helpers import needs_server
from strategies import event

pytestmark = needs_server
LARGE = 10**9


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


def tell(store: Store, number: int) -> None:
    """Append a block of one event to shard 1."""
    row = event(event_id=f"e{number}")
    block = write_block([tuple(row.get(n) for n in EVENTS.names)], EVENTS)
    store.append("w", [Block("events", 1, number, block, {})])


@pytest.mark.parametrize("stream", STREAMS)
def test_an_entry_that_cannot_be_read_is_put_aside(
    store: Store, lake: Lake, stream: str
) -> None:
    """The rows around it are archived; it is kept with its log id and the reason, and
    is archived no second time; an erasure tells of decisions that it cannot look into."""
    tell(store, 1)
    fields: Any = {"block": b"no block", "snapshot": b"none", "name": b"\xff"}
    log_id = store._redis.xadd(STREAMS[stream](1), fields).decode()
    tell(store, 2)
    for _ in range(2):
        archive(store, lake, 1, LARGE)
    rows, bad = lake.read("events")
    assert (rows["event_id"].to_pylist(), bad) == (["e1", "e2"], [])
    (path,) = lake.paths("quarantine", ".json")
    note = json.loads(lake.read_bytes(path))
    assert path == f"quarantine/log/{stream}/s1-{log_id}.json"
    assert (note["log_id"], b64decode(note["fields"]["block"])) == (log_id, b"no block")
    assert note["reason"]
    told = erase(lake, lambda _: True, [Erasure("acme", "alice", 1)]).unreadable
    assert told == ((path,) if stream == "decisions" else ())


def test_one_shards_fault_does_not_stop_the_others(
    store: Store,
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others are archived; the fault is told once, and that shard is tried again."""
    stop, tries = threading.Event(), Counter[int]()

    def take(store: Store, lake: Lake, settings: Settings, shard: int, _: str) -> None:
        tries[shard] += 1
        if shard == 1:
            raise ArithmeticError("cannot be")
        if tries[3] == 2:
            stop.set()

    monkeypatch.setattr(module, "_archive_shard", take)
    monkeypatch.setattr(module, "STEP_S", 0.0)
    run_archiver(store, lake, Settings(archive_interval_s=0.001), stop)
    assert min(tries[shard] for shard in range(store.shards)) >= 2
    assert sum("shard 1 cannot be" in r.getMessage() for r in caplog.records) == 1
