"""What a night changes where a context decided: sums over features, and epochs' moments.

Counts alone do not correct a regression: what was late belongs to a context. So the few
decisions that settled otherwise with hindsight are looked up, and counted once as they
are and once, to be taken away, as they were learned.
"""

from collections.abc import Sequence

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.epochs import earned_moments
from bandolero.experiment import ExperimentRecord
from bandolero.fold import arms_of, features_of
from bandolero.lake.settling import EXPERIMENT
from bandolero.policies import ContextualPolicy, LinearState, policy_of
from bandolero.policies.base import Floats

Change = dict[str, dict[str, list[float]]]
"""By variant: differences of `moments` and, where the state is a sum over features, of
`gram`, `moment` and `squares`; see `LinearState`."""


KEPT = ("row", "context", "propensity")
"""Columns of decisions that `settled_otherwise` needs; row is unique."""


def settled_otherwise(live: ir.Table, final: ir.Table) -> ir.Table:
    """Decisions that `final` settles otherwise than `live`, with both outcomes.

    Both from `settle_expr`, with `KEPT`.
    """
    was = live.select("row", was_trial="is_trial", was_micros="reward_micros")
    both = final.left_join(was, "row", rname="{name}_live")
    both = both.mutate(
        was_trial=both.was_trial.fill_null(False),
        was_micros=both.was_micros.fill_null(0),
    )
    differs = (both.is_trial != both.was_trial) | (
        both.reward_micros != both.was_micros
    )
    columns = ("is_trial", "reward_micros", "was_trial", "was_micros")
    return both.filter(differs).select(*EXPERIMENT, "variant_id", *KEPT, *columns)


def is_by_context(record: ExperimentRecord) -> bool:
    """Whether a context decides the probabilities of an experiment."""
    return isinstance(policy_of(record.spec), ContextualPolicy)


def changes_by_context(
    records: Sequence[ExperimentRecord], changed: pa.Table
) -> dict[tuple[str, str], Change]:
    """What changed, by (tenant, experiment).

    Parameters
    ----------
    changed
        From `settled_otherwise`.
    """
    found = {}
    for record in filter(is_by_context, records):
        mine = pc.and_(
            pc.equal(changed["tenant_id"], record.tenant),
            pc.equal(changed["experiment_id"], record.experiment_id),
        )
        if pc.any(mine).as_py():
            key = (record.tenant, record.experiment_id)
            found[key] = _changes(record, changed.filter(mine))
    return found


def _changes(record: ExperimentRecord, changed: pa.Table) -> Change:
    now = _sums(record, changed, changed["is_trial"], changed["reward_micros"])
    was = _sums(record, changed, changed["was_trial"], changed["was_micros"])
    differences = {name: now[name] - was[name] for name in now}
    ids = record.spec.variant_ids
    return {
        ids[arm]: {name: sums[arm].tolist() for name, sums in differences.items()}
        for arm in np.unique(arms_of(record.spec, changed["variant_id"]))
        if arm >= 0
    }


def _sums(
    record: ExperimentRecord,
    rows: pa.Table,
    is_trial: pa.ChunkedArray,
    micros: pa.ChunkedArray,
) -> dict[str, Floats]:
    """Sums over trials by arm, (n_arms, …) each."""
    n_arms = len(record.spec.variants)
    arms = arms_of(record.spec, rows["variant_id"])
    counts = is_trial.to_numpy() & (arms >= 0)
    arms, rewards = arms[counts], micros.to_numpy()[counts] / 1e6
    weights = 1.0 / rows["propensity"].to_numpy()[counts]
    sums = {"moments": earned_moments(arms, weights, rewards, n_arms).T}
    policy = policy_of(record.spec)
    if isinstance(policy, ContextualPolicy):
        state = policy.init(n_arms)
        if isinstance(state, LinearState):
            x = features_of(record.spec, rows.filter(pa.array(counts)))
            state = policy.update(state, arms, rewards, x)
            squares = state.squares[:, None]
            sums |= {"gram": state.gram, "moment": state.moment, "squares": squares}
    return sums
