"""Decision ids: opaque, URL-safe, signed; they carry what an event needs to be judged.

Layout, 48 bytes, big-endian: format, key id, shard, experiment key, time (48-bit
milliseconds), snapshot version, arm, nonce, MAC. 64 characters of base64url, no padding
and no spare bits, so one decision has one spelling. The MAC's key is derived per tenant:
another tenant's id is as good as a forged one. The format says whether anything is kept
of the decision. A *tracker's token* is the same body under the MAC of a purpose: from an
id nobody can make one, nor an id from a token, nor one purpose's from another's.
"""

import binascii
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from hmac import compare_digest
from struct import Struct
from typing import NamedTuple

KEPT, UNKEPT = 1, 2
"""Formats: of a decision that is recorded, and of one of which nothing is kept."""
MAC_BYTES = 16
ID_CHARACTERS = 64
_DRAWS = 2**53
"""How many draws there are: 53 random bits each."""
_START = Struct(">BBH8sHIIH")
_LAYOUT = Struct(_START.format + "8s")
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


class ForgedIdError(ValueError):
    """Not a decision id that this tenant was given."""


class DecisionId(NamedTuple):
    """What a decision id says."""

    shard: int
    key: bytes
    decided_at_ms: int
    snapshot_version: int
    arm: int
    nonce: bytes
    kept: bool = True


class _Live(NamedTuple):
    """A secret that is good for decision ids: its hashers have taken in their key."""

    key_id: int
    ids: blake2b
    tokens: blake2b


class Signer:
    """Mints and reads the decision ids of one tenant.

    Parameters
    ----------
    secret
        Signs; the key id in an id is a byte derived from it.
    previous
        Ids signed with it are good, too; empty for none.
    root
        Of what is stored, so it must not change when `secret` does: pseudonyms, masks.
        Default: `secret`.
    """

    def __init__(
        self, secret: bytes, tenant: str, previous: bytes = b"", root: bytes = b""
    ) -> None:
        self._live = [_live(one, tenant) for one in (secret, previous) if one]
        self._key_id, self._mac, self._token = self._live[0]
        unit_key = derive(root or secret, b"unit", tenant)
        mask_key = derive(root or secret, b"draw", tenant)
        self._unit = blake2b(digest_size=12, key=unit_key)
        self._mask = blake2b(digest_size=8, key=mask_key)

    def mint(
        self,
        shard: int,
        key: bytes,
        at_ms: int,
        version: int,
        arm: int,
        nonce: bytes,
        kept: bool = True,
    ) -> bytes:
        """The signed id of a decision; the arguments are the fields of `DecisionId`."""
        form = KEPT if kept else UNKEPT
        when = at_ms >> 32, at_ms & 0xFFFFFFFF
        body = _LAYOUT.pack(form, self._key_id, shard, key, *when, version, arm, nonce)
        # `_mac` and `_text`, less two calls: this is the way of every decision.
        hasher = self._mac.copy()
        hasher.update(body)
        data = binascii.b2a_base64(body + hasher.digest(), newline=False)
        return data.translate(_TO_URL)

    def mint_alike(
        self,
        shard: int,
        key: bytes,
        at_ms: int,
        version: int,
        arms: Sequence[int],
        nonces: Sequence[bytes],
    ) -> list[bytes]:
        """Ids of kept decisions that differ by arm and nonce alone, as `mint` signs them."""
        when = at_ms >> 32, at_ms & 0xFFFFFFFF
        start = KEPT, self._key_id, shard, key, *when, version
        starts = {arm: _START.pack(*start, arm) for arm in set(arms)}
        bodies = [starts[a] + nonce for a, nonce in zip(arms, nonces, strict=True)]
        hasher = self._mac
        text = _text(b"".join([body + _mac(hasher, body) for body in bodies]))
        return [
            text[at : at + ID_CHARACTERS] for at in range(0, len(text), ID_CHARACTERS)
        ]

    def read(self, decision_id: str) -> DecisionId:
        """Check and read an id.

        Raises
        ------
        ForgedIdError
            When it was not minted for this tenant.
        """
        body, mac = _parts(decision_id)
        for live in self._live:  # two may share a key id
            if live.key_id == body[1] and _good(live.ids, body, mac):
                break
        else:
            raise _forged()
        form, _, shard, key, high, low, version, arm, nonce = _LAYOUT.unpack(body)
        at_ms = (high << 32) | low
        return DecisionId(shard, key, at_ms, version, arm, nonce, form == KEPT)

    def token(self, purpose: bytes, decision_id: bytes) -> bytes:
        """A tracker's token: it lets its bearer tell one thing of one decision."""
        body = _bytes(decision_id)[:-MAC_BYTES]
        return _text(body + _mac(self._token, purpose + body))

    def tracked(self, purpose: bytes, token: str) -> str:
        """The decision id behind a tracker's token.

        Raises
        ------
        ForgedIdError
            When the token was not made for this tenant and purpose.
        """
        body, mac = _parts(token)
        for live in self._named(body):
            if _good(live.tokens, purpose + body, mac):
                return _text(body + _mac(live.ids, body)).decode()
        raise _forged()

    def _named(self, body: bytes) -> Iterator[_Live]:
        """The live secrets with the key id in an id; two may share one."""
        return (live for live in self._live if live.key_id == body[1])

    def pseudonym(self, unit: str) -> str:
        """What is stored of a unit: a keyed hash."""
        name = unit.encode("utf-8", "surrogatepass")
        hasher = self._unit.copy()
        hasher.update(name)
        return hasher.hexdigest()

    def masked(self, nonce: bytes, draw: float) -> float:
        """What is stored of a draw that came from a unit: it tells nothing without the key.

        Such a draw is a plain hash of the unit, so whoever holds a list of units could
        look them up in it.
        """
        return ((int(draw * _DRAWS) + self._shift(nonce)) % _DRAWS) / _DRAWS

    def unmasked(self, nonce: bytes, masked: float) -> float:
        """The draw behind `masked`, bit for bit."""
        return ((int(masked * _DRAWS) - self._shift(nonce)) % _DRAWS) / _DRAWS

    def _shift(self, nonce: bytes) -> int:
        return int.from_bytes(_mac(self._mask, nonce), "big") % _DRAWS


def key_in(text: str) -> bytes | None:
    """The experiment key that an id or a token names, unchecked; None where it has none."""
    try:
        return bytes(_LAYOUT.unpack(_bytes(text.encode())[:-MAC_BYTES])[3])
    except (ForgedIdError, UnicodeEncodeError):
        return None


def derive(secret: bytes, purpose: bytes, tenant: str) -> bytes:
    """A key for one purpose and tenant."""
    root = blake2b(secret, digest_size=32, person=b"bandolero").digest()
    message = purpose + b"\0" + tenant.encode()
    return blake2b(message, digest_size=32, key=root).digest()


def _mac(hasher: blake2b, message: bytes) -> bytes:
    copy = hasher.copy()
    copy.update(message)
    return copy.digest()


def _live(secret: bytes, tenant: str) -> _Live:
    key_id = derive(secret, b"key-id", "")[0]
    ids = derive(secret, b"decision-id", tenant)
    tokens = derive(secret, b"tracker", tenant)
    # A copy of a hasher that has its key costs half of a new one.
    return _Live(
        key_id,
        blake2b(digest_size=MAC_BYTES, key=ids),
        blake2b(digest_size=MAC_BYTES, key=tokens),
    )


def _good(hasher: blake2b, message: bytes, mac: bytes) -> bool:
    return compare_digest(mac, _mac(hasher, message))


def _parts(text: str) -> tuple[bytes, bytes]:
    """The body and the MAC of an id or a token, unchecked."""
    try:
        data = _bytes(text.encode("ascii"))
    except UnicodeEncodeError:
        raise _forged() from None
    return data[:-MAC_BYTES], data[-MAC_BYTES:]


def _text(data: bytes) -> bytes:
    """Base64url; of several ids one after the other, for none needs padding."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL)


def _bytes(text: bytes) -> bytes:
    if len(text) != ID_CHARACTERS:
        raise _forged()
    try:
        return binascii.a2b_base64(text.translate(_FROM_URL), strict_mode=True)
    except binascii.Error:
        raise _forged() from None


def _forged() -> ForgedIdError:
    return ForgedIdError("decision_id is not one of ours.")
