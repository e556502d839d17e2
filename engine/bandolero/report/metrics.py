"""Metrics of a report: what the newest refresh settled of them, variant by variant."""

import numpy as np

from bandolero.epochs import MOMENTS as EPOCH_MOMENTS
from bandolero.experiment import ExperimentRecord, Metric
from bandolero.metric import MOMENTS, MetricSums, as_metric
from bandolero.policies.base import Floats
from bandolero.report.counts import Counts, rate_of
from bandolero.report.model import MetricRow, MetricTable
from bandolero.report.posterior import compared


def metric_tables(
    record: ExperimentRecord, sums: MetricSums, watermark_ms: int
) -> tuple[MetricTable, ...]:
    """A table for each metric that has been settled, in their order.

    Rates are compared with a flat prior: priors are of the objective.
    """
    return tuple(
        MetricTable(
            name=metric.name,
            event=metric.event,
            reward=metric.reward,
            window_s=metric.window_s,
            guardrail=metric.guardrail,
            watermark_ms=watermark_ms,
            variants=_rows(record, metric, sums[metric.name]),
        )
        for metric in record.spec.metrics
        if metric.name in sums
    )


def _rows(
    record: ExperimentRecord, metric: Metric, sums: dict[str, dict[str, float]]
) -> tuple[MetricRow, ...]:
    counts = _counts(record, sums)
    table = compared(as_metric(record, metric), counts)

    def known(column: Floats, arm: int) -> float | None:
        return float(column[arm]) if np.isfinite(column[arm]) else None

    return tuple(
        MetricRow(
            variant_id=variant_id,
            trials=int(counts.trials[arm]),
            rewards=float(counts.rewards[arm]),
            rate=rate_of(float(counts.rewards[arm]), int(counts.trials[arm])),
            mean=known(table.mean, arm),
            interval_lower=known(table.interval_lower, arm),
            interval_upper=known(table.interval_upper, arm),
            probability_beat_control=known(table.probability_beat_control, arm),
            lift=known(table.lift, arm),
            lift_lower=known(table.lift_lower, arm),
            lift_upper=known(table.lift_upper, arm),
        )
        for arm, variant_id in enumerate(record.spec.variant_ids)
    )


def _counts(record: ExperimentRecord, sums: dict[str, dict[str, float]]) -> Counts:
    def column(name: str) -> Floats:
        ids = record.spec.variant_ids
        return np.array([sums.get(i, {}).get(name, 0) for i in ids], np.float64)

    trials = column("trials").astype(np.int64)
    moments = None
    if any(MOMENTS[0] in one for one in sums.values()):
        unused = len(EPOCH_MOMENTS) - len(MOMENTS)
        none = [np.zeros(len(trials))] * unused
        moments = np.stack([*none, *map(column, MOMENTS)])
    return Counts(
        decisions=trials,
        trials=trials,
        impressions=np.zeros_like(trials),
        rewards=column("rewards_micros") / 1e6,
        rewards_squared=column("rewards_squared"),
        moments=moments,
    )
