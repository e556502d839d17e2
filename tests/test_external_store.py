"""`serve` on a store that somebody else runs: a server process, spoken to over TCP."""

import os
import signal
import time
from pathlib import Path

import pytest

from service_helpers import (
    CREATE_KEY,
    SLOWER,
    Running,
    cli,
    click,
    experiment,
    free_port,
    linux,
    needs_server,
    own_store,
    running_server,
    short_folder,
    wait_for,
)
from traffic import now

pytestmark = needs_server
ROLES = ("api", "learner", "archiver")


def test_the_whole_job_runs_on_a_store_of_ones_own() -> None:
    """Decide, click, learn, report and refresh over TCP, nothing embedded started."""
    with short_folder() as folder, own_store(folder) as url:
        with running_server("--store", url) as server:
            made = server.cli(*CREATE_KEY, "--store", url)
            server.use_key(made.stdout.strip())
            assert server.call("GET", "/readyz").body["appendfsync"] == "always"
            server.begin(experiment("hats"))
            decisions, at = server.decide_many("hats", 60), now()
            clicks = [click(d, at=at) for d in decisions if d["variant"]["id"] == "v1"]
            assert server.tell(clicks + clicks)["accepted"] == 2 * len(clicks)
            wait_for(
                lambda: sum(r["trials"] for r in server.report("hats").values()) == 60,
                20,
                "everything settles",
            )
            assert server.report("hats")["v1"]["rewards"] == len(clicks)
            refreshed = server.cli("refresh", "--store", url)
            assert refreshed.returncode == 0, refreshed.stderr
            assert not (server.data_dir / "store").exists()


def test_a_store_that_evicts_is_refused() -> None:
    """A store that may drop log entries is refused at once, with setting, value and rule."""
    with short_folder() as folder:
        with own_store(folder, "--maxmemory-policy", "allkeys-lru") as url:
            data = str(folder / "d")
            began = time.monotonic()
            done = cli("serve", "--store", url, "--data-dir", data, "--port", "0")
            assert time.monotonic() - began < 30 * SLOWER
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    rule = "must not evict the log."
    assert last == f"bandolero: maxmemory-policy == 'allkeys-lru', {rule}"


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis:/x", ""])
def test_a_url_of_no_store_is_a_usage_error(url: str, tmp_path: Path) -> None:
    """What is neither `embedded` nor a store's URL is refused by its value and the rule."""
    done = cli("serve", "--store", url, "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"store == {url!r}, must be" in done.stderr


def test_a_command_says_that_the_store_does_not_answer(tmp_path: Path) -> None:
    """A command on a store that is not there ends with exit code 1 and a line."""
    url = f"redis://127.0.0.1:{free_port()}"
    done = cli("keys", "list", "--store", url, "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("bandolero: the store cannot be reached")
    assert "Traceback" not in done.stderr


def waits(server: Running, role: str) -> bool:
    """Whether a role's process has said that it tries its store again."""
    lines = server.log.read_text().splitlines()
    return any(f'"{role}"' in line and "trying again" in line for line in lines)


@linux
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_waiting_for_a_store_can_be_ended(how: signal.Signals) -> None:
    """A server whose store never answers ends like any other, and leaves no orphan."""
    with short_folder() as folder:
        server = Running(folder, "--store", f"redis://127.0.0.1:{free_port()}")
        try:
            server.start(wait=False)
            wait_for(lambda: all(waits(server, r) for r in ROLES), 60, "all roles wait")
            assert server.process is not None
            os.kill(server.process.pid, how)
            if how is signal.SIGTERM:
                assert server.process.wait(30 * SLOWER) == 0, server.last_words()
            wait_for(lambda: server.family() == [], 30, "nobody is left")
        finally:
            server.end()


@linux
def test_a_server_waits_for_its_store() -> None:
    """Ready once its store is there, it warns of one that may lose events, and says so."""
    with short_folder() as folder:
        port = free_port()
        server = Running(folder, "--store", f"redis://127.0.0.1:{port}")
        try:
            server.start(wait=False)
            wait_for(lambda: "trying again" in server.log.read_text(), 60)
            lax = ("--appendfsync", "everysec")
            with short_folder() as other, own_store(other, *lax, port=port):
                server.wait_ready()
                assert server.call("GET", "/readyz").body["appendfsync"] == "everysec"
                assert "may lose acknowledged events" in server.log.read_text()
                server.stop()
        finally:
            server.end()
