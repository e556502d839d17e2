"""Every request has an id: the client's, or one of ours; answers and log lines carry it.

The hot routes echo what was sent, and make an id only where there is something to look
up: a refusal or a fault.
"""

import logging
import re
from collections.abc import Iterable
from secrets import token_hex

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bandolero_service.logs import Trace, tracing

REQUEST_ID = b"x-request-id"
_VALID = re.compile(rb"[!-~]{1,128}")
log = logging.getLogger(__name__)


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The id the client gave; None where it gave none, or a long or unprintable one.

    >>> given_id([(b"x-request-id", b"a-1")]), given_id([(b"x-request-id", b"a 1")])
    (b'a-1', None)
    """
    for name, value in headers:
        if name == REQUEST_ID:
            return value if _VALID.fullmatch(value) else None
    return None


def new_id() -> bytes:
    """An id of our own."""
    return token_hex(8).encode()


class Traced:
    """The application behind, with an id for every request; its faults are logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and put its id on the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = given_id(scope["headers"]) or new_id()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (REQUEST_ID, request_id)]
                message = {**message, "headers": headers}
            await send(message)

        trace = Trace(request_id.decode())
        token = tracing.set(trace)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # it has been answered with 500 already
            trace.route = getattr(scope.get("route"), "path", "none")
            log.exception("%s %s failed", scope["method"], trace.route)
        finally:
            tracing.reset(token)
