"""A TCP proxy between a server and its store that can be told to misbehave.

It runs on a thread of its own. `mode` may be changed at any time and holds for every
connection, also those that are open.
"""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum


class Mode(Enum):
    """What becomes of the store's answers."""

    PASS = "as they are"
    SLOW = "500 ms late"
    GARBAGE = "random bytes instead"
    LIES = "a well-formed answer, always the same"
    HOLE = "never"
    RESET = "every connection is cut, and cut again"


SLOW_S = 0.5


class Proxy:
    """Listens on a loopback port, and passes on to another."""

    def __init__(self, store_port: int, seed: int = 1) -> None:
        self.port = 0
        self._mode = Mode.PASS
        self._store_port = store_port
        self._rng = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()

    @property
    def mode(self) -> Mode:
        """How answers are treated now."""
        return self._mode

    def turn(self, mode: Mode) -> None:
        """Treat answers so from now on."""
        self._mode = mode
        if mode in (Mode.RESET, Mode.PASS):  # a client may not wait on a broken one
            self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, listening: threading.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        await server.serve_forever()

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._writers.add(writer)
        try:
            if self._mode is Mode.RESET:
                return
            there = await asyncio.open_connection("127.0.0.1", self._store_port)
            self._writers.add(there[1])
            with suppress(OSError):
                await asyncio.gather(
                    self._pass(reader, there[1]), self._answer(there[0], writer)
                )
            self._gone(there[1])
        except OSError:
            pass
        finally:
            self._gone(writer)

    def _gone(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.transport.abort()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            if self._mode is Mode.SLOW:
                await asyncio.sleep(SLOW_S)
            if self._mode is Mode.GARBAGE:
                data = self._rng.randbytes(len(data))
            if self._mode is Mode.LIES:
                data = b"+OK\r\n"
            if self._mode is not Mode.HOLE:
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@contextmanager
def proxied(store_port: int) -> Iterator[Proxy]:
    """A proxy before a store, until the end of the block."""
    proxy = Proxy(store_port)
    listening = threading.Event()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            proxy._loop.run_until_complete(proxy._serve(listening))

    thread = threading.Thread(target=run)
    thread.start()
    listening.wait(10)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(_cancel_all, proxy._loop)
        thread.join()
        proxy._loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()
