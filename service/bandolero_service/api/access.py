"""Who may call a route, and how often: a FastAPI dependency over the worker's gate."""

from collections.abc import Callable

from fastapi import Request

from bandolero_service.api.gate import Caller, Gate
from bandolero_service.api.seals import QUOTA
from bandolero_service.audit import Author
from bandolero_service.errors import too_many
from bandolero_service.logs import tracing
from bandolero_service.rates import Limiter, parse_rate

admin = "admin"
report = "report"


class Access:
    """Makes the dependencies of the routes.

    Parameters
    ----------
    rate
        Most requests of a caller, as `parse_rate` reads it; empty for no bound.
    root
        The root secret, for the audit log.
    """

    def __init__(self, gate: Gate, limiter: Limiter, rate: str, root: bytes) -> None:
        self.root = root
        self._gate = gate
        self._limiter = limiter
        self._rate = parse_rate(rate) if rate else None

    def author(self, caller: Caller) -> Author:
        """The caller as the audit log's author."""
        return Author(caller.actor, self.root)

    def require(self, *scopes: str) -> Callable[..., Caller]:
        """A dependency: the caller, who has one of the scopes and asks not too often."""

        def caller(request: Request) -> Caller:
            header = request.headers.get("authorization", "").encode("latin-1")
            address = request.client.host if request.client else ""
            found = self._gate.caller(header, address, *scopes)
            if (trace := tracing.get()) is not None:
                trace.key_id = found.actor.removeprefix("key:")
            self._count(found, request)
            return found

        return caller

    def _count(self, caller: Caller, request: Request) -> None:
        if self._rate is not None:
            who = f"{caller.tenant}/{caller.actor}"
            quota = self._limiter.take(self._rate, who)
            if not quota.allowed:
                raise too_many("requests of one caller", quota)
            request.scope[QUOTA] = quota
