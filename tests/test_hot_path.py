"""Fast ways give what the plain ones give: rows by column, batches, contexts read once."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandolero.experiment import (
    CategoricalField,
    ContextField,
    CyclicField,
    NumericField,
)
from bandolero.fold import FALLBACK
from bandolero.log import DECISIONS
from bandolero.snapshot import RENORMALISED, decide
from bandolero_service.contexts import (
    MAX_CONTEXT_BYTES,
    MAX_CONTEXTS,
    MAX_REMEMBERED_BYTES,
    Contexts,
)
from bandolero_service.decide import DecideRequest
from bandolero_service.ids import Signer
from bandolero_service.record import (
    OWN,
    Decision,
    Outcome,
    Told,
    outcome_of,
    rows_by_shard,
)
from bandolero_service.settings import Settings
from bandolero_service.store import Store, name_of
from service_helpers import experiment, needs_server
from worker import Worker

AT_MS = 1_795_219_200_000

words = st.text(max_size=8)
shares = st.none() | st.lists(st.floats(0, 1, width=32), max_size=3)
outcomes = st.builds(
    Outcome,
    shard=st.integers(0, 3),
    tail=st.just(b""),
    mode_and_serving=st.just(("explore", "live")),
    told=st.builds(
        Told,
        tenant_id=words,
        experiment_id=words,
        spec_version=st.integers(1, 9),
        engine_version=words,
        variant_id=words,
        snapshot_version=st.integers(0, 2**32 - 1),
        eligible=st.none() | st.lists(words, max_size=3),
        rule=st.none() | words,
        mode=st.sampled_from(["explore", FALLBACK]),
        serving=words,
    ),
    propensity=st.floats(0, 1),
    probabilities=shares,
)


@st.composite
def decisions(draw: st.DrawFn) -> list[Decision]:
    """Decisions in any order, which share few outcomes."""
    some = st.sampled_from(draw(st.lists(outcomes, min_size=1, max_size=4)))
    ids = st.text("abc-_", max_size=64).map(str.encode)
    one = st.tuples(
        some,
        ids,
        st.none() | words,
        st.integers(0, 2**48),
        st.floats(0, 1),
        st.none() | words,
    )
    return draw(st.lists(one, max_size=30))


def row_of(decision: Decision) -> dict[str, Any]:
    """A decision as a row, the plain way."""
    outcome, *own = decision
    row = outcome.told._asdict() | dict(zip(OWN, own, strict=True))
    row |= {"propensity": outcome.propensity, "probabilities": outcome.probabilities}
    return row | {"decision_id": row["decision_id"].decode()}


@given(decisions())
def test_rows_by_column_are_the_rows_one_by_one(made: list[Decision]) -> None:
    """A shard's rows are its decisions in order, each as it is alone; none is missing."""
    found = {shard: rows for shard, rows, _ in rows_by_shard(made)}
    for shard in range(4):
        mine = [row_of(d) for d in made if d[0].shard == shard]
        expected = pa.RecordBatch.from_pylist(mine, DECISIONS)
        assert (shard in found) == bool(mine)
        assert not mine or found[shard].equals(expected)


@given(decisions())
def test_counts_are_those_of_the_rows(made: list[Decision]) -> None:
    """Decisions are counted by experiment and variant on their shard, without fallbacks."""
    expected: dict[tuple[int, str, str], int] = {}
    for outcome, *_ in made:
        told = outcome.told
        if told.mode != FALLBACK:
            name = name_of(told.tenant_id, told.experiment_id)
            key = (outcome.shard, name, told.variant_id)
            expected[key] = expected.get(key, 0) + 1
    found = {
        (shard, name, variant_id): n
        for shard, _, counts in rows_by_shard(made)
        for name, by_variant in counts.items()
        for variant_id, n in by_variant.items()
    }
    assert found == expected


@given(st.lists(st.tuples(st.integers(0, 999), st.binary(min_size=8, max_size=8))))
def test_ids_minted_together_are_those_minted_alone(
    made: list[tuple[int, bytes]],
) -> None:
    """Ids of one experiment, time and version are the same one by one and all at once."""
    signer, key = Signer(b"secret", "acme"), b"8 bytes."
    arms, nonces = [arm for arm, _ in made], [nonce for _, nonce in made]
    together = signer.mint_alike(3, key, AT_MS, 7, arms, nonces)
    alone = [signer.mint(3, key, AT_MS, 7, arm, nonce) for arm, nonce in made]
    assert together == alone


# --- batches -------------------------------------------------------------------------------


@pytest.fixture
def worker(store: Store, tmp_path: Path) -> Iterator[Worker]:
    """A worker on an empty store."""
    worker = Worker(store, Settings(data_dir=tmp_path, flush_interval_s=0.01))
    yield worker
    worker.close()


def requests() -> list[dict[str, Any]]:
    """Every kind of request, good and bad, for experiments of every kind, mixed."""
    more: list[dict[str, Any]] = [
        {},
        {"unit": "u"},
        {"unit": "x" * 257},
        {"unit": "v", "context": {"device": "tv", "email": "a@b.c"}},
        {"context": None},
        {"context": 3},
        {"eligible": ["v0", "v2"]},
        {"eligible": ["nobody"]},
        {"unit": "u", "consent": "contextual"},
        {"unit": "u", "consent": "none", "context": {"device": "tv"}},
        {"unit": "u", "trackers": True},
    ]
    names = ("plain", "sticky", "linear", "paused", "narrow", "nowhere")
    return [{"experiment": name, **one} for one in more for name in names]


def same_world(worker: Worker, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """From here on time stands still and nonces count from `first`."""
    monkeypatch.setattr("time.time_ns", lambda: AT_MS * 1_000_000)
    counted = (n.to_bytes(8, "big") for n in itertools.count(first))
    monkeypatch.setattr(worker.decider, "_nonces", counted)


def start_all(worker: Worker) -> None:
    """Experiments of every kind."""
    schema = [{"name": "device", "kind": "categorical", "levels": ["tv", "pc"]}]
    worker.put(experiment("plain", 4, context=schema))
    allocation = {"holdout_share": 0.4, "sticky": "unit"}
    worker.put(experiment("sticky", 4, allocation=allocation))
    linear = {"kind": "linear_thompson"}
    worker.put(experiment("linear", 4, policy=linear, context=schema))
    worker.put(experiment("paused", 4))
    worker.act("paused", "pause")
    record = worker.put(experiment("narrow", 4))
    worker.publish(record, 1)
    worker.pause_variant("narrow", "v1")


@needs_server
def test_a_batch_answers_and_records_what_its_items_would_alone(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same nonces at the same time, answers and rows are equal to the byte."""
    start_all(worker)
    bodies = [msgspec.json.encode(one) for one in requests()]
    decoded = [msgspec.json.decode(body, type=DecideRequest) for body in bodies]
    for number, one in enumerate(decoded):
        usual = [o for o in decoded if o.experiment == one.experiment and o.is_usual]
        some = usual if one.is_usual else [one]
        same_world(worker, monkeypatch, number * 100)
        together = worker.decider.answers("acme", some)
        same_world(worker, monkeypatch, number * 100)
        alone = [worker.decider._answer_or_refusal("acme", o, AT_MS) for o in some]
        assert together == alone
    seen: dict[str, list[Any]] = {}
    for row in worker.logged():
        told = {k: v for k, v in row.items() if k not in ("log_id", "log_ms")}
        seen.setdefault(row["decision_id"], []).append(told)
    assert len(seen) > 60
    assert all(len(both) == 2 and both[0] == both[1] for both in seen.values())


@needs_server
def test_answers_of_a_mixed_batch_are_in_order(worker: Worker) -> None:
    """Every answer is that of the request in its place, whatever stands beside it."""
    start_all(worker)
    decoded = [
        msgspec.json.decode(msgspec.json.encode(one), type=DecideRequest)
        for one in requests()
    ]
    answers = map(json.loads, worker.decider.answers("acme", decoded))
    for one, answer in zip(decoded, answers, strict=True):
        if one.experiment == "nowhere":
            assert answer["error"]["code"] == "unknown_experiment"
        elif one.unit is not None and len(one.unit) > 256:
            assert answer["error"]["field"] == "unit"
        elif one.eligible == ["nobody"]:
            assert answer["error"]["code"] == "nothing_eligible"
        elif bytes(one.context or b"") == b"3":
            assert answer["error"]["field"] == "context"
        else:
            assert answer["experiment"] == one.experiment
            assert ("trackers" in answer) == one.trackers


@needs_server
def test_contexts_beyond_those_remembered_are_read_as_well(worker: Worker) -> None:
    """More contexts than a view remembers are each logged as given, twice over."""
    schema = [{"name": "hour", "kind": "numeric"}]
    worker.put(experiment("plain", context=schema))
    hours = [float(i) for i in range(MAX_CONTEXTS + 10)] * 2
    for hour in hours:
        worker.decide("plain", context={"hour": hour})
    kept = [json.loads(row["context"])["hour"] for row in worker.logged()]
    assert kept == hours


def test_of_contexts_only_what_is_short_and_declared_is_remembered() -> None:
    """However much clients send, memory holds short texts and declared fields only."""
    contexts = Contexts([NumericField(kind="numeric", name="hour")])
    short, junk = b'{"hour":3,"more":["x"]}', b'{"hour":[[],[]]}'
    long = b'{"hour":3,"more":"' + b"x" * MAX_REMEMBERED_BYTES + b'"}'
    assert contexts.read(short) == ({"hour": 3.0}, '{"hour":3.0}', ("context",))
    assert contexts.read(long) == contexts.read(short)
    assert contexts.read(junk) == contexts.none._replace(ignored=("context_value",))
    assert contexts.read(short) is contexts.read(short)
    assert contexts.read(long) is not contexts.read(long)
    assert set(contexts._known) == {b"null", short, junk}


SCHEMA: list[ContextField] = [
    CategoricalField(kind="categorical", name="device", levels=["tv", 'a "b" \u00e9']),
    CyclicField(kind="cyclic", name="hour", period=24.0),
    NumericField(kind="numeric", name="age", default=7.0),
]
said = st.fixed_dictionaries(
    {},
    optional={
        "device": st.sampled_from(["tv", 'a "b" \u00e9', "radio", 3, None]),
        "hour": st.floats(allow_nan=False, allow_infinity=False)
        | st.integers()
        | words,
        "age": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        "more": words,
    },
)


@given(said)
def test_a_context_as_declared_is_read_as_any_other(context: dict[str, Any]) -> None:
    """The fast way gives the values and the meaning of the plain one, number by number."""
    contexts = Contexts(SCHEMA)
    text = json.dumps(context).encode()
    read, expected = contexts.read(text), contexts._any(text)
    assert read.given == expected.given
    assert json.loads(read.kept or "") == json.loads(expected.kept or "")
    assert read.ignored == expected.ignored


def test_a_narrowed_draw_is_recorded_with_what_it_was_drawn_with(
    worker: Worker,
) -> None:
    """A set that is warmed between draw and record changes nothing in the record."""
    worker.put(experiment("hats", n_variants=400))
    view = worker.views.view("acme", "hats")
    assert view is not None
    eligible = tuple(range(300))
    drawn = decide(view.snapshot, b"8 bytes.", eligible=eligible)
    assert drawn.rule == RENORMALISED
    view.snapshot.warm(eligible)
    outcome = outcome_of(view, drawn, eligible, "live")
    assert outcome.told.rule == RENORMALISED
    assert outcome.probabilities is not None
    assert outcome.probabilities[drawn.arm] == drawn.propensity == outcome.propensity


def test_a_context_too_long_is_refused_in_a_batch_as_alone(worker: Worker) -> None:
    """Its item gets the error that it would get alone; the one beside it is answered."""
    schema = [{"name": "hour", "kind": "numeric"}]
    worker.put(experiment("hats", context=schema))
    long = {"hour": 1, "more": "x" * MAX_CONTEXT_BYTES}
    bodies = [{"experiment": "hats", "context": c} for c in (long, {"hour": 1})]
    texts = [json.dumps(body).encode() for body in bodies]
    requests = [msgspec.json.decode(text, type=DecideRequest) for text in texts]
    refused, answered = map(json.loads, worker.decider.answers("acme", requests))
    assert refused["error"]["field"] == "context"
    assert answered["experiment"] == "hats"
