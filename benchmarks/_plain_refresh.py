"""A night as somebody would write it with pandas or polars, without files checked first.

Clicks by event id, those taken back left out, joined to decisions; counts and moments of
1 / propensity by variant, mode and day, and by level of each context field.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import polars as pl
from benchmarks._lakes import DAY_MS, FIELDS

DECISION = ["tenant_id", "decision_id"]
EVENT = [*DECISION, "event_id"]
KEYS = ["tenant_id", "experiment_id", "variant_id", "mode", "day"]
READ = [*DECISION, *KEYS[1:4], "decided_at_ms", "propensity", "context"]
TOLD = [*EVENT, "type", "retracts", "log_ms"]


def by_pandas(lake: Path) -> int:
    """Decisions counted."""
    events = _pandas(lake, "events", TOLD).sort_values("log_ms")
    events = events.drop_duplicates(EVENT)
    back = events[events["type"] == "retract"][[*DECISION, "retracts"]]
    back = back.rename(columns={"retracts": "event_id"}).assign(gone=True)
    clicks = events[events["type"] == "click"].merge(back, how="left", on=EVENT)
    clicks = clicks[clicks["gone"].isna()][DECISION].drop_duplicates()
    rows = _pandas(lake, "decisions", READ)
    rows = rows.merge(clicks.assign(reward=1.0), how="left", on=DECISION)
    rows["reward"] = rows["reward"].fillna(0.0)
    rows["day"] = rows["decided_at_ms"] // DAY_MS
    w, r = 1.0 / rows["propensity"], rows["reward"]
    moments = {"w": w, "w2": w * w, "wr": w * r, "w2r": w * w * r, "w2r2": (w * r) ** 2}
    rows = rows.assign(n=1, **moments)
    sums = ["n", "reward", *moments]
    whole = rows.groupby(KEYS, observed=True)[sums].sum()
    for name in FIELDS:
        rows["level"] = rows["context"].str.extract(f'"{name}":"([^"]*)"')
        rows.groupby([*KEYS, "level"], observed=True)[sums].sum()
    return int(whole["n"].sum())


def by_polars(lake: Path) -> int:
    """Decisions counted."""
    events = pl.scan_parquet(_files(lake, "events")).select(TOLD).sort("log_ms")
    events = events.unique(EVENT, keep="first", maintain_order=True)
    back = events.filter(pl.col("type") == "retract").select(
        *DECISION, event_id="retracts"
    )
    clicks = events.filter(pl.col("type") == "click").join(back, on=EVENT, how="anti")
    clicks = clicks.select(DECISION).unique().with_columns(reward=pl.lit(1.0))
    rows = pl.scan_parquet(_files(lake, "decisions")).select(READ)
    w, r = 1.0 / pl.col("propensity"), pl.col("reward")
    levels = {
        f"level_of_{name}": pl.col("context").str.extract(f'"{name}":"([^"]*)"')
        for name in FIELDS
    }
    rows = rows.join(clicks, on=DECISION, how="left").with_columns(
        r.fill_null(0.0), day=pl.col("decided_at_ms") // DAY_MS, **levels
    )
    sums = {
        "n": pl.len(),
        "rewards": r.sum(),
        "w": w.sum(),
        "w2": (w * w).sum(),
        "wr": (w * r).sum(),
        "w2r": (w * w * r).sum(),
        "w2r2": (w * r * w * r).sum(),
    }
    cells = rows.group_by([*KEYS, *levels]).agg(**sums).collect(engine="streaming")
    for name in levels:
        cells.group_by([*KEYS, name]).agg(pl.col(*sums).sum())
    return int(cells.group_by(KEYS).agg(pl.col(*sums).sum())["n"].sum())


PEERS: dict[str, Callable[[Path], int]] = {"pandas": by_pandas, "polars": by_polars}


def _files(lake: Path, table: str) -> list[Path]:
    return sorted((lake / table).rglob("*.parquet"))


def _pandas(lake: Path, table: str, columns: list[str]) -> pd.DataFrame:
    parts = [pd.read_parquet(file, columns=columns) for file in _files(lake, table)]
    return pd.concat(parts, ignore_index=True)
