"""Compacting in the service: by the refresh, and never while an erasure is at work."""

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from bandolero.epochs import DAY_MS
from bandolero.lake.catalog import TABLES, Lake
from bandolero_service import keys
from bandolero_service.erasures import ask, work_off
from bandolero_service.refreshing import _compacted
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from service_helpers import (
    SLOWER,
    Running,
    click,
    experiment,
    needs_server,
    running_server,
    wait_for,
)
from small_commits import FIRST_MS, fill
from worker import AUTHOR

pytestmark = needs_server
ALL_SHARDS = ("s0", "s1", "s2", "s3")
N_PAST = 8
"""Small commits of each shard, of the two days before today; a quarter of them empty."""


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Two days of small commits of all four shards."""
    return fill(Lake(tmp_path / "lake"), FIRST_MS, ALL_SHARDS, N_PAST)


@pytest.mark.slow
@pytest.mark.timeout(240 * SLOWER)
def test_a_night_compacts_what_the_archiver_left(tmp_path: Path) -> None:
    """Days before today become a commit each while the server decides and archives; what
    it reports, replays and explains is as before, and the next night has nothing to do."""
    today_ms = int(time.time() * 1000) // DAY_MS * DAY_MS
    if today_ms + DAY_MS - time.time() * 1000 < 240_000:
        pytest.skip("it is midnight in a moment: today is then a day before today")
    lake = fill(Lake(tmp_path), today_ms - 2 * DAY_MS, ALL_SHARDS, N_PAST)
    with running_server(environment={"BANDOLERO_LAKE": str(tmp_path)}) as server:
        server.begin(experiment("walk"))
        answers = server.decide_many("walk", 60)
        server.tell([click(one) for one in answers[::3]])
        wait_for(lambda: _trials(server) == 60, 40, "they settle")
        before = server.report("walk")
        told = _night(server, lake)
        assert (told["commits"], told["merged_commits"]) == (4 * (N_PAST - 1), 8)
        assert _night(server, lake)["commits"] == 0
        assert server.report("walk") == before
        assert server.cli("replay", "walk").returncode == 0
        shown = server.ok("GET", f"/v1/decisions/{answers[0]['decision_id']}")
        assert shown["rederived"]["same"]
    for shard in ALL_SHARDS:
        commits = lake.commits(shard)
        assert [c.merged for c in commits[:3]] == [3, 4, 0]
        assert len(commits) > 4
        assert [c.after_ms for c in commits[1:]] == [c.until_ms for c in commits[:-1]]
    assert set(lake.paths("manifest", ".json")) == {c.entry for c in lake.commits()}
    listed = {file.path for table in TABLES for file in lake.files(table)}
    assert {p for t in TABLES for p in lake.paths(t, ".parquet")} == listed


def _trials(server: Running) -> int:
    return sum(row["trials"] for row in server.report("walk").values())


def _night(server: Running, lake: Lake) -> Any:
    """What a refresh of everything logged by now tells of compacting."""
    now_ms = time.time() * 1000
    wait_for(lambda: lake.watermark_ms() > now_ms, 30, "the lake")
    file = server.data_dir / "night.json"
    done = server.cli("refresh", "--summary", str(file))
    assert done.returncode == 0, done.stderr
    told = json.loads(file.read_text())["compacted"]
    assert ("compacted the lake: " in done.stdout) == (told["commits"] > 0)
    return told


def test_an_erasure_waits_while_its_shard_is_compacted(
    store: Store, lake: Lake
) -> None:
    """And is carried out the next time, in what was merged; other shards need not wait."""
    ask(store, Settings(), "acme", "alice", AUTHOR)

    def remaining() -> int:
        units = lake.read("decisions")[0].filter(pc.field("tenant_id") == "acme")[
            "unit"
        ]
        return int(pc.sum(pc.equal(units, "alice")).as_py() or 0)

    n = remaining()
    with store.alone(keys.rewriting(1), "refresh", 60_000) as held:
        assert held
        work_off(store, lake, 1)
        assert remaining() == n
        work_off(store, lake, 2)
        assert 0 < remaining() < n
    for shard in range(store.shards):
        work_off(store, lake, shard)
    assert remaining() == 0


def test_a_refresh_waits_for_an_erasure(store: Store, lake: Lake) -> None:
    """A shard that is being rewritten is left for the next night, the others are merged."""
    watermark_ms = FIRST_MS + 5 * DAY_MS
    with store.alone(keys.rewriting(1), "archiver", 60_000):
        told = _compacted(store, lake, watermark_ms, lambda _: None)
    assert told["merged_commits"] == 6
    assert [len(lake.commits(shard)) for shard in ALL_SHARDS] == [3, 8, 3, 3]
    told = _compacted(store, lake, watermark_ms, lambda _: None)
    assert told["merged_commits"] == 2
