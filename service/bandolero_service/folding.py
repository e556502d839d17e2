"""The learner's fold as bytes in the store: states, epochs, corrections."""

from typing import Any

import numpy as np

from bandolero.codec import pack, unpack
from bandolero.epochs import Epoch
from bandolero.experiment import Experiment
from bandolero.policies import STATES, ContextualPolicy, policy_of
from bandolero.snapshot import state_arrays, state_of

_ARRAYS = Epoch._fields[3:-1]


def state_to_bytes(state: tuple[Any, ...]) -> bytes:
    """A policy's state."""
    return pack({}, state_arrays("state", state))


def state_from_bytes(kind: str, data: bytes) -> tuple[Any, ...]:
    """Read what `state_to_bytes` wrote."""
    return state_of("state", STATES[kind], unpack(data).arrays)


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
    experiment: Experiment, body: dict[str, Any]
) -> tuple[Any, ...] | None:
    """A published correction as a state to add; None where it changes nothing.

    Nor does it change a contextual policy's state, which is no sum of these measures.
    """
    changes = body["changes"]
    policy = policy_of(experiment)
    if not changes or isinstance(policy, ContextualPolicy):
        return None
    ids = experiment.variant_ids
    trials, hits, micros = (
        np.array([changes.get(i, {}).get(name, 0) for i in ids], dtype=np.int64)
        for name in ("trials", "hits", "rewards_micros")
    )
    squared = np.array([changes.get(i, {}).get("rewards_squared", 0.0) for i in ids])
    state: tuple[Any, ...] = policy.correction(len(ids), trials, hits, micros, squared)
    return state
