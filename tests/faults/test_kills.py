"""Every process is killed at random under load: what was accepted is there, once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.audit import audited
from faults.kills import FLUSHED_WITHIN_S, cut_power
from faults.run import NAME, Run, begin, killing_run
from faults.shims import COMPILER, Power, needs_compiler
from faults.stream import Stream
from service_helpers import (
    SLOWER,
    linux,
    needs_server,
    running_server,
    short_folder,
    wait_for,
)

pytestmark = [
    needs_server,
    linux,
    pytest.mark.slow,
    pytest.mark.timeout(240 * SLOWER),
]


def check(run: Run) -> None:
    """Nothing accepted is lost, nothing counts twice, no decision was refused."""
    assert run.stream.refused == []
    assert run.audit._replace(decisions_lost=[]) == (0, 0, 0, 0, [])
    assert run.unexplained == 0, (run.kills, run.audit.decisions_lost)


def test_kills_at_random_lose_nothing() -> None:
    """All processes are killed under load, 12 times; the store loses what it had not synced.

    Without a compiler there are no power cuts, and the store keeps what it had written.
    """
    check(killing_run(12, 12.0, seed=1, power=COMPILER is not None))


@needs_compiler
def test_a_power_cut_of_the_machine_loses_nothing() -> None:
    """Store, spool, lake and secret fall back to what was synced: all accepted is there."""
    with short_folder() as folder:
        power = Power(folder)
        with running_server(environment=power.environment) as server:
            begin(server)
            with Stream(server, NAME) as stream:
                time.sleep(3.0)
                cut_s = time.time()
                cut_power(server, power)
                server.start()
                n_before = len(stream.decisions)
                wait_for(lambda: len(stream.decisions) > n_before + 50, 20)
            audit = audited(server, NAME, stream)
    assert audit._replace(decisions_lost=[]) == (0, 0, 0, 0, [])
    assert all(cut_s - d.at_s < FLUSHED_WITHIN_S for d in audit.decisions_lost)


@needs_compiler
def test_a_power_cut_leaves_what_was_synced(tmp_path: Path) -> None:
    """Of two writes with a sync between them the first is left, of no sync nothing."""
    power = Power(tmp_path)
    program = """
import os
for name, kept in (("synced", b"0123456789"), ("not", b"")):
    file = os.open(name, os.O_WRONLY | os.O_CREAT)
    if kept:
        os.write(file, kept)
        os.fsync(file)
    os.write(file, b"lost")
"""
    command = [sys.executable, "-c", program]
    environment = os.environ | power.environment
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    files = [tmp_path / "synced", tmp_path / "not"]
    assert power.cut(files) == 8
    assert [file.read_bytes() for file in files] == [b"0123456789", b""]
