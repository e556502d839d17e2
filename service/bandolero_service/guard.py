"""What a connection may cost before it has said anything sensible: bytes and time.

uvicorn with httptools bounds neither the head of a request nor the time a client takes
for it. Bytes are counted as they come; times are looked at once a second, over all
connections, from what uvicorn knows of them anyway: a request pays for a comparison.
"""

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)

from bandolero_service.errors import ApiError

MAX_HEAD_BYTES = 65_536
MAX_MESSAGE_BYTES = 16_000_000
"""Of a request on the wire, with chunk sizes and trailers; what its body may hold is the
application's rule, and far less."""
HEAD_S = 10.0
"""How long a client may take for the head of a request, or to say anything at all."""
BODY_S = 30.0
ANSWER_S = 120.0
CLOSE_S = 5.0
"""How long a client may take to read the rest of what was written before the close."""
LOOK_EVERY_TICKS = 10
"""uvicorn ticks ten times a second."""
_END_OF_HEAD = b"\r\n\r\n"
_HEADERS = (
    "content-type: application/json\r\n"
    "connection: close\r\n"
    "x-content-type-options: nosniff\r\n"
    "cache-control: no-store\r\n"
)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on bytes and time."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._received = 0
        self._read = 0
        self._seen: tuple[Any, float] = (None, 0.0)
        self._seen_at = time.monotonic()

    def data_received(self, data: bytes) -> None:
        """Take in bytes; refuse a request with too many before it is complete."""
        self._read = 0 if self._received else len(data)
        self._received += len(data)
        if self._received > MAX_HEAD_BYTES and self._refused(data):
            return
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.more_body and cycle.scope is self.scope:
            self._received = 0

    def on_message_begin(self) -> None:
        """Count a message from its start.

        The parser does not say where in a read that is: a message that begins behind
        another is counted from the next read on.
        """
        super().on_message_begin()
        self._received, self._read = self._read, 0

    def close_if_overdue(self, now: float) -> None:
        """Close the connection where its client takes too long for what it is at."""
        scope, allowed_s = self._seen
        if self.scope is not scope or self._allowed_s() != allowed_s:
            self._seen, self._seen_at = (self.scope, self._allowed_s()), now
        elif now - self._seen_at > allowed_s:
            if self._received and not self.transport.is_closing():
                message = f"the request was not complete after {allowed_s:g} s."
                self._refuse(ApiError(408, "too_slow", message))
            else:
                self.transport.abort()

    def _allowed_s(self) -> float:
        """How long the connection may stay as it is.

        Between requests uvicorn has a timer of its own, which any byte stops.
        """
        if self.transport.is_closing():
            return CLOSE_S
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            return HEAD_S
        if cycle.more_body:
            return BODY_S
        return self.timeout_keep_alive if cycle.response_complete else ANSWER_S

    @property
    def _is_before_body(self) -> bool:
        """Whether what comes next is a head, or more of one."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.scope is not self.scope:
            return True
        return cycle.response_complete and not cycle.more_body

    def _refused(self, data: bytes) -> bool:
        """Refuse what is past its bound; whether it was."""
        if self._is_before_body:
            room = MAX_HEAD_BYTES - self._received + len(data)
            if data.find(_END_OF_HEAD, 0, max(room, 0)) < 0:
                message = f"the head must have at most {MAX_HEAD_BYTES} bytes."
                self._refuse(ApiError(431, "head_too_large", message))
                return True
        elif self._received > MAX_MESSAGE_BYTES:
            message = f"the request must have at most {MAX_MESSAGE_BYTES} bytes."
            self._refuse(ApiError(413, "too_large", message))
            return True
        return False

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error, where nothing was answered yet, and close."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.scope is self.scope and cycle.response_started:
            self.transport.abort()
            return
        body = msgspec.json.encode(error.body())
        phrase = HTTPStatus(error.status).phrase
        head = f"HTTP/1.1 {error.status} {phrase}\r\n{_HEADERS}content-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


def close_overdue(connections: Iterable[Any]) -> None:
    """Close those of a server's connections whose clients take too long."""
    now = time.monotonic()
    for connection in list(connections):
        connection.close_if_overdue(now)
