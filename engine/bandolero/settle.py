"""When a decision is final, and what it earned: the one definition.

A decision *closes* at its block's log time + attribution window + grace. Seen from a
`cut` in log time, it has settled if it closed at or before the cut, and it earned what
the events logged before the cut say. Two cuts are in use:

- `live_cuts`: every decision at its own close. What the learner folds, once, for ever.
- one log time for all: what the refresh sees, late events and corrections included.

Events are a set by (decision, event id): re-deliveries count once, the first stands.
An event counts if its time is before decided_at + window. A `retract` removes the event
it names; a `refund` subtracts from a reward of kind `value`. Both are corrections and
count whenever they were logged before the cut, however late. An event without a value
earned, or gave back, nothing.

References: design 1.1.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero.experiment import CORRECTIONS, Objective
from bandolero.micros import added, named, sum_by

GRACE_MS = 1_000
LOST_AFTER_MS = 3_600_000
"""A decision logged later than this after it was made is settled by refresh only.

So the learner may forget unmatched events this long after their window has closed.
"""
NEVER = np.int64(-1)

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Settled(NamedTuple):
    """Decisions that have settled, and what they earned; all (n_settled,).

    row: index into the decisions given. trial: whether it counts. reward_micros: what it
    earned in millionths (binary: 0 or 1,000,000; 0 where it is no trial). impression:
    whether one was counted.
    """

    row: Ints
    trial: Bools
    reward_micros: Ints
    impression: Bools


def closes_ms(decisions: pa.Table, objective: Objective) -> Ints:
    """Log time at which each decision is final, (n_decisions,)."""
    return _ints(decisions["log_ms"]) + objective.window_ms + GRACE_MS


def live_cuts(decisions: pa.Table, objective: Objective) -> Ints:
    """Each decision's own close; `NEVER` where it reached the log too late to learn."""
    delay = _ints(decisions["log_ms"]) - _ints(decisions["decided_at_ms"])
    closes = closes_ms(decisions, objective)
    return np.where(delay <= LOST_AFTER_MS, closes, NEVER)


def settle(
    decisions: pa.Table, events: pa.Table, objective: Objective, cut: int | Ints
) -> Settled:
    """Settle decisions of one experiment as seen from `cut`.

    Parameters
    ----------
    decisions
        Columns decision_id, decided_at_ms, log_ms; ids distinct.
    events
        Rows of `bandolero.log.EVENTS_TABLE` in log order; those of other decisions are
        ignored.
    cut
        Log time in milliseconds, one for all or (n_decisions,).

    Raises
    ------
    OverflowError
        Naming the decision whose events are worth more than an int64 of millionths holds.
    """
    n = decisions.num_rows
    cuts = np.broadcast_to(np.asarray(cut, dtype=np.int64), (n,))
    counted = _counted(decisions, events, objective, cuts)
    shown = counted.row[_is(counted.kinds, "impression")]
    impressions = np.bincount(shown, minlength=n) > 0
    with named(lambda i: f"decision_id == {decisions['decision_id'][i].as_py()!r}"):
        rewards = _rewards(counted, objective, n)
    trials = impressions if objective.trial == "impression" else np.ones(n, np.bool_)
    row = np.flatnonzero(closes_ms(decisions, objective) <= cuts)
    earned = np.where(trials, rewards, 0)
    return Settled(row, trials[row], earned[row], impressions[row])


class _Counted(NamedTuple):
    """Events that count: the decision's row, the type, the value; all (n_events,)."""

    row: Ints
    kinds: pa.ChunkedArray
    micros: Ints


def _counted(
    decisions: pa.Table, events: pa.Table, objective: Objective, cuts: Ints
) -> _Counted:
    rows = _rows_of(decisions, events)
    matched = events.filter(pa.array(rows >= 0))
    row, kinds = rows[rows >= 0], matched["type"]
    ids = _encoded(matched["event_id"])
    event = _keys(row, ids.indices, len(ids.dictionary))
    keep = _ints(matched["log_ms"]) < cuts[row]
    keep &= _first_of_each(event, keep)
    retracts = keep & _is(kinds, "retract")
    if retracts.any():
        named = pc.index_in(matched["retracts"], value_set=ids.dictionary)
        names = _keys(row, named, len(ids.dictionary))
        keep &= ~np.isin(event, names[retracts & _bools(pc.is_valid(named))])
    deadline = _ints(decisions["decided_at_ms"]) + objective.window_ms
    in_window = _ints(matched["at_ms"]) < deadline[row]
    keep &= in_window | _bools(pc.is_in(kinds, value_set=pa.array(CORRECTIONS)))
    counts = pa.array(keep)
    values = matched["value_micros"]
    micros = _ints(pc.fill_null(values, 0) if values.null_count else values)
    return _Counted(row[keep], kinds.filter(counts), micros[keep])


def _rows_of(decisions: pa.Table, events: pa.Table) -> Ints:
    """The decision's row of each event, (n_events,); -1 for other decisions'."""
    ids = _encoded(events["decision_id"])
    found = pc.index_in(decisions["decision_id"], value_set=ids.dictionary)
    row = np.flatnonzero(_bools(pc.is_valid(found)))
    of_id = np.full(len(ids.dictionary), -1)
    of_id[_ints(found.drop_null())] = row
    return of_id[_ints(ids.indices)]


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return column.combine_chunks().dictionary_encode("encode")


def _keys(row: Ints, codes: Any, n_codes: int) -> Ints:
    """One number for each (decision, event id), (n_events,)."""
    return row * n_codes + _ints(pc.fill_null(codes, 0))


def _first_of_each(event: Ints, visible: Bools) -> Bools:
    """Whether an event is the first visible one of its id for its decision."""
    at = np.flatnonzero(visible)
    first = np.zeros(len(event), np.bool_)
    first[at[np.unique(event[at], return_index=True)[1]]] = True
    return first


def _rewards(counted: _Counted, objective: Objective, n: int) -> Ints:
    """Reward of each decision in millionths, (n,)."""
    hit = _is(counted.kinds, objective.event)
    if objective.reward == "value":
        refund = _is(counted.kinds, "refund")
        gain = sum_by(counted.row[hit], counted.micros[hit], n)
        return added(gain, -sum_by(counted.row[refund], counted.micros[refund], n))
    count = np.bincount(counted.row[hit], minlength=n)
    return (np.minimum(count, 1) if objective.reward == "binary" else count) * 1_000_000


def _is(kinds: pa.ChunkedArray, kind: str) -> Bools:
    return _bools(pc.fill_null(pc.equal(kinds, kind), False))


def _bools(column: Any) -> Bools:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _ints(column: Any) -> Ints:
    return np.asarray(column.to_numpy(), dtype=np.int64)
