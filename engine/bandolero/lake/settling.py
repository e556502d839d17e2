"""`bandolero.settle` as an Ibis expression, for any engine Ibis speaks.

The definition and its reasons stand in `bandolero.settle`; this is the same, set-wise,
for many experiments at once. Tests hold the two equal.
"""

import ibis
import ibis.expr.types as ir

from bandolero.fold import FALLBACK
from bandolero.settle import CORRECTIONS, GRACE_MS, LOST_AFTER_MS

DECISION = ("tenant_id", "decision_id")
EXPERIMENT = ("tenant_id", "experiment_id")


def closed_decisions(
    decisions: ir.Table, objectives: ir.Table, watermark_ms: int
) -> ir.Table:
    """Learned decisions that closed by the watermark, with their objective.

    Adds `close_ms`; `live_cut_ms`, the cut the live fold used (-1: never); `weight`, how
    much the decision still counts at the watermark (`policies.forgetting.kept`).

    Parameters
    ----------
    objectives
        tenant_id, experiment_id, event, reward, trial, window_ms, half_life_s (null where
        nothing fades).
    """
    joined = decisions.filter(decisions.mode != FALLBACK).inner_join(
        objectives, EXPERIMENT
    )
    closes = joined.mutate(close_ms=joined.log_ms + joined.window_ms + GRACE_MS)
    in_time = closes.log_ms - closes.decided_at_ms <= LOST_AFTER_MS
    cut = closes.mutate(live_cut_ms=ibis.ifelse(in_time, closes.close_ms, -1))
    closed = cut.filter(cut.close_ms <= watermark_ms)
    halvings = (watermark_ms - closed.close_ms) / (1000.0 * closed.half_life_s)
    return closed.mutate(weight=(2.0**-halvings).fill_null(1.0))


def settle_expr(
    closed: ir.Table,
    events: ir.Table,
    cut_ms: ir.Value | int,
    keep: tuple[str, ...] = (),
) -> ir.Table:
    """Trial, reward and impression of each closed decision as seen from a cut.

    Parameters
    ----------
    closed
        From `closed_decisions`.
    events
        Rows of `bandolero.log.EVENTS_TABLE` and `position`, their place in the log.
    cut_ms
        Log time; decisions that close after it are left out.
    keep
        More columns of `closed` to carry along.
    """
    decisions = closed.mutate(cut_ms=cut_ms)
    decisions = decisions.filter(decisions.close_ms <= decisions.cut_ms)
    earned = _earned(_counted(decisions, events))
    both = decisions.left_join(earned, DECISION, rname="{name}_earned")
    hits, gain = both.hits.fill_null(0), both.gain.fill_null(0)
    reward = ibis.cases(
        (both.reward == "value", gain - both.refunds.fill_null(0)),
        (both.reward == "count", hits * 1_000_000),
        else_=ibis.ifelse(hits > 0, 1_000_000, 0),
    )
    seen = both.impressions.fill_null(0) > 0
    is_trial = (both.trial == "decision") | seen
    return both.select(
        *EXPERIMENT,
        "decision_id",
        "variant_id",
        "decided_at_ms",
        "mode",
        "weight",
        *keep,
        is_trial=is_trial,
        is_impression=seen,
        reward_micros=ibis.ifelse(is_trial, reward, 0).cast("int64"),
    )


def _counted(decisions: ir.Table, events: ir.Table) -> ir.Table:
    """Events that count, each with its decision's objective."""
    asked = decisions.select(
        *DECISION, "cut_ms", "window_ms", "event", made_ms=decisions.decided_at_ms
    )
    seen = events.drop("experiment_id", "decided_at_ms").inner_join(asked, DECISION)
    seen = seen.filter(seen.log_ms < seen.cut_ms)
    by_id = ibis.window(group_by=[*DECISION, "event_id"], order_by="position")
    first = seen.mutate(place=ibis.row_number().over(by_id))
    first = first.filter(first.place == 0)
    retracts = first.filter(first.type == "retract").select(
        *DECISION, event_id=ibis._.retracts
    )
    kept = first.anti_join(retracts.distinct(), [*DECISION, "event_id"])
    in_window = kept.at_ms < kept.made_ms + kept.window_ms
    return kept.filter(in_window | kept.type.isin(CORRECTIONS))


def _earned(counted: ir.Table) -> ir.Table:
    """Sums over the events of each decision."""
    hit = counted.type == counted.event
    return counted.group_by(DECISION).aggregate(
        hits=hit.sum(),
        gain=counted.value_micros.sum(where=hit),
        refunds=counted.value_micros.sum(where=counted.type == "refund"),
        impressions=(counted.type == "impression").sum(),
    )
