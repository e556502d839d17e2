"""Decision ids: opaque, URL-safe, signed; they carry what an event needs to be judged.

Layout, 48 bytes, big-endian: format, key id, shard, experiment key, time (48-bit
milliseconds), snapshot version, arm, nonce, MAC. 64 characters of base64url, no padding
and no spare bits, so one decision has one spelling. The MAC's key is derived per tenant:
another tenant's id is as good as a forged one. The format says whether anything is kept
of the decision. A *tracker's token* is the same body under the MAC of a purpose: from an
id nobody can make one, nor an id from a token, nor one purpose's from another's.
"""

import binascii
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
_LAYOUT = Struct(">BBH8sHIIH8s")
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


class Signer:
    """Mints and reads the decision ids of one tenant."""

    def __init__(self, secret: bytes, tenant: str, key_id: int = 0) -> None:
        self._key_id = key_id
        mac_key = derive(secret, b"decision-id", tenant)
        unit_key = derive(secret, b"unit", tenant)
        token_key = derive(secret, b"tracker", tenant)
        mask_key = derive(secret, b"draw", tenant)
        # Hashers that have taken in their key; a copy costs half of a new one.
        self._mac = blake2b(digest_size=MAC_BYTES, key=mac_key)
        self._unit = blake2b(digest_size=12, key=unit_key)
        self._token = blake2b(digest_size=MAC_BYTES, key=token_key)
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
        body = _LAYOUT.pack(
            KEPT if kept else UNKEPT,
            self._key_id,
            shard,
            key,
            at_ms >> 32,
            at_ms & 0xFFFFFFFF,
            version,
            arm,
            nonce,
        )
        return _text(body + _mac(self._mac, body))

    def read(self, decision_id: str) -> DecisionId:
        """Check and read an id.

        Raises
        ------
        ForgedIdError
            When it was not minted for this tenant.
        """
        body = _body(decision_id, self._mac)
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
        body = _body(token, self._token, purpose)
        return _text(body + _mac(self._mac, body)).decode()

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


def _body(text: str, hasher: blake2b, purpose: bytes = b"") -> bytes:
    """The signed part of an id or a token, checked."""
    try:
        data = _bytes(text.encode("ascii"))
    except UnicodeEncodeError:
        raise _forged() from None
    body = data[:-MAC_BYTES]
    if not compare_digest(data[-MAC_BYTES:], _mac(hasher, purpose + body)):
        raise _forged()
    return body


def _text(data: bytes) -> bytes:
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
