"""What an operator sees of a server whose parts fail: never a lie, never a wait."""

import os
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service_helpers import (
    SLOWER,
    Running,
    experiment,
    linux,
    needs_server,
    running_server,
    wait_for,
)

pytestmark = needs_server


def figures(server: Running) -> dict[str, float]:
    """Samples of `/metrics`, summed over their labels."""
    totals: dict[str, float] = {}
    text = server.call("GET", "/metrics", timeout=10 * SLOWER).body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


@linux
@pytest.mark.slow
@pytest.mark.timeout(180 * SLOWER)
def test_a_hung_store_and_a_killed_worker_are_told_as_they_are() -> None:
    """With the store stopped all is answered, and said; totals outlive a worker's death."""
    with running_server() as server:
        server.begin(experiment("hats"))
        server.decide_many("hats", 30)
        (store,) = server.of_role("store")
        os.kill(store.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: figures(server)["bandolero_store_up"] == 0, 20, "it shows")
            told = figures(server)
            assert "bandolero_log_lag_seconds" not in told
            assert told["bandolero_ready"] == 1
            assert server.decide("hats")["mode"] == "explore"
            assert server.call("GET", "/healthz").body == {"status": "ok"}
            ready = server.call("GET", "/readyz")
            assert (ready.status, ready.body["store"]) == (200, "down")
        finally:
            os.kill(store.pid, signal.SIGCONT)
        wait_for(lambda: figures(server)["bandolero_store_up"] == 1, 20, "it is back")
        before = figures(server)["bandolero_decisions_total"]
        assert before >= 31
        wait_for(lambda: _written(server) >= before, 20, "a second has passed")
        killed = server.kill("api")
        wait_for(lambda: killed not in server.of_role("api") and _is_up(server), 60)
        assert figures(server)["bandolero_decisions_total"] >= before


def _is_up(server: Running) -> bool:
    try:
        return server.call("GET", "/readyz").status == 200
    except OSError:
        return False


def _written(server: Running) -> float:
    """Decisions counted in the worker's file."""
    from bandolero_service.metric_files import _content
    from bandolero_service.metrics import DECISIONS

    (file,) = (server.data_dir / "metrics").glob("api-*.figures")
    written = _content(file)
    return sum(written.figures[DECISIONS.name].values()) if written else 0.0
