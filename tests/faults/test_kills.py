"""Every process is killed at random under load: what was accepted is there, once."""

import pytest

from faults.run import Run, killing_run
from faults.shims import needs_compiler
from service_helpers import SLOWER, linux, needs_server

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
    """API workers, learner, archiver and store are killed 12 times under load."""
    check(killing_run(12, 12.0, seed=1, power=False))


@needs_compiler
def test_power_cuts_lose_nothing() -> None:
    """As before, and at each of its deaths the store loses what it had not synced."""
    check(killing_run(8, 8.0, seed=2, power=True))
