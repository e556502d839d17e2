"""A server that starts while its store is down, and what becomes of what it did then."""

from typing import Any

import pytest

from bandolero.lake.catalog import Lake
from service_helpers import (
    CREATE_KEY,
    SLOWER,
    Answer,
    Running,
    click,
    experiment,
    free_port,
    linux,
    needs_server,
    own_store,
    short_folder,
    wait_for,
)

pytestmark = [needs_server, linux]


def ready(server: Running) -> Answer:
    """The answer of `/readyz`, whatever its status."""
    return server.call("GET", "/readyz")


def is_kept(server: Running) -> bool:
    """Whether layout and one experiment are in the cache, and in it as published."""
    from bandolero_service.cache import SeenCache

    folder = server.data_dir / "cache"
    for place in folder.glob("*"):
        cache = SeenCache(folder, "")
        cache._folder = place
        shared = cache.shared()
        found = [snapshot for _, snapshot in cache.experiments()]
        return shared is not None and shared.api_keys != [] and found != [None] != []
    return False


@pytest.mark.slow
@pytest.mark.timeout(180 * SLOWER)
def test_a_worker_that_starts_without_its_store_serves_and_loses_nothing() -> None:
    """It decides from what was seen last, says so, spools, and goes live by itself."""
    with short_folder() as folder, short_folder() as data:
        port = free_port()
        server = Running(folder, "--store", f"redis://127.0.0.1:{port}")
        try:
            with own_store(data, port=port) as url:
                server.start()
                made = server.cli(*CREATE_KEY, "--store", url)
                server.use_key(made.stdout.strip())
                server.begin(experiment("hats"))
                before = server.decide_many("hats", 20)
                wait_for(lambda: is_kept(server), 30, "everything is in the cache")
            worker = server.kill("api")
            wait_for(lambda: worker not in server.family(), 10, "the worker is gone")
            wait_for(
                lambda: _stale(server), 60, "a worker that serves what it saw last"
            )
            state = ready(server)
            assert state.status == 200
            assert (state.body["serving"], state.body["store"]) == ("stale", "down")
            assert 0.0 <= state.body["view_age_s"] < 120.0
            meanwhile = server.decide_many("hats", 30)
            assert {d["serving"] for d in meanwhile} == {"stale"}
            assert all(d["snapshot_version"] > 0 for d in meanwhile)
            clicks = [click(d) for d in before + meanwhile]
            assert server.tell(clicks)["accepted"] == 50
            assert server.call("GET", "/v1/experiments", key=server.key()).status == 503
            with own_store(data, port=port):
                wait_for(lambda: _is_live(server), 30, "live again")
                after = server.decide_many("hats", 10)
                assert {d["serving"] for d in after} == {"live"}
                _all_is_there(server, [*before, *meanwhile, *after], clicks)
                server.stop()
        finally:
            server.end()


def _all_is_there(server: Running, decisions: list[Any], clicks: list[Any]) -> None:
    wait_for(
        lambda: (
            sum(r["trials"] for r in server.report("hats").values()) == len(decisions)
        ),
        40,
        "everything settles",
    )
    last = decisions[-11]
    told = server.ok("GET", f"/v1/decisions/{last['decision_id']}")
    assert told["propensity"] == last["propensity"], told
    lake = Lake(server.data_dir / "lake")
    n = len(clicks), len(decisions)
    wait_for(
        lambda: tuple(lake.read(t)[0].num_rows for t in ("events", "decisions")) == n,
        30,
        "the lake",
    )
    rows = lake.read("decisions")[0].to_pylist()
    sent = {d["decision_id"]: (d["propensity"], d["serving"]) for d in decisions}
    logged = {r["decision_id"]: (r["propensity"], r["serving"]) for r in rows}
    assert logged == sent


@pytest.mark.slow
@pytest.mark.timeout(60 * SLOWER)
def test_a_server_that_never_saw_a_store_is_not_ready() -> None:
    """It comes up, says 503 and why, refuses clearly, and ends when it is told to."""
    with short_folder() as folder:
        server = Running(folder, "--store", f"redis://127.0.0.1:{free_port()}")
        try:
            server.start(wait=False)
            wait_for(lambda: _status(server) == 503, 50, "an answer")
            state = ready(server).body
            assert (state["status"], state["store"]) == ("not_ready", "down")
            assert (state["serving"], state["view_age_s"]) == ("cold", None)
            answer = server.call("POST", "/v1/decide", {"experiment": "x"}, "bk_a_b")
            assert (answer.status, answer.body["error"]["code"]) == (503, "store_down")
            server.stop()
        finally:
            server.end()


def _status(server: Running) -> int:
    try:
        return ready(server).status
    except OSError:
        return 0


def _stale(server: Running) -> bool:
    return _status(server) == 200 and ready(server).body["serving"] == "stale"


def _is_live(server: Running) -> bool:
    body = ready(server).body
    live = (body["serving"], body["store"]) == ("live", "up")
    return live and body["spool_bytes"] == 0
