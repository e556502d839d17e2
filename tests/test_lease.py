"""Leases that a thread renews: longer than they are, lost, and with a store away."""

from pathlib import Path
from typing import Any

import pytest

from bandolero_service import keys, refreshing
from bandolero_service.commands import CommandError, Place
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.lease import Lease, LeaseLostError, leased
from bandolero_service.settings import Settings
from bandolero_service.store import Store, StoreDownError, name_of
from service_helpers import needs_server, wait_for
from test_prior_publishing import begin

pytestmark = needs_server
WHERE = keys.REFRESH_LEASE


def steal(store: Store) -> None:
    """Have another hold the lease."""
    store._redis.set(WHERE, "thief", px=60_000)


def test_a_lease_outlives_its_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thrice nearly over, it is renewed to its full time, still ours, and free afterwards."""
    monkeypatch.setattr("bandolero_service.lease.RENEWALS", 600)
    with leased(store, WHERE, 60_000) as lease:
        assert lease is not None
        for _ in range(3):
            store._redis.pexpire(WHERE, 5_000)
            wait_for(lambda: store._redis.pttl(WHERE) > 50_000, 20, "it is renewed")
        lease.still()
        lease.sure()
        with leased(store, WHERE, 300) as other:
            assert other is None
    with leased(store, WHERE, 300) as lease:
        assert lease is not None


def test_a_lost_lease_is_told(store: Store) -> None:
    """At once by who asks the store, soon by who does not; and the thief keeps it."""
    with leased(store, WHERE, 60_000) as lease:
        assert lease is not None
        steal(store)
        lease.still()
        with pytest.raises(LeaseLostError, match="taken the lease"):
            lease.sure()
        with pytest.raises(LeaseLostError):
            lease.still()
    assert store._redis.get(WHERE) == b"thief"
    store._redis.delete(WHERE)
    with leased(store, WHERE, 1_000) as lease:
        assert lease is not None
        steal(store)
        wait_for(lambda: is_lost(lease), 30, "the thread to notice")


def is_lost(lease: Lease) -> bool:
    """Whether it has been told."""
    try:
        lease.still()
    except LeaseLostError:
        return True
    return False


def test_a_store_away_for_a_moment_does_no_harm(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks waits for it, its thread goes on, and at the end the lease just lapses."""
    keep, calls = store.keep, []

    def away(*lease: Any) -> bool:
        calls.append(lease)
        if len(calls) <= 3 or lease[2] == 0:
            raise StoreDownError("away")
        return keep(*lease)

    with leased(store, WHERE, 60_000) as lease:
        assert lease is not None
        monkeypatch.setattr(store, "keep", away)
        lease.sure()
        assert len(calls) == 4
    assert store._redis.pttl(WHERE) > 0


def test_a_night_that_lost_its_lease_publishes_nothing(
    store: Store,
    embedded: EmbeddedStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another may have begun, and ended, meanwhile; the next night publishes."""
    begin(store, "hats")
    place = Place(Settings(store=embedded.url, data_dir=tmp_path, shards=4))
    night = place, None, None, False, None, ("duckdb", "1GB", "")
    computed = refreshing._computed

    def overtaken(*found: Any) -> Any:
        steal(store)
        return computed(*found)

    def correction() -> Any:
        return store.correction(store.shard("acme", "hats"), name_of("acme", "hats"))

    with monkeypatch.context() as patch:
        patch.setattr(refreshing, "_computed", overtaken)
        with pytest.raises(CommandError, match="nothing was published"):
            refreshing.refresh(*night)
    assert correction() is None
    store._redis.delete(WHERE)
    assert refreshing.refresh(*night)
    assert correction() is not None
