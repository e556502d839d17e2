"""Bytes of the lake: files of a local folder or of any Arrow filesystem, whole or absent."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from pyarrow import fs


class Storage:
    """A directory, or a prefix of any Arrow filesystem such as `s3://bucket/lake`.

    It is made when something is first written to it.
    """

    def __init__(self, where: str | Path) -> None:
        if "://" in str(where):
            self.filesystem, self.root = fs.FileSystem.from_uri(str(where))
        else:
            root = str(Path(where).absolute())
            self.filesystem, self.root = fs.LocalFileSystem(), root

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def is_there(self) -> bool:
        """Whether anything has been written to it."""
        info = self.filesystem.get_file_info(self.root)
        return bool(info.type == fs.FileType.Directory)

    def write_bytes(self, path: str, data: bytes, *, anew: bool = False) -> None:
        """Write a file so that it is there whole or not at all.

        Raises
        ------
        FileExistsError
            When the file exists and is to be written `anew`; local folders only.
        """
        final = f"{self.root}/{path}"
        self.filesystem.create_dir(final.rpartition("/")[0], recursive=True)
        if not self.is_local:
            with self.filesystem.open_output_stream(final) as sink:
                sink.write(data)
            return
        _write_durably(Path(final), data, Path(self.root), anew=anew)

    def read_bytes(self, path: str) -> bytes:
        """The bytes of a file."""
        with self.filesystem.open_input_stream(
            f"{self.root}/{path}", compression=None
        ) as source:
            return bytes(source.read())

    def paths(self, folder: str, ending: str) -> Iterator[str]:
        """Paths of the files under a folder, listed or not."""
        where = fs.FileSelector(
            f"{self.root}/{folder}", recursive=True, allow_not_found=True
        )
        for info in self.filesystem.get_file_info(where):
            if info.type == fs.FileType.File and info.path.endswith(ending):
                yield info.path[len(self.root) + 1 :]

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        info = self.filesystem.get_file_info(f"{self.root}/{path}")
        return bool(info.type == fs.FileType.File)

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.root}/{path}")

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all in it, if it is there."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_dir(f"{self.root}/{path}")


def _write_durably(path: Path, data: bytes, root: Path, *, anew: bool) -> None:
    """Draft a file beside its place, put it there, and sync it with its folders."""
    draft = path.with_name(f".{path.name}.{token_hex(8)}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if anew:
            path.hardlink_to(draft)  # unlike a rename, fails where there is one
        else:
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    for folder in path.parents:
        _sync(folder)
        if folder == root:
            break


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
