"""Decision ids: opaque, URL-safe, signed; they carry what an event needs to be judged.

Layout, 48 bytes, big-endian: format, key id, shard, experiment key, time (48-bit
milliseconds), snapshot version, arm, nonce, MAC. 64 characters of base64url, no padding
and no spare bits, so one decision has one spelling. The MAC's key is derived per tenant:
another tenant's id is as good as a forged one.
"""

import binascii
from hashlib import blake2b
from hmac import compare_digest
from struct import Struct
from typing import NamedTuple

FORMAT = 1
MAC_BYTES = 16
ID_CHARACTERS = 64
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


class Signer:
    """Mints and reads the decision ids of one tenant."""

    def __init__(self, secret: bytes, tenant: str, key_id: int = 0) -> None:
        self._key_id = key_id
        mac_key = derive(secret, b"decision-id", tenant)
        unit_key = derive(secret, b"unit", tenant)
        # Hashers that have taken in their key; a copy costs half of a new one.
        self._mac = blake2b(digest_size=MAC_BYTES, key=mac_key)
        self._unit = blake2b(digest_size=12, key=unit_key)

    def mint(
        self, shard: int, key: bytes, at_ms: int, version: int, arm: int, nonce: bytes
    ) -> bytes:
        """The signed id of a decision; the arguments are the fields of `DecisionId`."""
        body = _LAYOUT.pack(
            FORMAT,
            self._key_id,
            shard,
            key,
            at_ms >> 32,
            at_ms & 0xFFFFFFFF,
            version,
            arm,
            nonce,
        )
        text = binascii.b2a_base64(body + self._mac_of(body), newline=False)
        return text.translate(_TO_URL)

    def read(self, decision_id: str) -> DecisionId:
        """Check and read an id.

        Raises
        ------
        ForgedIdError
            When it was not minted for this tenant.
        """
        try:
            text = decision_id.encode("ascii").translate(_FROM_URL)
            data = binascii.a2b_base64(text, strict_mode=True)
        except (UnicodeEncodeError, binascii.Error):
            raise ForgedIdError("decision_id is not one of ours.") from None
        body, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
        good = compare_digest(mac, self._mac_of(body))
        if len(decision_id) != ID_CHARACTERS or not good:
            raise ForgedIdError("decision_id is not one of ours.")
        _, _, shard, key, high, low, version, arm, nonce = _LAYOUT.unpack(body)
        return DecisionId(shard, key, (high << 32) | low, version, arm, nonce)

    def pseudonym(self, unit: str) -> str:
        """What is stored of a unit: a keyed hash."""
        name = unit.encode("utf-8", "surrogatepass")
        hasher = self._unit.copy()
        hasher.update(name)
        return hasher.hexdigest()

    def _mac_of(self, body: bytes) -> bytes:
        hasher = self._mac.copy()
        hasher.update(body)
        return hasher.digest()


def derive(secret: bytes, purpose: bytes, tenant: str) -> bytes:
    """A key for one purpose and tenant."""
    root = blake2b(secret, digest_size=32, person=b"bandolero").digest()
    message = purpose + b"\0" + tenant.encode()
    return blake2b(message, digest_size=32, key=root).digest()
