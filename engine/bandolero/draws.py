"""The numbers a decision is drawn with: hashes, so that any decision can be re-derived.

A draw number depends on the tenant, the experiment and a token (the decision's nonce, or
the raw unit where draws are sticky) and on nothing else: no generator state, no clock.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

NONCE_BYTES = 8
_PAIR, _FIRST = Struct("<QQ"), Struct("<Q8x")
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

    53 bits each; a keyed BLAKE2b, so experiments draw independently for the same unit.
    """
    hasher = _keyed(key).copy()
    hasher.update(token)
    arm, holdout = _PAIR.unpack(hasher.digest())
    return Draws((arm >> 11) * _UNIT_INTERVAL, (holdout >> 11) * _UNIT_INTERVAL)


def drawer(key: bytes) -> Callable[[bytes], float]:
    """From a token to `draws(key, token).arm`, for who draws often: half the time.

    Examples
    --------
    >>> drawer(b"eight by")(b"a token") == draws(b"eight by", b"a token").arm
    True
    """
    fresh, unpack = _keyed(key).copy, _FIRST.unpack

    def draw(token: bytes) -> float:
        hasher = fresh()
        hasher.update(token)
        arm: int = unpack(hasher.digest())[0]
        return (arm >> 11) * _UNIT_INTERVAL

    return draw


@lru_cache(maxsize=4096)
def _keyed(key: bytes) -> blake2b:
    """A hasher that has taken in its key; a copy of it costs half of a new one."""
    return blake2b(digest_size=16, key=key)
