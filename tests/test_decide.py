"""Deciding in memory over a real store: who may be shown, by what chance, what is kept."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bandolero_service.decide import DecideRequest
from bandolero_service.errors import ApiError, not_decoded
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from service_helpers import experiment, needs_server
from worker import Worker

pytestmark = needs_server
N_DRAWS = 400


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Iterator[Worker]:
    """A worker on an empty store."""
    worker = Worker(store, Settings(data_dir=tmp_path, flush_interval_s=0.01))
    yield worker
    worker.close()


def shown(answers: list[dict[str, Any]]) -> Counter[str]:
    """How often each variant was shown."""
    return Counter(answer["variant"]["id"] for answer in answers)


def allocation(**fields: Any) -> dict[str, Any]:
    """An experiment of four variants with an allocation."""
    spec: dict[str, Any] = experiment("hats", 4, allocation=fields)
    return spec


# --- the request --------------------------------------------------------------------------


def test_a_unit_is_never_empty(worker: Worker) -> None:
    """What has no name could not be erased by it: refused, and the schema says so."""
    worker.put(experiment("hats"))
    with pytest.raises(msgspec.ValidationError) as told:
        worker.decide("hats", unit="")
    error = not_decoded(told.value)
    assert (error.status, error.field) == (422, "unit")
    assert "length >= 1" in error.message
    assert worker.decide("hats", unit="u")["experiment"] == "hats"
    schema = json.dumps(msgspec.json.schema(DecideRequest))
    assert '"minLength": 1' in schema


# --- status ------------------------------------------------------------------------------


def test_an_experiment_is_served_while_it_runs(worker: Worker) -> None:
    """A draft and a stopped experiment are 409, an unknown one 404, and nothing is kept."""
    codes = []
    for action in (None, "start", "stop"):
        worker.put(experiment("hats"), action=action)
        worker.views.refresh()
        try:
            codes.append(worker.decide("hats")["mode"])
        except ApiError as error:
            codes.append(f"{error.status} {error.code} {error.field}")
    assert codes == [
        "409 experiment_draft experiment",
        "explore",
        "409 experiment_stopped experiment",
    ]
    with pytest.raises(ApiError, match="caps") as unknown:
        worker.decide("caps")
    assert (unknown.value.status, unknown.value.code) == (404, "unknown_experiment")
    assert len(worker.logged()) == 1


def test_another_tenants_experiment_is_unknown(worker: Worker) -> None:
    """Whose experiment it is decides; the answer does not tell that it exists."""
    from bandolero_service.decide import DecideRequest

    worker.put(experiment("hats"))
    with pytest.raises(ApiError) as refused:
        worker.decider.answer("rival", DecideRequest(experiment="hats"))
    assert refused.value.status == 404


def test_a_paused_experiment_serves_its_control(worker: Worker) -> None:
    """Paused, everyone sees the control as fallback, or the first one that is eligible."""
    worker.put(experiment("hats", control="v1"))
    worker.act("hats", "pause")
    control = worker.decide("hats")
    assert (control["variant"]["id"], control["propensity"]) == ("v1", 1.0)
    assert (control["mode"], control["fallback"]) == ("fallback", True)
    assert worker.decide("hats", eligible=["v2", "v0"])["variant"]["id"] == "v0"
    worker.act("hats", "start")
    assert worker.decide("hats")["mode"] == "explore"
    rows = worker.logged()
    assert [row["mode"] for row in rows] == ["fallback", "fallback", "explore"]
    assert worker.store.decided(worker.store.shard("acme", "hats"), "acme/hats") == {
        rows[2]["variant_id"]: 1
    }


# --- eligible -----------------------------------------------------------------------------


def test_only_eligible_variants_are_shown(worker: Worker) -> None:
    """A narrowed request gets its variants only, with the chances among them."""
    worker.put(experiment("hats", 4))
    answers = [worker.decide("hats", eligible=["v3", "v1"]) for _ in range(N_DRAWS)]
    counts = shown(answers)
    assert counts.keys() == {"v1", "v3"}
    # Each is drawn with probability 1/2; six standard deviations, so 2e-9 false alarms.
    assert abs(counts["v1"] - N_DRAWS / 2) < 6 * (N_DRAWS / 4) ** 0.5
    assert {answer["propensity"] for answer in answers} == {0.5}
    assert worker.decide("hats", eligible=["v2"])["propensity"] == 1.0
    row = worker.logged()[0]
    assert (row["eligible"], row["probabilities"]) == (["v1", "v3"], [0.5, 0.5])
    assert row["rule"] == "exact"


def test_unknown_ids_in_eligible_are_ignored_and_counted(worker: Worker) -> None:
    """Ids nobody knows, and paused ones, drop out; 422 only where none is left."""
    worker.put(experiment("hats", 4))
    worker.pause_variant("hats", "v3")
    answer = worker.decide("hats", eligible=["nobody", "v2", "v3"])
    assert (answer["variant"]["id"], answer["propensity"]) == ("v2", 1.0)
    assert worker.decider.ignored["eligible"] == 1
    for none_left in (["nobody"], ["v3"], []):
        with pytest.raises(ApiError, match="eligible") as refused:
            worker.decide("hats", eligible=none_left)
        assert (refused.value.status, refused.value.field) == (422, "eligible")
    assert len(worker.logged()) == 1


def test_a_paused_variant_is_not_shown_from_an_older_snapshot(worker: Worker) -> None:
    """A worker that knows of the pause before the learner serves the others, and says so."""
    record = worker.put(experiment("hats", 3))
    worker.publish(record, 7)
    worker.pause_variant("hats", "v1")
    answers = [worker.decide("hats") for _ in range(50)]
    assert {answer["snapshot_version"] for answer in answers} == {7}
    assert shown(answers).keys() == {"v0", "v2"}
    assert all(row["eligible"] == ["v0", "v2"] for row in worker.logged())


def test_a_variant_newer_than_the_snapshot_is_shown_where_no_other_may_be(
    worker: Worker,
) -> None:
    """Until the next snapshot knows it nothing is drawn: it is the fallback of all."""
    worker.publish(worker.put(experiment("hats", 2, control="v0")), 7)
    worker.put(experiment("hats", 3, control="v0"), action=None)
    for old in ("v0", "v1"):
        worker.pause_variant("hats", old)
    answer = worker.decide("hats")
    assert (answer["variant"]["id"], answer["propensity"]) == ("v2", 1.0)
    assert (answer["mode"], answer["fallback"]) == ("fallback", True)
    (row,) = worker.logged()
    assert (row["variant_id"], row["eligible"]) == ("v2", ["v2"])


# --- draws -------------------------------------------------------------------------------


def test_the_record_holds_what_was_answered(worker: Worker) -> None:
    """Propensity, variant, mode, version and id are the same in answer and log, to the bit."""
    spec = experiment("hats", 4, allocation={"holdout_share": 0.3, "min_share": 0.02})
    record = worker.put(spec)
    answers = [worker.decide("hats", unit=f"u{i}") for i in range(30)]
    worker.publish(record, 1)
    answers += [worker.decide("hats", unit=f"u{i}") for i in range(30)]
    answers += [worker.decide("hats", eligible=["v0", "v2"]) for _ in range(30)]
    rows = {row["decision_id"]: row for row in worker.logged()}
    assert len(rows) == 90
    for answer in answers:
        row = rows[answer["decision_id"]]
        assert row["propensity"] == answer["propensity"]
        assert row["variant_id"] == answer["variant"]["id"]
        for name in ("mode", "serving", "snapshot_version"):
            assert row[name] == answer[name]
        if row["probabilities"] is None:
            assert (row["snapshot_version"], row["mode"]) == (1, "explore")
        else:
            drawn = row["probabilities"][row["eligible"].index(row["variant_id"])]
            assert drawn == pytest.approx(row["propensity"], rel=1e-6)
    assert {a["serving"] for a in answers[:30]} == {"cold"}
    assert {a["serving"] for a in answers[30:]} == {"live"}


def test_sticky_units_see_the_same_variant(worker: Worker) -> None:
    """With sticky: unit the unit fixes the draw; without a unit the decision does."""
    worker.put(allocation(sticky="unit"))
    for unit in ("one", "two", "ünit", "x" * 256):
        variants = shown([worker.decide("hats", unit=unit) for _ in range(20)])
        assert len(variants) == 1
    assert len(shown([worker.decide("hats", unit=f"u{i}") for i in range(60)])) == 4
    assert len(shown([worker.decide("hats") for _ in range(60)])) == 4
    without = [
        worker.decide("hats", unit="one", consent="contextual") for _ in range(60)
    ]
    assert len(shown(without)) == 4


def test_units_are_not_sticky_unless_asked(worker: Worker) -> None:
    """Without sticky one unit sees every variant in time."""
    worker.put(experiment("hats", 4))
    assert len(shown([worker.decide("hats", unit="one") for _ in range(60)])) == 4


def test_the_holdout_is_a_share_of_units_and_uniform(worker: Worker) -> None:
    """A unit is held out for good; the held out see every variant with equal chance."""
    worker.put(allocation(holdout_share=0.4))
    modes = {}
    for unit in map(str, range(N_DRAWS)):
        both = [worker.decide("hats", unit=unit) for _ in range(2)]
        modes[unit] = {answer["mode"] for answer in both}
        for answer in both:
            if answer["mode"] == "holdout":
                assert answer["propensity"] == 0.25
    assert all(len(mode) == 1 for mode in modes.values())
    held = sum(mode == {"holdout"} for mode in modes.values())
    # Six standard deviations of a binomial of 0.4: 2e-9 false alarms.
    assert abs(held - 0.4 * N_DRAWS) < 6 * (N_DRAWS * 0.24) ** 0.5
    narrowed = [worker.decide("hats", eligible=["v0", "v1"]) for _ in range(60)]
    assert {a["propensity"] for a in narrowed if a["mode"] == "holdout"} == {0.5}
    rows = worker.logged()
    held_rows = [row for row in rows if row["mode"] == "holdout"]
    assert {len(row["eligible"]) for row in held_rows} == {2, 4}


def test_fixed_weights_are_what_is_drawn(worker: Worker) -> None:
    """A fixed split serves by its weights, as mode fixed, and never what it leaves out."""
    weights = {"v0": 0.75, "v1": 0.25}
    worker.put(experiment("hats", 3, policy={"kind": "fixed", "weights": weights}))
    answers = [worker.decide("hats") for _ in range(N_DRAWS)]
    counts = shown(answers)
    assert counts.keys() == {"v0", "v1"}
    assert abs(counts["v0"] - 0.75 * N_DRAWS) < 6 * (N_DRAWS * 0.1875) ** 0.5
    assert {(a["variant"]["id"], a["propensity"]) for a in answers} == set(
        weights.items()
    )
    assert {answer["mode"] for answer in answers} == {"fixed"}


# --- what is kept --------------------------------------------------------------------------


def test_without_consent_nothing_is_kept(worker: Worker) -> None:
    """Consent none gets the control as fallback, and leaves no trace in the log."""
    worker.put(experiment("hats", control="v2"))
    answer = worker.decide("hats", unit="u", context={"a": 1}, consent="none")
    assert (answer["variant"]["id"], answer["mode"]) == ("v2", "fallback")
    assert worker.logged() == []


def test_a_unit_is_kept_as_a_pseudonym_and_only_with_consent(worker: Worker) -> None:
    """The raw unit is nowhere in the log; with consent contextual not even a pseudonym."""
    worker.put(experiment("hats"))
    worker.decide("hats", unit="alice@example.com")
    worker.decide("hats", unit="alice@example.com", consent="contextual")
    worker.decide("hats")
    rows = worker.logged()
    units = [row["unit"] for row in rows]
    assert units == [
        worker.views.signer("acme").pseudonym("alice@example.com"),
        None,
        None,
    ]
    assert "alice" not in json.dumps(rows)


def test_a_context_is_kept_as_its_schema_says(worker: Worker) -> None:
    """Known levels stay, unknown become other, the rest defaults; strangers are counted."""
    schema = [
        {"name": "device", "kind": "categorical", "levels": ["mobile", "desktop"]},
        {"name": "hour", "kind": "cyclic", "period": 24.0},
        {"name": "age", "kind": "numeric", "default": 5.0},
    ]
    worker.put(experiment("hats", context=schema))
    given: list[dict[str, Any] | None] = [
        {"device": "mobile", "hour": 14, "age": 3},
        {"device": "fridge", "hour": "noon", "age": True},
        {"device": 3, "age": None, "email": "a@b.c", "x": 1},
        {"email": "a@b.c"},
        {},
        None,
    ]
    for context in given:
        worker.decide("hats", context=context)
    kept = [json.loads(row["context"]) for row in worker.logged()]
    assert kept == [
        {"device": "mobile", "hour": 14.0, "age": 3.0},
        {"device": "other", "hour": 0.0, "age": 5.0},
        {"device": "other", "hour": 0.0, "age": 5.0},
        {"device": "other", "hour": 0.0, "age": 5.0},
        {"device": "other", "hour": 0.0, "age": 5.0},
        {"device": "other", "hour": 0.0, "age": 5.0},
    ]
    assert worker.decider.ignored == {"context": 2, "context_value": 2}


def test_what_is_ignored_of_a_batch_is_counted_as_alone(worker: Worker) -> None:
    """By column or one by one: undeclared fields and values of a wrong type, each once a
    request; an unknown level, a missing and a null value are none of that."""
    schema = [
        {"name": "device", "kind": "categorical", "levels": ["mobile"]},
        {"name": "hour", "kind": "cyclic", "period": 24},
    ]
    worker.put(experiment("hats", context=schema))
    contexts: list[dict[str, Any]] = [
        {"device": "mobile", "hour": 14},
        {"device": "fridge", "hour": None},
        {"hour": "14", "device": 5},
        {"hour": 10**400, "x": 1},
        {"device": True},
    ]
    for fields in ({}, {"eligible": ["v0", "v1"]}):
        texts = [
            json.dumps({"experiment": "hats", "context": context, **fields})
            for context in contexts
        ]
        requests = [msgspec.json.decode(text, type=DecideRequest) for text in texts]
        worker.decider.ignored.clear()
        worker.decider.answers("acme", requests)
        assert worker.decider.ignored == {"context": 1, "context_value": 3}


def test_a_unit_has_a_length_limit(worker: Worker) -> None:
    """A unit of 257 characters is refused by name; one of 256 is taken."""
    worker.put(experiment("hats"))
    worker.decide("hats", unit="x" * 256)
    with pytest.raises(ApiError, match="unit") as refused:
        worker.decide("hats", unit="x" * 257)
    assert (refused.value.status, refused.value.field) == (422, "unit")


def test_ids_name_their_decision(worker: Worker) -> None:
    """An id tells the shard, the version and the time it was made at."""
    record = worker.put(experiment("hats"))
    worker.publish(record, 3)
    answer = worker.decide("hats")
    read = worker.views.signer("acme").read(answer["decision_id"])
    (row,) = worker.logged()
    assert read.shard == worker.store.shard("acme", "hats")
    assert (read.snapshot_version, read.decided_at_ms) == (3, row["decided_at_ms"])
    assert record.spec.variant_ids[read.arm] == answer["variant"]["id"]
