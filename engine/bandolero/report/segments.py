"""A report level by level of a context field, from what the nights of the lake counted.

A level is compared as all requests are: the same prior, its own trials and nobody else's.
Many levels make lucky ones, so a level names a variant from a higher P(best) on, and the
first question is whether levels differ at all.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.epochs import MOMENTS
from bandolero.experiment import OTHER, CategoricalField, ExperimentRecord
from bandolero.inference.interaction import (
    Interaction,
    interaction,
    log_means,
    log_rates,
)
from bandolero.policies.base import Floats
from bandolero.policy_specs import CONTEXTUAL
from bandolero.report import segment_words as say
from bandolero.report.counts import Counts, rate_of
from bandolero.report.model import Level, LevelRow, Segment
from bandolero.report.posterior import (
    hits_and_misses,
    means_and_trials,
    told_of,
)

COMPARED_MAX = 2_000
"""So many variants of all levels are compared, at a millisecond each; the smaller levels
are put together."""
_COUNTED = ("decisions", "trials", "impressions", "rewards_micros", "rewards_squared")
_WEIGHTED = MOMENTS[2:]
MEASURES = (*_COUNTED, *_WEIGHTED)
"""Columns of `SegmentRows.rows` that are added up."""
COLUMNS = ("level", "variant_id", "day", *MEASURES)
"""Columns of `SegmentRows.rows`."""

Days = tuple[int | None, int | None]


class SegmentRows(NamedTuple):
    """What the newest night counted of an experiment by level of a field.

    rows: with `COLUMNS`, as in `bandolero.lake.rollups.SEGMENTS_TABLE`. Both None before
    the first night.
    """

    field: str
    watermark_ms: int | None
    rows: pa.Table | None


def categorical_fields(record: ExperimentRecord) -> dict[str, list[str]]:
    """Fields that an experiment can be told by, with their levels, "other" last."""
    return {
        field.name: [*(x for x in dict.fromkeys(field.levels) if x != OTHER), OTHER]
        for field in record.spec.context
        if isinstance(field, CategoricalField)
    }


def segment_of(
    record: ExperimentRecord,
    given: SegmentRows,
    days: Days,
    mismatch: bool,
    is_fuller: bool,
) -> Segment:
    """The report of each level of one of `categorical_fields`.

    Parameters
    ----------
    days
        First and last day of the decisions to count, both included; None: no bound.
    mismatch
        Whether all decisions together did not split as logged: no level is read then.
    is_fuller
        Whether rows hold what the report of all requests leaves out.
    """
    levels = categorical_fields(record)[given.field]
    sums = {} if given.rows is None else _sums(record, levels, given.rows, days)
    seen = [level for level in levels if level in sums]
    most = max(COMPARED_MAX // len(record.spec.variants), 1)
    largest = _largest(sums, seen, most)
    rest = [sums[level] for level in seen if level not in largest]
    names_from = say.names_from(len(largest))
    found = _interaction(record, [sums[level] for level in seen])
    told = partial(_level, record, mismatch, names_from)
    alone = partial(_level, record, mismatch, say.names_from(1))
    facts = say.SegmentFacts(
        field=given.field,
        watermark_ms=given.watermark_ms,
        n_levels=len(largest),
        smaller=len(rest),
        unseen=[level for level in levels if level not in sums],
        interaction=found,
        mismatch=mismatch,
        is_fuller=is_fuller,
        sticky=record.spec.allocation.sticky == "unit",
    )
    return Segment(
        field=given.field,
        watermark_ms=given.watermark_ms,
        headline=say.headline(facts),
        names_from=names_from,
        interaction=found,
        levels=tuple(told(level, sums[level]) for level in largest),
        smaller=len(rest),
        rest=told(None, np.sum(rest, axis=0)) if rest else None,
        whole=alone(None, np.sum(list(sums.values()), axis=0)) if sums else None,
        unseen=tuple(facts.unseen),
        notes=tuple(say.notes(facts)),
    )


def _sums(
    record: ExperimentRecord, levels: Sequence[str], rows: pa.Table, days: Days
) -> dict[str, Floats]:
    """`MEASURES` of each level that was seen, (len(MEASURES), n_arms)."""
    first, last = days
    if first is not None:
        rows = rows.filter(pc.field("day") >= first)
    if last is not None:
        rows = rows.filter(pc.field("day") <= last)
    arms = {name: arm for arm, name in enumerate(record.spec.variant_ids)}
    rows = rows.filter(pc.field("variant_id").isin(list(arms)))
    keys = ["level", "variant_id"]
    added = rows.group_by(keys).aggregate([(name, "sum") for name in MEASURES])
    measured = np.column_stack([added[f"{name}_sum"].to_numpy() for name in MEASURES])
    sums: dict[str, Floats] = {}
    named = zip(*(added[key].to_pylist() for key in keys), strict=True)
    for (level, variant_id), values in zip(named, measured, strict=True):
        known = level if level in levels else OTHER  # fields change until the start
        of_level = sums.setdefault(known, np.zeros((len(MEASURES), len(arms))))
        of_level[:, arms[variant_id]] += values
    return sums


def _largest(sums: Mapping[str, Floats], seen: Sequence[str], most: int) -> list[str]:
    """The levels of the most decisions, in their order."""
    by_size = sorted(seen, key=lambda level: -sums[level][0].sum())
    return [level for level in seen if level in set(by_size[:most])]


def _counts(record: ExperimentRecord, sums: Floats) -> Counts:
    """Sums of `MEASURES` as a report's counts, weighted where a context decided."""
    decisions, trials, impressions, micros, squared = sums[: len(_COUNTED)]
    moments = None
    if record.spec.policy.kind in CONTEXTUAL:
        unused = np.zeros((len(MOMENTS) - len(_WEIGHTED), len(trials)))
        moments = np.vstack((unused, sums[len(_COUNTED) :]))
    return Counts(
        decisions.astype(np.int64),
        trials.astype(np.int64),
        impressions.astype(np.int64),
        micros / 1e6,
        squared,
        moments,
    )


def _level(
    record: ExperimentRecord,
    mismatch: bool,
    names_from: float,
    level: str | None,
    sums: Floats,
) -> Level:
    counts = _counts(record, sums)
    rows = tuple(LevelRow(**told) for told in told_of(record, counts))
    trials, rewards = int(counts.trials.sum()), float(counts.rewards.sum())
    control = record.spec.variant_ids[record.spec.control_arm]
    verdict, headline = say.of_level(rows, control, names_from, mismatch)
    return Level(
        level=level,
        decisions=int(counts.decisions.sum()),
        trials=trials,
        impressions=int(counts.impressions.sum()),
        rewards=rewards,
        rate=rate_of(rewards, trials),
        verdict=verdict,
        headline=headline,
        variants=rows,
    )


def _interaction(
    record: ExperimentRecord, sums: Sequence[Floats]
) -> Interaction | None:
    """Whether the levels differ in how variants compare."""
    if not sums:
        return None
    cells = [_logs(record, _counts(record, one)) for one in sums]
    logs, variances = np.stack(cells, axis=1)
    return interaction(logs, variances)


def _logs(record: ExperimentRecord, counts: Counts) -> tuple[Floats, Floats]:
    """Log rates of a level and their variances, (n_arms,) each; nan without trials."""
    if record.spec.objective.reward == "binary":
        logs, variances = log_rates(*hits_and_misses(counts))
    else:
        mean, trials = means_and_trials(counts)
        logs, variances = log_means(mean, trials, _size(counts))
    return np.where(counts.trials > 0, logs, np.nan), variances


def _size(counts: Counts) -> float:
    """What a hit is worth in a level: variance of a trial's reward, over its mean."""
    trials = np.maximum(counts.trials, 1)
    spread = counts.rewards_squared - counts.rewards**2 / trials
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(spread.sum() / counts.rewards.sum())
