"""What the live fold of each experiment lacks, and which decisions that is about.

Only decisions that settled otherwise with hindsight are looked at, and those that the
live fold never learned; of the latter, those without events are only counted.
"""

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from bandolero.experiment import ExperimentRecord
from bandolero.fold import MEASURES, Correction
from bandolero.lake.context_changes import changes_by_context
from bandolero.lake.engines import Engine
from bandolero.lake.measures import in_order
from bandolero.lake.settling import EXPERIMENT, half_life_s, quiet
from bandolero.lake.splits import split_of, splits_of
from bandolero.lake.traffic import REPEATED

AUDIT_TABLE = pa.schema(
    [
        ("tenant_id", pa.string()),
        ("experiment_id", pa.string()),
        ("decision_id", pa.string()),
        ("variant_id", pa.string()),
        ("decided_at_ms", pa.int64()),
        ("was_trial", pa.bool_()),
        ("was_micros", pa.int64()),
        ("is_trial", pa.bool_()),
        ("reward_micros", pa.int64()),
        ("reason", pa.string()),
    ]
)
"""A row a decision that was learned otherwise than it stands now, or was excluded.

was_trial, was_micros: as the live fold learned it, or, where it never did, as it was before
refunds and retractions; reason: `late event`, `refund` (of rewards of kind `value`),
`retract`, or why it was excluded (`lake.traffic`).
"""
LATE, REFUND, RETRACT = "late event", "refund", "retract"
FADED = {name: f"faded_{name}" for name in MEASURES}


def audit_of(settled: ir.Table) -> ir.Table:
    """Rows of `AUDIT_TABLE`, from `without_invalid`."""
    excluded = settled.excluded.fill_null(
        ibis.ifelse(settled.repeats > 0, REPEATED, ibis.null("string"))
    )
    reason = ibis.cases(
        (excluded.notnull(), excluded),
        (settled.late_retracts > 0, RETRACT),
        ((settled.late_refunds > 0) & (settled.reward == "value"), REFUND),
        else_=LATE,
    )
    told = settled.mutate(
        reason=reason, was_trial=settled.before_trial, was_micros=settled.before_micros
    )
    return told.filter(_differs(told) | excluded.notnull()).select(*AUDIT_TABLE.names)


def corrections_of(
    engine: Engine,
    closed: ir.Table,
    settled: ir.Table,
    untold: ir.Table,
    splits: pa.Table,
    records: Sequence[ExperimentRecord],
    watermark_ms: int,
) -> list[Correction]:
    """One correction an experiment, also where nothing changed.

    Parameters
    ----------
    closed
        Every closed decision.
    settled
        Those of them that something was told of, from `without_invalid`.
    untold
        All by variant, as if nothing had been told of them; from `roll_up`.
    splits
        Rows of `SPLITS_TABLE` of `lake.splits`.
    """
    changed = engine.keep(_changed(settled))
    by_variant = _by_variant(_differences(changed), untold)
    rows = in_order(engine.to_arrow(by_variant), (*EXPERIMENT, "variant_id"))
    never = closed.filter(closed.live_cut_ms < 0)
    by_context = changes_by_context(engine, records, changed, never)
    found = {
        (r.tenant, r.experiment_id): Correction(
            r.tenant,
            r.experiment_id,
            watermark_ms,
            {},
            {},
            by_context.get((r.tenant, r.experiment_id), {}),
            {},
            _split(r, splits),
        )
        for r in records
    }
    fading = {(r.tenant, r.experiment_id) for r in records if half_life_s(r)}
    for row in rows.to_pylist():
        key = row["tenant_id"], row["experiment_id"]
        facts = {name: row[name] for name in MEASURES}
        faded = {name: row[FADED[name]] for name in MEASURES}
        if any(facts.values()) or (key in fading and any(faded.values())):
            found[key].changes[row["variant_id"]] = facts
            if key in fading:
                found[key].faded[row["variant_id"]] = faded
    never = engine.to_arrow(untold.filter(untold.unlearned > 0))
    for row in in_order(never, (*EXPERIMENT, "variant_id")).to_pylist():
        mine = found[row["tenant_id"], row["experiment_id"]].unlearned
        mine[row["variant_id"]] = row["unlearned"]
    return list(found.values())


def _split(record: ExperimentRecord, splits: pa.Table) -> dict[str, list[float]]:
    """`split_of` an experiment, by variant that was drawn."""
    ids = record.spec.variant_ids
    split = split_of(splits_of(splits, record), ids)
    return {
        v: column.tolist()
        for v, column in zip(ids, split.T, strict=True)
        if column.any()
    }


def _differs(settled: ir.Table) -> ir.BooleanValue:
    return (settled.is_trial != settled.was_trial) | (
        settled.reward_micros != settled.was_micros
    )


def _changed(settled: ir.Table) -> ir.Table:
    """Decisions to correct; `was_…` of never learned ones as if nothing had been told.

    For those are counted so already, with all the others of them.
    """
    never = settled.live_cut_ms < 0
    as_quiet = settled.mutate(was_trial=settled.was_trial | (never & quiet(settled)))
    differs = _differs(as_quiet) | (settled.is_impression != settled.was_impression)
    return as_quiet.filter(differs)


def _differences(changed: ir.Table) -> ir.Table:
    """By how much each measure of a decision changed."""
    now, was = changed.reward_micros, changed.was_micros
    units, before = now.cast("float64") / 1e6, was.cast("float64") / 1e6
    return changed.select(
        *EXPERIMENT,
        "variant_id",
        "weight",
        trials=changed.is_trial.cast("int64") - changed.was_trial.cast("int64"),
        hits=(now > 0).cast("int64") - (was > 0).cast("int64"),
        impressions=changed.is_impression.cast("int64")
        - changed.was_impression.cast("int64"),
        rewards_micros=now - was,
        rewards_squared=units * units - before * before,
    )


def _by_variant(differences: ir.Table, untold: ir.Table) -> ir.Table:
    """Differences by variant, as facts, and as what is left of them (`FADED`)."""
    keys = (*EXPERIMENT, "variant_id")
    kinds = dict.fromkeys(MEASURES, "int64") | {"rewards_squared": "float64"}
    weight = differences.weight
    changed = differences.group_by(keys).aggregate(
        **{name: differences[name].sum().cast(kind) for name, kind in kinds.items()},
        **{FADED[name]: (weight * differences[name]).sum() for name in MEASURES},
    )
    none = {name: ibis.literal(0).cast(kind) for name, kind in kinds.items()}
    none |= {FADED[name]: ibis.literal(0.0) for name in MEASURES}
    trials, faded = untold.unlearned_trials, untold.faded_trials
    counted = none | {"trials": trials, FADED["trials"]: faded}
    both = changed.union(untold.select(*keys, **counted))
    return both.group_by(keys).aggregate(
        **{name: both[name].sum().cast(kind) for name, kind in kinds.items()},
        **{FADED[name]: both[FADED[name]].sum() for name in MEASURES},
    )
