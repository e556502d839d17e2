"""What every test runs under: Numba's cache, Hypothesis's profile, and what a machine may lack."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from bandolero_service.embedded import EmbeddedStore
    from bandolero_service.store import Store
    from cluster import Cluster
    from service_helpers import Running

IN_CI = os.environ.get("CI") == "true"
KERNELS_AS_PYTHON = os.environ.get("NUMBA_DISABLE_JIT") == "1"
CHROMIUM_COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
)


def numba_cache_dir() -> Path:
    """Name the cache folder by the engine's sources: another source, another folder.

    Numba looks at the file of a cached kernel only. After an edit to a kernel that it
    calls, or to a state defined elsewhere, it answers from the old code without a word.
    """
    spec = find_spec("bandolero")
    digest = hashlib.sha256(sys.version.encode())
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for source in sorted(Path(folder).rglob("*.py")):
            digest.update(str(source).encode() + b"\0" + source.read_bytes())
    return Path(tempfile.gettempdir()) / (
        f"bandolero-numba-{os.getuid()}-{digest.hexdigest()[:16]}"
    )


if "numba" in sys.modules:
    raise pytest.UsageError(
        "numba is imported before tests/conftest.py, must be after it: "
        "its cache folder is read at import."
    )
# Servers that the tests start inherit it.
os.environ["NUMBA_CACHE_DIR"] = str(numba_cache_dir())

# The same examples on every run: a failure in CI is a failure here.
settings.register_profile(
    "house",
    derandomize=True,
    deadline=None,
    max_examples=10 if KERNELS_AS_PYTHON else 100,
    suppress_health_check=[HealthCheck.too_slow] if KERNELS_AS_PYTHON else [],
)
settings.load_profile("house")


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_COMMANDS)), None)


class Need(NamedTuple):
    """Something a test needs that a machine may lack."""

    find: Callable[[], str | None]
    lack: str
    """The reason to skip."""
    in_ci: bool
    """Whether .ci/run provides it; then its lack is a failure there."""


NEEDS = {
    "browser": Need(find_chromium, "no Chromium or Chrome on the path", in_ci=True),
    "jvm": Need(lambda: shutil.which("java"), "no java on the path", in_ci=True),
}


def found(marker: str) -> str:
    """What a marker stands for, as found here; else skip, or in CI fail."""
    need = NEEDS[marker]
    it = need.find()
    if it is None and IN_CI and need.in_ci:
        pytest.fail(f"{need.lack}, must be there in CI: .ci/run installs it.")
    if it is None:
        pytest.skip(need.lack)
    return it


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests marked with a need that this machine lacks."""
    for marker in NEEDS:
        if item.get_closest_marker(marker):
            found(marker)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium or Chrome to drive."""
    return found("browser")


@pytest.fixture(scope="session")
def running() -> Iterator["Running"]:
    """A real `bandolero serve` that tests share; nobody kills its processes."""
    from service_helpers import no_server, running_server

    if (lack := no_server()) is not None:
        pytest.skip(lack)
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def embedded() -> Iterator["EmbeddedStore"]:
    """A real Valkey server on a socket of its own, for tests that speak to the store."""
    from bandolero_service.embedded import EmbeddedStore
    from service_helpers import no_server, short_folder

    if (lack := no_server()) is not None:
        pytest.skip(lack)
    with short_folder() as folder:
        server = EmbeddedStore(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator["Cluster"]:
    """A real cluster of three nodes that tests share; nobody ends its nodes."""
    from cluster import running_cluster
    from service_helpers import no_server

    if (lack := no_server()) is not None:
        pytest.skip(lack)
    with running_cluster() as nodes:
        yield nodes


@pytest.fixture
def store(embedded: "EmbeddedStore") -> Iterator["Store"]:
    """A connection to an empty store of four shards."""
    from bandolero_service.store import Store

    connection = Store(embedded.url)
    connection._redis.flushall()
    connection.open(4)
    yield connection
    connection.close()
