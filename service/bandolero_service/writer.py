"""Writing behind: a thread that turns a worker's decisions and events into log blocks.

Decisions are handed over and forgotten; events wait for their block to be durable, in
the log or, while the store is down, synced to the spool. All events that arrive while
one block is being written share the next (group commit). The request path never waits
for the store.
"""

import logging
import os
import secrets
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice

from bandolero.log import EVENTS, block_of, warm_up, write_block
from bandolero_service.record import Decision, Row, rows_by_shard
from bandolero_service.settings import Settings
from bandolero_service.spool import Spool, SpoolFullError, orphans
from bandolero_service.store import Block, ShardsDownError, Store, StoreDownError

log = logging.getLogger(__name__)

Done = Callable[[str | None], None]
"""Told None when durable, else why not."""

RETRY_S = 0.5
DRAIN_BLOCKS = 64
ADOPT_EVERY_S = 10.0
"""How often a worker looks for spools whose writer is gone."""
MAX_DECISIONS = 4_000
"""Decisions of one block. A flush begins when there are so many: they are still in the
processor's cache then, which halves what writing them costs."""


class LogWriter:
    """The only path from a worker's memory to the log."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.writer_id = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.dropped = 0
        self._store = store
        self._settings = settings
        self._spool = Spool(
            settings.spool_dir, self.writer_id, settings.spool_max_bytes
        )
        self._numbers = {"decisions": 0, "events": 0}
        self._decisions: deque[Decision] = deque()
        self.decided: Callable[[Decision], None] = self._decisions.append
        """Hand over a decision; bound once, for every decision comes this way."""
        self._events: list[tuple[dict[int, list[Row]], Done]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._down_until = 0.0
        self._catch_up_at = 0.0
        self._thread = threading.Thread(target=self._run, name="log-writer")

    def start(self) -> None:
        """Begin to write."""
        warm_up()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, then write what is left, even of one that ended by itself."""
        if self._stopping:
            return
        self._stopping = True
        self._wake.set()
        self._thread.join()
        while self._decisions or self._events:
            self._flush()
        if self._spool.size and time.monotonic() >= self._down_until:
            self._drain(self._spool)
            self._catch_up()
        self._spool.close()

    @property
    def spool_bytes(self) -> int:
        """Bytes waiting on disk for the store."""
        return self._spool.size

    @property
    def spool_depth(self) -> tuple[int, float]:
        """Blocks that this writer has on disk, and for how long it had some, in seconds."""
        return self._spool.n_blocks, self._spool.age_s

    @property
    def is_writing(self) -> bool:
        """Whether the thread that writes lives."""
        return self._thread.is_alive()

    @property
    def store_down(self) -> bool:
        """Whether the last attempt to write failed."""
        return self._down_until > 0.0

    def all_decided(self, decisions: Iterable[Decision]) -> None:
        """Hand over many decisions."""
        self._decisions.extend(decisions)
        if len(self._decisions) >= MAX_DECISIONS:
            self._wake.set()

    def told(self, rows: dict[int, list[Row]], done: Done) -> None:
        """Hand over events by shard; `done` is called once they are durable."""
        with self._lock:
            self._events.append((rows, done))
        self._wake.set()

    def _run(self) -> None:
        adopt_at = 0.0
        while not self._stopping:
            if time.monotonic() >= max(adopt_at, self._down_until):
                pause = ADOPT_EVERY_S if self._adopt_orphans() else RETRY_S
                adopt_at = time.monotonic() + pause
            if len(self._decisions) < MAX_DECISIONS:
                self._wake.wait(self._settings.flush_interval_s)
            self._wake.clear()
            self._flush()

    def _flush(self) -> None:
        decisions = self._take_decisions()
        with self._lock:
            batches, self._events = self._events, []
        try:
            blocks = self._decision_blocks(decisions) + self._event_blocks(batches)
            if self._spool.size and time.monotonic() >= self._down_until:
                self._drain(self._spool, 1)
                self._catch_up()
            failure = self._write(blocks) if blocks else None
        except Exception as error:  # whoever waits must be told, and the thread go on
            log.exception("blocks could not be written")
            failure = repr(error)
        if failure is not None:
            self.dropped += len(decisions)
            log.error("blocks were dropped: %s", failure)
        for _, done in batches:
            try:
                done(failure)
            except Exception:  # who waited is gone: the others must hear of it still
                log.exception("nobody was told that events are durable")

    def _take_decisions(self) -> list[Decision]:
        """What has been handed over by now; a deque, so that none can slip between."""
        return [self._decisions.popleft() for _ in range(len(self._decisions))]

    def _write(self, blocks: list[Block]) -> str | None:
        """Append to the log, or to the spool; the reason where neither took them."""
        left = blocks
        if time.monotonic() >= self._down_until and self._spool.is_through():
            left = self._append(blocks)
        try:
            if left:
                self._spool.append(left)
            return None
        except (OSError, SpoolFullError) as error:
            return str(error)

    def _append(self, blocks: list[Block]) -> list[Block]:
        """Append what can be appended now; the blocks that could not."""
        behind = self._spool.behind
        try:
            up = [block for block in blocks if block.shard not in behind]
            self._store.append(self.writer_id, up)
            self._down_until = 0.0
        except ShardsDownError as error:
            self._fell_behind(self._spool, error)
        except StoreDownError as error:
            self._down(error)
            return blocks
        return [block for block in blocks if block.shard in behind]

    def _drain(self, spool: Spool, max_batches: int | None = None) -> bool:
        """Move a spool into the log, in order; False where the store is down.

        No more than `max_batches` at a time, where new blocks are waiting meanwhile.
        """
        batches = _batches(spool.blocks())
        return all(
            self._drain_batch(spool, [block for _, block in batch], batch[-1][0])
            for batch in islice(batches, max_batches)
        )

    def _drain_batch(self, spool: Spool, batch: list[Block], end: int) -> bool:
        try:
            self._store.append(spool.writer_id, batch)
        except ShardsDownError as error:
            self._fell_behind(spool, error)
            batch = [block for block in batch if block.shard not in error.shards]
        except StoreDownError as error:
            self._down(error)
            return False
        spool.drained(end, len(batch))
        self._down_until = 0.0
        return True

    def _catch_up(self) -> None:
        """Bring blocks of shards that are behind to the log, some of each."""
        if time.monotonic() < self._catch_up_at:
            return
        for shard in list(self._spool.behind):
            batch = list(islice(self._spool.blocks_of(shard), DRAIN_BLOCKS))
            try:
                self._store.append(self.writer_id, [block for _, block in batch])
            except StoreDownError as error:
                log.debug("%s", error)
                self._catch_up_at = time.monotonic() + RETRY_S
                continue
            end = batch[-1][0] if batch else self._spool.behind[shard]
            self._spool.catch_up(shard, end, len(batch))

    def _fell_behind(self, spool: Spool, error: ShardsDownError) -> None:
        log.warning("%s; their blocks wait in %s", error, spool.path)
        for shard in error.shards:
            spool.fall_behind(shard)

    def _adopt_orphans(self) -> bool:
        """Drain what the dead left; False where the store is down."""
        folder, max_bytes = self._settings.spool_dir, self._settings.spool_max_bytes
        try:
            return all(self._adopt(spool) for spool in orphans(folder, max_bytes))
        except Exception:  # this thread has more to do than that
            log.exception("spools of the dead could not be looked for")
            return True

    def _adopt(self, spool: Spool) -> bool:
        """Drain a spool; one that cannot be waits, and the others need not."""
        try:
            with closing(spool):
                if not self._drain(spool):
                    return False
                if not spool.behind:
                    spool.set_rest_aside()
        except Exception:
            log.exception("%s could not be adopted, it stays", spool.path)
        return True

    def _down(self, error: StoreDownError) -> None:
        if self._down_until == 0.0:
            log.warning("%s; blocks go to %s", error, self._spool.path)
        self._down_until = time.monotonic() + RETRY_S

    def _decision_blocks(self, decisions: list[Decision]) -> list[Block]:
        return [
            Block("decisions", shard, self._next("decisions"), block_of(rows), counts)
            for start in range(0, len(decisions), MAX_DECISIONS)
            for shard, rows, counts in rows_by_shard(
                decisions[start : start + MAX_DECISIONS]
            )
        ]

    def _event_blocks(
        self, batches: list[tuple[dict[int, list[Row]], Done]]
    ) -> list[Block]:
        by_shard: dict[int, list[Row]] = defaultdict(list)
        for rows, _ in batches:
            for shard, some in rows.items():
                by_shard[shard] += some
        return [
            Block("events", shard, self._next("events"), write_block(rows, EVENTS), {})
            for shard, rows in by_shard.items()
        ]

    def _next(self, stream: str) -> int:
        self._numbers[stream] += 1
        return self._numbers[stream]


def _batches(
    blocks: Iterator[tuple[int, Block]],
) -> Iterator[list[tuple[int, Block]]]:
    while batch := list(islice(blocks, DRAIN_BLOCKS)):
        yield batch
