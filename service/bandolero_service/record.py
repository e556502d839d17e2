"""The record of a decision: what is the same for many, made once; the rest, per request.

An `Outcome` is everything about showing an arm that does not depend on the request. The
request path hands over an outcome and five values; the writer's thread makes them
columns, writing what an outcome says once.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bandolero import __version__
from bandolero.fold import FALLBACK
from bandolero.log import DECISIONS
from bandolero.policies.base import Floats
from bandolero.snapshot import EXACT, HOLDOUT, Drawn
from bandolero_service.store import name_of
from bandolero_service.views import View

T = TypeVar("T")
Row = tuple[Any, ...]
Counts = dict[str, dict[str, int]]
"""Decisions by experiment (its name) and variant id."""


class Told(NamedTuple):
    """The columns of `bandolero.log.DECISIONS` that an arm, mode and serving settle."""

    tenant_id: str
    experiment_id: str
    spec_version: int
    engine_version: str
    variant_id: str
    snapshot_version: int
    eligible: list[str] | None
    rule: str | None
    mode: str
    serving: str


class Outcome(NamedTuple):
    """What answer and record say of an arm drawn in a mode, whatever the request.

    tail: the answer after the decision id. told: the same object for all that can share
    it, as they do unless the eligible set was narrowed. propensity, probabilities: of the
    arm and of the eligible, where the record says them; a context decides them anew.
    """

    shard: int
    tail: bytes
    mode_and_serving: tuple[str, str]
    told: Told
    propensity: float
    probabilities: Sequence[float] | Floats | None


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


def _told_apart(things: Sequence[T]) -> tuple[NDArray[np.int64], list[T]]:
    """Which of the distinct things each is, and these; by identity, which is cheap."""
    ids = list(map(id, things))
    distinct = dict(zip(ids, things, strict=True))
    place = dict(zip(distinct, range(len(distinct)), strict=True))
    which = np.fromiter(map(place.__getitem__, ids), np.int64, len(ids))
    return which, list(distinct.values())


def _rows(
    own: Sequence[Sequence[Any]], outcomes: list[Outcome], which: NDArray[np.int64]
) -> pa.RecordBatch:
    """Columns of decisions; `which` of the outcomes each one has."""
    of, told = _told_apart([outcome.told for outcome in outcomes])
    arrays = _arrays(OWN, own) | _taken(
        _arrays(Told._fields, zip(*told, strict=True)), of[which]
    )
    shares = {
        "propensity": pa.array([outcome.propensity for outcome in outcomes]),
        "probabilities": _lists([outcome.probabilities for outcome in outcomes]),
    }
    arrays |= _taken(shares, which)
    return pa.record_batch([arrays[name] for name in DECISIONS.names], DECISIONS)


def _taken(columns: dict[str, pa.Array], which: NDArray[np.int64]) -> dict[str, Any]:
    """Rows of columns by their numbers."""
    rows = pa.record_batch(list(columns.values()), list(columns))
    return dict(zip(columns, rows.take(pa.array(which)).columns, strict=True))


def _arrays(
    names: Sequence[str], columns: Iterable[Sequence[Any]]
) -> dict[str, pa.Array]:
    return {
        name: pa.array(column, DECISIONS.field(name).type)
        for name, column in zip(names, columns, strict=True)
    }


def _lists(shares: Sequence[Sequence[float] | Floats | None]) -> pa.Array:
    """The column of probabilities; a hundred numbers a row are not converted one by one."""
    kind = DECISIONS.field("probabilities").type
    given = [np.asarray(() if one is None else one, np.float32) for one in shares]
    ends = np.cumsum([0, *map(len, given)], dtype=np.int32)
    missing = pa.array([one is None for one in shares])
    values = pa.array(np.concatenate(given))
    return pa.ListArray.from_arrays(pa.array(ends), values, type=kind, mask=missing)


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
    key = (drawn.arm, drawn.mode, serving)
    told = view.told.get(key) if eligible is None else None
    if told is None:
        told = _told(view, drawn, eligible, serving)
        if eligible is None:
            view.told[key] = told
    shares = _probabilities(view, drawn, eligible)
    both = (drawn.mode, serving)
    return Outcome(
        view.shard, _tail(view, drawn, serving), both, told, drawn.propensity, shares
    )


def _told(
    view: View, drawn: Drawn, eligible: tuple[int, ...] | None, serving: str
) -> Told:
    record, snapshot = view.record, view.snapshot
    arms = None
    if drawn.mode == FALLBACK:
        arms = [drawn.arm]
    elif not _is_own(view, drawn):
        arms = list(snapshot.full.eligible if eligible is None else eligible)
    return Told(
        tenant_id=record.tenant,
        experiment_id=record.spec.experiment,
        spec_version=snapshot.spec_version,
        engine_version=__version__,
        variant_id=view.variant_id(drawn.arm),
        snapshot_version=snapshot.version,
        eligible=None if arms is None else [view.variant_id(arm) for arm in arms],
        rule=_rule(view, drawn),
        mode=drawn.mode,
        serving=serving,
    )


def _is_own(view: View, drawn: Drawn) -> bool:
    """Whether a draw's distribution is the published snapshot's, and so needs no words.

    A holdout, a narrowed set, a context that decided and a snapshot that was never
    published (cold) are said in full.
    """
    published = view.snapshot.version > 0
    return drawn.probabilities is None and drawn.mode != HOLDOUT and published


def _rule(view: View, drawn: Drawn) -> str | None:
    if drawn.mode in (FALLBACK, HOLDOUT) or _is_own(view, drawn):
        return None
    return drawn.rule or EXACT


def _probabilities(
    view: View, drawn: Drawn, eligible: tuple[int, ...] | None
) -> Sequence[float] | Floats | None:
    """Of the eligible in order, as the record says them; null where it need not."""
    if drawn.mode == FALLBACK:
        return [1.0]
    if drawn.probabilities is not None or _is_own(view, drawn):
        return drawn.probabilities
    full = view.snapshot.full
    if drawn.mode == HOLDOUT:
        return [drawn.propensity] * len(full.eligible if eligible is None else eligible)
    return [full.probabilities[arm] for arm in full.eligible]


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
