"""Lakes of any size, as archiver or ingestion would have left them: `write_lake`.

Vectorised, and one file at a time, so that a lake may be larger than memory. Every
hundredth decision is clicked, every hundredth click is late, every fiftieth taken back.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero.experiment import Experiment, ExperimentRecord, parse_experiment
from bandolero.lake.catalog import INGESTED, Lake
from bandolero.log import DECISIONS_TABLE, EVENTS_TABLE

START_MS = 1_795_219_200_000
DAY_MS = 86_400_000
WINDOW_S = 1_800.0
N_EXPERIMENTS = 100
N_VARIANTS = 10
N_UNITS = 20_000_000
EVENT_EVERY = 100
LATE_EVERY = 100
RETRACT_EVERY = 50
ID_CHARACTERS = 64
FIELDS = {
    "device": ("mobile", "desktop", "tablet"),
    "daypart": ("morning", "noon", "evening", "night"),
    "market": ("north", "south", "west"),
}
_ALPHABET = np.frombuffer(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8
)

Ints = NDArray[np.int64]


class Made(NamedTuple):
    """A lake and the experiments whose decisions it holds."""

    lake: Lake
    records: list[ExperimentRecord]
    n_decisions: int
    n_events: int


def write_lake(
    folder: str,
    n_decisions: int,
    n_files: int,
    n_features: int = 0,
    *,
    is_live: bool = True,
) -> Made:
    """A day of decisions in `n_files` files, and a day later the last events.

    With `is_live` they came by the log; else by files, so that nobody learned of them.
    """
    lake = Lake(folder)
    records = [record_of(i, n_features) for i in range(N_EXPERIMENTS)]
    rng = np.random.default_rng(5)
    ends = np.linspace(0, n_decisions, n_files + 1).astype(np.int64)
    times = START_MS + (ends * (DAY_MS - 1)) // n_decisions
    after, n_events, late = 0, 0, EVENTS_TABLE.empty_table()
    for i in range(n_files):
        n = int(ends[i + 1] - ends[i])
        span = int(times[i]), int(times[i + 1])
        decisions = _decisions(rng, n, span, i, n_features)
        told = pa.concat_tables([late, _events(rng, decisions)])
        is_late = pc.greater(told["log_ms"], span[1])
        told, late = told.filter(pc.invert(is_late)), told.filter(is_late)
        shard = "s0" if is_live else f"{INGESTED}decisions-{i:012x}"
        lake.commit(shard, after, span[1], {"decisions": decisions, "events": told})
        after, n_events = span[1], n_events + told.num_rows
    shard = "s0" if is_live else f"{INGESTED}events-{n_files:012x}"
    lake.commit(shard, after, START_MS + 2 * DAY_MS, {"events": late})
    return Made(lake, records, n_decisions, n_events + late.num_rows)


def record_of(i: int, n_features: int) -> ExperimentRecord:
    """The i-th experiment; with features it is contextual, of that many numbers."""
    context: list[dict[str, object]] = [
        {"name": name, "kind": "categorical", "levels": list(levels)}
        for name, levels in FIELDS.items()
    ]
    taken = 1 + sum(len(levels) + 1 for levels in FIELDS.values())
    context += [{"name": f"x{j}", "kind": "numeric"} for j in range(n_features - taken)]
    spec: Experiment = parse_experiment(
        {
            "experiment": f"x{i:03d}",
            "tenant": f"tenant-{i % 10}",
            "objective": {"attribution_window_s": WINDOW_S},
            "policy": {"kind": "linear_thompson" if n_features else "beta_thompson"},
            "context": context,
            "variants": [{"id": f"v{j}"} for j in range(N_VARIANTS)],
        }
    )
    return ExperimentRecord(tenant=f"tenant-{i % 10}", spec=spec, status="running")


def _decisions(
    rng: np.random.Generator, n: int, span: tuple[int, int], file: int, n_features: int
) -> pa.Table:
    made_ms = np.sort(rng.integers(span[0] + 1, span[1] - 49, n))
    logged_ms = made_ms + rng.integers(1, 50, n)
    of = rng.integers(0, N_EXPERIMENTS, n)
    arm = rng.integers(0, N_VARIANTS, n)
    columns = {
        "tenant_id": _named([f"tenant-{i % 10}" for i in range(N_EXPERIMENTS)], of),
        "decision_id": _ids(rng, n),
        "experiment_id": _named([f"x{i:03d}" for i in range(N_EXPERIMENTS)], of),
        "spec_version": pa.array(np.ones(n, np.int32)),
        "engine_version": _named(["1"], np.zeros(n, np.int64)),
        "variant_id": _named([f"v{j}" for j in range(N_VARIANTS)], arm),
        "unit": _units(rng, n),
        "decided_at_ms": pa.array(made_ms),
        "snapshot_version": pa.array((made_ms - START_MS) // 60_000 + 1),
        "draw": pa.array(rng.random(n)),
        "propensity": pa.array(0.02 + 0.02 * arm),
        "mode": _named(["explore", "holdout"], (rng.random(n) < 0.05).astype(np.int64)),
        "serving": _named(["live"], np.zeros(n, np.int64)),
        "context": _contexts(rng, n, n_features),
        "log_id": _log_ids(logged_ms, file),
        "log_ms": pa.array(logged_ms),
    }
    return _table(columns, DECISIONS_TABLE, n)


def _events(rng: np.random.Generator, decisions: pa.Table) -> pa.Table:
    """Clicks, and what takes some of them back."""
    n = decisions.num_rows
    clicked = decisions.take(
        pa.array(np.flatnonzero(rng.integers(0, EVENT_EVERY, n) == 0))
    )
    n = clicked.num_rows
    made_ms = clicked["decided_at_ms"].to_numpy()
    at_ms = made_ms + rng.integers(500, int(WINDOW_S * 1000), n)
    is_late = rng.integers(0, LATE_EVERY, n) == 0
    logged_ms = np.where(is_late, START_MS + DAY_MS + rng.integers(1, DAY_MS, n), at_ms)
    columns = {
        "tenant_id": clicked["tenant_id"],
        "event_id": pa.array([f"e{i % 3}" for i in range(n)]),
        "decision_id": clicked["decision_id"],
        "experiment_id": clicked["experiment_id"],
        "type": _named(["click"], np.zeros(n, np.int64)),
        "value_micros": pa.array(np.full(n, 1_000_000)),
        "decided_at_ms": clicked["decided_at_ms"],
        "at_ms": pa.array(at_ms),
        "received_at_ms": pa.array(logged_ms),
        "log_id": _log_ids(logged_ms, 0),
        "log_ms": pa.array(logged_ms),
    }
    told = _table(columns, EVENTS_TABLE, n)
    back = told.take(pa.array(np.flatnonzero(rng.integers(0, RETRACT_EVERY, n) == 0)))
    return pa.concat_tables([told, _retracts(back)])


def _retracts(told: pa.Table) -> pa.Table:
    """Events that take back these, a second after."""
    n = told.num_rows
    logged_ms = told["log_ms"].to_numpy() + 1_000
    changed = {
        "retracts": told["event_id"],
        "event_id": pa.array(["back"] * n, pa.string()),
        "type": pa.array(["retract"] * n, pa.string()),
        "log_id": _log_ids(logged_ms, 0),
        "log_ms": pa.array(logged_ms),
    }
    columns = {name: told[name] for name in told.column_names} | changed
    return _table(columns, EVENTS_TABLE, n)


def _table(columns: dict[str, pa.Array], schema: pa.Schema, n: int) -> pa.Table:
    """The columns in the schema's order; those not given are null."""
    arrays = [columns.get(f.name, pa.nulls(n, f.type)) for f in schema]
    return pa.table(
        [a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema
    )


def _named(names: list[str], codes: Ints) -> pa.Array:
    return pa.array(names).take(pa.array(codes))


def _ids(rng: np.random.Generator, n: int) -> pa.Array:
    """Random ids as long as a decision's."""
    letters = _ALPHABET[rng.integers(0, 64, n * ID_CHARACTERS, dtype=np.uint8)]
    return _texts(letters, n, ID_CHARACTERS)


def _units(rng: np.random.Generator, n: int) -> pa.Array:
    """Pseudonyms as long as the service's."""
    number = rng.integers(0, N_UNITS, n).astype(np.uint64)
    mixed = (number * np.uint64(0x9E3779B97F4A7C15)) ^ (number << np.uint64(17))
    places = np.arange(16, dtype=np.uint64) * np.uint64(4)
    letters = _ALPHABET[(mixed[:, None] >> places) & np.uint64(15)]
    return _texts(letters.reshape(-1), n, 16)


def _texts(letters: NDArray[np.uint8], n: int, width: int) -> pa.Array:
    offsets = np.arange(0, (n + 1) * width, width, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(letters))]
    return pa.StringArray.from_buffers(n, *buffers[1:])


def _log_ids(logged_ms: Ints, file: int) -> pa.Array:
    times = pa.array(logged_ms).cast(pa.string())
    return pc.binary_join_element_wise(times, str(file), "-")


def _contexts(rng: np.random.Generator, n: int, n_features: int) -> pa.Array:
    """Contexts as a worker writes them."""
    parts = []
    for name, levels in FIELDS.items():
        code = rng.integers(0, len(levels), n)
        parts.append(_named([f'"{name}":"{level}"' for level in levels], code))
    taken = 1 + sum(len(levels) + 1 for levels in FIELDS.values())
    for j in range(n_features - taken):
        value = pa.array(rng.integers(-200, 200, n) / 100.0).cast(pa.string())
        parts.append(pc.binary_join_element_wise(f'"x{j}":', value, ""))
    inner = pc.binary_join_element_wise(*parts, ",")
    return pc.binary_join_element_wise("{", inner, "}", "")
