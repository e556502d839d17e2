"""A lake of many small commits, as an archiver leaves it."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from bandolero.epochs import DAY_MS
from bandolero.experiment import ExperimentRecord
from bandolero.lake.catalog import INGESTED, Lake, rows_of
from strategies import (
    START_MS,
    VARIANTS,
    Row,
    decision,
    decisions_table,
    event,
    events_table,
    experiment,
)

FIRST_MS = START_MS // DAY_MS * DAY_MS
STEP_MS = DAY_MS // 4
SHARDS = ("s0", "s1")
N_COMMITS = 9
"""Of each shard: three of the first day, four of the second, two of the third."""
NAMES = (("acme", "hats"), ("acme", "caps"), ("rival", "hats"))
RECORDS = [
    ExperimentRecord(
        tenant=tenant,
        spec=experiment(
            tenant=tenant,
            experiment=name,
            objective={"attribution_window_s": 60.0},
            policy={"kind": "beta_thompson"},
        ),
        status="running",
    )
    for tenant, name in NAMES
]


def fill(
    lake: Lake,
    first_ms: int = FIRST_MS,
    shards: Sequence[str] = SHARDS,
    n_commits: int = N_COMMITS,
) -> Lake:
    """Small commits of some shards from a midnight on, every fourth without a row.

    Beside them is an ingested file. Each writer's last block has the commit's number.
    """
    rng = np.random.default_rng(3)
    for shard in shards:
        for i in range(n_commits):
            until_ms = first_ms + (i + 1) * STEP_MS
            after_ms = until_ms - STEP_MS if i else 0
            tables = _tables(rng, shard, until_ms - STEP_MS // 2) if i % 4 else {}
            writers = {"decisions": {"w": i, f"w{i}": i}, "events": {"w": i}}
            lake.commit(shard, after_ms, until_ms, tables, writers)
    rows = decisions_table([decision(decision_id="ingested", log_ms=first_ms + 1)])
    lake.commit(f"{INGESTED}a", first_ms, first_ms + 9, {"decisions": rows})
    return lake


def _tables(rng: np.random.Generator, shard: str, log_ms: int) -> dict[str, pa.Table]:
    """Two blocks of decisions and what is told of them, and as many other facts."""
    made: list[Row] = []
    facts, shown = [], []
    for sequence in (2, 10):
        log_id = f"{log_ms}-{sequence}"
        made += [_decision(rng, shard, log_id, i) for i in range(6)]
        for record in RECORDS:
            names, where = (record.tenant, record.experiment_id), (log_id, log_ms)
            facts.append((*names, "applied", record.model_dump_json(), *where))
            vector = ([*VARIANTS], [0.5, 0.25, 0.25], "{}", b"snapshot")
            shown.append((*names, 1, 1, log_ms, "0-0", *vector, *where))
    told = [_click(rng, row, i) for row in made for i in range(int(rng.integers(3)))]
    return {
        "decisions": decisions_table(made),
        "events": events_table(sorted(told, key=lambda row: row["log_ms"])),
        "control": rows_of("control", facts),
        "snapshots": rows_of("snapshots", shown),
    }


def _decision(rng: np.random.Generator, shard: str, log_id: str, i: int) -> Row:
    """The i-th of its block, where experiments take turns."""
    tenant, name = NAMES[i % len(NAMES)]
    log_ms = int(log_id.partition("-")[0])
    return decision(
        tenant_id=tenant,
        experiment_id=name,
        decision_id=f"{shard}-{log_id}-{i}",
        variant_id=str(rng.choice(VARIANTS)),
        unit=str(rng.choice(["alice", "bob", "carol"])),
        draw=0.25,
        decided_at_ms=log_ms - int(rng.integers(0, 50)),
        log_ms=log_ms,
        log_id=log_id,
    )


def _click(rng: np.random.Generator, row: Row, i: int) -> Row:
    """A click within the window of a decision, or too late for it."""
    at_ms = row["log_ms"] + int(rng.integers(0, 90_000))
    mine = ("tenant_id", "experiment_id", "decision_id", "decided_at_ms")
    told = {name: row[name] for name in mine}
    return event(**told, event_id=f"e{i}", at_ms=at_ms, log_ms=at_ms)
