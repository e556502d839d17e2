"""One more test, as another system logged it: an export of its own form, and its mapping.

Headlines were shown at random, each as often as the others, and a row says what came of
it. Two mappings say what its columns are as decisions and as clicks.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import yaml

from bandolero.simulate import Environment
from bandolero_service.demo.plan import variant_id
from bandolero_service.demo.source import draw_tests

MAX_ROWS = 20_000
DAYS_AGO = 2


class Export(NamedTuple):
    """The log, and the mapping of each table."""

    log: Path
    mappings: dict[str, Path]


def past_test(
    tests: Sequence[Environment], played: Sequence[Environment], seed: int
) -> Environment:
    """A test at random of those that are not played; where all are, the first of them."""
    names = {test.name for test in played}
    others = [test for test in tests if test.name not in names]
    return draw_tests(others, 1, 1.0, seed)[0] if others else played[0]


def export(
    test: Environment, tenant: str, experiment_id: str, folder: Path, seed: int
) -> Export:
    """Write the log of a test, at most `MAX_ROWS` of it, and its mappings."""
    log = folder / "past.csv"
    pyarrow.csv.write_csv(rows_of(test, seed), log)
    mappings = {}
    for table, mapping in _mappings(tenant, experiment_id).items():
        mappings[table] = folder / f"past-{table}.yaml"
        mappings[table].write_text(yaml.safe_dump(mapping, sort_keys=False))
    return Export(log, mappings)


def rows_of(test: Environment, seed: int) -> pa.Table:
    """Views of a test's page: a headline at random, clicked with its known rate."""
    rng = np.random.default_rng(seed)
    n = min(test.horizon, MAX_ROWS)
    arms = rng.integers(test.n_arms, size=n)
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(days=DAYS_AGO)
    times = [(began + timedelta(seconds=i)).isoformat() for i in range(n)]
    return pa.table(
        {
            "visit": np.arange(n),
            "shown_at": times,
            "headline": [variant_id(arm) for arm in arms.tolist()],
            "share": np.full(n, 1.0 / test.n_arms),
            "clicked": (rng.random(n) < test.rates[arms]).astype(np.int64),
        }
    )


def _mappings(tenant: str, experiment_id: str) -> dict[str, dict[str, Any]]:
    decisions = {
        "tenant_id": {"constant": tenant},
        "decision_id": {"template": "past/{visit}"},
        "experiment_id": {"constant": experiment_id},
        "variant_id": "headline",
        "decided_at_ms": {"column": "shown_at", "time": "iso"},
        "propensity": "share",
        "mode": {"constant": "explore"},
    }
    events = {
        "tenant_id": {"constant": tenant},
        "event_id": {"template": "past/{visit}/click"},
        "decision_id": {"template": "past/{visit}"},
        "type": {"constant": "click"},
        "at_ms": {"column": "shown_at", "time": "iso"},
        "decided_at_ms": {"column": "shown_at", "time": "iso"},
    }
    return {
        "decisions": {"columns": decisions},
        "events": {"columns": events, "where": {"clicked": 1}},
    }
