"""Workers are replaced under load, and no client notices."""

import signal
import time

import pytest

from faults.audit import audited
from faults.run import NAME, begin
from faults.stream import Stream
from service_helpers import (
    SLOWER,
    linux,
    needs_server,
    running_server,
    wait_for,
)

pytestmark = [
    needs_server,
    linux,
    pytest.mark.slow,
    pytest.mark.timeout(180 * SLOWER),
]


def test_a_rolling_restart_drops_no_request() -> None:
    """SIGHUP: both workers are new, no kept connection was cut, no decision is lost."""
    with running_server("--workers", "2") as server:
        begin(server)
        old = set(server.of_role("api"))
        assert server.process is not None
        with Stream(server, NAME, 6) as stream:
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "are replaced" in server.log.read_text(), 60)
            time.sleep(0.5)
        new = set(server.of_role("api"))
        assert len(new) == len(old) == 2
        assert not new & old
        assert (stream.refused, stream.n_cut) == ([], 0)
        assert audited(server, NAME, stream) == (0, 0, 0, 0, [])
