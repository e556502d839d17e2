"""`serve` on a cluster: what works on one server works on three."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from limits import RateLimitItemPerSecond

from bandolero.draws import experiment_key, shard_of
from bandolero.experiment import parse_experiment
from bandolero.lake.catalog import Lake
from bandolero.log import read_block
from bandolero_service import keys, trail, views
from bandolero_service.audit import Author
from bandolero_service.auth import new_api_key
from bandolero_service.experiments import put_spec
from bandolero_service.learner import run_learner
from bandolero_service.settings import Settings
from bandolero_service.store import NO_POSITION, Store, StoreDownError, blocks_of
from cluster import Cluster, Node, running_cluster
from log_rows import event_row
from service_helpers import (
    CREATE_KEY,
    SLOWER,
    click,
    experiment,
    linux,
    needs_server,
    running_server,
    wait_for,
)
from traffic import now
from worker import Worker

pytestmark = [needs_server, linux]
N_SHARDS = 4


def name_on(shard: int) -> str:
    """An experiment of acme's that lives on a shard."""
    names = (f"hats-{i}" for i in range(1000))
    return next(
        n for n in names if shard_of(experiment_key("acme", n), N_SHARDS) == shard
    )


@pytest.mark.slow
@pytest.mark.timeout(120 * SLOWER)
def test_the_whole_job_runs_on_a_cluster(cluster: Cluster) -> None:
    """Decide, click, learn, report, archive and refresh, on every node of three."""
    url = cluster.nodes[2].url
    with running_server("--store", url) as server:
        made = server.cli(*CREATE_KEY, "--store", url)
        server.use_key(made.stdout.strip())
        assert server.call("GET", "/readyz").body["appendfsync"] == "always"
        n_clicks = {}
        for name in map(name_on, range(N_SHARDS)):
            server.begin(experiment(name))
            decisions, at = server.decide_many(name, 20), now()
            clicks = [click(d, at=at) for d in decisions if d["variant"]["id"] == "v1"]
            assert server.tell(clicks + clicks)["accepted"] == 2 * len(clicks)
            n_clicks[name] = len(clicks)
        for name, n in n_clicks.items():
            wait_for(
                lambda n=name: (
                    sum(r["trials"] for r in server.report(n).values()) == 20
                ),  # type: ignore[misc]
                20,
                f"{name} settles",
            )
            assert server.report(name)["v1"]["rewards"] == n
        refreshed = server.cli("refresh", "--store", url)
        assert refreshed.returncode == 0, refreshed.stderr
        rows, bad = Lake(server.data_dir / "lake").read("decisions")
        assert bad == []
        assert rows.num_rows == 20 * N_SHARDS
    for i, node in enumerate(cluster.nodes):
        shards = cluster.shards_of(node, N_SHARDS)
        held = {shard for shard in range(N_SHARDS) if _holds(node, shard)}
        assert held == shards != set(), i


@pytest.mark.slow
def test_acts_are_chained_and_requests_counted_on_a_cluster(cluster: Cluster) -> None:
    """Audit lines go where what they tell of lives; two workers count one caller together."""
    first, second = Store(cluster.nodes[0].url), Store(cluster.nodes[1].url)
    root, rate = b"root", RateLimitItemPerSecond(3, 3600)
    first.open(N_SHARDS)
    for name in map(name_on, range(N_SHARDS)):
        spec = parse_experiment(experiment(name))
        put_spec(first, Author("test", root), "audited", spec)
    _, key = new_api_key(root, "audited", ["decide"])
    first.put_api_key(key, Author("test", root))
    chains = trail.verified(first, root, "audited")
    assert sum(chain.n_lines for chain in chains) == N_SHARDS + 1
    assert [chain.faults for chain in chains if chain.faults] == []
    counted = [store.count(rate, "who") for store in (first, second, first, second)]
    assert [within for within, _ in counted] == [True, True, True, False]
    first.close()
    second.close()


def _holds(node: Node, shard: int) -> bool:
    """Whether a node has decisions of a shard itself."""
    found = node.says("KEYS", keys.decisions(shard))
    return bool(found)


@pytest.fixture
def fragile() -> Iterator[Cluster]:
    """A cluster of its own, whose nodes a test ends and starts."""
    with running_cluster() as cluster:
        yield cluster


def _events(store: Store, shard: int) -> list[str]:
    """Ids of the events that are in the log of a shard."""
    found = blocks_of(store.read(keys.events(shard), NO_POSITION))
    return [i for at, b in found for i in read_block(b, at)["event_id"].to_pylist()]


@pytest.mark.slow
@pytest.mark.timeout(180 * SLOWER)
def test_a_node_that_is_away_stops_only_its_own_shards(
    fragile: Cluster, tmp_path: Path
) -> None:
    """The others log, tick and are seen changing; what is accepted for its own shards
    waits on disk, and all is in the log once when it is back."""
    node = fragile.node_of(2)
    away = fragile.shards_of(node, N_SHARDS)
    there = set(range(N_SHARDS)) - away
    store = Store(fragile.nodes[0].url, timeout_s=1.0)
    store.open(N_SHARDS)
    settings = Settings(data_dir=tmp_path, secret="s", flush_interval_s=0.01)
    worker, accepted = Worker(store, settings), 0
    records = {s: worker.put(experiment(name_on(s))) for s in range(N_SHARDS)}

    def tell(shards: set[int]) -> None:
        """Tell events, each in a block of its own, until all are accepted."""
        nonlocal accepted
        told: list[str | None] = []
        for n in range(5):
            accepted += 1
            rows = {shard: [event_row(f"e{accepted}")] for shard in shards}
            worker.writer.told(rows, told.append)
            wait_for(lambda n=n: len(told) > n, 20, "an answer")  # type: ignore[misc]
        assert told == [None] * 5

    stop = Event()
    learner_store = Store(fragile.nodes[0].url, timeout_s=1.0)
    learner_store.open(N_SHARDS)
    learning = Thread(target=run_learner, args=(learner_store, settings, stop))
    learning.start()
    try:
        tell(set(range(N_SHARDS)))
        node.kill()
        tell(set(range(N_SHARDS)))
        tell(set(range(N_SHARDS)))
        for shard in there:
            wait_for(lambda s=shard: len(_events(store, s)) == 15, 20, "it is logged")  # type: ignore[misc]
            before = store.last_id(keys.events(shard))
            wait_for(lambda s=shard, b=before: store.last_id(keys.events(s)) != b, 20)  # type: ignore[misc]
        assert worker.writer.spool_bytes > 0
        for shard in away:  # as if it had been away for so long
            worker.views._seen_at[shard] -= views.STALE_AFTER_S
        one = min(there)
        with contextlib.suppress(StoreDownError):
            worker.act(records[one].experiment_id, "pause")
        with pytest.raises(StoreDownError):
            worker.views.refresh()
        assert worker.views.stale_shards == away
        seen = {v.shard: v.record.status for v in worker.views.views()}
        assert seen == {s: "paused" if s == one else "running" for s in records}
        assert worker.decide(name_on(min(away)))["serving"] in ("stale", "cold")
        node.start()
        fragile.wait_whole()
        tell(set(range(N_SHARDS)))
        wait_for(lambda: worker.writer.spool_bytes == 0, 20, "all is drained")
        for shard in range(N_SHARDS):
            found = _events(store, shard)
            assert sorted(found) == sorted(set(found))
            assert len(found) == accepted == 20
        worker.views.refresh()
        assert worker.views.stale_shards == frozenset()
    finally:
        stop.set()
        learning.join()
        worker.close()
        learner_store.close()
        store.close()
