"""`bandolero serve`: the store (if embedded), API workers, learner, archiver, supervised.

A role that ends is started again. On SIGTERM the roles end in the order of the data:
workers drain and flush, the learner folds, the archiver archives, the store stops.
"""

import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace

from bandolero_service.embedded import EmbeddedStore, EmbeddedStoreError
from bandolero_service.roles import check_durability, listen, stop_flag
from bandolero_service.settings import EMBEDDED, Settings
from bandolero_service.store import Store, StoreDownError

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
        stop = stop_flag()
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._settings.secret_bytes()  # made before the roles look for it
        self._socket = listen(self._settings.host, self._settings.port)
        if self._embedded is not None:
            self._embedded.start(COMMAND_ENDS_WITHIN_S)
        else:
            _check_given(self._settings)
        try:
            roles = ["api"] * self._settings.workers + ["learner", "archiver"]
            self._children = [self._started(role) for role in roles]
            host, port = self._socket.getsockname()[:2]
            log.info("serving on http://%s:%d (data in %s)", host, port, self._where)
            while not stop.wait(CHECK_S):
                self._restart_dead()
        finally:
            self._end()

    @property
    def _where(self) -> str:
        return str(self._settings.data_dir.absolute())

    def _started(self, role: str) -> _Child:
        command = [sys.executable, "-m", "bandolero_service", "serve", "--role", role]
        fds: list[int] = []
        if role == "api":
            fds = [self._socket.fileno()]
            command += ["--listen-fd", str(fds[0])]
        environment = {**os.environ, **self._settings.environment()}
        environment["BANDOLERO_PARENT"] = str(os.getpid())
        process = subprocess.Popen(
            command, env=environment, pass_fds=fds, start_new_session=True
        )
        return _Child(role, process, time.monotonic())

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
        for i, child in enumerate(self._children):
            code = child.process.poll()
            rested = time.monotonic() - child.started_at > RESTART_AFTER_S
            if code is not None and rested:
                log.error("%s ended (%d): starting it again", child.role, code)
                self._children[i] = self._started(child.role)

    def _end(self) -> None:
        for role in STOP_ORDER:
            those = [c.process for c in self._children if c.role == role]
            for process in those:
                process.terminate()
            for process in those:
                _wait(process)
        if self._embedded is not None:
            self._embedded.stop()
        self._socket.close()


def _check_given(settings: Settings) -> None:
    """Refuse a store that would lose data; one that is not there yet is waited for.

    Raises
    ------
    bandolero_service.roles.RefusedStoreError
        Naming the setting, its value and the rule.
    """
    store = Store(settings.store, CHECK_TIMEOUT_S)
    try:
        check_durability(store)
    except StoreDownError as error:
        log.warning("%s; the roles wait for it", error)
    finally:
        store.close()


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        log.error("process %d did not end, killing it", process.pid)
        process.kill()
        process.wait()
