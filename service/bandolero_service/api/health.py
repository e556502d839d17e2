"""`/healthz`, `/readyz` and `/metrics`: open, from memory, never waiting for the store.

Alive: the loop answers. Ready: decisions can be made, from whatever is known; a worker
whose store is down goes on, and one that is about to stop says so first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response

from bandolero_service.store_watch import Sight, StoreWatch
from bandolero_service.views import Views
from bandolero_service.writer import LogWriter

Metrics = Callable[[str], tuple[bytes, str]]
"""The text of the metrics and its content type, for an `Accept` header."""


@dataclass
class Health:
    """The parts of a worker that say how it is.

    leaving: whether it was told to stop.
    """

    views: Views
    writer: LogWriter
    watch: StoreWatch
    spool_dir: Path
    leaving: bool = False

    def leave(self) -> None:
        """Be not ready from now on."""
        self.leaving = True

    @property
    def reason(self) -> str | None:
        """Why no new requests should come here; None where they should."""
        if self.leaving:
            return "draining: this worker is about to stop"
        if self.fault is None and self.views.is_blank:
            return "nothing is known: the store was not seen, now or before"
        return self.fault

    @property
    def fault(self) -> str | None:
        """What only another worker in its place can mend; None while it is sound."""
        if not self.writer.is_writing:
            return "the thread that writes the log has ended"
        if not self.views.is_watching:
            return "the thread that watches the store has ended"
        return None


def health_routes(health: Health, metrics: Metrics) -> APIRouter:
    """Routes that tell how a worker is, to whoever asks."""
    router = APIRouter(tags=["operations"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Whether a worker answers")
    async def healthz() -> dict[str, str]:
        """The loop answers."""
        return {"status": "ok"}

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz",
        summary="Whether a worker can decide",
        responses={503: {"description": "Not ready, and why"}},
    )
    def readyz(response: Response) -> dict[str, Any]:
        """Whether the worker can decide, and how fresh what it knows is."""
        reason = health.reason
        response.status_code = 200 if reason is None else 503
        status = {"status": "ready"} if reason is None else _not_ready(reason)
        return status | _freshness(health) | _of_store(health)

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    def tell_metrics(request: Request) -> Response:
        """Prometheus metrics of all processes of this machine."""
        text, content_type = metrics(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    return router


def _not_ready(reason: str) -> dict[str, Any]:
    return {"status": "not_ready", "reason": reason}


def _freshness(health: Health) -> dict[str, Any]:
    views, age_s = health.views, health.views.age_s
    serving = "cold" if views.is_blank else "stale" if views.stale else "live"
    return {
        "serving": serving,
        "experiments": len(views.views()),
        "view_age_s": None if age_s is None else round(age_s, 1),
        "spool_bytes": health.writer.spool_bytes,
    }


def _of_store(health: Health) -> dict[str, Any]:
    sight = health.watch.sight
    if sight is None or not sight.is_whole or health.writer.store_down:
        return {"store": "down"}
    return {"store": "up", **sight.durability, **_lags(sight)}


def _lags(sight: Sight) -> dict[str, Any]:
    """How far the slowest shard is behind, in seconds."""
    surveys = sight.surveys.values()
    archived = [s.archive_lag_ms for s in surveys if s.archive_lag_ms is not None]
    lags = {
        "log_lag_s": max((s.log_lag_ms for s in surveys), default=0),
        "settle_lag_s": max((s.settle_lag_ms for s in surveys), default=0),
        "archive_lag_s": max(archived, default=0),
    }
    return {name: round(ms / 1000, 1) for name, ms in lags.items()}
