"""The numbers a decision is drawn with: hashes, so that any decision can be re-derived.

A draw number depends on the tenant, the experiment and a token (the decision's nonce, or
the raw unit where draws are sticky) and on nothing else: no generator state, no clock.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from xxhash import xxh3_64_intdigest as _hash

NONCE_BYTES = 8
_HOLDOUT = 0x9E3779B97F4A7C15  # Tells the two seeds of an experiment apart.
_UNIT_INTERVAL = 2.0**-53


class Draws(NamedTuple):
    """Two independent numbers in [0, 1): for the arm, and for the holdout."""

    arm: float
    holdout: float


def experiment_key(tenant: str, experiment_id: str) -> bytes:
    """Eight bytes that stand for an experiment in hashes, ids and shard choice."""
    name = f"{tenant}\0{experiment_id}".encode()
    return blake2b(name, digest_size=8, person=b"experiment").digest()


def shard_of(key: bytes, n_shards: int) -> int:
    """The shard an experiment lives on, in 0 … n_shards - 1."""
    return int.from_bytes(key, "little") % n_shards


def draws(key: bytes, token: bytes) -> Draws:
    """Hash an experiment key and a token to two uniform numbers.

    53 bits each of XXH3-64, seeded by the key, so experiments draw independently for the
    same unit. No secret: whoever knows tenant, experiment and token knows the draw.
    """
    seed = int.from_bytes(key, "little")
    arm, holdout = _hash(token, seed), _hash(token, seed ^ _HOLDOUT)
    return Draws((arm >> 11) * _UNIT_INTERVAL, (holdout >> 11) * _UNIT_INTERVAL)


def drawer(key: bytes) -> Callable[[bytes], float]:
    """From a token to `draws(key, token).arm`, for who draws often: a third of the time.

    Examples
    --------
    >>> drawer(b"eight by")(b"a token") == draws(b"eight by", b"a token").arm
    True
    """
    seed = int.from_bytes(key, "little")

    def draw(token: bytes) -> float:
        arm: int = _hash(token, seed)
        return (arm >> 11) * _UNIT_INTERVAL

    return draw
