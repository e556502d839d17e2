"""The record of a decision: what is the same for many, made once; the rest, per request.

An `Outcome` is everything about showing an arm that does not depend on the request. The
request path hands over an outcome and five values; the writer's thread makes them
columns, writing what an outcome says once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bandolero import __version__
from bandolero.fold import FALLBACK
from bandolero.log import DECISIONS
from bandolero.snapshot import EXACT, Distribution, Drawn
from bandolero_service.store import name_of
from bandolero_service.views import View

Row = tuple[Any, ...]
Counts = dict[str, dict[str, int]]
"""Decisions by experiment (its name) and variant id."""


class Told(NamedTuple):
    """The columns of `bandolero.log.DECISIONS` that an outcome settles."""

    tenant_id: str
    experiment_id: str
    spec_version: int
    engine_version: str
    variant_id: str
    snapshot_version: int
    eligible: list[str] | None
    propensity: float
    probabilities: list[float] | None
    rule: str | None
    mode: str
    serving: str


class Outcome(NamedTuple):
    """What answer and record say of an arm drawn in a mode, whatever the request.

    tail: the answer after the decision id.
    """

    shard: int
    tail: bytes
    mode_and_serving: tuple[str, str]
    told: Told


Decision = tuple[Outcome, bytes, str | None, int, float, str | None]
"""A decision on its way to the log: its outcome, and the columns `OWN`."""
OWN = ("decision_id", "unit", "decided_at_ms", "draw", "context")


class ShardRows(NamedTuple):
    """Decisions of one shard as rows of `bandolero.log.DECISIONS`, and their counts."""

    shard: int
    rows: pa.RecordBatch
    counts: Counts


def rows_by_shard(decisions: Sequence[Decision]) -> Iterator[ShardRows]:
    """Decisions as rows, in order, apart by shard."""
    if not decisions:
        return
    outcomes, *own = zip(*decisions, strict=True)
    which, distinct = _told_apart(outcomes)
    rows = _rows(own, distinct, which)
    counts = np.bincount(which, minlength=len(distinct)).tolist()
    shards = np.array([outcome.shard for outcome in distinct])
    for shard in np.unique(shards).tolist():
        on_it = shards == shard
        mine = rows if on_it.all() else rows.take(np.flatnonzero(on_it[which]))
        numbered = zip(distinct, counts, strict=True)
        yield ShardRows(
            shard, mine, _counts(o for o in numbered if o[0].shard == shard)
        )


def _told_apart(
    outcomes: Sequence[Outcome],
) -> tuple[NDArray[np.int64], list[Outcome]]:
    """Which of the distinct outcomes each is, and these; by identity, which is cheap."""
    ids = list(map(id, outcomes))
    distinct = dict(zip(ids, outcomes, strict=True))
    place = dict(zip(distinct, range(len(distinct)), strict=True))
    which = np.fromiter(map(place.__getitem__, ids), np.int64, len(ids))
    return which, list(distinct.values())


def _rows(
    own: Sequence[Sequence[Any]], outcomes: list[Outcome], which: NDArray[np.int64]
) -> pa.RecordBatch:
    """Columns of decisions; `which` of the outcomes each one has."""
    told = zip(*(outcome.told for outcome in outcomes), strict=True)
    once = _arrays(Told._fields, told)
    again = pa.record_batch(list(once.values()), list(once)).take(pa.array(which))
    arrays = _arrays(OWN, own) | dict(zip(once, again.columns, strict=True))
    return pa.record_batch([arrays[name] for name in DECISIONS.names], DECISIONS)


def _arrays(
    names: Sequence[str], columns: Iterable[Sequence[Any]]
) -> dict[str, pa.Array]:
    return {
        name: pa.array(column, DECISIONS.field(name).type)
        for name, column in zip(names, columns, strict=True)
    }


def _counts(outcomes: Iterable[tuple[Outcome, int]]) -> Counts:
    """Decisions by experiment and variant; fallbacks are no part of the experiment."""
    counts: Counts = {}
    for outcome, n in outcomes:
        told = outcome.told
        if told.mode != FALLBACK:
            of = counts.setdefault(name_of(told.tenant_id, told.experiment_id), {})
            of[told.variant_id] = of.get(told.variant_id, 0) + n
    return counts


def outcome_of(
    view: View, drawn: Drawn, eligible: tuple[int, ...] | None, serving: str
) -> Outcome:
    """The outcome of drawing an arm.

    Parameters
    ----------
    eligible
        Arms that could be drawn; None where these are the snapshot's own.
    """
    record, snapshot = view.record, view.snapshot
    ids, probabilities, rule = _told(view, drawn, eligible)
    told = Told(
        tenant_id=record.tenant,
        experiment_id=record.spec.experiment,
        spec_version=snapshot.spec_version,
        engine_version=__version__,
        variant_id=view.variant_id(drawn.arm),
        snapshot_version=snapshot.version,
        eligible=ids,
        propensity=drawn.propensity,
        probabilities=probabilities,
        rule=rule,
        mode=drawn.mode,
        serving=serving,
    )
    tail = _tail(view, drawn, serving)
    return Outcome(view.shard, tail, (drawn.mode, serving), told)


def _tail(view: View, drawn: Drawn, serving: str) -> bytes:
    return (
        b'",%b,"propensity":%b,"snapshot_version":%d,"mode":"%b","serving":"%b","fallback":%b}'
        % (
            view.answers[drawn.arm],
            repr(drawn.propensity).encode(),
            view.snapshot.version,
            drawn.mode.encode(),
            serving.encode(),
            b"true" if drawn.mode == FALLBACK else b"false",
        )
    )


def _told(
    view: View, drawn: Drawn, eligible: tuple[int, ...] | None
) -> tuple[list[str] | None, list[float] | None, str | None]:
    """What a record says of its distribution: eligible, probabilities, rule.

    All null when it is the snapshot's own. A holdout, a narrowed set, a context that
    decided and a snapshot that was never published (cold) say it in full.
    """
    snapshot = view.snapshot
    if drawn.mode == FALLBACK:
        return [view.variant_id(drawn.arm)], [1.0], None
    if drawn.probabilities is not None:
        arms = snapshot.full.eligible if eligible is None else eligible
        ids = [view.variant_id(arm) for arm in arms]
        return ids, drawn.probabilities.tolist(), EXACT
    if eligible is None and drawn.mode != "holdout" and snapshot.version > 0:
        return None, None, None
    given: Distribution
    given = snapshot.full if eligible is None else snapshot.distribution(eligible)
    ids = [view.variant_id(arm) for arm in given.eligible]
    if drawn.mode == "holdout":
        return ids, [drawn.propensity] * len(ids), None
    return ids, [given.probabilities[arm] for arm in given.eligible], given.rule
