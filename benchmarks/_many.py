"""A thousand live experiments, for benchmarks of a worker that holds them all."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks._system import HEADLINES, TENANT

from bandolero_service.embedded import EmbeddedStore
from bandolero_service.settings import Settings
from bandolero_service.store import Store

N_EXPERIMENTS = 1_000
N_VARIANTS = 20
BATCH = 100
PUBLISH_TIMEOUT_S = 300.0


def many_specs(n: int = N_EXPERIMENTS, **fields: Any) -> list[dict[str, Any]]:
    """Specifications of `beta_thompson` experiments, with `fields` besides."""
    variants = [
        {
            "id": f"v{i}",
            "creative": {
                "headline": HEADLINES[i % len(HEADLINES)],
                "cta": "Shop now",
                "image": f"https://cdn.example.com/spring/hero-{i}-1200x628.webp",
            },
            "attributes": {"tone": "warm" if i % 2 else "urgent"},
        }
        for i in range(N_VARIANTS)
    ]
    given = {"tenant": TENANT, "policy": {"kind": "beta_thompson"}} | fields
    return [{"experiment": name_of(i), "variants": variants} | given for i in range(n)]


def name_of(i: int) -> str:
    """Id of the i-th experiment."""
    return f"many-{i:04d}"


def decide_bodies(n_experiments: int, n: int) -> list[bytes]:
    """Bodies of decide requests, the experiments in turn, no two units alike."""
    return [
        json.dumps(
            {"experiment": name_of(i % n_experiments), "unit": f"u-{i:07d}"}
        ).encode()
        for i in range(n)
    ]


def batch_bodies(n_experiments: int) -> list[bytes]:
    """Batches that ask for a decision of each experiment."""
    all_ = decide_bodies(n_experiments, n_experiments)
    return [
        b'{"requests":[%b]}' % b",".join(all_[at : at + BATCH])
        for at in range(0, n_experiments, BATCH)
    ]


def await_published(data_dir: Path, n_experiments: int) -> None:
    """Wait until the learner has published each experiment, and workers have looked."""
    until = time.monotonic() + PUBLISH_TIMEOUT_S
    while len(versions(data_dir)) < n_experiments:
        if time.monotonic() > until:
            raise RuntimeError(f"not published within {PUBLISH_TIMEOUT_S} s")
        time.sleep(0.2)
    time.sleep(10 * Settings().poll_interval_s)


def versions(data_dir: Path) -> dict[str, int]:
    """Newest snapshot version of each experiment of a running system."""
    with closing(Store(EmbeddedStore(data_dir).url)) as store:
        store.open(Settings().shards)
        found: dict[str, int] = {}
        for shard in range(store.shards):
            found |= store.versions(shard)
        return found
