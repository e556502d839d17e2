"""`bandolero.settle` as an Ibis expression, for any engine Ibis speaks.

The definition and its reasons stand in `bandolero.settle`; this is the same, set-wise,
for many experiments at once, as it was learned live and as it is with hindsight. Tests
hold it equal. A decision without events needs none of this: see `quiet`.
"""

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from bandolero.experiment import CORRECTIONS, ExperimentRecord
from bandolero.fold import FALLBACK
from bandolero.settle import GRACE_MS, LOST_AFTER_MS

DECISION = ("tenant_id", "decision_id")
EXPERIMENT = ("tenant_id", "experiment_id")
MICROS = 1_000_000
IN_LOG_ORDER = ("log_ms", "sequence", "file", "place")
"""Time, block, then the place in it; a file only where ingested rows have equal times."""
_LATE = ("n_late", "late_retracts", "late_refunds")


def objectives_of(records: Sequence[ExperimentRecord]) -> pa.Table:
    """What decisions of experiments can earn, a row an experiment.

    half_life_s is 0 where nothing fades.
    """
    columns: dict[str, pa.Array] = {
        "tenant_id": pa.array([r.tenant for r in records], pa.string()),
        "experiment_id": pa.array([r.experiment_id for r in records], pa.string()),
    }
    for name in ("event", "reward", "trial"):
        given = [getattr(r.spec.objective, name) for r in records]
        columns[name] = pa.array(given, pa.string())
    windows = [r.spec.objective.window_ms for r in records]
    half_lives = [half_life_s(r) or 0.0 for r in records]
    columns["window_ms"] = pa.array(windows, pa.int64())
    columns["half_life_s"] = pa.array(half_lives, pa.float64())
    return pa.table(columns)


def half_life_s(record: ExperimentRecord) -> float | None:
    """After how long data of an experiment count half; None where they do not fade."""
    return getattr(record.spec.policy, "half_life_s", None)


def closed_decisions(
    decisions: ir.Table, objectives: ir.Table, watermark_ms: int
) -> ir.Table:
    """Learned decisions that closed by the watermark, with their objective.

    Adds `close_ms`; `live_cut_ms`, the cut the live fold used (-1: it never learned the
    decision); `weight`, how much the decision still counts at the watermark
    (`policies.forgetting.kept`).

    Parameters
    ----------
    decisions
        With `is_live`, whether a row came by the log; ingested ones did not.
    objectives
        From `objectives_of`.
    """
    joined = decisions.filter(decisions.mode != FALLBACK).inner_join(
        objectives, EXPERIMENT
    )
    closes = joined.mutate(close_ms=joined.log_ms + joined.window_ms + GRACE_MS)
    learned = closes.is_live & (closes.log_ms - closes.decided_at_ms <= LOST_AFTER_MS)
    cut = closes.mutate(live_cut_ms=ibis.ifelse(learned, closes.close_ms, -1))
    closed = cut.filter(cut.close_ms <= watermark_ms)
    halvings = (watermark_ms - closed.close_ms) / (1000.0 * closed.half_life_s)
    weight = ibis.ifelse(closed.half_life_s > 0.0, 2.0**-halvings, 1.0)
    return closed.mutate(weight=weight)


def quiet(closed: ir.Table) -> ir.BooleanValue:
    """Whether a decision is a trial when nothing is told of it; it earns nothing then."""
    return closed.trial == "decision"


def settle_twice(
    closed: ir.Table, events: ir.Table, cut_ms: int, repeat_ms: int = 0
) -> ir.Table:
    """Closed decisions with what they came to: live (`was_…`), and as seen from a cut.

    Adds `is_trial`, `reward_micros` and `is_impression`; `was_trial`, `was_micros` and
    `was_impression`, false and 0 where the live fold never learned the decision;
    `before_trial` and `before_micros`, which are what it came to then before refunds and
    retractions; `n_late` events that the live fold did not see; `late_retracts` and
    `late_refunds`, since the one or the other; `repeats`, clicks too soon after another to
    count, and `fastest_ms`, from decision to first click.

    Parameters
    ----------
    closed
        From `closed_decisions`.
    events
        Rows of `bandolero.log.EVENTS_TABLE` with `is_live`, whether they came by the log,
        and `file` and `place` as `Engine.read` gives them.
    repeat_ms
        A click that follows another of its decision sooner is a repeat.
    """
    seen = _seen(closed, events, cut_ms)
    live = _earned(_counted(seen.filter(seen.is_before)), 0)
    both = closed.left_join(_earned(_counted(seen), repeat_ms), DECISION)
    both = _without_keys(both).left_join(_late(seen), DECISION)
    both = _without_keys(both).left_join(live, DECISION, rname="was_{name}")
    learned = both.live_cut_ms >= 0
    now, was = _outcome(both, ""), _outcome(both, "was_")
    return both.select(
        *closed.columns,
        is_trial=now["trial"],
        reward_micros=now["micros"],
        is_impression=now["seen"],
        was_trial=learned & was["trial"],
        was_micros=ibis.ifelse(learned, was["micros"], 0),
        was_impression=learned & was["seen"],
        before_trial=was["trial"],
        before_micros=was["micros"],
        fastest_ms=both.fastest_ms,
        repeats=both.repeats.fill_null(0),
        **{name: both[name].fill_null(0) for name in _LATE},
    )


def sequence_of(rows: ir.Table) -> ir.IntegerValue:
    """The number of each row's block within its millisecond of log time."""
    return rows.log_id.split("-")[1].cast("int64")


def _without_keys(joined: ir.Table) -> ir.Table:
    """Without the right side's copies of the keys."""
    return joined.drop(*(f"{name}_right" for name in DECISION))


def _seen(closed: ir.Table, events: ir.Table, cut_ms: int) -> ir.Table:
    """Events of closed decisions before a cut, each with what its decision asks.

    `in_time`: whether the live fold saw it. `is_ours`: whether it might have. `is_before`:
    the same as `in_time`, or no correction, where the decision was never learned.
    """
    asked = closed.select(
        *DECISION,
        "live_cut_ms",
        "window_ms",
        "event",
        made_ms=closed.decided_at_ms,
        is_ours=closed.is_live,
    )
    told = events.filter(events.log_ms < cut_ms).select(
        *DECISION,
        *("event_id", "type", "value_micros", "retracts", "at_ms", "log_ms"),
        *("is_live", "file", "place"),
        sequence=sequence_of(events),
    )
    seen = told.inner_join(asked, DECISION)
    in_time = seen.is_live & (seen.log_ms < seen.live_cut_ms)
    is_first = (seen.live_cut_ms < 0) & ~seen.type.isin(CORRECTIONS)
    return seen.mutate(in_time=in_time, is_before=in_time | is_first)


def _counted(seen: ir.Table) -> ir.Table:
    """Events that count: the first of each id, not taken back, in the window."""
    by_id = ibis.window(group_by=[*DECISION, "event_id"], order_by=IN_LOG_ORDER)
    first = seen.mutate(order=ibis.row_number().over(by_id))
    first = first.filter(first.order == 0)
    retracts = first.filter(first.type == "retract").select(
        *DECISION, event_id=ibis._.retracts
    )
    kept = first.anti_join(retracts.distinct(), [*DECISION, "event_id"])
    in_window = kept.at_ms < kept.made_ms + kept.window_ms
    return kept.filter(in_window | kept.type.isin(CORRECTIONS))


def _earned(counted: ir.Table, repeat_ms: int) -> ir.Table:
    """Sums over the events of each decision."""
    click = counted.type == "click"
    by_kind = ibis.window(
        group_by=[*DECISION, "type"], order_by=["at_ms", *IN_LOG_ORDER]
    )
    gap_ms = counted.at_ms - counted.at_ms.lag().over(by_kind)
    told = counted.mutate(is_repeat=(click & (gap_ms < repeat_ms)).fill_null(False))
    hit = (told.type == told.event) & ~told.is_repeat
    return told.group_by(DECISION).aggregate(
        hits=hit.sum(),
        gain=told.value_micros.sum(where=hit),
        refunds=told.value_micros.sum(where=told.type == "refund"),
        impressions=(told.type == "impression").sum(),
        repeats=told.is_repeat.sum(),
        fastest_ms=(told.at_ms - told.made_ms).min(where=told.type == "click"),
    )


def _late(seen: ir.Table) -> ir.Table:
    """Events of each decision that what it was `before` does not hold."""
    late = seen.filter(~seen.is_before | (~seen.in_time & seen.is_ours))
    return late.group_by(DECISION).aggregate(
        n_late=late.is_ours.sum(),
        late_retracts=(late.type == "retract").sum(),
        late_refunds=(late.type == "refund").sum(),
    )


def _outcome(both: ir.Table, prefix: str) -> dict[str, ir.Value]:
    """Trial, reward and impression from the sums of that prefix."""
    hits, gain, refunds, impressions = (
        both[prefix + name].fill_null(0)
        for name in ("hits", "gain", "refunds", "impressions")
    )
    reward = ibis.cases(
        (both.reward == "value", gain - refunds),
        (both.reward == "count", hits * MICROS),
        else_=ibis.ifelse(hits > 0, MICROS, 0),
    )
    trial = (both.trial == "decision") | (impressions > 0)
    micros = ibis.ifelse(trial, reward, 0).cast("int64")
    return {"trial": trial, "micros": micros, "seen": impressions > 0}
