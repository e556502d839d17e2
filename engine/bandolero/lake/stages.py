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
"""Over decisions: sums of w, w^2, w r, w^2 r, w^2 r^2; w = 1 / propensity, r in units."""
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


def stages_expr(settled: ir.Table) -> ir.Table:
    """Rows by experiment, variant and stage of settled decisions, with `propensity`."""
    began = settled.group_by(EXPERIMENT).aggregate(
        began_ms=settled.decided_at_ms.min(),
    )
    both = settled.inner_join(began, EXPERIMENT)
    age = (both.decided_at_ms - both.began_ms) / float(SECOND_MS)
    dated = both.mutate(
        stage=(age + 1.0).log2().floor().cast("int64"),
        w=1.0 / both.propensity,
        r=both.reward_micros / 1e6,
    )
    return dated.group_by((*EXPERIMENT, "variant_id", "stage")).aggregate(
        decisions=dated.count(),
        trials=dated.is_trial.sum(),
        hits=(dated.reward_micros > 0).sum(),
        rewards_micros=dated.reward_micros.sum().cast("int64"),
        rewards_squared=(dated.r * dated.r).sum(),
        weights=dated.w.sum(),
        weights_squared=(dated.w * dated.w).sum(),
        weighted_rewards=(dated.w * dated.r).sum(),
        squared_weighted_rewards=(dated.w * dated.w * dated.r).sum(),
        squared_weighted_squares=(dated.w * dated.r * dated.w * dated.r).sum(),
    )


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
