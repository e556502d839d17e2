"""The processes of a running system: API worker, learner, archiver, each on its own."""

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bandolero_service.connection import REQUEST_TIMEOUT_S
from bandolero_service.ending import end_soon, told_to_end
from bandolero_service.logs import Told, log_to_stderr
from bandolero_service.secret import check_root, read_secrets
from bandolero_service.settings import EMBEDDED, Settings, shown
from bandolero_service.store import RefusedStoreError, Store, StoreDownError

if TYPE_CHECKING:
    import uvicorn

    from bandolero_service.metric_files import MetricFiles
    from bandolero_service.metrics import Figures

log = logging.getLogger(__name__)

OPEN_AGAIN_S = 1.0
BACKLOG = 2048
KEEP_ALIVE_S = 75
SWITCH_S = 0.0001
"""How long a worker's thread that computes keeps the interpreter from the one that
answers. uvloop asks for it anew for every connection that has something to say, so with
Python's own 5 ms a report or a round of snapshots holds up hundreds of decisions."""
COLLECT_AFTER = (700, 10, 100)
"""Thresholds of the garbage collector: one full collection, which stops all threads for
25 ms with 1,000 experiments, where Python by itself would have ten."""
DRAIN_S = 6
ON_EVERY_ANSWER = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
READY = b"1"
READY_FD = "BANDOLERO_READY_FD"
"""Names the descriptor on which a worker tells its supervisor that it serves."""


def run_role(
    role: str,
    settings: Settings,
    listen_fd: int | None = None,
    metrics_port: int | None = None,
) -> None:
    """Run one role until SIGTERM."""
    log_to_stderr(role, settings.log_format)
    roles: dict[str, Callable[[], None]] = {
        "api": lambda: _run_api(settings, listen_fd),
        "learner": lambda: _run_learner(settings, metrics_port),
        "archiver": lambda: _run_archiver(settings, metrics_port),
    }
    roles[role]()


def open_store(settings: Settings, timeout_s: float) -> Store:
    """Connect, waiting until the store answers; refuse one that would lose data."""
    store = _store_of(settings, timeout_s)
    _wait_for(lambda: _open(store, settings), Told())
    return store


def reach_store(settings: Settings, timeout_s: float) -> Store:
    """Connect without waiting: a store that is down is opened once it answers.

    One that turns out not to be ours, or to lose data, then ends this process.
    """
    store, secrets, told = (
        _store_of(settings, timeout_s),
        read_secrets(settings),
        Told(),
    )

    def opens() -> None:
        _open(store, settings)
        check_root(store, secrets)

    if not _answers(opens, told):
        threading.Thread(target=_open_later, args=(opens, told), daemon=True).start()
    return store


def _store_of(settings: Settings, timeout_s: float) -> Store:
    """The store of a single role."""
    if settings.store == EMBEDDED:
        raise RefusedStoreError("a single role needs --store with a URL.")
    return Store(settings.store, timeout_s)


def _open(store: Store, settings: Settings) -> None:
    store.open(settings.shards)
    check_durability(store)


def _wait_for(act: Callable[[], None], told: Told) -> None:
    while not _answers(act, told):
        time.sleep(OPEN_AGAIN_S)


def _answers(act: Callable[[], None], told: Told) -> bool:
    """Whether the store is there, and an act on it done."""
    try:
        act()
        return True
    except StoreDownError as error:
        if told.is_news(str(error)):
            log.warning("trying again: %s", error)
        return False


def _open_later(opens: Callable[[], None], told: Told) -> None:
    try:
        _wait_for(opens, told)
        log.info("the store is there")
    except RefusedStoreError as error:
        log.error("%s", error)
        os.kill(os.getpid(), signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that the API workers share."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, port))
    server.listen(BACKLOG)
    return server


def server_config(
    app: Callable[..., Any], trusted_proxies: str = ""
) -> "uvicorn.Config":
    """How an API worker serves: uvloop, httptools, headers that say nothing of us."""
    import uvicorn

    from bandolero_service.guard import GuardedProtocol

    return uvicorn.Config(
        app,
        loop="uvloop",
        http=GuardedProtocol,
        headers=list(ON_EVERY_ANSWER),
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        date_header=False,
    )


def check_durability(store: Store) -> None:
    """Refuse a store that evicts what it holds; warn of one that may forget it."""
    promised = store.durability()
    policy = promised.get("maxmemory-policy", "noeviction")
    if policy.startswith("allkeys"):
        raise RefusedStoreError(
            f"maxmemory-policy == {policy!r}, must not evict the log."
        )
    if (promised.get("appendonly"), promised.get("appendfsync")) != ("yes", "always"):
        log.warning("the store may lose acknowledged events: %s", promised)


def _run_api(settings: Settings, listen_fd: int | None) -> None:
    from bandolero_service.api.app import create_app
    from bandolero_service.api.health import Health
    from bandolero_service.api.metrics import worker_figures
    from bandolero_service.drain import Server
    from bandolero_service.report_process import ReportProcess
    from bandolero_service.store_watch import StoreWatch
    from bandolero_service.survey import SurveyedStore
    from bandolero_service.views import Views, warm_up
    from bandolero_service.writer import LogWriter

    if listen_fd is None:
        server_socket = listen(settings.host, settings.port)
    else:
        server_socket = socket.socket(fileno=listen_fd)
    store = reach_store(settings, REQUEST_TIMEOUT_S)
    views = Views(store, settings)
    writer = LogWriter(store, settings)
    warm_up()
    views.start()
    watch = StoreWatch(SurveyedStore(settings.store, REQUEST_TIMEOUT_S))
    watch.start()
    health = Health(views, writer, watch, settings.spool_dir)
    files = _metric_files(settings, "api", lambda: worker_figures(app, health))
    reports = ReportProcess(settings, lambda: watch.sight is None)
    app = create_app(store, reports, health, files.tell, settings)
    config = server_config(app, settings.trusted_proxies)
    delay_s = settings.drain_delay_s
    server = Server(
        config,
        _tell_ready,
        health.leave,
        delay_s,
        lambda: health.fault,
        reports.end,
    )

    def leave(*_: object) -> None:
        server.should_exit = True

    # Not before: until there is something to flush, a signal may simply end the process.
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    writer.start()
    files.start()
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    server.run(sockets=[server_socket])
    end_soon()
    writer.stop()
    files.stop()
    watch.stop()
    views.stop()
    store.close()


def _tell_ready() -> None:
    log.info("worker %d is ready", os.getpid())
    if (descriptor := os.environ.pop(READY_FD, None)) is not None:
        os.write(int(descriptor), READY)
        os.close(int(descriptor))


def _run_learner(settings: Settings, metrics_port: int | None) -> None:
    from bandolero_service.learner import run_learner

    store = open_store(settings, 5.0)
    log.info("learning from %d shards", store.shards)
    with _told(settings, "learner", metrics_port):
        run_learner(store, settings, told_to_end())


def _run_archiver(settings: Settings, metrics_port: int | None) -> None:
    from bandolero.lake.catalog import Lake
    from bandolero_service.archive import run_archiver

    store = open_store(settings, 5.0)
    where = shown(settings.lake_url)
    log.info("archiving %d shards to %s", store.shards, where)
    with _told(settings, "archiver", metrics_port):
        run_archiver(store, Lake(settings.lake_url), settings, told_to_end())


def _metric_files(
    settings: Settings, role: str, read: "Callable[[], Figures]"
) -> "MetricFiles":
    from bandolero_service.metric_files import MetricFiles

    return MetricFiles(settings.data_dir / "metrics", role, read)


@contextmanager
def _told(settings: Settings, role: str, port: int | None) -> Iterator[None]:
    """Share what a role without HTTP counts, and serve it where a port is given."""
    from bandolero_service.metrics import counted, serve_metrics

    files = _metric_files(settings, role, counted)
    files.start()
    if port is not None:
        serve_metrics(settings.host, port, files.machine)
    yield
    files.stop()
