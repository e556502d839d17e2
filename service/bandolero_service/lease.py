"""Leases for work that may be longer than they are: a thread of their own renews them.

Only one process at a time may do such work. A lease lapses when its holder is killed; so
it is short, and renewed many times before it would. A store that is away for less than a
lease does no harm.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from threading import Event, Thread

from bandolero_service.store import FencedError, Store, StoreDownError

RENEWALS = 10
"""How often a lease is renewed in its time."""
WAIT_S = 60.0
"""How long a store may be away when it is asked who holds a lease."""


class LeaseLostError(FencedError):
    """Another has taken the lease meanwhile, or may have."""


class Lease:
    """A lease that is held until it is told to be lost."""

    def __init__(self, store: Store, where: str, owner: str, ms: int) -> None:
        self._store = store
        self._lease = where, owner, ms
        self._lost, self._over = Event(), Event()
        self._thread = Thread(target=self._renew, name=f"lease {where}", daemon=True)
        self._thread.start()

    def still(self) -> None:
        """Go on, by what was last seen.

        Raises
        ------
        LeaseLostError
            When it is no longer ours.
        """
        if self._lost.is_set():
            where, _, _ = self._lease
            raise LeaseLostError(f"another may have taken the lease {where} meanwhile.")

    def sure(self) -> None:
        """Go on, by what the store says now; waits for one that is away for a moment.

        Raises
        ------
        LeaseLostError
            When it is no longer ours.
        StoreDownError
            When the store stays away.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._keep()
                return self.still()
            except StoreDownError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def end(self) -> None:
        """Renew it no more."""
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        if not self._store.keep(*self._lease):
            self._lost.set()

    def _renew(self) -> None:
        _, _, ms = self._lease
        while not self._lost.is_set() and not self._over.wait(ms / 1000 / RENEWALS):
            with suppress(StoreDownError):  # what is left of it is long enough
                self._keep()


@contextmanager
def leased(store: Store, where: str, ms: int) -> Iterator[Lease | None]:
    """Hold a lease until the end of the block; None where another holds it."""
    owner = token_hex(8)
    with store.alone(where, owner, ms) as is_held:
        if not is_held:
            yield None
            return
        lease = Lease(store, where, owner, ms)
        try:
            yield lease
        finally:
            lease.end()
