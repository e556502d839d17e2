"""`bandolero serve`: the store (if embedded), API workers, learner, archiver, supervised.

A role that ends is started again. On SIGHUP the API workers are replaced one by one, the
new one at work before the old one is told to go. On SIGTERM the roles end in the order of the data:
workers drain and flush, the learner folds, the archiver archives, the store stops.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from bandolero_service.embedded import EmbeddedStore, EmbeddedStoreError
from bandolero_service.ending import flag_of, stop_flag
from bandolero_service.roles import READY, READY_FD, check_durability, listen
from bandolero_service.secret import check_root, read_secrets
from bandolero_service.settings import EMBEDDED, PARENT, Settings
from bandolero_service.store import (
    RefusedStoreError,
    Store,
    StoreDeniedError,
    StoreDownError,
)

log = logging.getLogger(__name__)

CHECK_S = 0.1
RESTART_AFTER_S = 0.5
STOP_TIMEOUT_S = 12.0
COMMAND_ENDS_WITHIN_S = 3.0
CHECK_TIMEOUT_S = 2.0
STOP_ORDER = ("api", "learner", "archiver")


@dataclass
class _Child:
    role: str
    process: "subprocess.Popen[bytes]"
    started_at: float
    tells: int
    """Where a worker says that it serves."""
    is_ready: bool = False
    is_leaving: bool = False

    def ready(self) -> bool:
        """Whether it has said so."""
        if not self.is_ready:
            with suppress(BlockingIOError):
                self.is_ready = os.read(self.tells, 1) == READY
        return self.is_ready


class Supervisor:
    """The processes of one `bandolero serve`."""

    def __init__(self, settings: Settings) -> None:
        self._given = settings
        self._embedded: EmbeddedStore | None = None
        if settings.store == EMBEDDED:
            self._embedded = EmbeddedStore(settings.data_dir)
        url = self._embedded.url if self._embedded else settings.store
        self._settings = replace(settings, store=url)
        self._store_rests_until = 0.0
        self._children: list[_Child] = []

    def run(self) -> None:
        """Start everything, keep it running, end it on SIGTERM or SIGINT."""
        stop, renew = stop_flag(), threading.Event()
        if not os.isatty(0):  # a terminal that closes ends us
            renew = flag_of(signal.SIGHUP)
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        read_secrets(self._settings)  # made before the roles look for it
        self._socket = listen(self._settings.host, self._settings.port)
        if self._embedded is not None:
            self._embedded.start(COMMAND_ENDS_WITHIN_S)
        try:
            _check_store(self._settings)
            roles = ["api"] * self._settings.workers + ["learner", "archiver"]
            self._children = [self._started(role) for role in roles]
            log.info("starting on %s (data in %s)", self._url, self._where)
            renewals, beginning = self._renewals(renew), self._beginning()
            while not stop.wait(CHECK_S):
                self._restart_dead()
                next(beginning, None)
                next(renewals)
        finally:
            self._end()

    @property
    def _where(self) -> str:
        return str(self._settings.data_dir.absolute())

    @property
    def _url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://{host}:{port}"

    def _beginning(self) -> Iterator[None]:
        """Say that the first worker serves; one step a turn of the loop."""
        while not any(child.ready() for child in self._workers()):
            yield
        log.info("serving on %s", self._url)

    def _started(self, role: str) -> _Child:
        command = [sys.executable, "-m", "bandolero_service", "serve", "--role", role]
        fds: list[int] = []
        if role == "api":
            fds = [self._socket.fileno()]
            command += ["--listen-fd", str(fds[0])]
        environment = {**os.environ, **self._settings.environment()}
        environment[PARENT] = str(os.getpid())
        tells, told = os.pipe()
        os.set_blocking(tells, False)
        environment[READY_FD] = str(told)
        process = subprocess.Popen(
            command, env=environment, pass_fds=[*fds, told], start_new_session=True
        )
        os.close(told)
        return _Child(role, process, time.monotonic(), tells)

    def _restart_store(self) -> None:
        """Start a store that has ended, without waiting: it may have much to read."""
        process = self._embedded.process if self._embedded else None
        if self._embedded is None or process is None or process.poll() is None:
            return
        if time.monotonic() < self._store_rests_until:
            return
        self._store_rests_until = time.monotonic() + RESTART_AFTER_S
        log.error("the store ended (%d): starting it again", process.returncode)
        try:
            self._embedded.launch()
        except EmbeddedStoreError as error:
            log.error("%s", error)

    def _restart_dead(self) -> None:
        self._restart_store()
        for child in list(self._children):
            code = child.process.poll()
            rested = time.monotonic() - child.started_at > RESTART_AFTER_S
            if code is None or not rested:
                continue
            self._children.remove(child)
            os.close(child.tells)
            if not child.is_leaving:
                log.error("%s ended (%d): starting it again", child.role, code)
                self._children.append(self._started(child.role))

    def _renewals(self, asked: threading.Event) -> Iterator[None]:
        """Replace all workers whenever asked to; one step a turn of the loop."""
        while True:
            while not asked.is_set():
                yield
            asked.clear()
            log.info("replacing the API workers")
            old = self._workers()
            for child in old:
                if child in self._children:  # else it has ended and is replaced
                    yield from self._replaced(child, old)
            log.info("the API workers are replaced")

    def _replaced(self, leaving: _Child, old: list[_Child]) -> Iterator[None]:
        leaving.is_leaving = True
        self._children.append(self._started("api"))
        while not all(c.ready() for c in self._workers() if c not in old):
            yield
        leaving.process.terminate()
        until = time.monotonic() + STOP_TIMEOUT_S
        while leaving in self._children:
            if time.monotonic() > until:
                leaving.process.kill()
            yield

    def _workers(self) -> list[_Child]:
        return [c for c in self._children if c.role == "api" and not c.is_leaving]

    def _end(self) -> None:
        self._socket.close()  # the workers have their own, for as long as they take calls
        for role in STOP_ORDER:
            those = [c.process for c in self._children if c.role == role]
            for process in those:
                process.terminate()
            for process in those:
                _wait(process, STOP_TIMEOUT_S + self._settings.drain_delay_s)
        if self._embedded is not None:
            self._embedded.stop()


def _check_store(settings: Settings) -> None:
    """Refuse a store that would lose data; one that is not there yet is waited for.

    Raises
    ------
    bandolero_service.roles.RefusedStoreError
        Naming the setting, its value and the rule.
    """
    store = Store(settings.store, CHECK_TIMEOUT_S)
    try:
        check_durability(store)
        check_root(store, read_secrets(settings))
    except StoreDeniedError as error:
        raise RefusedStoreError(f"--store: {error}") from None
    except StoreDownError as error:
        log.warning("the roles wait for the store: %s", error)
    finally:
        store.close()


def _wait(process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        log.error("process %d did not end, killing it", process.pid)
        process.kill()
        process.wait()
