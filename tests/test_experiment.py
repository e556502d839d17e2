"""Experiment files: what they may say, and every fault of one that is wrong, at once."""

import json
import random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bandolero.documents import MAX_FILE_BYTES
from bandolero.experiment import (
    BetaThompsonSpec,
    CategoricalField,
    CyclicField,
    Experiment,
    ExperimentRecord,
    Fault,
    InvalidExperimentError,
    Objective,
    load_experiment,
    parse_experiment,
)

# The file of design 4.4.
EXAMPLE = """
experiment: spring-hero
tenant: acme
control: v1
objective: {event: click, reward: binary, attribution_window_s: 1800, trial: decision}
metrics: [{name: revenue, event: conversion, reward: value, window_s: 604800, guardrail: false}]
currency: EUR
policy: {kind: beta_thompson}
context:
  - {name: device, kind: categorical, levels: [mobile, desktop, tablet]}
  - {name: hour, kind: cyclic, period: 24}
allocation: {holdout_share: 0.05, min_share: 0.01, sticky: none}
variants:
  - id: v1
    creative: {headline: "Frühling 🌷", description: "…", cta: "…"}
    attributes: {tone: urgent, offer: free-shipping}
  - id: v2
"""
VARIANTS = [{"id": "v1"}, {"id": "v2"}]
SMALL: dict[str, Any] = {"experiment": "hats", "variants": VARIANTS}


def faults_of(raw: object) -> list[Fault]:
    """Everything wrong with a decoded specification."""
    with pytest.raises(InvalidExperimentError) as caught:
        parse_experiment(raw)
    return caught.value.faults


def messages(raw: object) -> list[str]:
    """What its author is told."""
    return [fault.message for fault in faults_of(raw)]


def refusal(text: bytes) -> str:
    """Why a file is refused."""
    with pytest.raises(InvalidExperimentError) as caught:
        load_experiment(text)
    return str(caught.value)


# --- good files -------------------------------------------------------------------------


def test_example_of_the_design_loads() -> None:
    """The file of the design says what it seems to say."""
    spec = load_experiment(EXAMPLE.encode())
    assert (spec.experiment, spec.tenant, spec.currency) == (
        "spring-hero",
        "acme",
        "EUR",
    )
    assert spec.objective == Objective(attribution_window_s=1800)
    assert spec.objective.window_ms == 1_800_000
    assert spec.policy == BetaThompsonSpec()
    assert spec.metrics[0].window_s == 604_800
    levels = ["mobile", "desktop", "tablet"]
    assert spec.context == [
        CategoricalField(kind="categorical", name="device", levels=levels),
        CyclicField(kind="cyclic", name="hour", period=24),
    ]
    assert spec.variant_ids == ["v1", "v2"]
    assert spec.control_arm == 0
    assert spec.variants[0].attributes == {"tone": "urgent", "offer": "free-shipping"}


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("indent", [None, 1, "\t"])
def test_json_equals_yaml(ensure_ascii: bool, indent: int | str | None) -> None:
    """The same fields as JSON give an equal experiment, however the JSON is written."""
    raw = yaml.safe_load(EXAMPLE)
    text = json.dumps(raw, ensure_ascii=ensure_ascii, indent=indent)
    assert load_experiment(text.encode()) == load_experiment(EXAMPLE.encode())


@pytest.mark.parametrize("min_share", [1e-05, 1e-3, 0.25, 0])
def test_json_numbers_are_numbers(min_share: float) -> None:
    """A number as JSON writes it, such as 1e-05, is read as a number."""
    raw = SMALL | {"allocation": {"min_share": min_share}}
    spec = load_experiment(json.dumps(raw).encode())
    assert spec.allocation.min_share == min_share


def test_byte_order_mark_is_no_fault() -> None:
    """A file that an editor began with a byte-order mark loads, YAML or JSON."""
    mark = b"\xef\xbb\xbf"
    assert load_experiment(mark + EXAMPLE.encode()).experiment == "spring-hero"
    assert load_experiment(mark + json.dumps(SMALL).encode()).experiment == "hats"


def test_least_file_takes_every_default() -> None:
    """An id and variants are enough; the rest has a default, the control is the first."""
    spec = parse_experiment({"experiment": "hats", "variants": [{"id": "b"}]})
    assert spec.policy == BetaThompsonSpec()
    assert spec.objective == Objective()
    assert (spec.control_arm, spec.tenant, spec.context) == (0, None, [])
    assert spec.allocation.min_share == 0.01


def test_specification_survives_json() -> None:
    """What is stored of a specification is read back equal."""
    spec = load_experiment(EXAMPLE.encode())
    stored = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert parse_experiment(stored) == spec
    assert Experiment.model_validate(stored) == spec


def test_active_arms_leave_out_the_paused_and_retired() -> None:
    """Arms keep their number when another variant is paused."""
    variants = [{"id": f"v{i}"} for i in range(4)]
    spec = parse_experiment({"experiment": "hats", "variants": variants})
    record = ExperimentRecord(
        tenant="acme", spec=spec, variant_states={"v0": "paused", "v2": "retired"}
    )
    assert record.active_arms == (1, 3)
    assert record.experiment_id == "hats"


# --- faults -------------------------------------------------------------------------------


def test_every_fault_is_listed_at_once() -> None:
    """Ten faults of one file are told together: each with its field, value and rule."""
    raw = {
        "experiment": "spring hero!",
        "control": "v9",
        "objective": {"reward": "sum", "attribution_window_s": 0},
        "policy": {"kind": "fixed", "weights": {"v1": 0.5, "v3": 0.25}},
        "context": [{"name": "hour", "kind": "cyclic"}, {"name": "hour", "kind": "x"}],
        "allocation": {"min_share": 1.5},
        "colour": "red",
        "variants": [{"id": "v1"}, {"id": "v1"}, {"id": "v2", "creative": {"cta": 3}}],
    }
    told = {fault.field: fault.message for fault in faults_of(raw)}
    rules = {
        "experiment": "experiment == 'spring hero!', must match pattern",
        "control": "control == 'v9', must be the id of a variant.",
        "objective.reward": "objective.reward == 'sum', must be 'binary', 'value' or",
        "objective.attribution_window_s": "== 0, must be greater than 0",
        "policy.weights.v3": "policy.weights.v3 == 'v3', must be the id of a variant.",
        "policy.weights": "policy.weights sum == 0.75, must be 1.",
        "context[0].period": "context[0].period is missing.",
        "context[1].kind": "context[1].kind == 'x', must be 'categorical', 'cyclic'",
        "context": "context.name == 'hour' stands 2 times, must be unique.",
        "allocation.min_share": "allocation.min_share == 1.5, must be less than 1.",
        "colour": "colour is not a known field.",
        "variants": "variants.id == 'v1' stands 2 times, must be unique.",
        "variants[2].creative.cta": "== 3, must be a valid string.",
    }
    assert set(told) == set(rules)
    for field, rule in rules.items():
        assert rule in told[field]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": None}, "variants == None, must be a valid list."),
        ({"variants": []}, "variants == [], must have at least 1 item, not 0."),
        ({"control": "v3"}, "control == 'v3', must be the id of a variant."),
        (
            {"objective": {"reward": "value"}, "policy": {"kind": "beta_thompson"}},
            "objective.reward == 'value', must be 'binary' with",
        ),
        ({"objective": {"reward": "count"}}, "objective.reward == 'count', must be"),
        ({"allocation": {"min_share": -0.1}}, "must be greater than or equal to 0."),
        ({"allocation": {"min_share": True}}, "== True, must be a valid number."),
        ({"allocation": {"holdout_share": "0.1"}}, "== '0.1', must be a valid number."),
        ({"allocation": {"sticky": "user"}}, "must be 'none' or 'unit'."),
        ({"policy": {"kind": "ucb"}}, "policy.kind == 'ucb', must be 'beta_thompson'"),
        ({"policy": {}}, "policy.kind is missing."),
        ({"policy": "uniform"}, "policy == 'uniform', must be a mapping of fields."),
        ({"variants": [1]}, "variants[0] == 1, must be a mapping of fields."),
        (
            {"context": [{"name": "hour"}], "policy": {"kind": "uniform"}},
            "context[0].kind is missing.",
        ),
        ({"policy": {"kind": "fixed"}}, "policy.weights is missing."),
        (
            {"policy": {"kind": "fixed", "weights": {"v1": 1.5, "v2": -0.5}}},
            "policy.weights.v1 == 1.5, must be less than or equal to 1.",
        ),
        ({"currency": "euro"}, "currency == 'euro', must match pattern"),
        ({"objective": {"attribution_window_s": 1e6}}, "less than or equal to 86400."),
        ({"experiment": "x" * 100}, "experiment == 'xxx"),
        ({1: 2}, "is not a known field."),
        ({"objective": {"event": "refund"}}, "objective.event == 'refund', must not"),
        ({"objective": {"event": "retract"}}, "objective.event == 'retract', must not"),
        (
            {"context": [{"name": "d", "kind": "categorical", "levels": ["a", "a"]}]},
            "context[0].levels == 'a' stands 2 times, must be unique.",
        ),
    ],
)
def test_fault_names_field_value_and_rule(change: Any, message: str) -> None:
    """A single fault is told in one grammar: name == value, must be rule."""
    assert any(message in told for told in messages(SMALL | change))


@pytest.mark.parametrize("value", [[1], None, {}, float("nan"), "x" * 10_001])
def test_an_attribute_that_is_none_is_one_fault(value: object) -> None:
    """It could have been a text, a number or a truth; that it is none is told once."""
    raw = SMALL | {"variants": [{"id": "v1", "attributes": {"x": value}}]}
    (fault,) = faults_of(raw)
    assert fault.field == "variants[0].attributes.x"
    assert fault.message.endswith("characters, a finite number, true or false.")


@pytest.mark.parametrize("raw", [None, 3, "hats", [], [SMALL], True, b"x"])
def test_what_is_no_mapping_is_refused(raw: object) -> None:
    """A specification that is no mapping has one fault, which says so."""
    (message,) = messages(raw)
    assert message.startswith("experiment file == ")


def test_missing_variants_are_told() -> None:
    """Without variants and id, both are told to be missing."""
    assert messages({}) == ["experiment is missing.", "variants is missing."]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
@pytest.mark.parametrize("kind", ["weights", "min_share", "window"])
def test_impossible_numbers_are_refused(number: str, kind: str) -> None:
    """NaN, infinity and numbers without measure are faults wherever they stand."""
    change = {
        "weights": '"policy": {"kind": "fixed", "weights": {"v1": %s}}',
        "min_share": '"allocation": {"min_share": %s}',
        "window": '"objective": {"attribution_window_s": %s}',
    }[kind]
    text = '{"experiment": "hats", "variants": [{"id": "v1"}], %s}' % (change % number)
    assert "must be" in refusal(text.encode())


# --- hostile files --------------------------------------------------------------------------


def test_oversized_file_is_refused_unread() -> None:
    """A file over a megabyte is refused by its size."""
    assert "must be <= 1000000" in refusal(b" " * (MAX_FILE_BYTES + 1))


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00x",
        b"experiment: \xe4",
        b"experiment: \x00",
        b"",
        b"{",
        b"a: b: c",
        b"[" * 5000,
        b'{"a":' * 5000,
        b"x: !!python/object/apply:os.system ['true']",
        b"x: !!int ''",
        b"x: !!float ''",
        b"x: !!timestamp x",
        b"x: !!bool maybe",
        b"x: !!binary x",
        b"x: 2020-13-45",
        b"experiment: 0x" + b"f" * 9000,
        b"? [a]\n: b",
        b"&a [*a]",
        b"experiment: &a {x: *a}",
    ],
    ids=lambda text: repr(text[:24]),
)
def test_unreadable_file_is_refused(text: bytes) -> None:
    """What is no UTF-8, no YAML, or only just YAML, is refused and not a crash."""
    assert refusal(text)


@pytest.mark.parametrize("join", ["[%s]", "{<<: [%s]}"], ids=["lists", "merges"])
def test_yaml_bomb_is_refused_at_once(join: str) -> None:
    """Aliases of aliases, 9 ** 30 items when spelled out, are refused by their alias."""
    levels = [f"b{i}: &b{i + 1} " + join % ",".join([f"*b{i}"] * 9) for i in range(30)]
    lines = ["experiment: &b0 {lol: lol}", *levels, "variants: *b30"]
    assert "aliases" in refusal("\n".join(lines).encode())


def test_endless_values_are_refused_briefly() -> None:
    """A value that refers to itself, or is nested past all bounds, is told in brief."""
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for raw in (loop, deep, 10**5000, [10**5000], {"v1": deep}):
        (message,) = messages(SMALL | {"experiment": raw})
        assert len(message) < 200


def refused_well(raw: object) -> bool:
    """Whether a specification is refused, with sentences that can be sent."""
    try:
        return not parse_experiment(raw).experiment
    except InvalidExperimentError as error:
        told = [fault.message for fault in error.faults]
        json.dumps(told).encode()
        return bool(told) and all(message.endswith(".") for message in told)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from([10**400, "v1", "fixed", "beta_thompson", "value", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "name", "kind", "weights", "v1", "reward", "\ud800"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(Experiment.model_fields)), json_values))
def test_any_json_is_taken_or_refused(change: dict[str, Any]) -> None:
    """Whatever a body holds, it gives an experiment or its faults, nothing else."""
    assert refused_well(change) or {"experiment", "variants"} <= set(change)
    whole = SMALL | change
    if not refused_well(whole):
        assert parse_experiment(whole).experiment == whole["experiment"]


@given(json_values)
def test_any_value_is_taken_or_refused(raw: object) -> None:
    """A body need not even be a mapping."""
    assert refused_well(raw)


def test_damaged_files_are_taken_or_refused() -> None:
    """A good file with bytes changed, cut or doubled is never a crash."""
    rng = random.Random(7)
    for text in (EXAMPLE.encode(), json.dumps(yaml.safe_load(EXAMPLE)).encode()):
        for _ in range(60):
            damaged = bytearray(text)
            at = rng.randrange(len(text))
            what = rng.choice(["byte", "cut", "double"])
            if what == "byte":
                damaged[at] = rng.randrange(256)
            elif what == "cut":
                del damaged[at : at + rng.randrange(20)]
            else:
                damaged[at:at] = damaged[at : at + 30]
            try:
                spec = load_experiment(bytes(damaged))
            except InvalidExperimentError:
                continue
            assert parse_experiment(spec.model_dump(mode="json")) == spec
