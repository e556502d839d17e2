"""Which files are taken in: those named, and those in folders named, wherever they lie."""

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pyarrow import fs

from bandolero.lake.storage import Storage

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
"""By ending; text may be packed besides (`.csv.gz`). JSON is one object a line."""
PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
CHUNK_BYTES = 4 << 20


class Version(NamedTuple):
    """How large a file is, and when it was last changed."""

    size: int
    changed_ns: int


class Source(NamedTuple):
    """A file: what it is called, where it is, how it is read, or why it is not.

    base
        What its filesystem is opened with: a URI, or nothing for this machine's.
    format
        Nothing where it is not to be read: in a folder, and of no known ending.
    """

    name: str
    base: str
    path: str
    format: str
    fault: str | None = None

    @property
    def filesystem(self) -> fs.FileSystem:
        """Where it is."""
        if not self.base:
            return fs.LocalFileSystem()
        return fs.FileSystem.from_uri(self.base)[0]

    def version(self) -> Version:
        """What changes when it does.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        """
        info = self.filesystem.get_file_info(self.path)
        if info.type != fs.FileType.File:
            raise FileNotFoundError("is not there, or no file.")
        return Version(info.size, info.mtime_ns or 0)

    def digest(self) -> str:
        """The hash of its bytes: the same under whatever name."""
        found = blake2b(digest_size=12)
        with self.filesystem.open_input_stream(self.path, compression=None) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                found.update(chunk)
        return found.hexdigest()


def sources_of(paths: Sequence[str | Path], lake: Storage) -> Iterator[Source]:
    """The files named, and those in the folders named, save for the lake's own.

    In folders only files with a known ending are to be read, and none that begin with a dot
    or an underscore, or lie in such a folder: those are drafts and notes of their writers.
    Links within a folder are passed over; those that lead out of it, or nowhere, are faults,
    and so is a folder without a file to read.
    """
    for path in paths:
        if "://" in str(path):
            yield from _remote(str(path), lake)
        elif Path(path).is_dir():
            yield from _some(_in_folder(Path(path), lake), str(path))
        else:
            yield _local(Path(path))


def _some(inside: Iterator[Source], folder: str) -> Iterator[Source]:
    """The files of a folder, and a fault if none is to be read."""
    is_empty = True
    for source in inside:
        is_empty = is_empty and not source.format
        yield source
    if is_empty:
        endings = ", ".join(FORMATS)
        fault = f"is a folder without a file that ends with {endings}."
        yield Source(folder, "", "", "", fault)


def _local(path: Path, fault: str | None = None) -> Source:
    return Source(str(path), "", str(path.absolute()), _format(path.name), fault)


def _in_folder(folder: Path, lake: Storage) -> Iterator[Source]:
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = sorted(name for name in folders if _is_meant(name))
        where = Path(parent)
        if lake.is_local and where.resolve() == Path(lake.root).resolve():
            folders.clear()
            continue
        for name in sorted([*names, *links]):
            path = where / name
            if not _is_meant(name):
                continue
            if not path.is_symlink():
                yield Source(str(path), "", str(path.absolute()), _known_format(name))
            elif fault := _fault_of(path, folder):
                yield _local(path, fault)


def _fault_of(link: Path, folder: Path) -> str | None:
    """What is wrong with a link in a folder: one to a file of it is none."""
    if not link.exists():
        return "is a link that leads nowhere."
    if not link.resolve().is_relative_to(folder.resolve()):
        return "is a link that leads out of its folder."
    return None


def _remote(uri: str, lake: Storage) -> Iterator[Source]:
    told = urlsplit(uri)
    name = f"{told.scheme}://{told.hostname or ''}{told.path}"  # no key, no query
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        info = filesystem.get_file_info(path)
    except (ValueError, OSError) as error:
        why = str(error).replace(uri, name)
        yield Source(name, uri, "", "", f"cannot be reached: {why}")
        return
    if info.type != fs.FileType.Directory:
        yield Source(name, uri, path, _format(path))
        return
    yield from _some(_below(name, uri, path, lake), name)


def _below(name: str, uri: str, path: str, lake: Storage) -> Iterator[Source]:
    filesystem, _ = fs.FileSystem.from_uri(uri)
    inside = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    for info in sorted(inside, key=lambda one: one.path):
        below = info.path.removeprefix(path)
        parts = below.strip("/").split("/")
        is_ours = filesystem == lake.filesystem and info.path.startswith(
            f"{lake.root}/"
        )
        if info.type != fs.FileType.File or is_ours or not all(map(_is_meant, parts)):
            continue
        full = f"{name.rstrip('/')}/{below.strip('/')}"
        yield Source(full, uri, info.path, _known_format(parts[-1]))


def _is_meant(name: str) -> bool:
    return not name.startswith((".", "_"))


def _format(name: str) -> str:
    """How a file that was named is read; what has no known ending must be Parquet."""
    return _known_format(name) or "parquet"


def _known_format(name: str) -> str:
    return FORMATS.get(_ending(name), "")


def _ending(name: str) -> str:
    path = Path(name.lower())
    if path.suffix in PACKED:
        path = path.with_suffix("")
        return path.suffix if path.suffix != ".parquet" else ""
    return path.suffix
