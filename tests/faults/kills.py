"""Kill -9 by a plan drawn from a seed: which process, and when; and how soon it is back.

A process is killed when all of its role are at work again, so one API worker of two is
always there to serve. The store stays down for a while: its supervisor is frozen
meanwhile, and, with power cuts, its append-only file is cut back to what was synced.
"""

import os
import random
import re
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from bandolero_service.embedded import EmbeddedStore
from faults.shims import Power
from service_helpers import SLOWER, Process, Running, wait_for

ROLES = ("api", "learner", "archiver", "store")
N_WORKERS = 2
STORE_DOWN_S = 1.5
"""The store is down for a time drawn from [0, this)."""
BACK_WITHIN_S = 60.0
FLUSHED_WITHIN_S = 4.0 * SLOWER
"""What a killed worker had answered before this is durable: flushes are 50 ms apart, and
one may wait a second for a store that does not answer before it goes to the spool."""
_READY = re.compile(r"worker (\d+) is ready")


class Kill(NamedTuple):
    """One kill: of whom, when (seconds, wall), and how long until all were back."""

    role: str
    at_s: float
    back_s: float


def cut_power(server: Running, power: Power) -> None:
    """All processes end at once, and every file falls back to what was synced."""
    for how in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: nobody sees it coming
        for process in server.family():
            os.kill(process.pid, how)
    assert server.process is not None
    server.process.wait()
    wait_for(lambda: server.family() == [], 10, "all are dead")
    power.cut(file for file in server.data_dir.rglob("*") if file.is_file())


class Killer:
    """Kills processes of a server with two workers."""

    def __init__(self, server: Running, seed: int, power: Power | None = None) -> None:
        self.kills: list[Kill] = []
        self.bytes_cut = 0
        """Of the append-only file, by power cuts."""
        self._server = server
        self._power = power
        self._rng = random.Random(seed)
        self._missing: dict[str, tuple[Process, float]] = {}
        """By role who was killed, and when, until another has taken over."""

    def run(self, n_kills: int, seconds: float) -> None:
        """Kill so many, all roles equally often, at random times of a stretch."""
        roles = [ROLES[i % len(ROLES)] for i in range(n_kills)]
        self._rng.shuffle(roles)
        due = sorted(self._rng.uniform(0.0, seconds) for _ in roles)
        began, plan = time.time(), deque(zip(due, roles, strict=True))
        while plan or self._missing:
            self._note_who_is_back()
            is_due = plan and time.time() >= began + plan[0][0]
            if is_due and plan[0][1] not in self._missing:
                self._kill(plan.popleft()[1])
            time.sleep(0.05)

    def _kill(self, role: str) -> None:
        at_s = time.time()
        if role == "store":
            with self._frozen_supervisor():
                victim = self._kill_store()
        else:
            victim = self._server.kill(role)
            at_s = time.time()  # after: whatever it answered was asked before this
        self._missing[role] = (victim, at_s)

    def _note_who_is_back(self) -> None:
        for role, (victim, at_s) in list(self._missing.items()):
            took_s = time.time() - at_s
            assert took_s < BACK_WITHIN_S * SLOWER, self._server.last_words()
            if self._is_whole(role, victim):
                self.kills.append(Kill(role, at_s, took_s))
                del self._missing[role]

    def _is_whole(self, role: str, victim: Process) -> bool:
        processes = self._server.of_role(role)
        if victim in processes:
            return False
        if role == "store":
            return EmbeddedStore(self._server.data_dir).running()
        if role == "api":
            ready = set(map(int, _READY.findall(self._server.log.read_text())))
            return len([p for p in processes if p.pid in ready]) == N_WORKERS
        return len(processes) == 1

    def _kill_store(self) -> Process:
        victim = self._server.kill("store")
        wait_for(lambda: victim not in self._server.family(), 10, "the store is dead")
        if self._power is not None:
            folder = self._server.data_dir / "store" / "appendonlydir"
            self.bytes_cut += self._power.cut(folder.iterdir())
        time.sleep(self._rng.uniform(0.0, STORE_DOWN_S))
        return victim

    @contextmanager
    def _frozen_supervisor(self) -> Iterator[None]:
        assert self._server.process is not None
        pid = self._server.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)
