"""What a night changes where a context decided: sums over features, and epochs' moments.

Counts alone do not correct a regression: what was late belongs to a context. So the few
decisions that settled otherwise with hindsight are looked up, and counted once as they
are and once, to be taken away, as they were learned. Sums over features are beyond SQL:
one function goes over batches of rows, here or on a cluster, and its parts add up.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.epochs import earned_moments
from bandolero.experiment import ExperimentRecord
from bandolero.fold import arms_of, features_of
from bandolero.lake.engines import Batches, Engine
from bandolero.lake.settling import EXPERIMENT, quiet
from bandolero.policies import ContextualPolicy, LinearState, policy_of
from bandolero.policies.base import Floats

Change = dict[str, dict[str, list[float]]]
"""By variant: differences of `moments` and, where the state is a sum over features, of
`gram`, `moment` and `squares`; see `LinearState`."""
Name = tuple[str, str]
"""Tenant and experiment."""
SUMS = ("moments", "gram", "moment", "squares")
_PARTS = pa.schema(
    [
        *((name, pa.string()) for name in (*EXPERIMENT, "variant_id")),
        *((name, pa.list_(pa.float64())) for name in SUMS),
    ]
)
_ROWS = (*EXPERIMENT, "variant_id", "context", "propensity")


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
        Decisions with what they are (`is_trial`, `reward_micros`) and what they were
        learned or counted as (`was_trial`, `was_micros`).
    never
        Decisions to count as if nothing had been told of them.
    """
    mine = [record for record in records if is_by_context(record)]
    if not mine:
        return {}
    names = engine.table(_names(mine))
    rows = _trials(changed, "is_trial", "reward_micros", 1.0)
    rows = rows.union(_trials(changed, "was_trial", "was_micros", -1.0))
    untold = never.mutate(is_quiet=quiet(never), nothing=ibis.literal(0, "int64"))
    rows = rows.union(_trials(untold, "is_quiet", "nothing", 1.0))
    return sums_by_context(engine, mine, rows.semi_join(names, EXPERIMENT))


def sums_by_context(
    engine: Engine, records: Sequence[ExperimentRecord], rows: ir.Table
) -> dict[Name, Change]:
    """Sums over trials, by experiment and variant.

    Parameters
    ----------
    rows
        Trials of these experiments with reward_micros, context and propensity; and
        `sign`: -1 takes a trial away.
    """
    parts = engine.over_batches(rows, partial(_partial_sums, list(records)), _PARTS)
    found: dict[Name, Change] = defaultdict(dict)
    for row in parts.to_pylist():
        sums = {name: row[name] for name in SUMS if row[name] is not None}
        mine = found[row["tenant_id"], row["experiment_id"]]
        before = mine.get(row["variant_id"])
        if before is not None:
            sums = {n: np.add(before[n], sums[n]).tolist() for n in sums}
        mine[row["variant_id"]] = sums
    return dict(found)


def _names(records: Sequence[ExperimentRecord]) -> pa.Table:
    columns = ([r.tenant for r in records], [r.experiment_id for r in records])
    return pa.table([pa.array(c, pa.string()) for c in columns], [*EXPERIMENT])


def _trials(rows: ir.Table, trial: str, micros: str, sign: float) -> ir.Table:
    return rows.filter(rows[trial]).select(
        *_ROWS, reward_micros=rows[micros], sign=ibis.literal(sign)
    )


def _partial_sums(records: Sequence[ExperimentRecord], batches: Batches) -> Batches:
    """One row of `_PARTS` for each variant that has trials in these batches."""
    totals: dict[tuple[str, str, str], dict[str, Floats]] = {}
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        for record in records:
            _add_sums(totals, record, _of(record, rows))
    for key, sums in totals.items():
        lists = {name: sums[name].tolist() if name in sums else None for name in SUMS}
        row = dict(zip(_PARTS.names, key, strict=False)) | lists
        yield pa.RecordBatch.from_pylist([row], _PARTS)


def _of(record: ExperimentRecord, rows: pa.Table) -> pa.Table:
    """The rows of one experiment."""
    return rows.filter(
        pc.and_(
            pc.equal(rows["tenant_id"], record.tenant),
            pc.equal(rows["experiment_id"], record.experiment_id),
        )
    )


def _add_sums(
    totals: dict[tuple[str, str, str], dict[str, Floats]],
    record: ExperimentRecord,
    rows: pa.Table,
) -> None:
    """Add what the trials of one experiment sum to."""
    ids = record.spec.variant_ids
    arms = arms_of(record.spec, rows["variant_id"])
    for sign in (1.0, -1.0):
        mine = (arms >= 0) & (rows["sign"].to_numpy() == sign)
        if not mine.any():
            continue
        sums = _sums(record, rows.filter(pa.array(mine)), arms[mine])
        for arm in np.unique(arms[mine]).tolist():
            total = totals.setdefault(
                (record.tenant, record.experiment_id, ids[arm]), {}
            )
            for name, each in sums.items():
                total[name] = total.get(name, 0.0) + sign * each[arm]


def _sums(
    record: ExperimentRecord,
    rows: pa.Table,
    arms: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> dict[str, Floats]:
    """Sums over trials by arm, (n_arms, …) each."""
    n_arms = len(record.spec.variants)
    rewards = rows["reward_micros"].to_numpy() / 1e6
    weights = 1.0 / rows["propensity"].to_numpy()
    sums = {"moments": earned_moments(arms, weights, rewards, n_arms).T}
    policy = policy_of(record.spec)
    if isinstance(policy, ContextualPolicy):
        state = policy.init(n_arms)
        if isinstance(state, LinearState):
            x = features_of(record.spec, rows)
            state = policy.update(state, arms, rewards, x)
            squares = state.squares[:, None]
            sums |= {"gram": state.gram, "moment": state.moment, "squares": squares}
    return sums
