"""How far the work on the log has come, asked of the store: true when nobody works, too."""

from contextlib import suppress
from typing import NamedTuple

from bandolero_service import keys
from bandolero_service.connection import Call
from bandolero_service.store import Store, StoreDownError

LEASED = ("learner", "archiver")
"""Roles of which one process a shard does the work."""


class Survey(NamedTuple):
    """How far the work on a shard is behind the store's clock, and who does it.

    archive_lag_ms: None before the first archive. roles: those whose lease is held.
    """

    log_lag_ms: int
    settle_lag_ms: int
    archive_lag_ms: int | None
    roles: frozenset[str]


class SurveyedStore(Store):
    """A connection for who only looks."""

    def surveys(self) -> tuple[dict[int, Survey], bool]:
        """Of every shard that answers; and whether all did.

        Raises
        ------
        StoreDownError
            When no shard answers, or none was ever made.
        """
        with self._down():
            n_shards = int(self._redis.hget(keys.LAYOUT, "shards") or 0)
        found: dict[int, Survey] = {}
        down: set[str] = set()
        for shard in range(n_shards):
            with suppress(StoreDownError):
                if (server := self.server_of(shard)) not in down:
                    down.add(server)
                    found[shard] = self.survey(shard)
                    down.remove(server)
        if not found:
            raise StoreDownError("no shard answers.")
        return found, not down

    def survey(self, shard: int) -> Survey:
        """How the work on a shard stands."""
        where = [keys.meta(shard), keys.events(shard), keys.decisions(shard)]
        where += [keys.lease(shard, role) for role in LEASED]
        with self._down():
            log_ms, settle_ms, archive_ms, *held = self._run("survey", Call(where, []))
        roles = frozenset(role for role, n in zip(LEASED, held, strict=True) if n)
        return Survey(log_ms, settle_ms, None if archive_ms < 0 else archive_ms, roles)

    def refreshed_ms(self) -> int:
        """When the nightly job has last published; 0: never."""
        with self._down():
            return int(self._redis.hget(keys.LAYOUT, keys.REFRESHED_MS) or 0)
