"""What a night changes where a context decided: sums over features, and epochs' moments.

Counts alone do not correct a regression: what was late belongs to a context. So the few
decisions that settled otherwise with hindsight are looked up, and counted once as they
are and once, to be taken away, as they were learned; what no live fold learned is counted
whole. Sums over features are beyond SQL: one function goes over batches of rows, in
threads here or on a cluster, and its parts add up.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from bandolero.experiment import ExperimentRecord
from bandolero.features import FeatureMap
from bandolero.lake.engines import Batches, Engine
from bandolero.lake.rollups import are_few
from bandolero.lake.settling import EXPERIMENT, quiet
from bandolero.policies import (
    ContextualPolicy,
    LinearState,
    LinearThompson,
    policy_of,
)
from bandolero.policies.base import Floats, Ints

Change = dict[str, dict[str, list[float]]]
"""By variant: differences of `moments` and, where the state is a sum over features, what
is left at the watermark of those of `gram`, `moment` and `squares`; see `LinearState`."""
Name = tuple[str, str]
"""Tenant and experiment."""
SUMS = ("moments", "gram", "moment", "squares")
VARIANT = (*EXPERIMENT, "variant_id")
NUMBERS_AT_ONCE = 4_000_000
"""Features that are held at once, in numbers."""
_PARTS = pa.schema(
    [
        *((name, pa.string()) for name in VARIANT),
        *((name, pa.list_(pa.float64())) for name in SUMS),
    ]
)
_NUMBERS = pa.schema(
    [
        *((name, pa.string()) for name in VARIANT),
        *((name, pa.int32()) for name in ("kind", "arm")),
    ]
)
_SUMMED = ("weight", "inverse", "inverse_squared")


class _Alike(NamedTuple):
    """Variants of all experiments whose contexts are read alike, as arms of one policy.

    sums: keeps their sums over features; None where a state is no such sum.
    """

    features: FeatureMap
    sums: LinearThompson | None
    variants: list[tuple[str, str, str]]


class _Total(NamedTuple):
    """What is summed so far, by arm: rows (n_arms,); moments (5, n_arms).

    The moments are the last five of `bandolero.epochs.MOMENTS`.
    """

    rows: Ints
    moments: Floats
    state: LinearState | None


def is_by_context(record: ExperimentRecord) -> bool:
    """Whether a context decides the probabilities of an experiment."""
    return isinstance(policy_of(record.spec), ContextualPolicy)


def changes_by_context(
    engine: Engine,
    records: Sequence[ExperimentRecord],
    changed: ir.Table,
    never: ir.Table,
) -> dict[Name, Change]:
    """What changed, by (tenant, experiment).

    Parameters
    ----------
    changed
        Decisions with what they are (`is_trial`, `reward_micros`), what they were
        learned or counted as (`was_trial`, `was_micros`), and `weight`, how much they
        still count.
    never
        Decisions to count as if nothing had been told of them.
    """
    mine = [record for record in records if is_by_context(record)]
    if not mine:
        return {}
    rows = _trials(changed, "is_trial", "reward_micros", 1)
    rows = rows.union(_trials(changed, "was_trial", "was_micros", -1))
    untold = never.mutate(is_quiet=quiet(never), nothing=ibis.literal(0, "int64"))
    quiet_ones = _trials(untold, "is_quiet", "nothing", 1)
    if are_few(mine):
        quiet_ones = _of_equal_context(quiet_ones)
    return sums_by_context(engine, mine, rows.union(quiet_ones))


def sums_by_context(
    engine: Engine, records: Sequence[ExperimentRecord], rows: ir.Table
) -> dict[Name, Change]:
    """Sums over the trials of some experiments, by experiment and variant.

    Parameters
    ----------
    rows
        Trials of any experiments with `VARIANT`, context and reward_micros; and with
        weight, inverse (1 / propensity) and inverse_squared, each less than 0 where a
        trial is taken away, or the sums of them over equal ones.
    """
    alike = _alike(records)
    numbered = rows.inner_join(engine.table(_numbers(alike)), VARIANT).drop(VARIANT)
    parts = engine.over_batches(numbered, partial(_partial_sums, alike), _PARTS)
    found: dict[Name, Change] = defaultdict(dict)
    for row in parts.to_pylist():
        sums = {name: row[name] for name in SUMS if row[name] is not None}
        mine = found[row["tenant_id"], row["experiment_id"]]
        before = mine.get(row["variant_id"])
        if before is not None:
            sums = {n: np.add(before[n], sums[n]).tolist() for n in sums}
        mine[row["variant_id"]] = sums
    return dict(found)


def _alike(records: Sequence[ExperimentRecord]) -> list[_Alike]:
    """The variants of all experiments, those together whose contexts are read alike."""
    found: dict[str, _Alike] = {}
    for record in records:
        spec = record.spec
        is_sum = isinstance(policy_of(spec).init(0), LinearState)
        key = repr((spec.context, is_sum))
        if key not in found:
            # Whatever half-life: sums of real numbers, faded by the weights of rows.
            sums = LinearThompson(spec.n_features, half_life_s=1.0) if is_sum else None
            found[key] = _Alike(FeatureMap(spec.context), sums, [])
        name = record.tenant, record.experiment_id
        found[key].variants.extend((*name, each) for each in spec.variant_ids)
    return list(found.values())


def _numbers(alike: Sequence[_Alike]) -> pa.Table:
    """Rows of `_NUMBERS`: which arm of whom every variant is."""
    rows = [
        (*variant, kind, arm)
        for kind, each in enumerate(alike)
        for arm, variant in enumerate(each.variants)
    ]
    named = [dict(zip(_NUMBERS.names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist(named, _NUMBERS)


def _trials(rows: ir.Table, trial: str, micros: str, sign: int) -> ir.Table:
    e = rows.propensity
    return rows.filter(rows[trial]).select(
        *VARIANT,
        "context",
        reward_micros=rows[micros],
        weight=sign * rows.weight,
        inverse=sign / e,
        inverse_squared=sign / (e * e),
    )


def _of_equal_context(trials: ir.Table) -> ir.Table:
    """Trials of which nothing was told, those of one variant and context in one row."""
    sums = {name: trials[name].sum() for name in _SUMMED}
    return trials.group_by(*VARIANT, "context", "reward_micros").aggregate(**sums)


def _partial_sums(alike: Sequence[_Alike], batches: Batches) -> Batches:
    """One row of `_PARTS` for each variant that has trials in these batches."""
    totals = [_nothing(each) for each in alike]
    for batch in batches:
        for kind, rows in _by_kind(batch):
            mine = alike[kind]
            n_rows = max(NUMBERS_AT_ONCE // mine.features.n_features, 1)
            for start in range(0, len(rows), n_rows):
                part = rows.slice(start, n_rows)
                totals[kind] = _added(totals[kind], mine, part)
    for each, total in zip(alike, totals, strict=True):
        for arm in np.flatnonzero(total.rows).tolist():
            key = zip(VARIANT, each.variants[arm], strict=True)
            row = dict(key) | _of_arm(total, arm)
            yield pa.RecordBatch.from_pylist([row], _PARTS)


def _by_kind(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each kind."""
    rows, kinds = pa.Table.from_batches([batch]), batch["kind"].to_numpy()
    counts = np.bincount(kinds)
    if np.count_nonzero(counts) > 1:
        rows = rows.take(pa.array(np.argsort(kinds, kind="stable")))
    starts = np.cumsum(counts) - counts
    for kind in np.flatnonzero(counts).tolist():
        yield kind, rows.slice(int(starts[kind]), int(counts[kind]))


def _nothing(alike: _Alike) -> _Total:
    n_arms = len(alike.variants)
    state = None if alike.sums is None else alike.sums.init(n_arms)
    return _Total(np.zeros(n_arms, np.int64), np.zeros((5, n_arms)), state)


def _added(total: _Total, alike: _Alike, rows: pa.Table) -> _Total:
    """The sums and those over more trials."""
    n_arms, arms = len(alike.variants), rows["arm"].to_numpy()
    weight, w, ww = (rows[name].to_numpy() for name in _SUMMED)
    r, state = rows["reward_micros"].to_numpy() / 1e6, total.state
    counted = total.rows + np.bincount(arms, minlength=n_arms)
    moments = [
        np.bincount(arms, each, minlength=n_arms)
        for each in (w, ww, w * r, ww * r, ww * r * r)
    ]
    if alike.sums is not None and state is not None:
        x = alike.features.encode_texts(rows["context"])
        state = alike.sums.update(state, arms, r, x, weight)
    return _Total(counted, total.moments + np.array(moments), state)


def _of_arm(total: _Total, arm: int) -> dict[str, list[float] | None]:
    """The sums of one arm as columns of `_PARTS`."""
    told: dict[str, list[float] | None] = dict.fromkeys(SUMS)
    told["moments"] = total.moments[:, arm].tolist()
    if total.state is not None:
        told["gram"] = total.state.gram[arm].tolist()
        told["moment"] = total.state.moment[arm].tolist()
        told["squares"] = [float(total.state.squares[arm])]
    return told
