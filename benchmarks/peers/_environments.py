"""An environment for each peer, with the versions that are compared."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

INSTALL_S = 1800


class Peer(NamedTuple):
    """A package, and what pip is told, one call after the other."""

    name: str
    version: str
    installs: tuple[tuple[str, ...], ...]


def _peer(name: str, version: str, *more: str) -> Peer:
    return Peer(name, version, ((f"{name}=={version}", *more),))


PEERS = (
    _peer("vowpalwabbit", "9.11.9"),
    _peer("mabwiser", "2.7.4"),
    _peer("contextualbandits", "0.3.30"),
    _peer("river", "0.26.1"),
    _peer("pybandits", "8.4.1"),
    _peer("bayesianbandits", "1.5.0"),
    _peer("gittins", "2.0.1"),
    # Its own pins are of 2022, and ask for torch.
    Peer(
        "obp",
        "0.5.7",
        (
            ("numpy", "pandas", "scipy", "scikit-learn", "tqdm", "pyyaml"),
            ("--no-deps", "--ignore-requires-python", "obp==0.5.7"),
        ),
    ),
    _peer("coba", "8.1.0", "numpy"),
)


class NotInstalledError(Exception):
    """A peer could not be installed; the message is pip's last line."""


def python_of(peer: Peer, cache: Path) -> Path:
    """The Python of a peer's environment, made if it is not there in this version.

    Raises
    ------
    NotInstalledError
        When pip fails.
    """
    home = cache / peer.name
    python, made = home / "bin" / "python", home / ".made"
    if made.exists() and made.read_text() == peer.version:
        return python
    print(f"  installing {peer.name} {peer.version} into {home}", flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(home))
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--quiet")
    for packages in peer.installs:
        _run(*pip, "install", *packages)
    made.write_text(peer.version)
    return python


def _run(*command: str) -> None:
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=INSTALL_S
        )
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"not done after {INSTALL_S} s") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines()
        raise NotInstalledError(lines[-1] if lines else str(error)) from None
