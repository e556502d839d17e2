"""Saved, loaded and gone on with: to the bit as if never stopped, for every kind of policy."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bandolero.codec import pack, unpack
from bandolero.experiment import ExperimentRecord, parse_experiment
from bandolero.policies import (
    BetaThompson,
    GaussianThompson,
    PoissonThompson,
    TopTwoThompson,
    learn,
    policy_of,
)
from bandolero.policies.lin_ucb import LinUcb
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson
from bandolero.snapshot import (
    Snapshot,
    build_snapshot,
    decide,
    snapshot_from_bytes,
    snapshot_to_bytes,
    state_arrays,
    state_of,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
N_ARMS, D = 4, 3
HOUR_MS = 3_600_000
REWARDS = {"gaussian_thompson": "value", "poisson_thompson": "count"}
SPECS: list[dict[str, Any]] = [
    {"kind": "beta_thompson"},
    {"kind": "top_two_thompson"},
    {"kind": "poisson_thompson"},
    {"kind": "gaussian_thompson"},
    {"kind": "greedy"},
    {"kind": "epsilon_greedy"},
    {"kind": "fixed", "weights": {"v0": 0.5, "v3": 0.5}},
    {"kind": "uniform"},
]
FORGETFUL: list[Any] = [
    BetaThompson(half_life_s=3600.0),
    TopTwoThompson(half_life_s=3600.0),
    PoissonThompson(half_life_s=3600.0),
    GaussianThompson(half_life_s=3600.0),
]
CONTEXTUAL: list[Any] = [
    LinearThompson(D),
    LinUcb(D),
    LogisticThompson(D),
    LogisticThompson(D, covariance="diagonal"),
]


def record_of(spec: dict[str, Any]) -> ExperimentRecord:
    """A running experiment with a policy."""
    raw = {
        "experiment": "hats",
        "objective": {"reward": REWARDS.get(spec["kind"], "binary")},
        "policy": spec,
        "variants": [{"id": f"v{i}"} for i in range(N_ARMS)],
    }
    return ExperimentRecord(tenant="acme", spec=parse_experiment(raw), status="running")


def trials(seed: int) -> tuple[Ints, Floats]:
    """Arms and rewards of 200 trials."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, N_ARMS, 200), rng.binomial(3, 0.1, 200).astype(float)


def next_snapshot(record: ExperimentRecord, state: Any, version: int) -> Snapshot:
    """Two hundred trials later."""
    policy: Any = policy_of(record.spec)
    state = policy.update(state, *trials(version))
    return build_snapshot(record, state, version=version, created_at_ms=0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: "-".join(map(str, s.values())))
def test_snapshot_loaded_goes_on_as_if_never_stopped(spec: dict[str, Any]) -> None:
    """Learned on from a snapshot read back, the next two snapshots are the same bytes.

    So are their decisions, over all variants and over some.
    """
    record = record_of(spec)
    here = there = next_snapshot(record, policy_of(record.spec).init(N_ARMS), 1)
    for version in (2, 3):
        loaded = snapshot_from_bytes(snapshot_to_bytes(there))
        here = next_snapshot(record, here.state, version)
        there = next_snapshot(record, loaded.state, version)
        assert snapshot_to_bytes(here) == snapshot_to_bytes(there)
        for i in range(50):
            for eligible in (None, (0, 2, 3)):
                nonce = i.to_bytes(4, "little")
                one, other = (
                    decide(s, nonce, eligible=eligible) for s in (here, there)
                )
                assert one == other


@pytest.mark.parametrize("policy", FORGETFUL, ids=lambda policy: policy.kind)
def test_fading_state_loaded_goes_on_as_if_never_stopped(
    policy: Any,
) -> None:
    """A state of fading counts read back fades and learns the same bytes."""
    here = there = policy.init(N_ARMS)
    for hour in range(3):
        arrays = unpack(pack({}, state_arrays("state", there))).arrays
        loaded = state_of("state", policy.kind, arrays)
        at_ms, before = hour * HOUR_MS + np.arange(200), max(hour - 1, 0) * HOUR_MS
        here, there = (
            learn(policy, state, before, trials(hour), at_ms)[0]
            for state in (here, loaded)
        )
        for one, other in zip(here, there, strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("policy", CONTEXTUAL, ids=repr)
def test_contextual_state_loaded_goes_on_as_if_never_stopped(policy: Any) -> None:
    """A state read back learns the same bytes and draws the same bits."""

    def told(seed: int) -> tuple[Ints, Floats, Floats]:
        arms, rewards = trials(seed)
        X = np.random.default_rng(seed + 100).standard_normal((200, D))
        return arms, np.minimum(rewards, 1.0), X

    here = there = policy.update(policy.init(N_ARMS), *told(1))
    for seed in (2, 3):
        arrays = unpack(pack({}, state_arrays("state", there))).arrays
        loaded = type(here)(*(arrays[f"state.{name}"] for name in here._fields))
        here, there = (policy.update(state, *told(seed)) for state in (here, loaded))
        for one, other in zip(here, there, strict=True):
            assert one.tobytes() == other.tobytes()
        pair = policy.prepare(here), policy.prepare(there)
        for x in told(9)[2][:50]:
            drawn = [policy.draw(p, np.arange(N_ARMS), x, 0.4, 0.01) for p in pair]
            assert drawn[0][:2] == drawn[1][:2]
            assert drawn[0].probabilities.tobytes() == drawn[1].probabilities.tobytes()
