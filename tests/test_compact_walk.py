"""Compacting in the service: by the refresh, and never while an erasure is at work."""

from pathlib import Path

import pyarrow.compute as pc
import pytest

from bandolero.epochs import DAY_MS
from bandolero.lake.catalog import Lake
from bandolero_service import keys
from bandolero_service.erasures import ask, work_off
from bandolero_service.refreshing import _compacted
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from service_helpers import (
    needs_server,
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
