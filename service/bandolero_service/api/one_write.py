"""A whole answer in one write, where uvicorn is what sends.

uvicorn checks, joins and writes head and body apart, header by header, which costs more
than a decision does. The hot routes' heads are the same but for a length, so they are
made once. Anything out of the ordinary goes the usual way.
"""

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_Headers = list[tuple[bytes, bytes]]


class OneWrite:
    """Writes the JSON answers of one server."""

    def __init__(self) -> None:
        self._defaults: _Headers | None = None
        self._heads: dict[int, bytes] = {}

    def answered(self, send: Send, status: int, content: bytes) -> bool:
        """Write an answer that has no headers of its own; False where that cannot be.

        `send` must belong to a request that has been read whole and not been answered.
        """
        cycle = getattr(send, "__self__", None)
        if type(cycle) is not RequestResponseCycle:
            return False
        if cycle.disconnected or cycle.flow.write_paused or not cycle.keep_alive:
            return False
        head = self._head(status, cycle.default_headers)
        if not head:
            return False
        cycle.transport.write(b"%b%d\r\n\r\n%b" % (head, len(content), content))
        # As `RequestResponseCycle.send` leaves it behind.
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.chunked_encoding, cycle.expected_content_length = False, 0
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _head(self, status: int, defaults: _Headers) -> bytes:
        """All of a head up to the length; empty where the connection is to end after it.

        The server renews its default headers at times.
        """
        if defaults is not self._defaults:
            self._defaults, self._heads = defaults, {}
        head = self._heads.get(status)
        if head is None:
            if any(name.lower() == b"connection" for name, _ in defaults):
                return b""
            lines = [b"%b: %b\r\n" % pair for pair in defaults]
            lines += [b"content-type: application/json\r\n", b"content-length: "]
            head = self._heads[status] = STATUS_LINE[status] + b"".join(lines)
        return head
