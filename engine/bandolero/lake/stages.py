"""The first decisions of every experiment, told finely: sums by variant and stage.

Stages begin with an experiment's first decision, and each is as long as all before it
together, so the first minute has six of them and the first year twenty-five. A row holds
the counts and the inverse-propensity moments of a variant in a stage: enough to say
what the log shows of any probabilities that are constant within stages.
"""

from typing import NamedTuple

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from bandolero.lake.engines import Engine
from bandolero.lake.measures import in_order, measures_by
from bandolero.lake.settling import EXPERIMENT
from bandolero.policies.base import Floats

COUNTS = ("decisions", "trials", "hits", "rewards_micros", "rewards_squared")
MOMENTS = (
    "weights",
    "weights_squared",
    "weighted_rewards",
    "squared_weighted_rewards",
    "squared_weighted_squares",
)
"""Over trials: sums of w, w^2, w r, w^2 r, w^2 r^2; w = 1 / propensity, r in units."""
SECOND_MS = 1000


class Stages(NamedTuple):
    """An experiment's rows as arrays, (n_stages, n_arms), stages in order; see `COUNTS`."""

    decisions: Floats
    trials: Floats
    hits: Floats
    rewards_micros: Floats
    rewards_squared: Floats
    weights: Floats
    weights_squared: Floats
    weighted_rewards: Floats
    squared_weighted_rewards: Floats
    squared_weighted_squares: Floats


def stages_by(
    engine: Engine, closed: ir.Table, settled: ir.Table, untold: ir.Table
) -> pa.Table:
    """Measures by experiment, variant and stage, in their order.

    Parameters
    ----------
    closed, settled
        As `measures_by` takes them.
    untold
        With began_ms, when each variant's first decision was made.
    """
    began = untold.group_by(EXPERIMENT).aggregate(first_ms=untold.began_ms.min())
    keys = (*EXPERIMENT, "variant_id", "stage")
    rows = measures_by(_staged(closed, began), _staged(settled, began), keys)
    return in_order(engine.to_arrow(rows), keys)


def _staged(rows: ir.Table, began: ir.Table) -> ir.Table:
    both = rows.inner_join(began, EXPERIMENT)
    age = (both.decided_at_ms - both.first_ms) / float(SECOND_MS)
    return both.mutate(stage=(age + 1.0).log2().floor().cast("int64"))


def stages_of(rows: pa.Table, variant_ids: list[str]) -> Stages:
    """One experiment's rows as arrays."""
    arm = {variant_id: i for i, variant_id in enumerate(variant_ids)}
    arms = np.array([arm[v] for v in rows["variant_id"].to_pylist()], np.int64)
    stages, at = np.unique(np.asarray(rows["stage"]), return_inverse=True)
    arrays = []
    for name in Stages._fields:
        array = np.zeros((len(stages), len(arm)))
        np.add.at(array, (at, arms), np.asarray(rows[name], np.float64))
        arrays.append(array)
    return Stages(*arrays)
