"""AES-CMAC of messages of two blocks: one by one, or many at once.

A hash costs a call a message; a block cipher takes all messages of a batch in two calls.
CMAC as NIST SP 800-38B has it: every message is whole blocks here, so of the two subkeys
only the first is ever needed.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from numpy.typing import NDArray

BLOCK_BYTES = 16
MESSAGE_BYTES = 2 * BLOCK_BYTES
_POLYNOMIAL = 0x87
"""SP 800-38B, section 5.3, for blocks of 128 bits."""


class Cmac:
    """MACs of one key; safe to share between threads, for each call holds the interpreter.

    Parameters
    ----------
    key
        16, 24 or 32 bytes, as AES takes them.
    """

    def __init__(self, key: bytes) -> None:
        # No mode of its own: chaining two blocks is the few lines below.
        self._cipher = Cipher(AES(key), ECB()).encryptor().update  # noqa: S305
        subkey = _doubled(self._cipher(bytes(BLOCK_BYTES)))
        self._subkey = int.from_bytes(subkey, "big")
        self._subkey_words = np.frombuffer(subkey, np.uint64)

    def of(self, message: bytes) -> bytes:
        """The MAC of a message of `MESSAGE_BYTES`."""
        first = int.from_bytes(self._cipher(message[:BLOCK_BYTES]), "big")
        mixed = first ^ int.from_bytes(message[BLOCK_BYTES:], "big") ^ self._subkey
        return self._cipher(mixed.to_bytes(BLOCK_BYTES, "big"))

    def of_all(self, messages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The MACs of messages (n, MESSAGE_BYTES), (n, BLOCK_BYTES)."""
        words = np.ascontiguousarray(messages).view(np.uint64)
        firsts = np.frombuffer(self._cipher(words[:, :2].tobytes()), np.uint64)
        mixed = firsts.reshape(-1, 2) ^ words[:, 2:] ^ self._subkey_words
        macs = self._cipher(mixed.tobytes())
        return np.frombuffer(macs, np.uint8).reshape(-1, BLOCK_BYTES)


def _doubled(block: bytes) -> bytes:
    """A block times x in the field that CMAC computes its subkeys in."""
    doubled = int.from_bytes(block, "big") << 1
    if doubled >> 128:
        doubled = (doubled & (1 << 128) - 1) ^ _POLYNOMIAL
    return doubled.to_bytes(BLOCK_BYTES, "big")
