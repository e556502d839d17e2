"""A log in memory, whose clock the test sets, and a learner on it."""

from collections.abc import Iterator, Mapping
from typing import Any

from bandolero.experiment import Experiment, ExperimentRecord
from bandolero.log import DECISIONS, EVENTS, log_ms, log_order, write_block
from bandolero.settle import GRACE_MS
from bandolero.snapshot import Snapshot, snapshot_from_bytes
from bandolero_service import keys
from bandolero_service.changes import Changes
from bandolero_service.learner import ShardLearner
from bandolero_service.settings import Settings
from bandolero_service.store import Commit, Entry, Store
from strategies import START_MS, Row, decision, event, experiment

NAME = "acme/hats"
CLOSE_AFTER_MS = 2_000 + GRACE_MS
LASTING = experiment(objective={"attribution_window_s": 2.0})


class MemoryStore(Store):
    """A store of one shard and one experiment that ticks when it is told the time."""

    def __init__(self, spec: Experiment) -> None:
        record = ExperimentRecord(tenant="acme", spec=spec, status="running")
        self.record_now = record
        self.is_readable = True
        self.streams: dict[str, list[Entry]] = {}
        self.committed = Commit("", {}, {}, {})
        self.kept: dict[str, bytes] = {}
        self.published: list[Snapshot] = []
        self.corrected: dict[str, dict[str, Any]] = {}
        self.moves = 0

    def log(self, stream: str, at_ms: int, fields: Mapping[bytes, bytes]) -> None:
        """Append an entry at a log time."""
        entries = self.streams.setdefault(stream, [])
        entries.append(Entry(f"{at_ms}-{len(entries)}", dict(fields)))

    def decide(self, *rows: Row) -> None:
        """Append each decision as a block, in log order."""
        for row in rows:
            block = write_block([tuple(row.get(n) for n in DECISIONS.names)], DECISIONS)
            self.log(keys.decisions(0), row["log_ms"], {b"block": block})

    def tell(self, *rows: Row) -> None:
        """Append each event as a block, in log order."""
        for row in rows:
            block = write_block([tuple(row.get(n) for n in EVENTS.names)], EVENTS)
            self.log(keys.events(0), row["log_ms"], {b"block": block})

    def pass_to(self, at_ms: int) -> None:
        """Move log time on."""
        self.log(keys.events(0), at_ms, {b"tick": b"1"})

    def correct(self, body: dict[str, Any]) -> None:
        """Publish a correction."""
        self.corrected = {NAME: body}
        self.moves += 1

    @property
    def snapshot(self) -> Snapshot:
        """The newest."""
        return self.published[-1]

    def tick(self, shard: int) -> str:
        """Log time is the test's."""
        return f"{shard}"

    def read(
        self, stream: str, after: str, until_ms: int | None = None
    ) -> Iterator[Entry]:
        """Entries after a log id, up to a log time."""
        for entry in self.streams.get(stream, []):
            late = until_ms is not None and log_ms(entry.log_id) > until_ms
            if log_order(entry.log_id) > log_order(after) and not late:
                yield entry

    def cursors(self, shard: int) -> str:
        """As committed."""
        return self.committed.cursors

    def folds(self, shard: int) -> dict[str, bytes]:
        """As committed."""
        return self.kept

    def rollups(self, shard: int, name: str) -> dict[str, bytes]:
        """None: states are what is looked at."""
        return {}

    def changes(self, shard: int) -> Changes:
        """Moves with corrections."""
        return Changes(self.moves, self.moves, self.moves)

    def records(self, shard: int) -> dict[str, ExperimentRecord]:
        """The one experiment, unless it cannot be read."""
        return {NAME: self.record_now} if self.is_readable else {}

    def corrections(self, shard: int) -> dict[str, dict[str, Any]]:
        """The newest."""
        return self.corrected

    def versions(self, shard: int) -> dict[str, int]:
        """Of the last snapshot."""
        return {NAME: self.snapshot.version} if self.published else {}

    def commit(self, shard: int, fence: int, expected: str, commit: Commit) -> None:
        """Keep what is written."""
        assert expected == self.committed.cursors
        self.committed = commit
        self.kept |= commit.folds
        for _, data in commit.snapshots.values():
            self.published.append(snapshot_from_bytes(data))


def learner_of(store: MemoryStore, settings: Settings) -> ShardLearner:
    """A learner as it starts."""
    return ShardLearner(store, 0, 1, settings)


def step_through(store: MemoryStore, shard: ShardLearner, made: list[Row]) -> None:
    """A step of the learner at the moment each decision closes."""
    for row in made:
        store.pass_to(row["log_ms"] + CLOSE_AFTER_MS)
        shard.step()


def clicked(n: int, gap_ms: int) -> tuple[list[Row], list[Row]]:
    """Decisions of v1, so far apart; every second was clicked."""
    made = [
        decision(decision_id=f"d{i}", decided_at_ms=START_MS + gap_ms * i)
        for i in range(n)
    ]
    told = [
        event(
            decision_id=row["decision_id"],
            decided_at_ms=row["decided_at_ms"],
            at_ms=row["decided_at_ms"] + 1,
        )
        for row in made[::2]
    ]
    return made, told
