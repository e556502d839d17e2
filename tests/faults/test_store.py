"""A store that is slow, silent, cut off, talks nonsense or has another password."""

import time

import pytest

from bandolero_service.store import Store
from faults.audit import audited
from faults.proxy import Mode, Proxy, proxied
from faults.run import NAME, begin
from faults.stream import Stream
from service_helpers import (
    SLOWER,
    cli,
    free_port,
    linux,
    needs_server,
    own_store,
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
FAULTS = [mode for mode in Mode if mode is not Mode.PASS]
N_DECISIONS = 300


def endure(stream: Stream, proxy: Proxy, mode: Mode) -> None:
    """Let the store misbehave until many decisions were made; then let it recover."""
    n_before, n_batches = len(stream.decisions), len(stream.took_s)
    proxy.turn(mode)
    began = time.monotonic()
    wait_for(
        lambda: (
            len(stream.decisions) - n_before >= N_DECISIONS
            and time.monotonic() - began > 3.0
        ),
        30,
        f"decisions go on: {mode}",
    )
    took = sorted(stream.took_s[n_batches:])
    assert took[len(took) // 2] < 0.5 * SLOWER, f"{mode}: {took}"
    proxy.turn(Mode.PASS)
    n_accepted = len(stream.accepted)
    wait_for(lambda: len(stream.accepted) > n_accepted, 30, f"events after {mode}")


def test_whatever_the_store_answers_decisions_go_on() -> None:
    """Slow, random, false, no answers, cut connections: nothing refused, lost or twice."""
    port = free_port()
    with short_folder() as folder, own_store(folder, port=port), proxied(port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        with running_server(environment={"BANDOLERO_STORE": url}) as server:
            begin(server)
            with Stream(server, NAME, 4) as stream:
                for mode in FAULTS:
                    endure(stream, proxy, mode)
            assert stream.refused == []
            assert audited(server, NAME, stream) == (0, 0, 0, 0, [])


def test_a_wrong_password_is_refused_at_once() -> None:
    """`serve` with a wrong password ends with exit code 1 and says what is wrong."""
    with short_folder() as folder, own_store(folder) as url:
        store = Store(url)
        store._redis.config_set("requirepass", "right")
        store.close()
        for given in ("", "default:wrong@"):
            wrong = url.replace("redis://", f"redis://{given}")
            data = str(folder / "d")
            done = cli("serve", "--store", wrong, "--data-dir", data, "--port", "0")
            assert done.returncode == 1, done.stderr
            assert "password" in done.stderr.splitlines()[-1], done.stderr
            assert "wrong@" not in done.stderr


def test_a_password_changed_meanwhile_is_an_outage() -> None:
    """While the store takes another password decisions go on; then all is drained."""
    with short_folder() as folder, own_store(folder) as url:
        with running_server(environment={"BANDOLERO_STORE": url}) as server:
            begin(server)
            store = Store(url)
            with Stream(server, NAME, 2) as stream:
                n_before = len(stream.decisions)
                store._redis.config_set("requirepass", "another")
                store._redis.client_kill_filter(_type="normal", skipme=True)
                wait_for(lambda: len(stream.decisions) > n_before + N_DECISIONS, 30)
                assert server.call("GET", "/readyz").body["store"] == "down"
                store._redis.config_set("requirepass", "")
                time.sleep(1.0)
            store.close()
            assert stream.refused == []
            assert audited(server, NAME, stream) == (0, 0, 0, 0, [])
