"""`serve` on a cluster: what works on one server works on three."""

import pytest

from bandolero.draws import experiment_key, shard_of
from bandolero.lake.catalog import Lake
from bandolero_service import keys
from cluster import Cluster, Node
from service_helpers import (
    SLOWER,
    click,
    experiment,
    linux,
    needs_server,
    running_server,
    wait_for,
)

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
        made = server.cli("keys", "create", "--tenant", "acme", "--store", url)
        server.use_key(made.stdout.strip())
        assert server.call("GET", "/readyz").body["appendfsync"] == "always"
        n_clicks = {}
        for name in map(name_on, range(N_SHARDS)):
            server.begin(experiment(name))
            decisions = server.decide_many(name, 20)
            clicks = [click(d) for d in decisions if d["variant"]["id"] == "v1"]
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


def _holds(node: Node, shard: int) -> bool:
    """Whether a node has decisions of a shard itself."""
    found = node.says("KEYS", keys.decisions(shard))
    return bool(found)
