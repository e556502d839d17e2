"""Explaining a decision: what is found of it, wherever it lies, and that it draws the same."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bandolero.lake.catalog import Lake
from bandolero_service import keys
from bandolero_service.archive import archive
from bandolero_service.errors import ApiError
from bandolero_service.events import EventDesk
from bandolero_service.explain import explain
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from service_helpers import experiment, needs_server
from worker import Worker

pytestmark = needs_server


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Iterator[Worker]:
    """A worker on an empty store."""
    worker = Worker(store, Settings(data_dir=tmp_path, flush_interval_s=0.01))
    yield worker
    worker.close()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


def explained(worker: Worker, lake: Lake, decision: dict[str, Any]) -> dict[str, Any]:
    """The explanation of one of acme's decisions."""
    signer = worker.views.signer("acme")
    return explain(worker.store, lake, signer, "acme", decision["decision_id"])


def assert_same(worker: Worker, lake: Lake, decisions: list[dict[str, Any]]) -> None:
    """Every explanation repeats the answer and draws it again."""
    for decision in decisions:
        told = explained(worker, lake, decision)
        assert told["rederived"]["same"] is True, told
        assert told["variant"] == decision["variant"]["id"]
        assert told["propensity"] == decision["propensity"]
        assert told["mode"] == decision["mode"]
        assert told["probabilities"][told["variant"]] == pytest.approx(
            decision["propensity"], rel=1e-6
        )
        assert sum(told["probabilities"].values()) == pytest.approx(1.0)


def decided(worker: Worker, n: int = 10) -> list[dict[str, Any]]:
    """Decisions of every kind: whole and narrowed, with a unit, held out or not."""
    return [
        worker.decide("hats", **fields)
        for i in range(n)
        for fields in ({}, {"unit": f"u{i}"}, {"eligible": ["v3", "v1", "v0"]})
    ]


@pytest.mark.parametrize("sticky", ["none", "unit"])
@pytest.mark.parametrize("version", [0, 5], ids=["cold", "live"])
def test_decisions_of_every_kind_draw_the_same_again(
    worker: Worker, lake: Lake, sticky: str, version: int
) -> None:
    """Cold or live, explored, held out, narrowed or sticky: the same variant and chance."""
    shares = {"holdout_share": 0.3, "min_share": 0.1, "sticky": sticky}
    record = worker.put(experiment("hats", 4, allocation=shares))
    if version > 0:
        worker.publish(record, version)
    decisions = decided(worker, 30)
    assert {d["mode"] for d in decisions} == {"explore", "holdout"}
    assert {d["snapshot_version"] for d in decisions} == {version}
    worker.writer.stop()
    assert_same(worker, lake, decisions)


def test_fixed_and_fallback_decisions_draw_the_same_again(
    worker: Worker, lake: Lake
) -> None:
    """A fixed split re-derives cold and live, and so does a paused experiment's control."""
    weights = {"v0": 0.5, "v1": 0.3, "v3": 0.2}
    policy = {"kind": "fixed", "weights": weights}
    record = worker.put(experiment("hats", 4, policy=policy))
    decisions = decided(worker, 5)
    worker.publish(record, 1)
    decisions += decided(worker, 5)
    worker.act("hats", "pause")
    decisions += decided(worker, 2)
    assert {d["mode"] for d in decisions} == {"fixed", "fallback"}
    worker.writer.stop()
    assert_same(worker, lake, decisions)


def test_a_later_change_of_stickiness_does_not_matter(
    worker: Worker, lake: Lake
) -> None:
    """A decision is re-derived by the rules of its own snapshot, not by today's."""
    spec = experiment("hats", 4, allocation={"sticky": "unit"})
    worker.publish(worker.put(spec), 1)
    decisions = [worker.decide("hats", unit=f"u{i}") for i in range(5)]
    worker.put({**spec, "allocation": {"sticky": "none"}})
    worker.writer.stop()
    assert_same(worker, lake, decisions)


def test_a_decision_is_found_in_the_lake_when_the_log_has_forgotten_it(
    worker: Worker, lake: Lake
) -> None:
    """Archived and gone from the log, a decision and its events are told as before."""
    window = {
        "attribution_window_s": 600.0
    }  # open before and after, however long it takes
    record = worker.put(experiment("hats", 4, objective=window))
    worker.publish(record, 1)
    decisions = decided(worker, 3)
    event = {
        "event_id": "e1",
        "decision_id": decisions[0]["decision_id"],
        "type": "click",
    }
    told(worker, [event, event])
    worker.writer.stop()
    before = [explained(worker, lake, decision) for decision in decisions]
    for shard in range(worker.store.shards):
        time.sleep(0.005)  # the archiver stops at the millisecond before its tick
        archive(worker.store, lake, shard, 10_000_000)
        for stream in (keys.decisions, keys.events, keys.history):
            worker.store._redis.xtrim(stream(shard), maxlen=0, approximate=False)
        worker.store.tick(shard)
    worker.publish(record, 2)
    after = [explained(worker, lake, decision) for decision in decisions]
    assert [len(one["events"]) for one in after] == [
        len(one["events"]) for one in before
    ]
    assert after == before
    assert_same(worker, lake, decisions)


def test_an_explanation_tells_events_and_what_they_earned(
    worker: Worker, lake: Lake
) -> None:
    """Repeated events are listed but earn once; before its close a decision is open."""
    worker.put(experiment("hats", objective={"attribution_window_s": 60.0}))
    one, other = worker.decide("hats"), worker.decide("hats")
    event = {"event_id": "e1", "decision_id": one["decision_id"], "type": "click"}
    told(worker, [event, event])
    worker.writer.stop()
    hit, miss = explained(worker, lake, one), explained(worker, lake, other)
    assert [event["event_id"] for event in hit["events"]] == ["e1", "e1"]
    assert miss["events"] == []
    assert (hit["outcome"]["reward"], miss["outcome"]["reward"]) == (1.0, 0.0)
    assert (hit["outcome"]["settled"], hit["outcome"]["trial"]) == (False, True)


def test_what_is_not_ones_own_cannot_be_explained(worker: Worker, lake: Lake) -> None:
    """Forged ids, another tenant's decisions and what was never kept are all a 404."""
    worker.put(experiment("hats"))
    kept = worker.decide("hats")["decision_id"]
    unkept = worker.decide("hats", consent="none")["decision_id"]
    worker.writer.stop()
    for tenant, decision_id in (
        ("acme", kept[:-4] + "AAAA"),
        ("acme", "é"),
        ("acme", unkept),
        ("rival", kept),
    ):
        signer = worker.views.signer(tenant)
        with pytest.raises(ApiError) as refused:
            explain(worker.store, lake, signer, tenant, decision_id)
        assert (refused.value.status, refused.value.code) == (404, "unknown_decision")


def told(worker: Worker, events: list[dict[str, Any]]) -> None:
    """Hand acme's events over, all of them fine."""
    import msgspec

    body = msgspec.json.encode({"events": events})
    desk = EventDesk(worker.views, Settings())
    judged = desk.judge("acme", desk.read(body))
    assert judged.accepted == len(events)
    worker.writer.told(judged.rows, lambda _: None)


def test_a_context_is_told_as_it_was_understood(worker: Worker, lake: Lake) -> None:
    """An object of the declared fields, as the policy saw them; none where none is declared."""
    schema = [{"name": "device", "kind": "categorical", "levels": ["tv"]}]
    worker.put(experiment("hats", context=schema))
    worker.put(experiment("caps"))
    hats = worker.decide("hats", context={"device": "radio", "x": 1})
    caps = worker.decide("caps", context={"device": "tv"})
    worker.writer.stop()
    assert explained(worker, lake, hats)["context"] == {"device": "other"}
    assert explained(worker, lake, caps)["context"] is None
