"""How the store is and how far its work has come, looked at by a thread of its own.

Whoever tells of it, `/readyz` and `/metrics`, reads what was seen last and never waits
for a store that hangs.
"""

import logging
import threading
import time
from dataclasses import dataclass

from bandolero_service.store import StoreDownError
from bandolero_service.survey import Survey, SurveyedStore

log = logging.getLogger(__name__)

WATCH_S = 1.0
BLIND_AFTER_S = 4.0
"""A look that takes this long finds nothing: the store hangs."""


@dataclass(frozen=True)
class Sight:
    """What was seen of the store.

    is_whole: whether every shard answered. surveys: by shard. refreshed_ms: when the nightly job last published; 0: never.
    """

    is_whole: bool
    durability: dict[str, str]
    surveys: dict[int, Survey]
    refreshed_ms: int

    @property
    def is_durable(self) -> bool:
        """Whether the store promises to keep what it has acknowledged."""
        promised = self.durability.get("appendonly"), self.durability.get("appendfsync")
        return promised == ("yes", "always")


class StoreWatch:
    """Looks at the store every second, over a connection of its own."""

    def __init__(self, store: SurveyedStore) -> None:
        self._store = store
        self._sight: Sight | None = None
        self._seen_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def sight(self) -> Sight | None:
        """What is known of the store now; None while it does not answer."""
        is_fresh = time.monotonic() - self._seen_at < BLIND_AFTER_S
        return self._sight if is_fresh else None

    def start(self) -> None:
        """Look once, then keep looking."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()
        self._store.close()

    def look(self) -> None:
        """Look at the store now."""
        store = self._store
        try:
            surveys, is_whole = store.surveys()
            sight = Sight(is_whole, store.durability(), surveys, store.refreshed_ms())
        except StoreDownError as error:
            self._sight = None
            log.debug("%s", error)
        else:
            self._sight, self._seen_at = sight, time.monotonic()

    def _run(self) -> None:
        while not self._stop.wait(WATCH_S):
            try:
                self.look()
            except Exception:  # what cannot be seen is no reason to stop looking
                self._sight = None
                log.exception("the store could not be looked at")
