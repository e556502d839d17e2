"""Epochs summed for a report: counts per arm, by day, and what they say of the split."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bandolero.epochs import Epoch, moments_of, padded
from bandolero.experiment import ExperimentRecord
from bandolero.fold import Correction
from bandolero.inference.sample_ratio import (
    SampleRatio,
    sample_ratio,
    sample_ratio_by_moments,
    sample_ratio_by_weights,
)
from bandolero.micros import units
from bandolero.policies.base import Floats, Ints
from bandolero.report.model import Corrected, SampleRatioCheck, Stratum, Traffic

COMBINED, INGESTED = "combined", "ingested"
HOLDOUT = "holdout"
MIN_DAYS = 4
"""With fewer days than this, traffic is told by epochs in a row instead."""
STRETCHES_MAX = 40
"""At most so many stretches of epochs are told apart."""
STICKY_REASON = "sticky draws repeat within a unit; needs units' first decisions"
ROUNDING = 1e-9
NONE_REASON = "no decision to check"
UNKNOWN_REASON = "no decision has known probabilities"


class Counts(NamedTuple):
    """Sums over epochs, each (n_arms,); rewards and their squares in units.

    moments: `bandolero.epochs.MOMENTS` of all epochs with known probabilities, where a
    context decided these; else None.
    """

    decisions: Ints
    trials: Ints
    impressions: Ints
    rewards: Floats
    rewards_squared: Floats
    moments: Floats | None = None


def within(
    epochs: Sequence[Epoch], n_arms: int, from_day: int | None, to_day: int | None
) -> list[Epoch]:
    """Epochs of the days asked for (both included), arrays (n_arms,)."""
    return [
        padded(epoch, n_arms)
        for epoch in epochs
        if (from_day is None or epoch.day >= from_day)
        and (to_day is None or epoch.day <= to_day)
    ]


def summed(epochs: Sequence[Epoch], n_arms: int) -> Counts:
    """All epochs together, every mode."""
    zeros = np.zeros(n_arms, np.int64)
    return Counts(
        sum((e.decisions for e in epochs), zeros),
        sum((e.trials for e in epochs), zeros),
        sum((e.impressions for e in epochs), zeros),
        units([e.rewards_micros for e in epochs], n_arms),
        sum((e.rewards_squared for e in epochs), np.zeros(n_arms)),
        _summed_moments(epochs),
    )


def _summed_moments(epochs: Sequence[Epoch]) -> Floats | None:
    """`MOMENTS` of all epochs; None where all probabilities were constant."""
    if all(epoch.moments is None for epoch in epochs):
        return None
    known = [moments_of(epoch) for epoch in epochs if epoch.is_known]
    return np.asarray(np.sum(known, axis=0), np.float64)


def rate_of(rewards: float, trials: int) -> float | None:
    """Rewards a trial; None without trials."""
    return rewards / trials if trials > 0 else None


def corrected(
    counts: Counts, record: ExperimentRecord, correction: Correction
) -> tuple[Counts, Corrected]:
    """Counts with a refresh's differences added, and how much that was."""
    changes = [correction.changes.get(v, {}) for v in record.spec.variant_ids]

    def differences(measure: str) -> Floats:
        return np.array([change.get(measure, 0) for change in changes], dtype=float)

    trials = differences("trials").astype(np.int64)
    impressions = differences("impressions").astype(np.int64)
    rewards = differences("rewards_micros") / 1e6
    unlearned = [correction.unlearned.get(v, 0) for v in record.spec.variant_ids]
    moments = counts.moments
    if moments is not None:
        moments = moments.copy()
        for arm, variant_id in enumerate(record.spec.variant_ids):
            if change := correction.by_context.get(variant_id):
                moments[2:, arm] += change["moments"]
        # What has all been taken back leaves rounding, and rounding is no data.
        squares = counts.rewards_squared + differences("rewards_squared")
        moments[4:, squares <= ROUNDING * counts.rewards_squared] = 0.0
        moments[2:, counts.trials + trials <= 0] = 0.0
    after = counts._replace(
        moments=moments,
        decisions=counts.decisions + np.array(unlearned, np.int64),
        trials=counts.trials + trials,
        impressions=counts.impressions + impressions,
        rewards=counts.rewards + rewards,
        rewards_squared=counts.rewards_squared + differences("rewards_squared"),
    )
    return after, Corrected(
        watermark_ms=correction.watermark_ms,
        variants=sum(any(change.values()) for change in changes),
        decisions=sum(unlearned),
        trials=int(trials.sum()),
        impressions=int(impressions.sum()),
        rewards=float(rewards.sum()),
    )


def ingested_split(record: ExperimentRecord, correction: Correction) -> Floats:
    """`Correction.split` by arm, (4, n_arms)."""
    none = [0.0] * 4
    columns = [correction.split.get(v, none) for v in record.spec.variant_ids]
    return np.array(columns, np.float64).T


def check_split(
    record: ExperimentRecord,
    epochs: Sequence[Epoch],
    ingested: Floats | None = None,
    unlearned: int = 0,
) -> SampleRatioCheck:
    """Whether decisions split as logged: those from files, by mode, and all modes together.

    Against the logged propensities, because equal shares are not what a bandit gives.

    Parameters
    ----------
    ingested
        What `sample_ratio_by_weights` takes, (4, n_arms); default: nothing ingested.
    unlearned
        Decisions that no epoch holds, the ingested ones among them.
    """
    drawn = sorted((e for e in epochs if e.decisions.any()), key=_time)
    known = [epoch for epoch in drawn if epoch.is_known]
    n_known = sum(int(e.decisions.sum()) for e in known)
    unknown = sum(int(e.decisions.sum()) for e in epochs) - n_known + unlearned
    if record.spec.allocation.sticky == "unit":
        return SampleRatioCheck("not checked", (), unknown, STICKY_REASON)
    strata = []
    if ingested is not None and ingested.any():
        n_ingested = int(ingested[1].sum())
        unknown = max(unknown - n_ingested, 0)
        strata = [_told(INGESTED, n_ingested, sample_ratio_by_weights(*ingested))]
    if known:
        modes = sorted({epoch.mode for epoch in known})
        strata += [_stratum(m, [e for e in known if e.mode == m]) for m in modes]
        strata.append(_stratum(COMBINED, known))
    if not strata:
        reason = UNKNOWN_REASON if unknown else NONE_REASON
        return SampleRatioCheck("not checked", (), unknown, reason)
    mismatch = any(s.verdict == "mismatch" for s in strata)
    verdict = "mismatch" if mismatch else strata[-1].verdict
    return SampleRatioCheck(verdict, tuple(strata), unknown, "")


def _stratum(mode: str, epochs: Sequence[Epoch]) -> Stratum:
    decisions = np.array([epoch.decisions for epoch in epochs])
    if (moments := _summed_moments(epochs)) is not None:
        expected, variance = moments[:2]
        result = sample_ratio_by_moments(decisions.sum(axis=0), expected, variance)
    else:
        result = sample_ratio(decisions, np.array([e.probabilities for e in epochs]))
    return _told(mode, int(decisions.sum()), result)


def _told(mode: str, decisions: int, result: SampleRatio) -> Stratum:
    return Stratum(
        mode=mode,
        decisions=decisions,
        chi2=_finite(result.chi2),
        df=result.df,
        p_value=_finite(result.p_value),
        n_tests=result.n_tests,
        log_e_value=_finite(result.log_e_value),
        verdict=result.verdict,
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def traffic_of(epochs: Sequence[Epoch]) -> tuple[Traffic, ...]:
    """Decisions that the policy drew, by day; on few days by epochs in a row.

    The holdout is left out, unless there is nothing else: it never moves.
    """
    drawn = [epoch for epoch in epochs if epoch.mode != HOLDOUT] or list(epochs)
    days = {epoch.day for epoch in drawn}
    if len(days) < MIN_DAYS:
        return _stretches(sorted(drawn, key=_time))
    sums = {day: np.zeros_like(drawn[0].decisions) for day in _span(days)}
    for epoch in drawn:
        sums[epoch.day] += epoch.decisions
    return tuple(Traffic(day, tuple(map(int, n))) for day, n in sums.items())


def _time(epoch: Epoch) -> tuple[int, tuple[int, int]]:
    return epoch.day, epoch.versions


def _span(days: set[int]) -> range:
    return range(min(days), max(days) + 1)


def _stretches(epochs: Sequence[Epoch]) -> tuple[Traffic, ...]:
    """Epochs in a row, cut into stretches of about equally many decisions."""
    if not epochs:
        return ()
    decisions = np.array([epoch.decisions for epoch in epochs])
    so_far = np.cumsum(decisions.sum(axis=1))
    size = max(float(so_far[-1]), 1.0) / STRETCHES_MAX
    stretch = np.ceil(so_far / size - 1e-9)
    starts = np.flatnonzero(np.diff(stretch, prepend=-1.0))
    sums = np.add.reduceat(decisions, starts, axis=0)
    return tuple(Traffic(None, tuple(map(int, n))) for n in sums if n.sum())
