"""When a decision is final, and what it earned: the one definition.

A decision *closes* at its block's log time + attribution window + grace. Seen from a
`cut` in log time, it has settled if it closed at or before the cut, and it earned what
the events logged before the cut say. Two cuts are in use:

- `live_cuts`: every decision at its own close. What the learner folds, once, for ever.
- one log time for all: what the refresh sees, late events and corrections included.

Events are a set by (decision, event id): re-deliveries count once, the first stands.
An event counts if its time is before decided_at + window. A `retract` removes the event
it names; a `refund` subtracts from a reward of kind `value`. Both are corrections and
count whenever they were logged before the cut, however late.

References: design 1.1.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero.experiment import Objective

GRACE_MS = 1_000
LOST_AFTER_MS = 3_600_000
"""A decision logged later than this after it was made is settled by refresh only.

So the learner may forget unmatched events this long after their window has closed.
"""
NEVER = np.int64(-1)
CORRECTIONS = ("refund", "retract")

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
    """
    n = decisions.num_rows
    cuts = np.broadcast_to(np.asarray(cut, dtype=np.int64), (n,))
    counted = _counted(decisions, events, objective, cuts)
    kinds = counted.kinds
    impressions = _sum_by(counted.row[kinds == "impression"], None, n) > 0
    rewards = _rewards(counted, objective, n)
    trials = impressions if objective.trial == "impression" else np.ones(n, np.bool_)
    row = np.flatnonzero(closes_ms(decisions, objective) <= cuts)
    earned = np.where(trials, rewards, 0)
    return Settled(row, trials[row], earned[row], impressions[row])


class _Counted(NamedTuple):
    """Events that count: the decision's row, the type, the value; all (n_events,)."""

    row: Ints
    kinds: NDArray[Any]
    micros: Ints


def _counted(
    decisions: pa.Table, events: pa.Table, objective: Objective, cuts: Ints
) -> _Counted:
    found = pc.index_in(events["decision_id"], value_set=decisions["decision_id"])
    matched = events.filter(pc.is_valid(found))
    row = _ints(found.drop_null())
    ids = matched["event_id"].to_numpy()
    kinds = matched["type"].to_numpy()
    keep = _ints(matched["log_ms"]) < cuts[row]
    keep &= _first_of_each(row, ids, keep)
    keep &= ~_retracted(row, ids, kinds, matched["retracts"].to_numpy(), keep)
    deadline = _ints(decisions["decided_at_ms"]) + objective.window_ms
    in_window = _ints(matched["at_ms"]) < deadline[row]
    keep &= in_window | np.isin(kinds, CORRECTIONS)
    return _Counted(row[keep], kinds[keep], _ints(matched["value_micros"])[keep])


def _first_of_each(row: Ints, ids: NDArray[Any], visible: Bools) -> Bools:
    """Whether an event is the first visible one of its id for its decision."""
    first = np.zeros(len(row), np.bool_)
    seen: set[tuple[int, str]] = set()
    for i in np.flatnonzero(visible):
        key = (int(row[i]), ids[i])
        first[i] = key not in seen
        seen.add(key)
    return first


def _retracted(
    row: Ints, ids: NDArray[Any], kinds: NDArray[Any], names: NDArray[Any], keep: Bools
) -> Bools:
    """Whether a kept `retract` names the event."""
    retracts = np.flatnonzero(keep & (kinds == "retract"))
    if len(retracts) == 0:
        return np.zeros(len(row), np.bool_)
    named = {(int(row[i]), names[i]) for i in retracts}
    return np.array([(int(r), e) in named for r, e in zip(row, ids, strict=True)])


def _rewards(counted: _Counted, objective: Objective, n: int) -> Ints:
    """Reward of each decision in millionths, (n,)."""
    hit = counted.kinds == objective.event
    if objective.reward == "value":
        refund = counted.kinds == "refund"
        gain = _sum_by(counted.row[hit], counted.micros[hit], n)
        return gain - _sum_by(counted.row[refund], counted.micros[refund], n)
    count = _sum_by(counted.row[hit], None, n)
    return (np.minimum(count, 1) if objective.reward == "binary" else count) * 1_000_000


def _sum_by(row: Ints, values: Ints | None, n: int) -> Ints:
    """Sum of values (or count) by row, (n,), in integers."""
    total = np.zeros(n, np.int64)
    np.add.at(total, row, 1 if values is None else values)
    return total


def _ints(column: Any) -> Ints:
    return np.asarray(column.to_numpy(), dtype=np.int64)
