"""Who may call a route: a FastAPI dependency over the worker's API keys."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

from fastapi import Header

from bandolero_service.api.data_plane import authorised
from bandolero_service.audit import Author
from bandolero_service.logs import tracing
from bandolero_service.views import Views

admin = "admin"
report = "report"


class Caller(NamedTuple):
    """Who is calling: the tenant, and the actor that the audit log names."""

    tenant: str
    actor: str


class Access:
    """Makes the dependencies of the routes."""

    def __init__(self, views: Views, root: bytes) -> None:
        self._views = views
        self.root = root

    def author(self, caller: Caller) -> Author:
        """The caller as the audit log's author."""
        return Author(caller.actor, self.root)

    def require(self, *scopes: str) -> Callable[..., Caller]:
        """A dependency: the caller, whose key has one of the scopes."""

        def caller(authorization: Annotated[str, Header()] = "") -> Caller:
            key = authorised(self._views.api_key_now, authorization, *scopes)
            if (trace := tracing.get()) is not None:
                trace.key_id = key.key_id
            return Caller(key.tenant, f"key:{key.key_id}")

        return caller
