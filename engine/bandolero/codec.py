"""Arrays with a small JSON header as bytes and back: no pickle, damage is noticed.

Layout: magic, BLAKE2b-128 of the rest, header length, header, then the arrays, each at a
multiple of eight bytes. Arrays read back are views of the bytes and so read-only.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"BDL1"
_ALIGN = 8


class DamagedBytesError(ValueError):
    """Bytes are not what was packed."""


class Packed(NamedTuple):
    """A JSON-able header and named arrays."""

    header: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Bytes of a header and named numeric arrays of any shape."""
    layout, chunks, offset = [], [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        padding = -len(data) % _ALIGN
        layout.append([name, array.dtype.str, list(array.shape), offset])
        chunks += [data, b"\0" * padding]
        offset += len(data) + padding
    head = json.dumps({"header": dict(header), "arrays": layout}).encode()
    head += b" " * (-(len(head) + 4 + 20) % _ALIGN)
    body = b"".join([len(head).to_bytes(4, "little"), head, *chunks])
    return _MAGIC + blake2b(body, digest_size=16).digest() + body


def unpack(data: bytes) -> Packed:
    """Read what `pack` wrote.

    Raises
    ------
    DamagedBytesError
        When the bytes are cut, altered, or of another format.
    """
    body = memoryview(data)[20:]  # no copy: arrays stay at multiples of eight bytes
    if data[:4] != _MAGIC or blake2b(body, digest_size=16).digest() != data[4:20]:
        raise DamagedBytesError(f"{len(data)} bytes are damaged or not ours.")
    start = 4 + int.from_bytes(body[:4], "little")
    head = json.loads(bytes(body[4:start]))
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape, offset in head["arrays"]:
        arrays[name] = np.ndarray(shape, dtype, body, start + offset)
    return Packed(head["header"], arrays)
