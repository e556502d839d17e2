"""What a worker does for eligible sets in use when a new snapshot comes."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from numba.core.dispatcher import Dispatcher

from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.snapshot import (
    Snapshot,
    decide,
    snapshot_from_bytes,
    snapshot_to_bytes,
)
from bandolero_service import auth, views
from bandolero_service.audit import Author
from bandolero_service.ids import Signer
from bandolero_service.settings import Settings
from bandolero_service.store import ApiKey, Store
from service_helpers import needs_server

AUTHOR = Author("test", b"root")
SETS = [(0, 1), (0, 2), (1, 2)]
CONTEXTUAL = (
    "linear_thompson",
    "lin_ucb",
    "logistic_thompson",
    "shared_linear_thompson",
)


def signatures() -> dict[str, int]:
    """In how many ways each kernel is compiled."""
    modules = [m for name, m in sys.modules.items() if name.startswith("bandolero")]
    found = [v for module in modules for v in vars(module).values()]
    return {
        f"{one.py_func.__module__}.{one.py_func.__name__}": len(one.signatures)
        for one in found
        if isinstance(one, Dispatcher)
    }


def snapshot() -> Snapshot:
    """An untouched snapshot of three variants."""
    variants = [{"id": v} for v in ("a", "b", "c")]
    spec = parse_experiment({"experiment": "hats", "variants": variants})
    return views.cold_snapshot(ExperimentRecord(tenant="acme", spec=spec))


def test_sets_in_use_are_ready_before_a_snapshot_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every set that the old snapshot knows, the new one knows too, if there is time."""
    monkeypatch.setattr(views, "WARM_S", 60.0)
    old, new = snapshot(), snapshot()
    for eligible in SETS:
        old.warm(eligible)
    views._warm_like(new, old)
    assert set(new.sets) == set(old.sets) == {(0, 1, 2), *SETS}
    assert new.misses == set()


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="no kernels")
@pytest.mark.parametrize("kind", CONTEXTUAL)
def test_a_worker_that_is_ready_compiles_nothing_more(kind: str) -> None:
    """Cold or published, among all variants or some: kernels are those of the warm-up."""
    views.warm_up()
    before = signatures()
    context = [{"name": "device", "kind": "categorical", "levels": ["m", "d"]}]
    variants = [{"id": str(i), "attributes": {"size": i}} for i in range(4)]
    spec: Any = {"experiment": "hats", "policy": {"kind": kind}, "context": context}
    spec = parse_experiment({**spec, "variants": variants})
    cold = views.cold_snapshot(ExperimentRecord(tenant="acme", spec=spec))
    for served in (cold, snapshot_from_bytes(snapshot_to_bytes(cold))):
        for eligible in (None, (1, 3)):
            decide(served, b"n" * 16, eligible=eligible, context={"device": "m"})
    assert signatures() == before


def test_what_there_is_no_time_for_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time at all nothing is computed now, and everything is for later."""
    monkeypatch.setattr(views, "WARM_S", 0.0)
    old, new = snapshot(), snapshot()
    for eligible in SETS:
        old.warm(eligible)
    views._warm_like(new, old)
    assert set(new.sets) == {(0, 1, 2)}
    assert new.misses == set(SETS)


def test_what_comes_of_the_record_alone_is_shared() -> None:
    """A view of the same record takes the encoded creatives over; of another, it does not."""
    spec = parse_experiment({"experiment": "hats", "variants": [{"id": "a"}]})
    record = ExperimentRecord(tenant="acme", spec=spec)
    signer = Signer(b"x" * 32, "acme", b"", b"x" * 32)
    first = views.View(record, snapshot(), 0, signer)
    second = views.View(record, snapshot(), 0, signer, first)
    assert second.answers is first.answers
    assert second.contexts is first.contexts
    shown = [{"id": "a", "creative": {"headline": "new"}}]
    changed = parse_experiment({"experiment": "hats", "variants": shown})
    other = ExperimentRecord(tenant="acme", spec=changed)
    assert views.View(other, snapshot(), 0, signer, first).answers != first.answers


@needs_server
def test_one_experiments_fault_does_not_hide_the_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker starts, and serves all experiments but the one it cannot make a view of."""
    for name in ("broken", "hats"):
        raw = {"experiment": name, "variants": [{"id": "a"}]}
        record = ExperimentRecord(tenant="acme", spec=parse_experiment(raw))
        assert store.put_record(record, None, "created", AUTHOR)
    build = views.cold_snapshot

    def faulty(record: ExperimentRecord) -> Snapshot:
        if record.experiment_id == "broken":
            raise ArithmeticError("cannot be")
        return build(record)

    monkeypatch.setattr(views, "cold_snapshot", faulty)
    seen = views.Views(store, Settings(data_dir=tmp_path))
    seen.refresh()
    assert [view.record.experiment_id for view in seen.views()] == ["hats"]


@needs_server
def test_keys_read_before_a_change_do_not_undo_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two threads that take keys over, the one that read before a revocation yields."""
    seen = views.Views(store, Settings(data_dir=tmp_path))
    key = ApiKey("id", "acme", ["decide"], "hash", 1)
    store.put_api_key(key, AUTHOR)
    read, found = store.api_keys, [list[ApiKey]()]

    def slow() -> list[ApiKey]:
        found[:] = [read()]
        monkeypatch.setattr(store, "api_keys", read)
        store.put_api_key(key._replace(revoked=True), AUTHOR)
        seen._refresh_keys()
        return found[0]

    monkeypatch.setattr(store, "api_keys", slow)
    seen._refresh_keys()
    assert not found[0][0].revoked
    assert seen._api_keys["id"].revoked
    assert seen._keys_generation == store.api_keys_generation()


@needs_server
def test_a_key_checked_as_the_next_expiry_is_found_is_checked_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that falls between finding the next expiry and forgetting is forgotten."""
    seen = views.Views(store, Settings(data_dir=tmp_path))
    key = ApiKey("id", "acme", ["decide"], "hash", 1)
    find = auth.next_expiry_ms

    def checked_meanwhile(keys: Iterable[ApiKey]) -> int:
        seen.authorised[b"header", "decide"] = key
        return find(keys)

    monkeypatch.setattr(auth, "next_expiry_ms", checked_meanwhile)
    store.put_api_key(key, AUTHOR)
    seen._refresh_keys()
    assert seen.authorised == {}
    seen._next_expiry_ms = 0
    seen._forget_expired()
    assert seen.authorised == {}
