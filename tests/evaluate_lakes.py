"""Lakes to evaluate policies on: one experiment, many decisions, clicks of known rates."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bandolero.experiment import Experiment, ExperimentRecord
from bandolero.lake.catalog import INGESTED, TABLES, Lake
from strategies import experiment

START_MS = 1_795_219_200_000
STEP_MS = 100
WINDOW_S = 10.0
CLICKS = {"attribution_window_s": WINDOW_S}
DEVICE = {"kind": "categorical", "name": "device", "levels": ["mobile", "desktop"]}
RATES = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
"""By device (mobile, desktop) and variant."""
LOGGED = np.array([0.5, 0.3, 0.2])


def record_of(spec: Experiment) -> ExperimentRecord:
    """A running experiment."""
    assert spec.tenant is not None
    return ExperimentRecord(tenant=spec.tenant, spec=spec, status="running")


def plain(**fields: Any) -> ExperimentRecord:
    """An experiment without context."""
    return record_of(experiment(objective=CLICKS, **fields))


def by_device(**fields: Any) -> ExperimentRecord:
    """An experiment that knows the device."""
    return plain(context=[DEVICE], **fields)


def filled(folder: Path, seed: int, n: int, **columns: Any) -> Lake:
    """A lake of n decisions, a tenth of a second apart, and their clicks.

    `columns` replace those of the decisions.
    """
    decisions, events = made(seed, n, **columns)
    lake = Lake(folder)
    until_ms = START_MS + n * STEP_MS + 100_000
    lake.commit("0", 0, until_ms, {"decisions": decisions, "events": events})
    return lake


def ingested(folder: Path, seed: int, n: int, **columns: Any) -> Lake:
    """The same, as files of another system."""
    lake = Lake(folder)
    for table, rows in zip(
        ("decisions", "events"), made(seed, n, **columns), strict=True
    ):
        until_ms = START_MS + n * STEP_MS
        lake.commit(f"{INGESTED}{table}-a", START_MS, until_ms, {table: rows})
    return lake


def made(seed: int, n: int, **columns: Any) -> tuple[pa.Table, pa.Table]:
    """Decisions drawn by `LOGGED`, and clicks by `RATES`."""
    rng = np.random.default_rng(seed)
    device, arms = rng.integers(2, size=n), rng.choice(3, p=LOGGED, size=n)
    clicked = np.flatnonzero(rng.random(n) < RATES[device, arms])
    at_ms = START_MS + STEP_MS * np.arange(n)
    ids = np.array([f"d{i}" for i in range(n)])
    contexts = np.array(['{"device":"mobile"}', '{"device":"desktop"}'])
    decisions = _table(
        "decisions",
        at_ms,
        {
            "decision_id": ids,
            "experiment_id": ["hats"] * n,
            "variant_id": np.array(["v1", "v2", "v3"])[arms],
            "decided_at_ms": at_ms,
            "propensity": LOGGED[arms],
            "mode": ["explore"] * n,
            "context": contexts[device],
        }
        | columns,
    )
    events = _table(
        "events",
        at_ms[clicked] + 1,
        {
            "event_id": ids[clicked],
            "decision_id": ids[clicked],
            "type": ["click"] * len(clicked),
            "value_micros": np.full(len(clicked), 1_000_000),
            "at_ms": at_ms[clicked] + 1,
        },
    )
    return decisions, events


def _table(name: str, log_ms: Any, columns: dict[str, Any]) -> pa.Table:
    n = len(log_ms)
    all_columns = {
        "tenant_id": ["acme"] * n,
        "log_ms": log_ms,
        "log_id": [f"{ms}-0" for ms in log_ms],
    } | columns
    arrays = [
        pa.array(all_columns[field.name], field.type)
        if field.name in all_columns
        else pa.nulls(n, field.type)
        for field in TABLES[name]
    ]
    return pa.table(arrays, schema=TABLES[name])
