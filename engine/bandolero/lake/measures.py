"""Measures of settled decisions by any keys: counts, rewards, and moments of 1 / propensity.

Decisions that nothing was told of are most of a night, and of them only counts are
needed: they are counted straight from the files, as if nothing had been told of any. The
few with events are counted once more, for the difference that those made.
"""

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from bandolero.lake.settling import quiet

COUNTS = ("decisions", "trials", "hits", "impressions", "excluded", "rewards_micros")
SUMS = (
    "rewards_squared",
    "weights",
    "weights_squared",
    "weighted_rewards",
    "squared_weighted_rewards",
    "squared_weighted_squares",
)
VERSIONS = ("first_version", "last_version")
MEASURES_FIELDS = [
    *((name, pa.int64()) for name in (*VERSIONS, *COUNTS)),
    *((name, pa.float64()) for name in SUMS),
]
"""first_version, last_version: of the snapshots decided from. hits: trials with a positive
reward. The sums are over trials, as in `bandolero.epochs.MOMENTS`."""


def measures_by(closed: ir.Table, settled: ir.Table, keys: Sequence[str]) -> ir.Table:
    """Measures of all closed decisions, by columns that both tables have.

    Parameters
    ----------
    closed
        Every closed decision.
    settled
        Those of them that something was told of, from `without_invalid`.
    """
    return with_told(untold_by(closed, keys), settled, keys)


def untold_by(closed: ir.Table, keys: Sequence[str]) -> ir.Table:
    """Measures by some keys as if nothing had been told of any decision.

    Adds began_ms, when the first was made; unlearned, how many the live fold never
    learned; unlearned_trials, as trials; faded_trials, what is left of these by now.
    """
    e, trial = closed.propensity, quiet(closed)
    unlearned = trial & (closed.live_cut_ms < 0)
    return closed.group_by(keys).aggregate(
        first_version=closed.snapshot_version.min(),
        last_version=closed.snapshot_version.max(),
        began_ms=closed.decided_at_ms.min(),
        decisions=closed.count(),
        trials=trial.sum(),
        weights=(1.0 / e).sum(where=trial),
        weights_squared=(1.0 / (e * e)).sum(where=trial),
        unlearned=(closed.live_cut_ms < 0).sum(),
        unlearned_trials=unlearned.sum(),
        faded_trials=ibis.ifelse(unlearned, closed.weight, 0.0).sum(),
    )


def with_told(untold: ir.Table, settled: ir.Table, keys: Sequence[str]) -> ir.Table:
    """Measures from `untold_by`, and the difference that it made what was told."""
    e, r = settled.propensity, settled.reward_micros.cast("float64") / 1e6
    more = settled.is_trial.cast("int64") - quiet(settled).cast("int64")
    told = settled.group_by(keys).aggregate(
        trials=more.sum(),
        weights=(more / e).sum(),
        weights_squared=(more / (e * e)).sum(),
        hits=(settled.is_trial & (settled.reward_micros > 0)).sum(),
        impressions=settled.is_impression.sum(),
        excluded=settled.excluded.notnull().sum(),
        rewards_micros=settled.reward_micros.sum(),
        rewards_squared=(r * r).sum(),
        weighted_rewards=(r / e).sum(),
        squared_weighted_rewards=(r / (e * e)).sum(),
        squared_weighted_squares=(r * r / (e * e)).sum(),
    )
    return summed(_complete(untold, keys).union(_complete(told, keys)), keys)


def summed(rows: ir.Table, keys: Sequence[str]) -> ir.Table:
    """Measures added up by some keys."""
    sums = {name: rows[name].sum().cast("int64") for name in COUNTS}
    sums |= {name: rows[name].sum() for name in SUMS}
    return rows.group_by(keys).aggregate(
        first_version=rows.first_version.min(),
        last_version=rows.last_version.max(),
        **sums,
    )


def in_order(rows: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Rows sorted by some keys: an engine gives them in any order."""
    return rows.sort_by([(name, "ascending") for name in keys])


def _complete(part: ir.Table, keys: Sequence[str]) -> ir.Table:
    """With a column for every measure, in one order."""
    versions = {
        name: part[name] if name in part.columns else ibis.null("int64")
        for name in VERSIONS
    }
    measures = {
        name: (part[name] if name in part.columns else ibis.literal(0)).cast(kind)
        for names, kind in ((COUNTS, "int64"), (SUMS, "float64"))
        for name in names
    }
    filled = {name: value.fill_null(0) for name, value in measures.items()}
    return part.select(*keys, **versions, **filled)
