"""The learner's fold, offline: fold the lake and compare with what was served."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.experiment import ExperimentRecord
from bandolero.fold import Fold, advance, init_fold, with_correction
from bandolero.lake.catalog import BadFile, Lake
from bandolero.log import log_ms, log_order
from bandolero.policies import aged, policy_of
from bandolero.settle import GRACE_MS
from bandolero.snapshot import Snapshot, snapshot_from_bytes

SUMS_AGREE = 1e-9


class Replay(NamedTuple):
    """What folding the lake says of a snapshot.

    same: whether the states agree (`agree`). exact: whether bit for bit. decisions: how
    many were folded.
    """

    snapshot: Snapshot
    fold: Fold
    decisions: int
    same: bool
    exact: bool
    bad_files: list[BadFile]


class NothingToReplayError(LookupError):
    """The lake holds no snapshot whose data it holds too."""


def fold_lake(
    record: ExperimentRecord, lake: Lake, folded_to: str
) -> tuple[Fold, int, list[BadFile]]:
    """Fold an experiment's decisions up to a log id, as the learner did live."""
    decisions, bad = of_experiment(record, lake, "decisions")
    events, bad_events = of_experiment(record, lake, "events")
    end = log_order(folded_to)
    upto = [log_order(i) <= end for i in decisions["log_id"].to_pylist()]
    closed = decisions.filter(pa.array(upto, pa.bool_()))
    vectors = snapshot_vectors(record, lake)
    fold = advance(record.spec, init_fold(record.spec), closed, events, vectors)
    return fold, closed.num_rows, bad + bad_events


def replay(record: ExperimentRecord, lake: Lake) -> Replay:
    """Fold the lake up to the newest snapshot it is complete for, and compare.

    Raises
    ------
    NothingToReplayError
        When no published snapshot is old enough for the lake to hold its data.
    """
    snapshot = newest_covered(record, lake)
    fold, n, bad = fold_lake(record, lake, snapshot.folded_to)
    since_ms = snapshot.created_at_ms - fold.learned_to_ms
    state = aged(policy_of(record.spec), fold.state, since_ms)
    n_arms = len(snapshot.state[0])
    served: tuple[Any, ...] = type(state)(*(array[:n_arms] for array in state))
    mine = with_correction(record.spec, served, snapshot.correction)
    exact = all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(mine, snapshot.state, strict=True)
    )
    return Replay(snapshot, fold, n, agree(mine, snapshot.state), exact, bad)


def agree(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> bool:
    """Whether two states are one fold of the same data: equal counts, sums to 1e-9.

    Sums of real numbers (all of a policy that forgets) depend on the grouping in their
    last bits; integers do not.
    """
    return all(
        np.array_equal(a, b)
        if np.issubdtype(np.asarray(a).dtype, np.integer)
        else np.allclose(a, b, rtol=SUMS_AGREE, atol=SUMS_AGREE, equal_nan=True)
        for a, b in zip(mine, theirs, strict=True)
    )


def newest_covered(record: ExperimentRecord, lake: Lake) -> Snapshot:
    """The newest published snapshot whose decisions and events the lake holds."""
    window_ms = record.spec.objective.window_ms + GRACE_MS
    watermark_ms = lake.watermark_ms()
    rows, _ = of_experiment(record, lake, "snapshots")
    for data in reversed(rows["snapshot"].to_pylist()):
        snapshot = snapshot_from_bytes(data)
        if log_ms(snapshot.folded_to) + window_ms <= watermark_ms:
            return snapshot
    if rows.num_rows:
        why = "no snapshot whose decisions the lake holds all of yet: try again later."
    else:
        why = (
            "no snapshot in the lake: it was not served, or that is not archived yet."
            " Ingested decisions have none to compare with."
        )
    raise NothingToReplayError(f"{record.experiment_id} has {why}")


def snapshot_vectors(record: ExperimentRecord, lake: Lake) -> dict[int, np.ndarray]:
    """Probabilities of all arms by snapshot version."""
    rows, _ = of_experiment(record, lake, "snapshots")
    versions, vectors = rows["version"].to_pylist(), rows["probabilities"].to_pylist()
    return {v: np.array(p) for v, p in zip(versions, vectors, strict=True)}


def of_experiment(
    record: ExperimentRecord, lake: Lake, table: str
) -> tuple[pa.Table, list[BadFile]]:
    """Rows that the service logged of an experiment, in log order.

    What was ingested no live fold has seen: corrections bring it.
    """
    rows, bad = lake.read_log(table)
    mine = pc.and_(
        pc.equal(rows["tenant_id"], record.tenant),
        pc.equal(rows["experiment_id"], record.experiment_id),
    )
    return rows.filter(mine), bad
