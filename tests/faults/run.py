"""One run: producers, kills at random, and the audit once everything has settled."""

import contextlib
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from faults.audit import Audit, audited
from faults.kills import FLUSHED_WITHIN_S, N_WORKERS, Kill, Killer
from faults.shims import Power
from faults.stream import Stream
from service_helpers import Running, experiment, running_server, short_folder

NAME = "hats"
N_PRODUCERS = 3


class Run(NamedTuple):
    """What was killed, what the clients saw, and what became of it."""

    kills: list[Kill]
    stream: Stream
    audit: Audit
    bytes_cut: int
    n_spooled: int

    @property
    def oldest_lost_s(self) -> float:
        """Of the decisions lost, the longest from request to the next kill of a worker."""
        return max(self._waited_s(), default=0.0)

    @property
    def unexplained(self) -> int:
        """Lost decisions that no killed worker can have held in memory."""
        return sum(waited_s > FLUSHED_WITHIN_S for waited_s in self._waited_s())

    def _waited_s(self) -> list[float]:
        """From the request of each lost decision to the next kill of a worker."""
        killed_s = [kill.at_s for kill in self.kills if kill.role == "api"]
        return [
            min((k - one.at_s for k in killed_s if k > one.at_s), default=inf)
            for one in self.audit.decisions_lost
        ]


def begin(server: Running, name: str = NAME) -> None:
    """An experiment that goes on exploring all its three variants."""
    server.begin(experiment(name, allocation={"min_share": 0.1}))


def killing_run(n_kills: int, seconds: float, seed: int, *, power: bool) -> Run:
    """Kill under load for a while, then audit."""
    with _maybe_cut(power) as cuts:
        environment = cuts.environment if cuts else {}
        workers = ("--workers", str(N_WORKERS))
        with running_server(*workers, environment=environment) as server:
            begin(server)
            killer = Killer(server, seed, cuts)
            with Stream(server, NAME, N_PRODUCERS) as stream:
                killer.run(n_kills, seconds)
            audit = audited(server, NAME, stream)
            n_spooled = server.log.read_text().count("blocks go to")
            return Run(killer.kills, stream, audit, killer.bytes_cut, n_spooled)


@contextlib.contextmanager
def _maybe_cut(power: bool) -> Iterator[Power | None]:
    with short_folder() as folder:
        yield Power(folder) if power else None
