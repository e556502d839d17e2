"""Build a report from an experiment's rollups: counts, posterior, checks, words."""

from collections.abc import Mapping, Sequence

import numpy as np

from bandolero.epochs import Epoch
from bandolero.experiment import ExperimentRecord
from bandolero.fold import Correction
from bandolero.policies.base import Ints
from bandolero.report.counts import (
    Counts,
    check_split,
    corrected,
    ingested_split,
    rate_of,
    summed,
    traffic_of,
    within,
)
from bandolero.report.model import MetricTable, Report, Totals, VariantRow
from bandolero.report.posterior import CREDIBILITY, told_of, without_spread
from bandolero.report.segments import SegmentRows, segment_of
from bandolero.report.verdict import Facts, judge
from bandolero.snapshot import Snapshot


def build_report(
    record: ExperimentRecord,
    epochs: Sequence[Epoch],
    *,
    decided: Mapping[str, int],
    correction: Correction | None,
    snapshot: Snapshot | None,
    generated_at_ms: int,
    metrics: tuple[MetricTable, ...] = (),
    segment: SegmentRows | None = None,
    from_day: int | None = None,
    to_day: int | None = None,
) -> Report:
    """Everything that is known of an experiment, as plain data.

    Counts are of settled decisions in the modes explore, holdout and fixed, which are
    all that epochs and corrections hold. The posterior is the policy's base prior plus these data.

    Parameters
    ----------
    epochs
        The experiment's rollups, all of them; the days asked for are taken here.
    decided
        Decisions logged so far per variant id, settled or not, without fallbacks.
    correction
        The newest refresh's, added to the counts; left out when days are asked for,
        because it does not say which days it corrects.
    snapshot
        The newest, for `share_now`.
    metrics
        From `report.metrics`; left out when days are asked for.
    segment
        Rows by level of a context field, to tell level by level.
    from_day, to_day
        Days since 1970 (UTC) of the decisions to report, both included.
    """
    n_arms = len(record.spec.variants)
    by_day = from_day is not None or to_day is not None
    chosen = within(epochs, n_arms, from_day, to_day)
    counts, added = summed(chosen, n_arms), None
    check = check_split(record, chosen)
    if correction is not None and not by_day:
        counts, added = corrected(counts, record, correction)
        ingested = ingested_split(record, correction)
        check = check_split(record, chosen, ingested, added.decisions)
    settled = summed(within(epochs, n_arms, None, None), n_arms).decisions
    pending = _pending(record, decided, settled)
    rows = _rows(record, counts, pending, snapshot)
    totals = _totals(rows)
    left_out = correction if by_day else None
    if left_out is not None and not (left_out.changes or left_out.unlearned):
        left_out = None
    mismatch = check.verdict == "mismatch"
    days = from_day, to_day
    levels = None
    if segment is not None:
        is_fuller = left_out is not None
        levels = segment_of(record, segment, days, mismatch, is_fuller)
    alike = without_spread(record, counts)
    words = judge(Facts(record.spec, rows, totals, check, added, left_out, alike))
    spec = record.spec
    return Report(
        experiment_id=record.experiment_id,
        tenant=record.tenant,
        placement=spec.placement,
        status=record.status,
        policy=spec.policy.kind,
        control=spec.variant_ids[spec.control_arm],
        event=spec.objective.event,
        reward=spec.objective.reward,
        trial=spec.objective.trial,
        currency=spec.currency,
        generated_at_ms=generated_at_ms,
        spec_version=record.spec_version,
        snapshot_version=None if snapshot is None else snapshot.version,
        from_day=from_day,
        to_day=to_day,
        credibility=CREDIBILITY,
        verdict=words.verdict,
        headline=words.headline,
        totals=totals,
        sample_ratio=check,
        correction=added,
        notes=words.notes,
        variants=rows,
        metrics=() if by_day else metrics,
        segment=levels,
        traffic=traffic_of(chosen),
    )


def _pending(
    record: ExperimentRecord, decided: Mapping[str, int], settled: Ints
) -> Ints:
    """Decisions that have not settled yet, (n_arms,)."""
    logged = [decided.get(variant_id, 0) for variant_id in record.spec.variant_ids]
    pending: Ints = np.maximum(np.array(logged, np.int64) - settled, 0)
    return pending


def _rows(
    record: ExperimentRecord, counts: Counts, pending: Ints, snapshot: Snapshot | None
) -> tuple[VariantRow, ...]:
    """One row a variant, in arm order."""
    shares = _shares_now(record, snapshot)
    return tuple(
        VariantRow(
            **told, pending=int(waiting), share_now=shares.get(told["variant_id"])
        )
        for told, waiting in zip(told_of(record, counts), pending, strict=True)
    )


def _shares_now(
    record: ExperimentRecord, snapshot: Snapshot | None
) -> dict[str, float]:
    """Probability of every variant that is served and that the snapshot knows."""
    if snapshot is None or record.status != "running":
        return {}
    ids = snapshot.experiment.variant_ids
    active = {record.spec.variant_ids[arm] for arm in record.active_arms}
    told = zip(ids, snapshot.probabilities, strict=True)
    return {v: float(p) for v, p in told if v in active}


def _totals(rows: Sequence[VariantRow]) -> Totals:
    rewards = sum(row.rewards for row in rows)
    trials = sum(row.trials for row in rows)
    return Totals(
        decisions=sum(row.decisions for row in rows),
        trials=trials,
        impressions=sum(row.impressions for row in rows),
        rewards=rewards,
        rate=rate_of(rewards, trials),
        pending=sum(row.pending for row in rows),
    )
