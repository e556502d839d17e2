"""An API worker's HTTP server, which waits for no client, and cuts none as it ends."""

import asyncio
import logging
import time
from collections.abc import Callable
from socket import socket
from types import FrameType

import uvicorn

from bandolero_service.guard import LOOK_EVERY_TICKS, close_overdue

log = logging.getLogger(__name__)

LINGER_S = 3.0
"""How long a worker that ends keeps the connections on which nothing comes."""
_LAST = (b"connection", b"close")


class Server(uvicorn.Server):
    """Tells when it is ready; on its end, lets its clients go one answer at a time.

    A kept connection that is merely closed may cut a request that is on its way. So the
    worker takes no new connections, says `Connection: close` with the next answer on each
    that it has, and closes only those on which nothing came for `LINGER_S`.

    Parameters
    ----------
    ready, leaving
        Called when it listens, and when it is told to end.
    delay_s
        For so long after that it goes on as before, so that balancers look elsewhere; a
        second signal ends it at once.
    fault
        What is wrong with the worker, None while it is sound. One that is not ends at
        once, so that it is replaced instead of taking requests that it cannot serve.
    ended
        Called on the loop when no client is left.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        leaving: Callable[[], None] = lambda: None,
        delay_s: float = 0.0,
        fault: Callable[[], str | None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._leaving = leaving
        self._delay_s = delay_s
        self._fault = fault
        self._ended = ended
        self._leave_at: float | None = None

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note when to end; at a second signal end at once."""
        self._leaving()
        if self._leave_at is None and self._delay_s > 0.0:
            self._leave_at = time.monotonic() + self._delay_s
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Close connections whose clients take too long; end when it is time to."""
        if not self.should_exit and (fault := self._fault()) is not None:
            log.error("%s: this worker ends, another must take its place", fault)
            self._leaving()
            self.should_exit = True
        if counter % LOOK_EVERY_TICKS == 0:
            close_overdue(self.server_state.connections)
        if self._leave_at is not None and time.monotonic() >= self._leave_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Let the clients go, then close."""
        for server in self.servers:
            server.close()
        state = self.server_state
        state.default_headers = [*state.default_headers, _LAST]
        until = time.monotonic() + LINGER_S
        await asyncio.sleep(0.1)  # what was accepted a moment ago is counted by then
        while state.connections and time.monotonic() < until:  # noqa: ASYNC110  # uvicorn keeps no event for it
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
        self._ended()
