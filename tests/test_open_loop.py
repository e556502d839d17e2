"""The open-loop generator sees what a closed one is blind to."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import uvloop

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks._load import Job  # noqa: E402 - needs the path
from benchmarks._open_loop import OpenLoad, open_load  # noqa: E402
from benchmarks.load import bare_route  # noqa: E402

PER_S = 100.0


def test_a_second_in_which_the_server_stops_shows(tmp_path: Path) -> None:
    """Of 300 arrivals a hundred fall into the stop: p99 tells of it, and all are answered."""
    bodies = tmp_path / "bodies"
    bodies.write_bytes(b"{}\n{}")
    with bare_route(100, min(os.sched_getaffinity(0))) as (port, pid):

        async def stopped() -> None:
            await asyncio.sleep(0.5)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(1.0)
            os.kill(pid, signal.SIGCONT)

        async def loaded() -> OpenLoad:
            job = Job(port, "/", "key", bodies)
            load, _ = await asyncio.gather(open_load(job, PER_S, 3.0), stopped())
            return load

        load = uvloop.run(loaded())
    assert (load.n_due, load.n_bad) == (300, 0)
    assert load.p99_ms >= 900.0


def test_requests_that_are_cut_off_are_counted(tmp_path: Path) -> None:
    """Of a server that is killed no answer comes, and each request due counts as bad."""
    bodies = tmp_path / "bodies"
    bodies.write_bytes(b"{}")
    with bare_route(100, min(os.sched_getaffinity(0))) as (port, pid):

        async def loaded() -> OpenLoad:
            job = Job(port, "/", "key", bodies)
            load = asyncio.ensure_future(open_load(job, PER_S, 1.0))
            await asyncio.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            return await load

        load = uvloop.run(loaded())
    assert load.n_due == 100
    assert 0 < load.n_bad < 100
