"""MACs by AES-CMAC, ours against a library's."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st

from bandolero_service.cmac import BLOCK_BYTES, MESSAGE_BYTES, Cmac

keys = st.sampled_from([16, 24, 32]).flatmap(
    lambda n: st.binary(min_size=n, max_size=n)
)
messages = st.lists(
    st.binary(min_size=MESSAGE_BYTES, max_size=MESSAGE_BYTES), max_size=5
)


def reference(key: bytes, message: bytes) -> bytes:
    """The MAC of a message as `cryptography` computes it."""
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def all_of(cmac: Cmac, some: list[bytes]) -> list[bytes]:
    """MACs computed together."""
    rows = np.frombuffer(b"".join(some), np.uint8).reshape(-1, MESSAGE_BYTES)
    return [bytes(row) for row in cmac.of_all(rows)]


@given(keys, messages)
def test_macs_are_those_of_the_standard(key: bytes, some: list[bytes]) -> None:
    """One by one and all at once they are the library's."""
    cmac, expected = Cmac(key), [reference(key, message) for message in some]
    assert [cmac.of(message) for message in some] == expected
    assert all_of(cmac, some) == expected


def test_the_example_of_the_standard() -> None:
    """RFC 4493, section 4, has the subkey; a message of two blocks follows from it."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    expected = 0xFBEED618357133667C85E08F7236A8DE
    assert Cmac(key)._subkey == expected
    assert len(Cmac(key).of(bytes(MESSAGE_BYTES))) == BLOCK_BYTES


def test_threads_do_not_disturb_each_other() -> None:
    """Eight threads on one key get what one gets."""
    cmac = Cmac(b"k" * 32)
    some = [i.to_bytes(MESSAGE_BYTES, "big") for i in range(20_000)]
    expected = all_of(cmac, some)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(cmac.of, some, chunksize=500)) == expected
