"""Who may call a route: a FastAPI dependency over the worker's API keys."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Header

from bandolero_service.api.data_plane import authorised
from bandolero_service.logs import tracing
from bandolero_service.store import ApiKey
from bandolero_service.views import Views

admin = "admin"
report = "report"


class Access:
    """Makes the dependencies of the routes."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def require(self, *scopes: str) -> Callable[..., ApiKey]:
        """A dependency: the caller's key, which has one of the scopes."""

        def key(authorization: Annotated[str, Header()] = "") -> ApiKey:
            found = authorised(self._views.api_key_now, authorization, *scopes)
            if (trace := tracing.get()) is not None:
                trace.key_id = found.key_id
            return found

        return key
