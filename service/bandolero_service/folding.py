"""The learner's fold as bytes in the store: states, epochs, corrections."""

from typing import Any

import numpy as np

from bandolero.codec import pack, unpack
from bandolero.epochs import Epoch
from bandolero.experiment import Experiment
from bandolero.policies import (
    ContextualPolicy,
    LinearState,
    Policy,
    aged,
    policy_of,
)
from bandolero.snapshot import state_arrays, state_of

Changes = dict[str, dict[str, float]]
"""Differences of counts by variant id; see `bandolero.fold.Correction`."""
_ARRAYS = Epoch._fields[3:-1]


def state_to_bytes(state: tuple[Any, ...], learned_to_ms: int) -> bytes:
    """A policy's state, and the log time it is as of."""
    return pack({"learned_to_ms": learned_to_ms}, state_arrays("state", state))


def state_from_bytes(kind: str, data: bytes) -> tuple[tuple[Any, ...], int]:
    """Read what `state_to_bytes` wrote; 0 where the time was not written yet."""
    header, arrays = unpack(data)
    return state_of("state", kind, arrays), header.get("learned_to_ms", 0)


def epoch_to_bytes(epoch: Epoch) -> bytes:
    """One epoch of the rollups."""
    header = {"day": epoch.day, "mode": epoch.mode, "versions": list(epoch.versions)}
    arrays = {name: getattr(epoch, name) for name in _ARRAYS}
    if epoch.moments is not None:
        arrays["moments"] = epoch.moments
    return pack(header, arrays)


def epoch_from_bytes(data: bytes) -> Epoch:
    """Read what `epoch_to_bytes` wrote."""
    header, arrays = unpack(data)
    first, last = header["versions"]
    counts = (arrays[name] for name in _ARRAYS)
    epoch = Epoch(header["day"], header["mode"], (first, last), *counts)
    return epoch._replace(moments=arrays.get("moments"))


def correction_state(
    experiment: Experiment, body: dict[str, Any], now_ms: int
) -> tuple[Any, ...] | None:
    """A published correction as a state to add; None where it changes nothing.

    With a half-life it fades from its watermark on, until `now_ms` in log time. A state
    that depends on the order of trials is not corrected.
    """
    policy = policy_of(experiment)
    fades = getattr(policy, "half_life_s", None) is not None
    counts = body.get("faded", {}) if fades else body["changes"]
    state: tuple[Any, ...] | None
    if isinstance(policy, ContextualPolicy):
        none = policy.init(len(experiment.variants))
        state = _sums_to_add(experiment, none, body.get("by_context", {}), counts)
    else:
        state = _counts_to_add(experiment, policy, counts)
    elapsed_ms = max(0, now_ms - body["watermark_ms"])
    return None if state is None else aged(policy, state, elapsed_ms)


def _counts_to_add(
    experiment: Experiment, policy: Policy[Any], counts: Changes
) -> tuple[Any, ...] | None:
    """Differences of counts as a state; None where there are none."""
    if not counts:
        return None
    ids = experiment.variant_ids
    trials, hits, micros, squared = (
        np.array([counts.get(i, {}).get(name, 0) for i in ids])
        for name in ("trials", "hits", "rewards_micros", "rewards_squared")
    )
    state: tuple[Any, ...] = policy.correction(len(ids), trials, hits, micros, squared)
    return state


def _sums_to_add(
    experiment: Experiment,
    sums: tuple[Any, ...],
    by_context: dict[str, Any],
    counts: Changes,
) -> LinearState | None:
    """Differences of sums over features, added to none; None where there are none.

    Changes of variants or features that a draft had and lost are left out.
    """
    if not isinstance(sums, LinearState):
        return None
    changes = {
        variant_id: change
        for variant_id, change in by_context.items()
        if variant_id in experiment.variant_ids
        and len(change.get("gram", ())) == sums.gram.shape[1]
    }
    if not changes:
        return None
    for variant_id, change in changes.items():
        arm = experiment.variant_ids.index(variant_id)
        sums.gram[arm] = change["gram"]
        sums.moment[arm] = change["moment"]
        sums.squares[arm] = change["squares"][0]
        sums.trials[arm] = counts.get(variant_id, {}).get("trials", 0)
    return sums
