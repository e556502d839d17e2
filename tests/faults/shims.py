"""Small C libraries preloaded into a server's processes: fake a power cut, or a clock."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent
COMPILER = shutil.which("cc")

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc)")


def compiled(name: str, folder: Path) -> Path:
    """The library of `name`.c, built into a folder."""
    library = folder / f"{name}.so"
    command = [str(COMPILER), "-O1", "-Wall", "-Werror", "-fPIC", "-shared"]
    command += ["-o", str(library), str(SOURCES / f"{name}.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Power:
    """What a power cut leaves of files: each up to the size it had when last synced."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "synced.log"
        self.environment = {
            "LD_PRELOAD": str(compiled("synced", folder)),
            "SYNCED_LOG": str(self._log),
        }
        """For the processes whose files are to be cut."""

    def cut(self, files: Iterable[Path]) -> int:
        """Cut files back, in the absence of who writes them; the bytes lost."""
        synced, lost = self._synced(), 0
        for file in files:
            stat = file.stat()
            kept = min(synced.get(f"{stat.st_dev}:{stat.st_ino}", 0), stat.st_size)
            lost += stat.st_size - kept
            os.truncate(file, kept)
        return lost

    def _synced(self) -> dict[str, int]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return {name: int(size) for name, _, size in (x.partition(" ") for x in lines)}
