"""Policies that look at the context: served, recorded, folded and reported."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bandolero.epochs import MOMENTS, moments_of
from bandolero.experiment import (
    Experiment,
    ExperimentRecord,
    InvalidExperimentError,
    parse_experiment,
)
from bandolero.features import FeatureMap
from bandolero.fold import Fold, advance, grown, init_fold
from bandolero.policies import policy_of
from bandolero.snapshot import (
    Snapshot,
    build_snapshot,
    decide,
    rederive,
    snapshot_from_bytes,
    snapshot_to_bytes,
)
from strategies import START_MS, Row, decision, decisions_table, event, events_table

KINDS: list[dict[str, Any]] = [
    {"kind": "linear_thompson"},
    {"kind": "logistic_thompson"},
    {"kind": "logistic_thompson", "covariance": "diagonal"},
    {"kind": "lin_ucb", "alpha": 0.5},
    {"kind": "shared_linear_thompson"},
    {"kind": "factorial_thompson"},
]
every_kind = pytest.mark.parametrize("policy", KINDS, ids=str)
CONTEXT = [
    {"name": "device", "kind": "categorical", "levels": ["mobile", "desktop"]},
    {"name": "hour", "kind": "cyclic", "period": 24.0},
]
MOBILE, DESKTOP = {"device": "mobile", "hour": 9}, {"device": "desktop", "hour": 20}
VARIANTS = ["v1", "v2", "v3"]
ATTRIBUTES = [
    {"tone": "calm", "offer": "gift"},
    {"tone": "loud", "offer": "gift"},
    {"tone": "calm", "offer": "sale"},
]


def spec_of(policy: dict[str, Any] = KINDS[0], **fields: Any) -> Experiment:
    """Three variants, a device and an hour; decisions earn within two seconds."""
    given: dict[str, Any] = {
        "experiment": "hats",
        "tenant": "acme",
        "policy": policy,
        "context": CONTEXT,
        "objective": {"attribution_window_s": 2.0},
        "variants": [
            {"id": v, "attributes": a}
            for v, a in zip(VARIANTS, ATTRIBUTES, strict=True)
        ],
    }
    return parse_experiment(given | fields)


def record_of(spec: Experiment) -> ExperimentRecord:
    """The experiment, running."""
    return ExperimentRecord(tenant="acme", spec=spec, status="running")


def snapshot_of(policy: dict[str, Any] = KINDS[0], **allocation: Any) -> Snapshot:
    """A snapshot that has learned: v1 earns on mobile, v2 on desktop, v3 never."""
    spec = spec_of(policy, allocation=allocation)
    rule: Any = policy_of(spec)
    arms = np.arange(600) % 3
    is_mobile = np.arange(600) // 3 % 2 == 0
    rewards = np.where(is_mobile, arms == 0, arms == 1).astype(float)
    contexts = [MOBILE if mobile else DESKTOP for mobile in is_mobile]
    features = FeatureMap(spec.context).encode_batch(contexts)
    state = rule.update(rule.init(3), arms, rewards, features)
    return build_snapshot(record_of(spec), state, version=4, created_at_ms=START_MS)


def nonces(n: int) -> list[bytes]:
    """Different nonces."""
    return [i.to_bytes(8, "little") for i in range(n)]


# --- the specification ---------------------------------------------------------------


def faults(**fields: Any) -> list[str]:
    """What is wrong with a specification."""
    with pytest.raises(InvalidExperimentError) as refused:
        spec_of(**fields)
    return [fault.message for fault in refused.value.faults]


def test_logistic_learns_from_binary_rewards_only() -> None:
    """A value is no outcome of a logistic regression."""
    objective = {"event": "sale", "reward": "value"}
    (message,) = faults(policy={"kind": "logistic_thompson"}, objective=objective)
    assert message == (
        "objective.reward == 'value', must be 'binary' "
        "with policy.kind == 'logistic_thompson'."
    )


def test_a_state_that_would_not_fit_is_refused() -> None:
    """The rule names variants, features and the largest product."""
    levels = [str(i) for i in range(900)]
    context = [{"name": "site", "kind": "categorical", "levels": levels}]
    (message,) = faults(policy={"kind": "linear_thompson"}, context=context)
    assert message == (
        "context gives 902 features for 3 variants, "
        "must keep variants * features ** 2 <= 250,000."
    )
    assert spec_of({"kind": "beta_thompson"}, context=context).n_features == 902


@pytest.mark.parametrize(
    ("policy", "context"),
    [
        ({"kind": "linear_thompson", "prior_mean": 1e200}, None),
        ({"kind": "linear_thompson", "prior_precision": 1e-320}, None),
        ({"kind": "logistic_thompson", "prior_intercept": 1e308}, None),
        ({"kind": "linear_thompson"}, {"kind": "cyclic", "period": 1.7e308}),
        ({"kind": "linear_thompson"}, {"kind": "numeric", "default": 1e300}),
    ],
    ids=str,
)
def test_numbers_beyond_use_are_refused(
    policy: dict[str, Any], context: dict[str, Any] | None
) -> None:
    """What would overflow in a posterior or a feature is no specification."""
    fields = [] if context is None else [{"name": "x", **context}]
    (message,) = faults(policy=policy, context=fields)
    assert "must be " in message


def test_predictions_beyond_numbers_are_alike() -> None:
    """Where predictions overflow all variants are alike, drawn as logged."""
    snapshot = snapshot_of(min_share=0.01)
    assert snapshot.prepared is not None
    endless = tuple(np.full_like(array, 1e308) for array in snapshot.prepared)
    policy: Any = snapshot.policy
    for kind in KINDS:
        policy = policy_of(spec_of(kind))
        if kind["kind"] in ("shared_linear_thompson", "factorial_thompson"):
            continue
        prepared = type(snapshot.prepared)(*endless)
        with np.errstate(over="ignore", invalid="ignore"):
            drawn = policy.draw(prepared, np.arange(3), np.ones(6), 0.5, 0.01)
        assert_allclose(drawn.probabilities, 1.0 / 3.0)
        assert (drawn.arm, drawn.propensity) == (1, drawn.probabilities[1])


@pytest.mark.parametrize("kind", ["shared_linear_thompson", "factorial_thompson"])
def test_a_shared_regression_needs_attributes(kind: str) -> None:
    """Variants without attributes would all be the same to it; too many are too many."""
    bare = [{"id": "a"}, {"id": "b"}]
    (message,) = faults(policy={"kind": kind}, variants=bare)
    assert message == (
        f"variants have no attributes, must have with policy.kind == '{kind}'."
    )
    many = [{"id": f"v{i}", "attributes": {"shop": i}} for i in range(999)]
    (message,) = faults(policy={"kind": kind}, variants=many, context=CONTEXT[1:])
    assert message == (
        "variants.attributes give 1000 effects on 3 features, "
        "must keep effects * features <= 1,000."
    )


def test_a_variant_added_starts_warm() -> None:
    """A new combination of known values is predicted by what its values did."""
    spec = spec_of({"kind": "shared_linear_thompson"})
    rule: Any = policy_of(spec)
    arms = np.repeat([0, 1, 2], 300)
    rewards = (arms == 1).astype(float)  # loud wins, whatever the offer
    state = rule.update(rule.init(3), arms, rewards, np.ones((900, 1)) * np.eye(6)[0])
    new = {"id": "v4", "attributes": {"tone": "loud", "offer": "sale"}}
    raw = spec.model_dump(mode="json")
    grown_spec = parse_experiment(raw | {"variants": [*raw["variants"], new]})
    fold = grown(grown_spec, Fold(state, {}, 0))
    snapshot = build_snapshot(
        record_of(grown_spec), fold.state, version=1, created_at_ms=0
    )
    shares = snapshot.distribution((0, 2, 3)).probabilities
    assert shares[3] > 0.9


@every_kind
def test_number_of_features_is_that_of_the_map(policy: dict[str, Any]) -> None:
    """The policy takes what the map gives: 1, three devices, two of the hour."""
    spec = spec_of(policy)
    assert spec.n_features == FeatureMap(spec.context).n_features == 6
    rule: Any = policy_of(spec)
    assert rule.n_features == 6


@every_kind
def test_what_is_a_sum_can_fade(policy: dict[str, Any]) -> None:
    """Regressions that are sums take a half-life; a logistic one says why it does not."""
    given = {**policy, "half_life_s": 3600.0}
    if policy["kind"] == "logistic_thompson":
        (message,) = faults(policy=given)
        assert message == (
            "policy.half_life_s == 3600.0, must be left out with policy.kind == "
            "'logistic_thompson': what it learned is no sum that fades; "
            "'linear_thompson' forgets."
        )
        return
    rule: Any = policy_of(spec_of(given))
    assert rule.half_life_s == 3600.0
    assert rule.init(3).trials.dtype == np.float64


# --- deciding ------------------------------------------------------------------------


@every_kind
def test_context_decides(policy: dict[str, Any]) -> None:
    """Whoever earns on a device is likeliest there, with the propensity of the draw."""
    snapshot = snapshot_of(policy, min_share=0.02)
    for context, best in ((MOBILE, 0), (DESKTOP, 1)):
        drawn = decide(snapshot, b"1", context=context)
        assert drawn.probabilities is not None
        assert int(np.argmax(drawn.probabilities)) == best
        assert_allclose(sum(drawn.probabilities), 1.0, atol=1e-9)
        assert min(drawn.probabilities) >= 0.02 - 1e-12
        assert drawn.propensity == drawn.probabilities[drawn.arm]


def test_frequencies_are_the_propensities() -> None:
    """20,000 draws of one context against its probabilities; false alarm 1 in 10,000."""
    snapshot = snapshot_of(min_share=0.1)
    drawn = [decide(snapshot, n, context=MOBILE) for n in nonces(20_000)]
    p = drawn[0].probabilities
    assert p is not None
    counts = np.bincount([d.arm for d in drawn], minlength=3)
    chi2 = float(((counts - 20_000 * p) ** 2 / (20_000 * p)).sum())
    assert chi2 < 18.4  # chi-square with 2 degrees of freedom


@every_kind
def test_limits_eligibility_and_holdout_are_kept(policy: dict[str, Any]) -> None:
    """The cap caps, only eligible variants are drawn, the holdout is uniform."""
    capped = decide(snapshot_of(policy, max_share=0.5), b"1", context=MOBILE)
    assert capped.probabilities is not None
    assert max(capped.probabilities) <= 0.5 + 1e-12
    assert_allclose(sum(capped.probabilities), 1.0, atol=1e-9)
    snapshot = snapshot_of(policy, holdout_share=0.5)
    for nonce in nonces(100):
        drawn = decide(snapshot, nonce, eligible=(1, 2), context=MOBILE)
        assert drawn.arm in (1, 2)
        if drawn.mode == "holdout":
            assert (drawn.propensity, drawn.probabilities) == (0.5, None)


@every_kind
def test_bytes_restore_it_and_the_record_rederives_it(policy: dict[str, Any]) -> None:
    """From its bytes a snapshot decides the same bits, and so it does from a record."""
    snapshot = snapshot_of(policy, holdout_share=0.2)
    again = snapshot_from_bytes(snapshot_to_bytes(snapshot))
    for nonce in nonces(100):
        for eligible in (None, (0, 2)):
            one = decide(snapshot, nonce, None, eligible, DESKTOP)
            two = decide(again, nonce, None, eligible, DESKTOP)
            recorded = json.loads(json.dumps(DESKTOP))
            three = rederive(again, one.draw, one.mode, eligible, "exact", recorded)
            for other in (two, three):
                assert other[:4] == one[:4]
    assert again.prepared is not None
    for part in (*again.prepared, *again.state):
        assert not part.flags.writeable


def test_what_is_not_known_is_the_default() -> None:
    """Missing, unknown and undeclared fields decide like the defaults they stand for."""
    snapshot = snapshot_of()
    told = decide(snapshot, b"1", context={"device": "tv", "hour": 0.0, "x": [1]})
    for context in (None, {}, {"device": 7, "hour": "noon"}):
        drawn = decide(snapshot, b"1", context=context)
        assert drawn[:4] == told[:4]
    assert told.probabilities is not None
    assert_allclose(snapshot.probabilities, told.probabilities, atol=1e-9)


# --- folding -------------------------------------------------------------------------


def made(i: int, variant: int, context: dict[str, Any] | None, **fields: Any) -> Row:
    """A decision drawn with probabilities of its own, in a block of its own."""
    at_ms = START_MS + 10 * i
    shares = [0.2, 0.3, 0.5]
    given = {
        "decision_id": f"d{i}",
        "experiment_id": "hats",
        "variant_id": VARIANTS[variant],
        "decided_at_ms": at_ms,
        "log_ms": at_ms,
        "log_id": f"{at_ms}-0",
        "mode": "explore",
        "snapshot_version": 1 + i % 2,
        "eligible": VARIANTS,
        "probabilities": shares,
        "propensity": shares[variant],
        "rule": "exact",
        "context": None if context is None else json.dumps(context),
    }
    return decision(**given | fields)


def clicked(i: int) -> Row:
    """A click on a decision, in time."""
    at_ms = START_MS + 10 * i + 500
    return event(
        event_id="c",
        decision_id=f"d{i}",
        type="click",
        at_ms=at_ms,
        received_at_ms=at_ms,
        log_ms=at_ms,
    )


def folded(spec: Experiment, rows: list[Row], told: list[Row], ends: list[int]) -> Fold:
    """What is learned batch by batch."""
    fold = init_fold(spec)
    for start, end in pairwise([0, *sorted(ends), len(rows)]):
        part = decisions_table(rows[start:end])
        fold = advance(spec, fold, part, events_table(told), {})
    return fold


ROWS = [made(i, i % 3, (MOBILE, DESKTOP, None, {})[i % 4]) for i in range(40)]
TOLD = [clicked(i) for i in range(0, 40, 7)]


@every_kind
def test_state_is_the_policys_on_the_features(policy: dict[str, Any]) -> None:
    """The fold's state is the policy's update with trials in log order, bit for bit."""
    spec = spec_of(policy)
    rule: Any = policy_of(spec)
    contexts = [(MOBILE, DESKTOP, {}, {})[i % 4] for i in range(40)]
    features = FeatureMap(spec.context).encode_batch(contexts)
    rewards = np.array([float(i % 7 == 0) for i in range(40)])
    expected = rule.update(rule.init(3), np.arange(40) % 3, rewards, features)
    state = folded(spec, ROWS, TOLD, []).state
    assert all(np.array_equal(a, b) for a, b in zip(state, expected, strict=True))


@pytest.mark.parametrize("policy", KINDS, ids=str)
@given(ends=st.lists(st.integers(0, 40), max_size=4))
def test_any_grouping_agrees(policy: dict[str, Any], ends: list[int]) -> None:
    """Batches give the state and the rollups of one fold, sums within 1e-9."""
    spec = spec_of(policy)
    whole, parts = folded(spec, ROWS, TOLD, []), folded(spec, ROWS, TOLD, ends)
    for a, b in zip(whole.state, parts.state, strict=True):
        assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    assert whole.epochs.keys() == parts.epochs.keys()
    for key, epoch in whole.epochs.items():
        other = parts.epochs[key]
        assert np.array_equal(epoch.trials, other.trials)
        assert epoch.versions == other.versions
        assert epoch.moments is not None
        assert other.moments is not None
        assert_allclose(epoch.moments, other.moments, rtol=1e-9)


def test_epochs_of_contexts_by_hand() -> None:
    """All explore decisions of a day are one epoch, with sums over what was logged.

    v1 and v3 shown, with propensities 0.2 and 0.5 and a click on v1: weights 5 and 2.
    """
    rows = [made(0, 0, MOBILE), made(1, 2, DESKTOP)]
    rows.append(
        made(
            2,
            1,
            MOBILE,
            mode="holdout",
            eligible=["v2", "v3"],
            probabilities=[0.5, 0.5],
            propensity=0.5,
        )
    )
    fold = folded(spec_of(), rows, [clicked(0)], [])
    assert sorted(epoch.mode for epoch in fold.epochs.values()) == [
        "explore",
        "holdout",
    ]
    explore = next(e for e in fold.epochs.values() if e.mode == "explore")
    holdout = next(e for e in fold.epochs.values() if e.mode == "holdout")
    assert explore.versions == (1, 2)
    assert explore.is_known
    sums = dict(zip(MOMENTS, moments_of(explore), strict=True))
    assert_allclose(sums["expected"], [0.4, 0.6, 1.0], rtol=1e-6)
    assert_allclose(sums["variance"], [0.32, 0.42, 0.5], rtol=1e-6)
    assert_allclose(sums["weights"], [5.0, 0.0, 2.0])
    assert_allclose(sums["weights_squared"], [25.0, 0.0, 4.0])
    assert_allclose(sums["weighted_rewards"], [5.0, 0.0, 0.0])
    assert_allclose(sums["squared_weighted_rewards"], [25.0, 0.0, 0.0])
    assert_allclose(sums["squared_weighted_squares"], [25.0, 0.0, 0.0])
    assert holdout.moments is None
    assert_allclose(moments_of(holdout)[0], [0.0, 0.5, 0.5])


@pytest.mark.parametrize("text", ["desktop", "null", "[]", "3", "[" * 100_000])
def test_a_context_that_is_none_is_the_default(text: str) -> None:
    """A recorded context that is no JSON object counts as one that says nothing."""
    spec = spec_of()
    row = made(0, 0, None) | {"context": text}
    odd = folded(spec, [row], [clicked(0)], [])
    plain = folded(spec, [made(0, 0, {})], [clicked(0)], [])
    assert all(
        np.array_equal(a, b) for a, b in zip(odd.state, plain.state, strict=True)
    )


@pytest.mark.parametrize(
    "lacking",
    [
        {"probabilities": None},
        {"eligible": None},
        {"eligible": ["v1"], "probabilities": [0.5, 0.5]},
        {"probabilities": None, "snapshot_version": None},
    ],
    ids=str,
)
def test_a_record_without_its_probabilities_is_unknown(lacking: dict[str, Any]) -> None:
    """It counts, in an epoch whose probabilities are not known."""
    fold = folded(spec_of(), [made(0, 0, MOBILE, **lacking)], [clicked(0)], [])
    (epoch,) = fold.epochs.values()
    assert not epoch.is_known
    assert (epoch.trials[0], epoch.rewards_micros[0]) == (1, 1_000_000)
