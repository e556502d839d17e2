"""The learner's fold as bytes in the store: states, epochs, corrections."""

from typing import Any

import numpy as np

from bandolero.codec import pack, unpack
from bandolero.experiment import Experiment
from bandolero.fold import Epoch
from bandolero.policies import policy_of
from bandolero.snapshot import state_arrays, state_of

_ARRAYS = Epoch._fields[3:]


def state_to_bytes(state: tuple[Any, ...]) -> bytes:
    """A policy's state."""
    return pack({}, state_arrays("state", state))


def state_from_bytes(kind: str, data: bytes) -> tuple[Any, ...]:
    """Read what `state_to_bytes` wrote."""
    return state_of("state", kind, unpack(data).arrays)


def epoch_to_bytes(epoch: Epoch) -> bytes:
    """One epoch of the rollups."""
    header = {"day": epoch.day, "mode": epoch.mode, "versions": list(epoch.versions)}
    return pack(header, {name: getattr(epoch, name) for name in _ARRAYS})


def epoch_from_bytes(data: bytes) -> Epoch:
    """Read what `epoch_to_bytes` wrote."""
    header, arrays = unpack(data)
    first, last = header["versions"]
    counts = (arrays[name] for name in _ARRAYS)
    return Epoch(header["day"], header["mode"], (first, last), *counts)


def correction_state(
    experiment: Experiment, body: dict[str, Any]
) -> tuple[Any, ...] | None:
    """A published correction as a state to add; None where it changes nothing."""
    changes = body["changes"]
    if not changes:
        return None
    ids = experiment.variant_ids
    trials, hits, micros = (
        np.array([changes.get(i, {}).get(name, 0) for i in ids], dtype=np.int64)
        for name in ("trials", "hits", "rewards_micros")
    )
    squared = np.array([changes.get(i, {}).get("rewards_squared", 0.0) for i in ids])
    policy = policy_of(experiment)
    state: tuple[Any, ...] = policy.correction(len(ids), trials, hits, micros, squared)
    return state
