"""The application: wiring, errors, the OpenAPI document; nothing else."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match

from bandolero import __version__
from bandolero.documents import faults_of
from bandolero_service.api.access import Access
from bandolero_service.api.control import audit_routes, control_routes
from bandolero_service.api.data_plane import DataPlane
from bandolero_service.api.gate import Gate
from bandolero_service.api.health import Health, Metrics, health_routes
from bandolero_service.api.openapi import with_data_plane
from bandolero_service.api.privacy import privacy_routes
from bandolero_service.api.reports import report_routes
from bandolero_service.api.trackers import tracker_routes
from bandolero_service.errors import ApiError, invalid_request, store_down
from bandolero_service.metrics import FAULTS, REFUSED, count
from bandolero_service.rates import Limiter
from bandolero_service.report_process import ReportProcess
from bandolero_service.secret import read_secrets
from bandolero_service.settings import Settings
from bandolero_service.store import Store, StoreDownError
from bandolero_service.trackers import Trackers

_NO_ROUTE = "no route has this path, /docs lists all"
TAGS = ("data plane", "experiments", "reports", "privacy", "operations")


def create_app(
    store: Store,
    reports: ReportProcess,
    health: Health,
    metrics: Metrics,
    settings: Settings,
) -> DataPlane:
    """The ASGI application of one worker, over parts that are already running."""
    views = health.views
    app = FastAPIOffline(
        title="Bandolero",
        version=__version__,
        description="Which creative to show, what it earned, and how sure we are.",
        redirect_slashes=False,  # a redirect names the host that the client named
        max_body_size=settings.max_body_bytes,
        openapi_tags=[{"name": name} for name in TAGS],
    )
    _handle_errors(app)
    limiter = Limiter(store.count, StoreDownError)
    gate = Gate(views, limiter, settings)
    root = read_secrets(settings).root
    access = Access(gate, limiter, settings.control_rate, root)
    app.include_router(control_routes(store, access))
    app.include_router(audit_routes(store, access))
    app.include_router(report_routes(reports, access))
    app.include_router(privacy_routes(store, views, settings, access))
    plane = DataPlane(app, gate, views, health.writer, settings)
    trackers = Trackers(views, plane.desk)
    app.include_router(tracker_routes(trackers, plane.durable))
    app.include_router(health_routes(health, metrics))
    document = app.openapi
    app.openapi = lambda: with_data_plane(document())  # type: ignore[method-assign]
    return plane


def _handle_errors(app: FastAPI) -> None:
    """Every refusal is the same error object."""

    @app.exception_handler(ApiError)
    def refused(_request: Request, error: ApiError) -> Response:
        count(REFUSED, error.code)
        answer = JSONResponse(error.body(), error.status)
        answer.raw_headers.extend(error.headers())
        return answer

    @app.exception_handler(StoreDownError)
    def down(_request: Request, _error: StoreDownError) -> Response:
        return refused(_request, store_down())

    @app.exception_handler(RequestValidationError)
    def invalid(_request: Request, error: RequestValidationError) -> Response:
        items = [_unplaced(item) for item in error.errors()]
        return refused(_request, invalid_request(faults_of(items, "request")))

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
        code = codes.get(error.status_code, "refused")
        count(REFUSED, code)
        detail = error.detail if code != "not_found" else _NO_ROUTE
        body = ApiError(error.status_code, code, f"{detail}.").body()
        headers = error.headers
        if error.status_code == 405:  # the framework names those of one route only
            headers = {"allow": ", ".join(_methods(app, request))}
        return JSONResponse(body, error.status_code, headers)

    @app.exception_handler(Exception)
    def fault(_request: Request, _error: Exception) -> Response:
        count(FAULTS)
        body = ApiError(500, "internal", "something failed on our side.").body()
        return JSONResponse(body, 500)


def _unplaced(item: dict[str, Any]) -> dict[str, Any]:
    """A fault of a path or a query, by the name alone.

    A path may hold a unit, so nothing of it is repeated.
    """
    place, *name = item["loc"]
    given = "…" if place == "path" else item["input"]
    return {**item, "loc": tuple(name), "input": given}


def _methods(app: FastAPI, request: Request) -> list[str]:
    """The methods that a path has."""
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] == Match.FULL
            for route in app.routes
        )
    ]
