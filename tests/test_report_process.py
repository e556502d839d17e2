"""Reports are made beside a worker: what is true of the process that makes them."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bandolero_service import report_process
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.errors import ApiError
from bandolero_service.report_process import AskedReport, ReportProcess
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from service_helpers import (
    Process,
    Running,
    experiment,
    linux,
    needs_server,
    running_server,
    wait_for,
)

pytestmark = [needs_server, linux]
REPORT = "/v1/experiments/aside/report"
ASKED = AskedReport("acme", "aside", "json")


def report_processes(server: Running) -> list[Process]:
    """Those of a server that make reports."""
    return [
        process
        for process in server.of_role("other")
        if b"report_process" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    ]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server of one's own, whose processes are killed; it must leave none behind."""
    with running_server() as running:
        running.begin(experiment("aside"))
        yield running


def test_a_worker_draws_no_figures(server: Running) -> None:
    """Reports and explanations come from one process of lower priority; the worker plots nothing."""
    decision = server.decide("aside")
    page = server.call("GET", f"{REPORT}?format=html", key=server.key(), timeout=60)
    assert page.body.startswith(b"<!doctype html>"), page
    path = f"/v1/decisions/{decision['decision_id']}"
    wait_for(lambda: server.call("GET", path, key=server.key()).status == 200)
    (one,), (worker,) = report_processes(server), server.of_role("api")
    assert "matplotlib" not in Path(f"/proc/{worker.pid}/maps").read_text()
    assert os.getpriority(os.PRIO_PROCESS, one.pid) == report_process.NICENESS


def test_a_killed_report_process_is_replaced(server: Running) -> None:
    """The next report after a kill -9 of the report process is there all the same."""
    server.ok("GET", REPORT)
    (first,) = report_processes(server)
    os.kill(first.pid, signal.SIGKILL)
    server.ok("GET", REPORT)
    (second,) = report_processes(server)
    assert second != first


def test_a_report_process_ends_with_its_worker(server: Running) -> None:
    """A kill -9 of the worker ends its report process; the next worker has its own."""
    server.ok("GET", REPORT)
    old = report_processes(server)
    server.kill("api")
    wait_for(lambda: report_processes(server) == [], why="the report process ends")
    server.wait_ready()
    server.ok("GET", REPORT)
    assert len(report_processes(server)) == 1
    assert report_processes(server) != old


def test_a_report_that_hangs_is_given_up(
    embedded: EmbeddedStore,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that does not answer in time is 503, and another takes its place."""
    settings = Settings(store=embedded.url, data_dir=tmp_path)
    reports = ReportProcess(settings, lambda: False)

    async def asked() -> int:
        with pytest.raises(ApiError) as refused:
            await reports.ask(ASKED)
        return refused.value.status

    async def run() -> None:
        assert await asked() == 404
        child = reports._child
        assert child is not None
        child.process.send_signal(signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(report_process, "ANSWER_S", 0.2)
            patch.setattr(report_process, "WAIT_S", 0.05)
            hanging = asyncio.ensure_future(asked())
            await asyncio.sleep(0.01)
            assert await asked() == 503  # did not get its turn
            assert await hanging == 503
        assert child.process.returncode == -signal.SIGKILL
        assert await asked() == 404
        reports.end()

    asyncio.run(run())


def test_no_process_is_started_for_a_store_that_is_down(tmp_path: Path) -> None:
    """What the worker knows already is said at once: 503, and nothing runs."""
    reports = ReportProcess(Settings(data_dir=tmp_path), lambda: True)
    with pytest.raises(ApiError, match="store") as refused:
        asyncio.run(reports.ask(ASKED))
    assert (refused.value.status, refused.value.code) == (503, "store_down")
    assert reports._child is None
