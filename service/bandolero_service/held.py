"""The events of open windows, in memory, found by when their decision was made.

A learner holds an event until its decision has settled: a day's worth of them, where a
window is a day long. They lie in buckets by when decisions were made, a few seconds each,
so that what a step does depends on the decisions that have closed, not on all that is held.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.log import EVENTS_TABLE, log_order

BUCKET_MS = 10_000
MAX_PARTS = 4
"""Tables in a bucket before they are made one: each costs some kilobytes of its own."""
EVENTS_HELD = pa.schema(
    [
        EVENTS_TABLE.field(name)
        for name in (
            "event_id",
            "decision_id",
            "type",
            "value_micros",
            "retracts",
            "decided_at_ms",
            "at_ms",
            "log_id",
            "log_ms",
        )
    ]
)
"""What settling needs of an event; the rest is not even read."""


class HeldEvents:
    """Rows of `EVENTS_HELD`; those of a bucket in log order."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[pa.Table]] = {}

    def __len__(self) -> int:
        """How many events are held."""
        return sum(len(part) for parts in self._buckets.values() for part in parts)

    def add(self, events: pa.Table) -> None:
        """Hold events that were logged after all that are held."""
        buckets = _buckets_of(events)
        order = np.argsort(buckets, kind="stable")
        firsts = np.flatnonzero(np.diff(buckets[order], prepend=-1))
        for mine in np.split(order, firsts[1:]) if len(order) else ():
            # Copied, not sliced: a slice would keep all the others in memory, too.
            part = events.take(pa.array(mine))
            bucket = int(buckets[mine[0]])
            parts = self._buckets.setdefault(bucket, [])
            parts.append(part)
            if len(parts) > MAX_PARTS:
                parts[:] = [pa.concat_tables(parts).combine_chunks()]

    def of(self, decisions: pa.Table) -> pa.Table:
        """Events held of these decisions, and others that lie with them.

        Those of each decision are in log order.
        """
        parts = [
            part
            for bucket in _distinct(_buckets_of(decisions))
            for part in self._buckets.get(bucket, ())
        ]
        return pa.concat_tables(parts) if parts else EVENTS_HELD.empty_table()

    def forget(self, decisions: pa.Table) -> None:
        """Let go the events of decisions that have settled."""
        held = self.of(decisions)
        # The events are few, the decisions many: so the set to look in is of the former.
        asked = pc.unique(held["decision_id"])
        gone = pc.is_in(decisions["decision_id"], value_set=asked)
        settled = decisions["decision_id"].filter(gone).combine_chunks()
        for bucket in _distinct(_buckets_of(decisions)):
            if parts := self._buckets.get(bucket):
                held = pa.concat_tables(parts)
                stays = pc.invert(pc.is_in(held["decision_id"], value_set=settled))
                self._replace(bucket, held.filter(stays).combine_chunks())

    def forget_before(self, ms: int) -> int:
        """Let go what was decided in an earlier bucket, or logged earlier; how much it was.

        A worker's clock may be ahead: the decision's own time is then in the future, and
        would keep the event, and the log behind it, until that has come.
        """
        n_before, first = len(self), ms // BUCKET_MS
        for bucket in [b for b in self._buckets if b < first]:
            del self._buckets[bucket]
        for bucket, parts in list(self._buckets.items()):
            if parts[0]["log_ms"][0].as_py() < ms:
                held = pa.concat_tables(parts)
                left = held.filter(pc.greater_equal(held["log_ms"], ms))
                self._replace(bucket, left.combine_chunks())
        return n_before - len(self)

    def oldest(self) -> str | None:
        """Log id of the event held that was logged first."""
        firsts = [parts[0]["log_id"][0].as_py() for parts in self._buckets.values()]
        return min(firsts, key=log_order, default=None)

    def _replace(self, bucket: int, left: pa.Table) -> None:
        if len(left):
            self._buckets[bucket] = [left]
        else:
            del self._buckets[bucket]


def _distinct(buckets: np.ndarray) -> list[int]:
    found: list[int] = pc.unique(pa.array(buckets)).to_pylist()
    return found


def _buckets_of(rows: pa.Table) -> np.ndarray:
    return np.asarray(rows["decided_at_ms"].to_numpy()) // BUCKET_MS
