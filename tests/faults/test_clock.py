"""A worker whose clock is set back: what it decides settles once, and its clicks count."""

from pathlib import Path

import pytest

from bandolero_service.embedded import EmbeddedStore
from faults.audit import archived, refreshed
from faults.run import begin
from faults.shims import compiled, needs_compiler
from service_helpers import SLOWER, Running, click, linux, needs_server, wait_for

pytestmark = [
    needs_server,
    needs_compiler,
    linux,
    pytest.mark.slow,
    pytest.mark.timeout(180 * SLOWER),
]


def test_a_clock_set_back_loses_and_doubles_nothing(
    server: Running, tmp_path: Path
) -> None:
    """By 30 s, then by two hours: each decision is a trial once, each click a reward."""
    begin(server, "clock")
    offset = tmp_path / "offset"
    offset.write_text("0")
    skewed = Running(
        server.log.parent,
        "--role",
        "api",
        environment={
            "BANDOLERO_STORE": EmbeddedStore(server.data_dir).url,
            "LD_PRELOAD": str(compiled("clock", tmp_path)),
            "CLOCK_OFFSET": str(offset),
        },
    )
    skewed.use_key(server.key())
    skewed.start()
    told = []
    for set_back_s in (30, 7200):
        before = skewed.decide_many("clock", 20)
        offset.write_text(str(-set_back_s))
        after = skewed.decide_many("clock", 20)
        events = [click(d, d["decision_id"][-20:]) for d in before + after]
        assert skewed.tell(events)["accepted"] == 40
        told += events
    assert skewed.process is not None
    skewed.process.terminate()
    skewed.process.wait(20)
    # By two hours is too late for the live fold: the refresh settles those.
    wait_for(lambda: server.report("clock")["v0"]["trials"] > 0, 30, "it settles")
    rows = refreshed(server, "clock")
    assert sum(trials for trials, _ in rows.values()) == len(told)
    assert sum(rewards for _, rewards in rows.values()) == len(told)
    events_table, _ = archived(server).read("events")
    assert {e["event_id"] for e in told} <= set(events_table["event_id"].to_pylist())
    wait_for(lambda: server.call("GET", "/readyz").status == 200)
