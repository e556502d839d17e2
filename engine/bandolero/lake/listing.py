"""Listed files that an engine may read by itself: as they were written, to the byte.

An engine would read a damaged page as wrong data, and another schema as null columns.
So each file is hashed first, in a stream, and its footer compared; a bad one is
quarantined and told. A lake that is not local is copied while it is hashed.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from bandolero.lake.catalog import TABLES, BadFile, Lake, LakeFile

CHUNK_BYTES = 1 << 20
Read = TypeVar("Read")
TRIES = 3
"""An erasure that writes files anew makes who reads them begin again, so often at most."""


class Listing(NamedTuple):
    """Local paths of the files of a table, by where they are from.

    n_rows: of all that are listed, bad ones too.
    """

    live: list[str]
    ingested: list[str]
    n_rows: int
    bad: list[BadFile]


def checked_files(lake: Lake, table: str, copies: Path) -> Listing:
    """The files of a table that are as they were written.

    Parameters
    ----------
    copies
        A folder for copies, where the lake is not local.

    Raises
    ------
    FileNotFoundError
        When one was written anew and is no longer listed: there is a new list.
    """
    files = lake.files(table)
    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        found = list(pool.map(lambda file: _checked(lake, file, copies), files))
    listing = Listing([], [], sum(file.rows for file in files), [])
    if any(isinstance(path, BadFile) for path in found):
        moved = set(files) - set(lake.files(table))
        if moved:
            raise FileNotFoundError(f"{moved.pop().path} is listed no longer.")
    for file, path in zip(files, found, strict=True):
        if isinstance(path, BadFile):
            lake.quarantine(file, path.reason)
            listing.bad.append(path)
            continue
        mine = listing.ingested if file.is_ingested else listing.live
        mine.append(path)
    return listing


def undisturbed(
    lake: Lake, read: Callable[[], Read], progress: Callable[[str], None]
) -> Read:
    """What reading decisions gives; from the start where files were written anew."""
    for _ in range(TRIES - 1):
        listed = lake.files("decisions")
        try:
            return read()
        except Exception:
            if lake.files("decisions") == listed:
                raise
            progress("files were written anew meanwhile")
    return read()


def _checked(lake: Lake, file: LakeFile, copies: Path) -> str | BadFile:
    """The local path of a file, or what is wrong with it."""
    try:
        path = _hashed(lake, file, copies)
        if not pq.read_schema(path).equals(TABLES[file.table]):
            raise ValueError(f"{file.path} does not have the schema of its table.")
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        return BadFile(file.path, reason, file.rows)
    return path


def _hashed(lake: Lake, file: LakeFile, copies: Path) -> str:
    """The local path of a file whose bytes are those that were written."""
    where = f"{lake.root}/{file.path}"
    path = where if lake.is_local else str(copies / file.path.replace("/", "-"))
    sink = Path(os.devnull if lake.is_local else path).open("wb")  # noqa: SIM115
    hashed = blake2b(digest_size=16)
    with sink, lake.filesystem.open_input_stream(where, compression=None) as source:
        while chunk := source.read(CHUNK_BYTES):
            hashed.update(chunk)
            sink.write(chunk)
    if hashed.hexdigest() != file.blake2b:
        raise ValueError(f"{file.path} does not have the hash of its manifest.")
    return path
