"""What a worker last saw, on disk: kept as it changes, refused where damaged, used while
the store is down."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bandolero_service import cache as cache_module
from bandolero_service.auth import new_api_key
from bandolero_service.cache import SHARED, SeenCache
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from bandolero_service.views import Views
from service_helpers import experiment, needs_server, short_folder
from worker import AUTHOR, Worker

pytestmark = needs_server
NOBODY = "unix:///nowhere/nobody.sock"


@pytest.fixture
def settings(tmp_path: Path, embedded: EmbeddedStore) -> Settings:
    """Settings with a cache of its own."""
    return Settings(store=embedded.url, data_dir=tmp_path, secret="s")


@pytest.fixture
def worker(store: Store, settings: Settings) -> Iterator[Worker]:
    """A worker that has kept two experiments, one published, and a key."""
    worker = Worker(store, settings)
    worker.publish(worker.put(experiment("hats")), 3)
    worker.put(experiment("shoes"))
    store.put_api_key(new_api_key(b"s", "acme", ["decide"])[1], AUTHOR)
    keep(worker.views)
    yield worker
    worker.close()
    worker.views._cache.close()


def keep(views: Views) -> None:
    """See and write everything, in as many polls as it takes."""
    views.refresh()
    views._keep()
    cache = views._cache
    cache._due = dict.fromkeys(cache._due, 0.0)
    while cache._due:
        views._keep()


def files(settings: Settings) -> dict[str, int]:
    """Files of the cache by inode: one that is written is another file."""
    found = settings.cache_dir.glob("*/*.seen")
    return {str(path): path.stat().st_ino for path in found}


def begun_without_store(settings: Settings) -> Views:
    """A worker's views, begun while nothing answers where the store was."""
    views = Views(Store(NOBODY, timeout_s=0.2), settings)
    views._thread.start = lambda: None  # type: ignore[method-assign]
    views.start()
    return views


def test_a_worker_begins_with_what_was_seen_last(
    worker: Worker, settings: Settings
) -> None:
    """Same records, same snapshots bit for bit, same keys; stale, and its age is told."""
    views = begun_without_store(settings)
    assert {v.record.experiment_id for v in views.views()} == {"hats", "shoes"}
    for old in worker.views.views():
        new = views.view("acme", old.record.experiment_id)
        assert new is not None
        assert (new.record, new.shard) == (old.record, old.shard)
        assert new.snapshot.version == old.snapshot.version
        assert (
            new.snapshot.probabilities.tobytes() == old.snapshot.probabilities.tobytes()
        )
    assert views._api_keys == worker.views._api_keys != {}
    assert views.stale_shards == {0, 1, 2, 3}
    assert views.stale
    assert not views.is_blank
    assert views.age_s is not None
    assert 0.0 <= views.age_s < 60.0


def test_what_never_was_seen_is_blank(tmp_path: Path) -> None:
    """Without store and cache a worker knows nothing, not even how old that is."""
    views = begun_without_store(Settings(store=NOBODY, data_dir=tmp_path, secret="s"))
    assert views.is_blank
    assert views.views() == []
    assert views.age_s is None


def test_another_stores_cache_is_not_used(worker: Worker, settings: Settings) -> None:
    """What was seen of one store says nothing of another, whatever its password."""
    other = replace(settings, store="redis://:secret@elsewhere:6379/0")
    assert begun_without_store(other).is_blank
    same = SeenCache(settings.cache_dir, "redis://:one@host:1")
    again = SeenCache(settings.cache_dir, "redis://:two@host:1")
    assert same._folder == again._folder


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "foreign"])
def test_damaged_bytes_are_refused_and_the_others_served(
    worker: Worker, settings: Settings, damage: str
) -> None:
    """A damaged file costs its experiment only, and never the start."""
    path = worker.views._cache._path("acme/hats")
    data = path.read_bytes()
    bad = {
        "cut": data[:-10],
        "altered": data[:200] + bytes([data[200] ^ 1]) + data[201:],
        "empty": b"",
        "foreign": b"{}" * 100,
    }
    path.write_bytes(bad[damage])
    views = begun_without_store(settings)
    assert [v.record.experiment_id for v in views.views()] == ["shoes"]


def test_every_altered_byte_is_noticed(worker: Worker, settings: Settings) -> None:
    """No single byte of what all share can change without being noticed."""
    path = worker.views._cache._path(SHARED)
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 0x20]) + data[i + 1 :])
        assert worker.views._cache.shared() is None, i


def test_only_what_changed_is_written(worker: Worker, settings: Settings) -> None:
    """A changed experiment is one file written; an unchanged poll writes nothing."""
    before = files(settings)
    assert len(before) == 3
    keep(worker.views)
    assert files(settings) == before
    worker.act("hats", "pause")
    worker.views._keep()
    now = files(settings)
    assert [p for p in now if now[p] != before[p]] == [
        str(worker.views._cache._path("acme/hats"))
    ]


def test_a_snapshot_waits_and_a_record_does_not(
    worker: Worker, settings: Settings
) -> None:
    """Snapshots come every second, and are written every ten; a stop is written at once."""
    record = worker.act("hats", "pause")
    keep(worker.views)
    path, before = worker.views._cache._path("acme/hats"), files(settings)
    for version in (4, 5):
        worker.publish(record, version)
        worker.views._keep()
    assert files(settings) == before
    worker.act("hats", "stop")
    worker.views._keep()
    assert files(settings)[str(path)] != before[str(path)]
    recalled = begun_without_store(settings).view("acme", "hats")
    assert recalled is not None
    assert (recalled.record.status, recalled.snapshot.version) == ("stopped", 5)


def test_writing_stops_when_its_time_is_over(
    worker: Worker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has changed, a poll writes as much as fits, and the rest comes later."""
    for version, name in enumerate(["a", "b", "c"]):
        worker.publish(worker.put(experiment(name)), version + 1)
    monkeypatch.setattr(cache_module, "WRITE_S", -1.0)
    before = files(settings)
    worker.views._keep()
    assert files(settings) == before
    monkeypatch.undo()
    keep(worker.views)
    assert len(files(settings)) == len(before) + 3


def test_of_workers_that_share_a_folder_one_writes(
    worker: Worker, store: Store, settings: Settings
) -> None:
    """The second writes nothing until the first is gone; then it writes everything anew."""
    second = Views(store, settings)
    before = files(settings)
    second.refresh()
    second._keep()
    assert files(settings) == before
    worker.views._cache.close()
    keep(second)
    now = files(settings)
    assert now.keys() == before.keys()
    assert all(now[path] != before[path] for path in now)
    second._cache.close()


def test_a_full_disk_is_no_reason_to_stop(
    worker: Worker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails is tried again later; the worker goes on."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    worker.act("hats", "pause")
    worker.views._keep()
    assert "acme/hats" in worker.views._cache._due
    monkeypatch.undo()
    keep(worker.views)
    recalled = begun_without_store(settings).view("acme", "hats")
    assert recalled is not None
    assert recalled.record.status == "paused"


def test_an_experiment_that_is_gone_is_forgotten(
    worker: Worker, store: Store, settings: Settings
) -> None:
    """What a store that came back does not know any more is neither served nor kept."""
    store._redis.flushall()
    store.open(4)
    worker.views._seen.clear()
    keep(worker.views)
    assert worker.views.views() == []
    assert list(files(settings)) == [str(worker.views._cache._path(SHARED))]


def test_a_worker_goes_live_by_itself(settings: Settings) -> None:
    """Stale while the store is down, and live with the first poll that finds it again."""
    with short_folder() as folder:
        server = EmbeddedStore(folder)
        server.start()
        own = replace(settings, store=server.url)
        store = Store(server.url)
        store.open(4)
        worker = Worker(store, own)
        worker.publish(worker.put(experiment("hats")), 3)
        keep(worker.views)
        worker.close()
        worker.views._cache.close()
        server.stop()
        views = Views(Store(server.url), own)
        views._thread.start = lambda: None  # type: ignore[method-assign]
        views.start()
        assert views.stale_shards == {0, 1, 2, 3}
        server.start()
        views.refresh()
        assert views.stale_shards == frozenset()
        assert views.age_s is not None
        assert views.age_s < 5.0
        server.stop()
