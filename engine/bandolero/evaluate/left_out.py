"""What of a log does not count: repeats of decisions, and invalid traffic.

What is a repeat, and what is invalid, is said by the lake (`lake.repeats`,
`lake.traffic`); its query engine is loaded only where there is something to ask.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.evaluate.intervals import Ints
from bandolero.experiment import ExperimentRecord
from bandolero.lake.catalog import Lake
from bandolero.lake.listing import Listing
from bandolero.lake.results import read_result
from bandolero.settle import Settled

_TOLD = pa.schema(
    [
        ("decision_id", pa.string()),
        ("is_trial", pa.bool_()),
        ("reward_micros", pa.int64()),
    ]
)
"""What is looked at of a decision that a night told otherwise."""


def repeats_of(files: Listing) -> dict[str, Ints]:
    """Places of repeats, by the path of their file."""
    if not files.ingested:
        return {}
    from bandolero.lake.engines import open_engine
    from bandolero.lake.repeats import repeats

    with open_engine() as engine:
        again = repeats(engine, files)
        by_file = again.group_by("file").aggregate(places=again.place.collect())
        rows = engine.to_arrow(by_file).to_pylist()
    return {row["file"]: np.array(row["places"], np.int64) for row in rows}


def invalid_traffic(record: ExperimentRecord, lake: Lake) -> pa.Table:
    """What the newest night took out of an experiment, or counted otherwise, as invalid."""
    mine = pc.field("tenant_id") == record.tenant
    mine &= pc.field("experiment_id") == record.experiment_id
    _, rows = read_result(lake, "audit", mine, record.tenant)
    if rows is None:
        return _TOLD.empty_table()
    from bandolero.lake.traffic import INVALID

    is_invalid = pc.is_in(rows["reason"], pa.array(INVALID))
    return rows.filter(is_invalid).select(_TOLD.names)


def as_told(
    decisions: pa.Table, settled: Settled, traffic: pa.Table
) -> tuple[Settled, int]:
    """Settled decisions as a night told them, and how many of them it took out."""
    if not len(traffic):
        return settled, 0
    ids = decisions["decision_id"].take(pa.array(settled.row))
    found = pc.index_in(ids, value_set=traffic["decision_id"].combine_chunks())
    at = np.flatnonzero(found.is_valid())
    told = traffic.take(found.drop_null())
    trial, micros = settled.trial.copy(), settled.reward_micros.copy()
    trial[at] = told["is_trial"].to_numpy()
    micros[at] = told["reward_micros"].to_numpy()
    n_out = int((settled.trial & ~trial).sum())
    return settled._replace(trial=trial, reward_micros=micros), n_out
