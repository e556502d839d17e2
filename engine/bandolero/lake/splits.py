"""How decisions from files split between variants, for the sample-ratio check.

The live fold counts its decisions by the probabilities that they were drawn with. A file
tells each decision's own propensity only, so the night sums 1 / propensity by day.
"""

from collections.abc import Sequence

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.epochs import DAY_MS
from bandolero.experiment import ExperimentRecord
from bandolero.lake.engines import Engine
from bandolero.lake.measures import in_order
from bandolero.lake.settling import EXPERIMENT
from bandolero.policies.base import Floats, Ints
from bandolero.settle import Bools

KEYS = (*EXPERIMENT, "variant_id", "mode", "day", "n_eligible")
SUMS = ("decisions", "weights", "weights_squared")
SPLITS_TABLE = pa.schema(
    [
        *((name, pa.string()) for name in KEYS[:4]),
        *((name, pa.int64()) for name in (*KEYS[4:], "decisions")),
        *((name, pa.float64()) for name in SUMS[1:]),
    ]
)
"""A row a variant, mode, day and size of the eligible set (0: all) of ingested decisions.

weights, weights_squared: sums over decisions, trials or not, of w = 1 / propensity, w^2.
"""


def splits_by_day(engine: Engine, closed: ir.Table) -> pa.Table:
    """Rows of `SPLITS_TABLE`, in order.

    Parameters
    ----------
    closed
        From `closed_decisions`, with `n_eligible`.
    """
    drawn = closed.filter(~closed.is_live)
    drawn = drawn.mutate(
        day=(drawn.decided_at_ms // DAY_MS).cast("int64"),
        n_eligible=drawn.n_eligible.fill_null(0),
        weight=1.0 / drawn.propensity,
    )
    sums = drawn.group_by(KEYS).aggregate(
        decisions=drawn.count(),
        weights=drawn.weight.sum(),
        weights_squared=(drawn.weight * drawn.weight).sum(),
    )
    return in_order(engine.to_arrow(sums).cast(SPLITS_TABLE), KEYS)


def splits_of(splits: pa.Table, record: ExperimentRecord) -> pa.Table:
    """The rows of an experiment."""
    mine = pc.equal(splits["experiment_id"], record.experiment_id)
    return splits.filter(pc.and_(mine, pc.equal(splits["tenant_id"], record.tenant)))


def split_of(
    rows: pa.Table, variant_ids: Sequence[str], since_day: int | None = None
) -> Floats:
    """What `sample_ratio_by_weights` takes of an experiment, (4, n_arms).

    Left out are decisions among some of the variants only, and days on which a variant
    came or went.

    Parameters
    ----------
    rows
        Of `SPLITS_TABLE`, of the experiment.
    since_day
        The first day that counts; default: all.
    """
    total = np.zeros((1 + len(SUMS), len(variant_ids)))
    whole = pc.is_in(rows["n_eligible"], pa.array([0, len(variant_ids)], pa.int64()))
    rows = rows.filter(whole)
    for mode in pc.unique(rows["mode"]).to_pylist():
        mine = rows.filter(pc.equal(rows["mode"], mode))
        days, sums = _by_day(mine, variant_ids)
        counts = _is_there(sums[0] > 0.0)
        if since_day is not None:
            counts &= (days >= since_day)[:, None]
        among = sums[:1].sum(axis=2, keepdims=True)
        told = np.concatenate([np.broadcast_to(among, sums[:1].shape), sums])
        total += (told * counts).sum(axis=1)[:, : len(variant_ids)]
    return total


def _by_day(rows: pa.Table, variant_ids: Sequence[str]) -> tuple[Ints, Floats]:
    """Days, in order, and `SUMS` by day and arm, (3, n_days, n_arms + 1); last: no arm."""
    arm = {variant_id: i for i, variant_id in enumerate(variant_ids)}
    arms = np.array([arm.get(v, len(arm)) for v in rows["variant_id"].to_pylist()], int)
    days, at = np.unique(np.asarray(rows["day"]), return_inverse=True)
    sums = np.zeros((len(SUMS), len(days), len(arm) + 1))
    for i, name in enumerate(SUMS):
        np.add.at(sums[i], (at, arms), np.asarray(rows[name], np.float64))
    return days, sums


def _is_there(drawn: Bools) -> Bools:
    """The days between an arm's first and last, (n_days, n_arms).

    These two only where they are the first or last of all: elsewhere it came, or went, in
    the middle of them.
    """
    came = np.maximum.accumulate(drawn, axis=0)
    stays = np.maximum.accumulate(drawn[::-1], axis=0)[::-1]
    there = came & stays
    padded = np.pad(there, ((1, 1), (0, 0)), mode="edge")
    return there & padded[:-2] & padded[2:]
