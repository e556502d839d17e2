"""What a worker does for eligible sets in use when a new snapshot comes."""

from pathlib import Path

import pytest

from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.snapshot import Snapshot
from bandolero_service import views
from bandolero_service.audit import Author
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from service_helpers import needs_server

SETS = [(0, 1), (0, 2), (1, 2)]


def snapshot() -> Snapshot:
    """An untouched snapshot of three variants."""
    variants = [{"id": v} for v in ("a", "b", "c")]
    spec = parse_experiment({"experiment": "hats", "variants": variants})
    return views.cold_snapshot(ExperimentRecord(tenant="acme", spec=spec))


def test_sets_in_use_are_ready_before_a_snapshot_is_served() -> None:
    """Every set that the old snapshot knows, the new one knows too."""
    old, new = snapshot(), snapshot()
    for eligible in SETS:
        old.warm(eligible)
    views._warm_like(new, old)
    assert set(new.sets) == set(old.sets) == {(0, 1, 2), *SETS}
    assert new.misses == set()


def test_what_there_is_no_time_for_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time at all nothing is computed now, and everything is for later."""
    monkeypatch.setattr(views, "WARM_S", 0.0)
    old, new = snapshot(), snapshot()
    for eligible in SETS:
        old.warm(eligible)
    views._warm_like(new, old)
    assert set(new.sets) == {(0, 1, 2)}
    assert new.misses == set(SETS)


@needs_server
def test_one_experiments_fault_does_not_hide_the_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker starts, and serves all experiments but the one it cannot make a view of."""
    for name in ("broken", "hats"):
        raw = {"experiment": name, "variants": [{"id": "a"}]}
        record = ExperimentRecord(tenant="acme", spec=parse_experiment(raw))
        assert store.put_record(record, None, "created", Author("test", b"root"))
    build = views.cold_snapshot

    def faulty(record: ExperimentRecord) -> Snapshot:
        if record.experiment_id == "broken":
            raise ArithmeticError("cannot be")
        return build(record)

    monkeypatch.setattr(views, "cold_snapshot", faulty)
    seen = views.Views(store, Settings(data_dir=tmp_path))
    seen.refresh()
    assert [view.record.experiment_id for view in seen.views()] == ["hats"]
