"""Headers that tell a browser what it may do with an answer: as little as it needs.

Those that are the same on every answer, the hot routes' too, are the server's:
`bandolero_service.roles.ON_EVERY_ANSWER`. No answer allows another origin to read it:
there are no CORS headers, and none are to be added here.
"""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLOSED = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
DATA = f"default-src 'none'; {_CLOSED}"
REPORT = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {_CLOSED}"
"""For our own HTML: it runs no script and loads nothing."""
DOCS = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    f" img-src 'self' data:; worker-src blob:; {_CLOSED}"
)
QUOTA = "bandolero.quota"
"""Where a request's scope holds what its caller's rate has left."""
DOCS_PATHS = ("/docs", "/redoc")


class Sealed:
    """The application behind; its answers say what may be done with them, and how often."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and seal its answer; what an answer says itself stands."""

        async def send_sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                kind = headers.get("content-type", "")
                headers.setdefault("content-security-policy", _policy(scope, kind))
                headers.setdefault("cache-control", "no-store")
                if (quota := scope.get(QUOTA)) is not None:
                    headers.raw.extend(quota.headers())
            await send(message)

        await self._app(scope, receive, send_sealed)


def _policy(scope: Scope, kind: str) -> str:
    if scope["path"] in DOCS_PATHS:
        return DOCS
    return REPORT if kind.startswith("text/html") else DATA
