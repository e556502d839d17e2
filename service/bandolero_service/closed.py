"""Decisions that have closed, by experiment, each experiment's with its own events."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero.log import DECISIONS_TABLE
from bandolero_service.store import name_of

DECISIONS_LEARNED = pa.schema(
    [
        DECISIONS_TABLE.field(name)
        for name in (
            "tenant_id",
            "decision_id",
            "experiment_id",
            "variant_id",
            "decided_at_ms",
            "snapshot_version",
            "eligible",
            "propensity",
            "probabilities",
            "mode",
            "context",
            "log_ms",
        )
    ]
)
"""What the fold needs of a decision; the rest is not even read."""


class Closed(NamedTuple):
    """An experiment's decisions, in log order, and the events of these."""

    name: str
    decisions: pa.Table
    events: pa.Table


def by_experiment(decisions: pa.Table, events: pa.Table) -> Iterator[Closed]:
    """Split decisions, and the events told of them, by experiment.

    Without a pass over all of them for each: there may be a thousand experiments.
    """
    if not len(decisions):
        return
    codes, names = _codes(decisions)
    if len(names) == 1:
        yield Closed(names[0], decisions, events)
        return
    order = np.argsort(codes, kind="stable")
    decisions, codes = decisions.take(pa.array(order)), codes[order]
    found = pc.index_in(events["decision_id"], value_set=_ids(decisions))
    of = codes[np.asarray(found.drop_null().to_numpy())]
    events = events.filter(pc.is_valid(found))
    events = events.take(pa.array(np.argsort(of, kind="stable")))
    ends = np.searchsorted(codes, np.arange(len(names) + 1))
    event_ends = np.searchsorted(np.sort(of), np.arange(len(names) + 1))
    for i, name in enumerate(names):
        mine = decisions.slice(ends[i], ends[i + 1] - ends[i])
        told = events.slice(event_ends[i], event_ends[i + 1] - event_ends[i])
        yield Closed(name, mine, told)


def _codes(decisions: pa.Table) -> tuple[NDArray[np.int64], list[str]]:
    """The number of each decision's experiment, (n_decisions,), and their names."""
    parts = [
        decisions[name].combine_chunks().dictionary_encode()
        for name in ("tenant_id", "experiment_id")
    ]
    tenant, experiment = (np.asarray(p.indices.to_numpy(), np.int64) for p in parts)
    tenants, experiments = (p.dictionary.to_pylist() for p in parts)
    pairs, codes = np.unique(
        tenant * len(experiments) + experiment, return_inverse=True
    )
    named = [divmod(pair, len(experiments)) for pair in pairs.tolist()]
    return codes, [name_of(tenants[t], experiments[e]) for t, e in named]


def _ids(decisions: pa.Table) -> pa.Array:
    return decisions["decision_id"].combine_chunks()
