"""Snapshots: frozen, the same from bytes, and decisions that can be drawn again."""

import ast
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

import reference
from bandolero.codec import DamagedBytesError
from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.policies import policy_of
from bandolero.snapshot import (
    EXACT,
    RENORMALISED,
    Drawn,
    Snapshot,
    build_snapshot,
    decide,
    rederive,
    snapshot_from_bytes,
    snapshot_to_bytes,
)

N_DECISIONS = 20_000
FALSE_ALARM_RATE = 1e-6
"""With other nonces, one chi-square test in a million would fail for nothing."""
KINDS: list[dict[str, Any]] = [
    {"kind": "beta_thompson"},
    {"kind": "fixed", "weights": {"v0": 0.5, "v2": 0.2, "v3": 0.3}},
    {"kind": "uniform"},
]
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"} | {
    "allow_pickle"
}
every_kind = pytest.mark.parametrize("policy", KINDS, ids=lambda spec: spec["kind"])


def record(
    policy: dict[str, Any] = KINDS[0], n_variants: int = 5, **allocation: Any
) -> ExperimentRecord:
    """An experiment of so many variants, the fifth paused."""
    variants = [
        {"id": f"v{i}", "creative": {"headline": f"H{i}"}, "attributes": {"n": i}}
        for i in range(n_variants)
    ]
    spec = parse_experiment(
        {
            "experiment": "hats",
            "variants": variants,
            "policy": policy,
            "context": [{"name": "hour", "kind": "cyclic", "period": 24}],
            "allocation": allocation,
        }
    )
    return ExperimentRecord(
        tenant="acme", spec=spec, spec_version=3, variant_states={"v4": "paused"}
    )


def snapshot_of(
    policy: dict[str, Any] = KINDS[0], n_variants: int = 5, **allocation: Any
) -> Snapshot:
    """A snapshot after some trials, of which a refresh corrected a few."""
    entry = record(policy, n_variants, **allocation)
    rule: Any = policy_of(entry.spec)
    arms = np.arange(60) % 4
    rewards = (np.arange(60) % 7 < arms).astype(float)
    state = rule.update(rule.init(n_variants), arms, rewards)
    counts = np.zeros(n_variants, np.int64)
    counts[:2] = (3, -2)
    late = rule.correction(n_variants, counts, counts // 2)
    return build_snapshot(
        entry,
        rule.add(state, late),
        version=7,
        created_at_ms=1_795_219_200_000,
        folded_to="1795219200000-3",
        correction=late,
    )


def arrays_of(snapshot: Snapshot) -> list[Any]:
    """Every array of a snapshot."""
    return [
        *snapshot.state,
        *(snapshot.correction or ()),
        snapshot.active,
        snapshot.probabilities,
    ]


def nonces(n: int, seed: int = 1) -> list[bytes]:
    """Nonces of so many decisions."""
    return [i.to_bytes(4, "little") + seed.to_bytes(4, "little") for i in range(n)]


# --- frozen ---------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("through_bytes", [False, True])
def test_arrays_are_read_only(policy: dict[str, Any], through_bytes: bool) -> None:
    """No array of a snapshot can be written to, fresh or read back."""
    snapshot = snapshot_of(policy)
    if through_bytes:
        snapshot = snapshot_from_bytes(snapshot_to_bytes(snapshot))
    for array in arrays_of(snapshot):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(AttributeError):
        snapshot.version = 8  # type: ignore[misc]  # the fact under test


def test_snapshot_holds_no_view_of_the_state() -> None:
    """Who built a snapshot may go on writing to the state it was built from."""
    entry = record()
    state = policy_of(entry.spec).init(5)
    snapshot = build_snapshot(entry, state, version=1, created_at_ms=0)
    state.trials[:] = 99
    assert snapshot.state[3].tolist() == [0] * 5


def test_creatives_are_not_shipped() -> None:
    """A snapshot holds what deciding needs: attributes, and no creative."""
    variants = snapshot_of().experiment.variants
    assert [v.attributes for v in variants] == [{"n": i} for i in range(5)]
    assert [v.creative for v in variants] == [{}] * 5


# --- bytes ----------------------------------------------------------------------------


@every_kind
def test_bytes_give_the_snapshot_back(policy: dict[str, Any]) -> None:
    """From bytes comes the same snapshot, bit for bit, which gives the same bytes."""
    snapshot = snapshot_of(policy, holdout_share=0.125, sticky="unit")
    data = snapshot_to_bytes(snapshot)
    again = snapshot_from_bytes(data)
    assert snapshot_to_bytes(again) == data
    for mine, theirs in zip(arrays_of(snapshot), arrays_of(again), strict=True):
        assert (mine.dtype, mine.tobytes()) == (theirs.dtype, theirs.tobytes())
    assert type(again.state) is type(snapshot.state)
    assert again.correction is not None
    assert again.full == snapshot.full
    names = ("experiment", "tenant", "version", "spec_version", "folded_to", "key")
    for name in names:
        assert getattr(again, name) == getattr(snapshot, name)


@pytest.mark.parametrize(("version", "is_shared"), [(3, True), (4, False)])
def test_a_specification_of_the_same_version_is_shared(
    version: int, is_shared: bool
) -> None:
    """Read after another of its version, a snapshot is the one that the bytes say."""
    last = replace(snapshot_of(), spec_version=3)
    snapshot = replace(snapshot_of(), spec_version=version, version=9)
    data = snapshot_to_bytes(snapshot)
    again = snapshot_from_bytes(data, last)
    assert (again.experiment is last.experiment) == is_shared
    assert (again.version, again.spec_version) == (9, version)
    assert snapshot_to_bytes(again) == data


def test_no_correction_stays_none() -> None:
    """A snapshot without a correction comes back without one."""
    entry = record()
    state = policy_of(entry.spec).init(5)
    snapshot = build_snapshot(entry, state, version=1, created_at_ms=0)
    assert snapshot_from_bytes(snapshot_to_bytes(snapshot)).correction is None


def test_any_altered_byte_is_noticed() -> None:
    """Flipping a bit of any byte, or cutting anywhere, is damage."""
    data = snapshot_to_bytes(snapshot_of())
    for i in range(len(data)):
        altered = bytearray(data)
        altered[i] ^= 1 << (i % 8)
        with pytest.raises(DamagedBytesError):
            snapshot_from_bytes(bytes(altered))
        with pytest.raises(DamagedBytesError):
            snapshot_from_bytes(data[:i])
    with pytest.raises(DamagedBytesError):
        snapshot_from_bytes(data + b"\0")


def unpickling(node: ast.AST) -> set[str]:
    """What a piece of syntax names that reads pickles."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name.partition(".")[0] for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [(node.module or "").partition(".")[0]]
    elif isinstance(node, ast.keyword):
        names = [node.arg or ""]
    return UNPICKLERS.intersection(names)


@pytest.mark.parametrize("package", ["bandolero", "bandolero_service"])
def test_nothing_is_pickled(package: str) -> None:
    """No module imports anything that unpickles, and none lets NumPy do so."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    strays = [
        f"{file}:{name}"
        for file in sorted(Path(spec.origin).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in unpickling(node)
    ]
    assert strays == []


# --- deciding --------------------------------------------------------------------------


@every_kind
def test_decision_is_a_function_of_its_inputs(policy: dict[str, Any]) -> None:
    """The same snapshot, nonce, unit and eligible set give the same decision, always."""
    snapshot = snapshot_of(policy, holdout_share=0.25)
    again = snapshot_from_bytes(snapshot_to_bytes(snapshot))
    cases = [
        (nonce, unit, eligible)
        for nonce in nonces(40)
        for unit in (None, "u-1")
        for eligible in (None, (0, 2), (3,))
    ]
    first = [decide(snapshot, *case) for case in cases]
    assert [decide(again, *case) for case in reversed(cases)] == first[::-1]


@given(st.binary(min_size=8, max_size=8))
def test_draw_is_the_hash_of_the_decision(nonce: bytes) -> None:
    """The draw, and who is held out, are the numbers the definition gives."""
    snapshot = snapshot_of(KINDS[2], holdout_share=0.25)
    arm, holdout = reference.draw_numbers("acme", "hats", nonce)
    drawn = decide(snapshot, nonce)
    assert drawn.draw == arm
    assert (drawn.mode == "holdout") == (holdout < 0.25)


@every_kind
def test_propensity_is_that_of_the_distribution(policy: dict[str, Any]) -> None:
    """A decision's propensity is its arm's probability, floor included."""
    snapshot = snapshot_of(policy, min_share=0.05)
    for nonce in nonces(200):
        arm, propensity, _, mode, *_ = decide(snapshot, nonce)
        assert propensity == snapshot.probabilities[arm] > 0.0
        assert mode == snapshot.policy.mode
    assert snapshot.probabilities[4] == 0.0
    assert_allclose(snapshot.probabilities.sum(), 1.0, atol=1e-9)


def test_floor_holds_for_what_explores_only() -> None:
    """`beta_thompson` never falls below min_share; a split by weights is left alone."""
    assert snapshot_of(KINDS[0], min_share=0.1).probabilities[:4].min() >= 0.1
    split = snapshot_of(KINDS[1], min_share=0.1)
    assert_allclose(split.probabilities, [0.5, 0.0, 0.2, 0.3, 0.0])


@every_kind
def test_sticky_units_see_one_arm(policy: dict[str, Any]) -> None:
    """With `sticky: unit` a unit gets the same arm by any nonce; without, it may not."""
    sticky = snapshot_of(policy, sticky="unit")
    loose = snapshot_of(policy)
    units = [f"u-{i}" for i in range(50)]

    def arms(snapshot: Snapshot, unit: str | None) -> set[int]:
        return {decide(snapshot, nonce, unit).arm for nonce in nonces(20)}

    assert {len(arms(sticky, unit)) for unit in units} == {1}
    assert len({min(arms(sticky, unit)) for unit in units}) > 1
    assert max(len(arms(loose, unit)) for unit in units) > 1
    assert len(arms(sticky, None)) > 1


@pytest.mark.parametrize("sticky", ["none", "unit"])
def test_holdout_is_by_unit(sticky: str) -> None:
    """A unit is held out at every decision or at none; about 30 % of units are.

    The share of 2,000 units lies within five standard errors, 0.05; false alarm 6e-7.
    """
    snapshot = snapshot_of(holdout_share=0.3, sticky=sticky)
    held = []
    for i in range(2000):
        modes = {decide(snapshot, nonce, f"u-{i}").mode for nonce in nonces(3)}
        assert len(modes) == 1
        held.append(modes == {"holdout"})
    assert abs(np.mean(held) - 0.3) < 0.05


def test_holdout_is_uniform_over_the_eligible() -> None:
    """A held-out decision has propensity 1 / n_eligible, of arms that may be shown."""
    snapshot = snapshot_of(KINDS[1], holdout_share=0.5)
    for eligible, n in ((None, 4), ((0, 1, 3), 3), ((1,), 1)):
        drawn = [decide(snapshot, nonce, None, eligible) for nonce in nonces(300)]
        held = [d for d in drawn if d.mode == "holdout"]
        assert {d.propensity for d in held} == {1.0 / n}
        assert {d.arm for d in held} == set(range(4) if eligible is None else eligible)


def test_all_paused_has_no_snapshot() -> None:
    """Where no variant may be shown, what is wrong is said by name."""
    entry = record()
    paused = dict.fromkeys(entry.spec.variant_ids, "paused")
    entry = entry.model_copy(update={"variant_states": paused})
    with pytest.raises(ValueError, match=r"^variant_states == .*, must leave one act"):
        build_snapshot(entry, policy_of(entry.spec).init(5), version=1, created_at_ms=0)


@pytest.mark.parametrize("kind", ["beta_thompson", "linear_thompson", "lin_ucb"])
@pytest.mark.parametrize("holdout_share", [0.0, 0.999])
@pytest.mark.parametrize(
    "eligible",
    [(), (5,), (10**9,), (-1,), (0, 0), (1, 0), [0, 1], (0.0, 2.0), ("v0",), 1],
)
def test_eligible_that_is_no_set_of_arms_is_refused(
    kind: str, holdout_share: float, eligible: Any
) -> None:
    """Field, value and rule are named, whoever draws; nothing is read beyond the arms."""
    entry = record({"kind": kind}, holdout_share=holdout_share)
    state = policy_of(entry.spec).init(5)
    snapshot = build_snapshot(entry, state, version=1, created_at_ms=0)
    assert decide(snapshot, b"nonce", "u", eligible=(0, 1)).arm in (0, 1)
    rule = re.escape("must be a tuple of arms in 0 … 4, ascending, not empty.")
    with pytest.raises(ValueError, match=f"^eligible == .*, {rule}$"):
        decide(snapshot, b"nonce", "u", eligible=eligible)


@pytest.mark.parametrize("n_eligible", [1, 2, 3, 7, 8, 9, 49, 50, 1000])
def test_last_draw_of_a_holdout_is_the_last_arm(n_eligible: int) -> None:
    """A draw of 0 gives the first arm and one just below 1 the last, never a next."""
    snapshot = snapshot_of(KINDS[2], n_variants=max(5, n_eligible))
    eligible = tuple(range(n_eligible))
    for draw, arm in ((0.0, 0), (1.0 - 2.0**-53, n_eligible - 1)):
        assert rederive(snapshot, draw, "holdout", eligible, RENORMALISED).arm == arm


@every_kind
def test_not_eligible_gets_nothing(policy: dict[str, Any]) -> None:
    """Within a narrowed set the probabilities are those of the set competing alone."""
    snapshot = snapshot_of(policy, min_share=0.05)
    given = snapshot.distribution((2, 3))
    assert [p > 0.0 for p in given.probabilities] == [False, False, True, True, False]
    assert_allclose(sum(given.probabilities), 1.0, atol=1e-9)
    assert {decide(snapshot, n, None, (2, 3)).arm for n in nonces(500)} == {2, 3}
    assert given.rule == EXACT


# --- sets that cost too much --------------------------------------------------------------


def test_dear_set_is_renormalised_until_warm() -> None:
    """A set too dear to compute shares out its full-set probabilities, then is exact."""
    snapshot = snapshot_of(n_variants=60)
    eligible = (0, *range(5, 55))
    rough = snapshot.distribution(eligible)
    chosen = snapshot.probabilities[list(eligible)]
    assert rough.rule == RENORMALISED
    assert_allclose([rough.probabilities[i] for i in eligible], chosen / chosen.sum())
    assert snapshot.misses == {eligible}
    exact = snapshot.warm(eligible)
    assert exact.rule == EXACT
    assert snapshot.distribution(eligible) is snapshot.warm(eligible) is exact
    assert sum(exact.probabilities) == pytest.approx(1.0)
    assert exact.probabilities != rough.probabilities


def test_set_without_probability_is_shared_evenly() -> None:
    """Where the full set gives a narrowed one nothing, its arms get the same."""
    snapshot = snapshot_of(KINDS[1])
    drawn = rederive(snapshot, 0.75, "fixed", (1, 4), RENORMALISED)
    assert drawn == Drawn(4, 0.5, 0.75, "fixed", (0.5, 0.5), RENORMALISED)


# --- drawing again --------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("eligible", [None, (0, 2), (1,), (0, 1, 2, 3)])
def test_recorded_decisions_are_drawn_again(
    policy: dict[str, Any], eligible: tuple[int, ...] | None
) -> None:
    """From draw, mode, eligible set and rule come the same arm and propensity bits."""
    snapshot = snapshot_of(policy, holdout_share=0.2, sticky="unit")
    later = snapshot_from_bytes(snapshot_to_bytes(snapshot))
    for i, nonce in enumerate(nonces(100)):
        drawn = decide(snapshot, nonce, f"u-{i}", eligible)
        rule = None if eligible is None else snapshot.distribution(eligible).rule
        assert rederive(later, drawn.draw, drawn.mode, eligible, rule) == drawn


def test_rough_decisions_are_drawn_again_as_they_were() -> None:
    """A decision by renormalised probabilities is drawn so again, warm or not."""
    snapshot = snapshot_of(n_variants=60)
    eligible = (0, *range(5, 55))
    rough = [decide(snapshot, nonce, None, eligible) for nonce in nonces(100)]
    snapshot.warm(eligible)
    exact = [decide(snapshot, nonce, None, eligible) for nonce in nonces(100)]
    later = snapshot_from_bytes(snapshot_to_bytes(snapshot))
    for drawn, rule in [(rough, RENORMALISED), (exact, EXACT)]:
        again = [rederive(later, d.draw, d.mode, eligible, rule) for d in drawn]
        assert again == drawn
    assert rough != exact


# --- realised frequencies ---------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("holdout_share", [0.0, 0.4])
def test_arms_come_as_often_as_their_propensity_says(
    policy: dict[str, Any], holdout_share: float
) -> None:
    """Within each mode, 20,000 decisions fall on arms as their propensities say.

    Chi-square by mode; false-alarm rate 1e-6, and none with these nonces.
    """
    snapshot = snapshot_of(policy, holdout_share=holdout_share)
    drawn = [decide(snapshot, nonce) for nonce in nonces(N_DECISIONS, seed=5)]
    modes = {d.mode for d in drawn}
    assert modes == {snapshot.policy.mode} | ({"holdout"} if holdout_share else set())
    for mode in modes:
        mine = [d for d in drawn if d.mode == mode]
        propensity = {d.arm: d.propensity for d in mine}
        assert sum(propensity.values()) == pytest.approx(1.0)
        shown = [sum(d.arm == arm for d in mine) for arm in propensity]
        expected = np.array(list(propensity.values())) * len(mine)
        expected *= len(mine) / expected.sum()
        assert stats.chisquare(shown, expected).pvalue > FALSE_ALARM_RATE


def test_holdout_comes_as_often_as_asked() -> None:
    """Of 20,000 decisions without a unit, 40 % are held out; false-alarm rate 1e-6."""
    snapshot = snapshot_of(holdout_share=0.4)
    modes = [decide(snapshot, nonce).mode for nonce in nonces(N_DECISIONS, seed=6)]
    held = modes.count("holdout")
    assert stats.binomtest(held, N_DECISIONS, 0.4).pvalue > FALSE_ALARM_RATE
