"""A store that is being filled: the acts that only a restore needs."""

from collections.abc import Iterable, Mapping

from bandolero.log import LAST_SEQUENCE
from bandolero_service import keys
from bandolero_service.connection import Call
from bandolero_service.store import Entry, RefusedStoreError, Store


class NewStore(Store):
    """A connection to a store that nobody else is to use yet."""

    def clock_ms(self, shard: int) -> int:
        """The store's own clock, which is that of log time."""
        with self._down():
            return int(self._run("clock", Call([keys.meta(shard)], [])))

    def begin_restore(self) -> None:
        """Keep all others out until `end_restore`.

        Raises
        ------
        RefusedStoreError
            When the store holds anything but API keys, or somebody works on it.
        """
        with self._down():
            for shard in range(self.shards):
                if self._redis.exists(*keys.of_shard(shard)):
                    message = "the store is not empty: restore into a new one, with no server running on it."
                    raise RefusedStoreError(message)
            self._redis.hset(keys.LAYOUT, keys.RESTORING, "1")

    def end_restore(self) -> None:
        """Let others in."""
        with self._down():
            self._redis.hdel(keys.LAYOUT, keys.RESTORING)

    def put_hash(self, key: str, values: Mapping[str, str | bytes | int]) -> None:
        """Write fields of a hash."""
        if values:
            with self._down():
                self._redis.hset(key, mapping=values)

    def put_entries(self, stream: str, entries: Iterable[Entry]) -> None:
        """Append entries under the log ids they have."""
        with self._down():
            for entry in entries:
                self._redis.xadd(stream, entry.fields, id=entry.log_id)

    def move_past(self, stream: str, ms: int) -> None:
        """Let every later entry be logged after a log time, whatever the clock says."""
        last = f"{ms}-{LAST_SEQUENCE}"
        with self._down():
            self._redis.xadd(stream, {"tick": "1"}, id=last)
            self._redis.xdel(stream, last)

    def put_last_number(
        self, shard: int, writer_id: str, stream: str, number: int
    ) -> None:
        """Remember the last block of a writer, so that it is not appended again."""
        where = keys.writer(shard, writer_id, stream)
        with self._down():
            self._redis.set(where, number, px=keys.WRITER_TTL_MS)
