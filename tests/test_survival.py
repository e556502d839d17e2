"""What was accepted survives: any process of ours is killed in mid-stream, and counts hold."""

import json
import os
import signal
import socket
import time
from collections import Counter
from typing import Any

import pytest

from faults.audit import audited, logged, settled
from faults.run import begin
from faults.stream import Stream
from service_helpers import (
    SLOWER,
    Running,
    click,
    experiment,
    linux,
    needs_server,
    running_server,
    short_folder,
    wait_for,
)
from traffic import now

pytestmark = [needs_server, linux]


def replaced(server: Running, role: str, victim: Any) -> None:
    """Wait until another process does what the victim did."""

    def is_there() -> bool:
        pids = [process.pid for process in server.of_role(role)]
        return pids != [] and victim.pid not in pids

    wait_for(is_there, 15, f"a new {role}")


def restarted(server: Running, role: str) -> None:
    """Kill -9 a process and wait for its successor."""
    replaced(server, role, server.kill(role))


@pytest.mark.slow
@pytest.mark.timeout(180 * SLOWER)
def test_accepted_events_survive_the_death_of_the_learner() -> None:
    """The learner is killed twice in mid-stream: everything is counted exactly once."""
    with running_server() as server:
        begin(server)
        with Stream(server, "hats") as stream:
            for _ in range(2):
                time.sleep(1.5)
                restarted(server, "learner")
            time.sleep(1.5)
        assert stream.refused == []
        assert settled(server, "hats") == stream.tallied()


@pytest.mark.slow
@pytest.mark.timeout(180 * SLOWER)
def test_accepted_events_survive_the_death_of_the_store() -> None:
    """The store is killed twice in mid-stream: no decision is refused, no event lost."""
    with running_server() as server:
        begin(server)
        with Stream(server, "hats") as stream:
            for _ in range(2):
                time.sleep(1.5)
                n_before = len(stream.decisions)
                restarted(server, "store")
                wait_for(lambda n=n_before: len(stream.decisions) > n + 50, 20)  # type: ignore[misc]
            time.sleep(1.5)
        assert stream.refused == []
        wait_for(lambda: server.call("GET", "/readyz").body["store"] == "up", 20)
        wait_for(lambda: server.call("GET", "/readyz").body["spool_bytes"] == 0, 20)
        assert settled(server, "hats") == stream.tallied()


@pytest.mark.slow
@pytest.mark.timeout(180 * SLOWER)
def test_accepted_events_survive_the_death_of_a_worker() -> None:
    """A worker is killed while it spools: the next one brings its blocks to the log."""
    with running_server() as server:
        begin(server)
        key = server.key()
        early, at = server.decide_many("hats", 50), now()
        logged(server, "hats", 50)
        (store,) = server.of_role("store")
        os.kill(store.pid, signal.SIGSTOP)  # not dead, so nobody restarts it
        try:
            events = [click(d, d["decision_id"][-20:], at=at) for d in early]
            answer = server.call("POST", "/v1/events", {"events": events}, key)
            assert (answer.status, answer.body["accepted"]) == (202, 50)
            stranger = server.call("POST", "/v1/decide", {}, "bk_aaaaaaaaaaaa_x")
            assert stranger.status in {401, 503}  # nobody can say whose key it is
            assert stranger.body["error"]["code"] in {"unauthorised", "store_down"}
            worker = server.kill("api")
        finally:
            os.kill(store.pid, signal.SIGCONT)
        replaced(server, "api", worker)
        spool = server.data_dir / "spool"
        wait_for(lambda: not any(f.stat().st_size for f in spool.iterdir()), 30)
        shown = Counter(d["variant"]["id"] for d in early)
        assert settled(server, "hats") == {
            v: (shown[v], shown[v]) for v in ("v0", "v1", "v2")
        }


@pytest.mark.slow
@pytest.mark.timeout(180 * SLOWER)
def test_a_killed_worker_leaves_the_others_serving() -> None:
    """With two workers, one killed in mid-stream: accepted events are all in the lake, once."""
    with running_server("--workers", "2") as server:
        begin(server)
        with Stream(server, "hats") as stream:
            for _ in range(3):
                time.sleep(0.7)
                server.kill("api")
            time.sleep(1.5)
        assert stream.refused == []
        wait_for(lambda: len(server.of_role("api")) == 2, 15)
        audit = audited(server, "hats", stream)
        assert audit._replace(decisions_lost=[]) == (0, 0, 0, 0, [])
        # What one worker had in memory when it was killed: a flush is due every 50 ms.
        assert len(audit.decisions_lost) <= 3 * 60


@pytest.mark.slow
@pytest.mark.timeout(120 * SLOWER)
def test_a_restart_serves_what_was_there() -> None:
    """After SIGTERM and a new start experiments, keys, counts and learning are as before."""
    with short_folder() as folder:
        server = Running(folder)
        try:
            server.start()
            begin(server)
            decisions, at = server.decide_many("hats", 100), now()
            clicked = [d for d in decisions if d["variant"]["id"] == "v1"]
            server.tell([click(d, at=at) for d in clicked])
            server.stop()
            server.start()
            before = server.ok("GET", f"/v1/decisions/{decisions[0]['decision_id']}")
            assert before["rederived"]["same"] is True
            shown = Counter(d["variant"]["id"] for d in decisions)
            hits = {"v0": 0, "v1": shown["v1"], "v2": 0}
            assert settled(server, "hats") == {v: (shown[v], hits[v]) for v in hits}
            server.stop()
        finally:
            server.end()


@pytest.mark.parametrize("after_s", [0.0, 3.0])
def test_sigterm_while_starting_ends_everything(after_s: float) -> None:
    """SIGTERM before the server is ready: exit code 0 and no process left, soon."""
    with short_folder() as folder:
        # With an empty cache a worker compiles for seconds before it can be ready.
        cold = {"NUMBA_CACHE_DIR": str(folder / "numba")}
        server = Running(folder, environment=cold)
        try:
            server.start(wait=False)
            wait_for(lambda: "starting on" in server.log.read_text(), 60)
            time.sleep(after_s)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 11 * SLOWER
        finally:
            server.end()


@pytest.mark.slow
def test_nobody_waits_at_the_door_of_a_server_that_ends() -> None:
    """It says that it serves when a worker is ready, and refuses connections as soon as no
    worker takes them, however long the other roles take to end."""
    with running_server() as server:
        wait_for(lambda: "serving on" in server.log.read_text(), 10, "it is said")
        said = server.log.read_text()
        assert (
            said.index("starting on")
            < said.index("is ready")
            < said.index("serving on")
        )
        (learner,) = server.of_role("learner")
        os.kill(learner.pid, signal.SIGSTOP)
        assert server.process is not None
        server.process.terminate()
        wait_for(lambda: is_refused(server.port), 10, "nobody listens")
        assert server.process.poll() is None
        os.kill(learner.pid, signal.SIGCONT)
        assert server.process.wait(45) == 0, server.last_words()


def is_refused(port: int) -> bool:
    """Whether nobody listens on a loopback port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("when", ["starting", "ready"])
def test_killing_the_supervisor_leaves_no_orphan(when: str) -> None:
    """Kill -9 of the supervisor ends every other process by itself, whatever they do."""
    with short_folder() as folder:
        server = Running(folder)
        try:
            server.start(wait=when != "starting")
            wait_for(lambda: len(server.family()) == 5, 60, "all processes")
            server.kill("serve")
            assert server.process is not None
            server.process.wait()
            # A worker may drain for ten seconds, then flush; after twenty more it is killed.
            wait_for(lambda: server.family() == [], 40, "nobody is left")
        finally:
            server.end()


def test_a_second_server_on_the_same_data_is_refused(running: Running) -> None:
    """Another `serve` on the same folder ends with exit code 1 and says why."""
    done = running.cli("serve", "--port", "0")
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert running.call("GET", "/readyz").body["status"] == "ready"


def test_a_port_in_use_is_refused(running: Running) -> None:
    """`serve` on a taken port ends with exit code 1, and leaves nothing running."""
    with short_folder() as folder:
        server = Running(folder)
        server.port = running.port
        try:
            server.start(wait=False)
            assert server.process is not None
            assert server.process.wait(30) == 1
            assert "in use" in server.last_words()
            assert server.family() == []
        finally:
            server.end()


def test_accepted_is_durable_at_once(running: Running) -> None:
    """When the answer says accepted, the event is in the append-only file on disk."""
    running.begin(experiment("durable"))
    decision = running.decide("durable")
    marker = f"durable-{time.time_ns()}"
    assert running.tell([click(decision, marker)])["accepted"] == 1
    files = (running.data_dir / "store" / "appendonlydir").iterdir()
    assert any(marker.encode() in file.read_bytes() for file in files)
    assert json.dumps(running.call("GET", "/readyz").body).count("always") == 1
