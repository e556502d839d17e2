"""Writing behind: everything handed over is in the log once, whatever the store does."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bandolero.log import EVENTS, write_block
from bandolero_service import keys
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.settings import Settings
from bandolero_service.spool import Spool
from bandolero_service.store import NO_POSITION, Block, Store, blocks_of
from bandolero_service.writer import LogWriter
from log_rows import decision, event_row
from service_helpers import needs_server, short_folder, wait_for

pytestmark = needs_server


class Told:
    """Collects what the writer says of batches of events."""

    def __init__(self) -> None:
        self.failures: list[str | None] = []

    def __call__(self, failure: str | None) -> None:
        self.failures.append(failure)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a spool of its own."""
    return Settings(data_dir=tmp_path, flush_interval_s=0.01)


@pytest.fixture
def writer(store: Store, settings: Settings) -> Iterator[LogWriter]:
    """A running writer into an empty store."""
    writer = LogWriter(store, settings)
    writer.start()
    yield writer
    writer.stop()


@pytest.fixture
def fragile() -> Iterator[EmbeddedStore]:
    """A store of its own that a test stops and starts."""
    with short_folder() as folder:
        server = EmbeddedStore(folder)
        server.start()
        yield server
        server.stop()


def ids(store: Store, stream: str, shard: int = 1) -> list[str]:
    """Event or decision ids logged on a shard, in order."""
    from bandolero.log import read_block

    where = {"decisions": keys.decisions, "events": keys.events}[stream](shard)
    column = {"decisions": "decision_id", "events": "event_id"}[stream]
    entries = list(blocks_of(store.read(where, NO_POSITION)))
    return [i for at, data in entries for i in read_block(data, at)[column].to_pylist()]


def test_decisions_reach_the_log_in_order_and_are_counted(
    store: Store, writer: LogWriter
) -> None:
    """Every decision is logged once on its shard; fallbacks are in no variant's count."""
    sent = [f"d{i}" for i in range(500)]
    for i, decision_id in enumerate(sent):
        mode = "fallback" if i % 5 == 0 else "explore"
        variant = f"v{i % 2}"
        writer.decided(decision(decision_id, mode, variant))
    writer.decided(decision("elsewhere", shard=2))
    wait_for(lambda: len(ids(store, "decisions")) == 500)
    assert ids(store, "decisions") == sent
    wait_for(lambda: ids(store, "decisions", 2) == ["elsewhere"])
    assert store.decided(1, "acme/hats") == {"v0": 200, "v1": 200}


def test_events_are_acknowledged_only_once_they_are_in_the_log(
    store: Store, writer: LogWriter
) -> None:
    """When the writer says done, another client can read every event of the batch."""
    missing: list[str] = []
    threads = []
    done = threading.Barrier(9)

    def send(name: str) -> None:
        mine = [f"{name}-{i}" for i in range(20)]
        told = threading.Event()

        def check(failure: str | None) -> None:
            seen = set(ids(store, "events"))
            missing.extend(i for i in mine if i not in seen)
            missing.extend([failure] if failure else [])
            told.set()

        writer.told({1: [event_row(i) for i in mine]}, check)
        assert told.wait(10)
        done.wait(10)

    for name in "abcdefgh":
        threads.append(threading.Thread(target=send, args=(name,)))
        threads[-1].start()
    done.wait(10)
    for thread in threads:
        thread.join()
    assert missing == []
    assert len(ids(store, "events")) == 160


def test_stopping_writes_what_is_left(store: Store, settings: Settings) -> None:
    """What was handed over just before the end is in the log, and no spool is left."""
    writer = LogWriter(store, replace(settings, flush_interval_s=10.0))
    writer.start()
    time.sleep(0.05)
    for i in range(10):
        writer.decided(decision(f"d{i}"))
    told = Told()
    writer.told({1: [event_row("e")]}, told)
    writer.stop()
    assert len(ids(store, "decisions")) == 10
    assert ids(store, "events") == ["e"]
    assert told.failures == [None]
    assert list(settings.spool_dir.iterdir()) == []


def test_an_outage_loses_nothing_and_doubles_nothing(
    fragile: EmbeddedStore, settings: Settings
) -> None:
    """Before, while and after the store is down, what is accepted is logged exactly once."""
    store = Store(fragile.url, timeout_s=1.0)
    store.open(4)
    writer = LogWriter(store, settings)
    writer.start()
    told = Told()

    def send(name: str) -> None:
        for i in range(30):
            writer.decided(decision(f"{name}{i}"))
            writer.told({1: [event_row(f"{name}{i}")]}, told)
            time.sleep(0.002)

    send("before")
    wait_for(lambda: len(told.failures) == 30)
    fragile.stop()
    send("while")
    wait_for(lambda: len(told.failures) == 60)
    assert writer.store_down
    assert writer.spool_bytes > 0
    fragile.start()
    send("after")
    wait_for(lambda: len(told.failures) == 90)
    wait_for(lambda: writer.spool_bytes == 0 and not writer.store_down)
    writer.stop()
    expected = [
        f"{name}{i}" for name in ("before", "while", "after") for i in range(30)
    ]
    assert told.failures == [None] * 90
    assert ids(store, "events") == expected
    assert ids(store, "decisions") == expected
    assert store.decided(1, "acme/hats") == {"v0": 90}
    store.close()


def test_an_answer_that_comes_too_late_doubles_nothing(
    fragile: EmbeddedStore, settings: Settings
) -> None:
    """Blocks the store took without the writer hearing of it are not logged again."""
    store = Store(fragile.url, timeout_s=0.3)
    store.open(4)
    writer = LogWriter(store, settings)
    writer.start()
    told = Told()
    assert fragile.process is not None
    pid = fragile.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for i in range(5):
            writer.told({1: [event_row(f"e{i}")]}, told)
            time.sleep(0.15)
        wait_for(lambda: len(told.failures) == 5)
        assert writer.spool_bytes > 0
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: writer.spool_bytes == 0)
    writer.stop()
    assert told.failures == [None] * 5
    assert ids(store, "events") == [f"e{i}" for i in range(5)]
    store.close()


def test_a_full_spool_refuses_events_and_counts_decisions(
    fragile: EmbeddedStore, settings: Settings
) -> None:
    """With the store down and no room on disk events are refused, and work goes on after."""
    store = Store(fragile.url, timeout_s=1.0)
    store.open(4)
    writer = LogWriter(store, replace(settings, spool_max_bytes=1))
    writer.start()
    fragile.stop()
    told = Told()
    writer.decided(decision("lost"))
    writer.told({1: [event_row("refused")]}, told)
    wait_for(lambda: len(told.failures) == 1 and writer.dropped == 1)
    assert "bound" in str(told.failures[0])
    fragile.start()

    def accepted() -> bool:
        writer.told({1: [event_row("again")]}, told)
        time.sleep(0.1)
        return told.failures[-1] is None

    wait_for(accepted)
    writer.stop()
    assert set(ids(store, "events")) == {"again"}
    store.close()


def test_a_writer_adopts_what_the_dead_left(store: Store, settings: Settings) -> None:
    """Blocks in a dead writer's spool reach the log once, also those it had sent before."""
    dead = Spool(settings.spool_dir, "dead", settings.spool_max_bytes)
    blocks = [
        Block("events", 1, n, write_block([event_row(f"e{n}")], EVENTS), {})
        for n in range(1, 101)
    ]
    dead.append(blocks)
    store.append("dead", blocks[:30])
    os.truncate(dead.path, dead.size - 3)  # the last one was cut short: never accepted
    dead.close()
    writer = LogWriter(store, settings)
    writer.start()
    wait_for(lambda: not dead.path.exists())
    writer.stop()
    assert ids(store, "events") == [f"e{n}" for n in range(1, 100)]


def test_a_writer_adopts_later_what_it_could_not_at_first(
    fragile: EmbeddedStore, settings: Settings
) -> None:
    """A dead writer's spool found while the store is down is in the log once it is back."""
    store = Store(fragile.url, timeout_s=1.0)
    store.open(4)
    fragile.stop()
    dead = Spool(settings.spool_dir, "dead", settings.spool_max_bytes)
    dead.append([Block("events", 1, 1, write_block([event_row("e")], EVENTS), {})])
    dead.close()
    writer = LogWriter(store, settings)
    writer.start()
    time.sleep(0.2)
    assert dead.path.exists()
    fragile.start()
    wait_for(lambda: not dead.path.exists())
    writer.stop()
    assert ids(store, "events") == ["e"]
    store.close()


def test_events_do_not_wait_for_a_long_spool(store: Store, settings: Settings) -> None:
    """While much is being drained, new events are durable at its end, and in order."""
    writer = LogWriter(store, settings)
    backlog = [
        Block("events", 1, n, write_block([event_row(f"e{n}")], EVENTS), {})
        for n in range(1, 1001)
    ]
    writer._spool.append(backlog)
    writer._numbers["events"] = 1000
    left: list[int] = []
    writer.told({1: [event_row("new")]}, lambda _: left.append(writer.spool_bytes))
    writer.start()
    wait_for(lambda: writer.spool_bytes == 0 and left != [])
    writer.stop()
    assert left[0] > 0
    assert ids(store, "events") == [*(f"e{n}" for n in range(1, 1001)), "new"]


def test_a_row_that_cannot_be_written_does_not_end_the_writer(
    store: Store, writer: LogWriter
) -> None:
    """A fault in one batch is told to whoever waits for it, and the next ones are written."""
    told = Told()
    writer.told({1: [("not", "a", "row")]}, told)
    wait_for(lambda: told.failures != [])
    writer.told({1: [event_row("fine")]}, told)
    wait_for(lambda: len(told.failures) == 2)
    assert told.failures[0] is not None
    assert told.failures[1] is None
    assert Counter(ids(store, "events")) == {"fine": 1}


def test_a_spool_that_cannot_be_adopted_holds_up_nobody(
    store: Store, settings: Settings
) -> None:
    """Where the disk refuses what one of the dead left, the others' is logged, and ours."""
    for name in ("damaged", "whole"):
        dead = Spool(settings.spool_dir, name, settings.spool_max_bytes)
        dead.append([Block("events", 1, 1, write_block([event_row(name)], EVENTS), {})])
        dead.close()
    damaged = settings.spool_dir / "damaged.spool"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (settings.spool_dir / "damaged.rest").mkdir()  # nothing can be set aside there
    writer = LogWriter(store, settings)
    writer.start()
    wait_for(lambda: not (settings.spool_dir / "whole.spool").exists())
    told = Told()
    writer.told({1: [event_row("mine")]}, told)
    wait_for(lambda: told.failures == [None])
    writer.stop()
    assert ids(store, "events") == ["whole", "mine"]
    assert damaged.exists()


def test_who_has_gone_keeps_no_other_from_being_told(
    store: Store, writer: LogWriter
) -> None:
    """An answer that nobody takes any more ends neither the writer nor the other answers."""

    def gone(failure: str | None) -> None:
        raise RuntimeError("the loop is closed.")

    told = Told()
    for n in range(3):
        writer.told({1: [event_row(f"gone{n}")]}, gone)
        writer.told({1: [event_row(f"here{n}")]}, told)
        wait_for(lambda n=n: len(told.failures) == n + 1)  # type: ignore[misc]
    assert told.failures == [None] * 3
    assert writer.is_writing


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_thread_that_ended_left_is_written_at_the_end(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer whose thread has ended by itself says so; stopping it loses nothing."""

    def ends() -> None:
        raise SystemExit

    writer = LogWriter(store, settings)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_flush", ends)
        writer.start()
        wait_for(lambda: not writer.is_writing)
    told = Told()
    writer.decided(decision("d"))
    writer.told({1: [event_row("e")]}, told)
    writer.stop()
    assert (ids(store, "decisions"), ids(store, "events")) == (["d"], ["e"])
    assert told.failures == [None]
