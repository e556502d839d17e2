"""One server that the tests of single faults share; each leaves it as it was."""

from collections.abc import Iterator

import pytest

from service_helpers import Running, no_server, running_server


@pytest.fixture(scope="package")
def server() -> Iterator[Running]:
    """A server with one worker, to do harm to."""
    if (lack := no_server()) is not None:
        pytest.skip(lack)
    with running_server() as one:
        yield one
