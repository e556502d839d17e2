"""The routes of trackers: a pixel that tells an impression, a link that tells a click.

They need no key, for a page calls them: the token says all. What comes in a query is
not read. The answer waits until the event is durable, but not for long: somebody looks
at a page, and an event that is not confirmed by then is still on its way.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from bandolero_service.errors import ApiError
from bandolero_service.metrics import TRACKED, count
from bandolero_service.record import Row
from bandolero_service.trackers import (
    CLICK,
    IMPRESSION,
    Tracked,
    Trackers,
    UnknownTrackerError,
)

WAIT_S = 0.5
"""The longest that an answer waits for its event to be durable."""
PIXEL = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)
"""A transparent GIF of one pixel, 43 bytes."""
_HEADERS = {
    "cache-control": "no-store, no-cache, must-revalidate, private",
    "cross-origin-resource-policy": "cross-origin",  # it stands in other sites' pages
}
_AHEAD = ("purpose", "sec-purpose", "x-purpose", "x-moz")
"""Headers by which a browser says that it fetches what nobody has asked for yet."""
_AHEAD_WORDS = ("prefetch", "prerender", "preview")
_GIF: dict[str, Any] = {"content": {"image/gif": {"schema": {"type": "string"}}}}
Durable = Callable[[dict[int, list[Row]]], Awaitable[str | None]]


def tracker_routes(trackers: Trackers, durable: Durable) -> APIRouter:
    """Routes of impressions and clicks; `durable` waits for events to be kept."""
    router = APIRouter(prefix="/v1/t", tags=["data plane"])

    @router.head("/i/{token}", include_in_schema=False)
    @router.get(
        "/i/{token}",
        summary="Impression pixel of a decision",
        response_class=Response,
        responses={200: _GIF, 404: {"description": "Unknown, but a pixel", **_GIF}},
    )
    async def impression(token: str, request: Request) -> Response:
        status = 200
        try:
            tracked = trackers.read(IMPRESSION, token)
            if _is_asked_for(request):
                await _tell(trackers, durable, IMPRESSION, tracked)
        except UnknownTrackerError:
            status = 404  # a page shows the image all the same, and no broken one
        return Response(PIXEL, status, _HEADERS, "image/gif")

    @router.head("/c/{token}", include_in_schema=False)
    @router.get(
        "/c/{token}",
        summary="Click of a decision; leads to the landing URL of its variant",
        status_code=302,
        response_class=Response,
        responses={
            302: {"description": "To the landing URL"},
            404: {"description": "Unknown, or nowhere to go"},
            503: {"description": "Not ahead of a click: ask again when there is one"},
        },
    )
    async def click(token: str, request: Request) -> Response:
        try:
            tracked = trackers.read(CLICK, token)
            if tracked.landing_url is None:
                raise UnknownTrackerError
            if _is_ahead(request.headers):
                # A redirect fetched ahead would be followed later without us.
                raise ApiError(503, "not_ahead", "nobody has clicked yet; ask again.")
            if _is_asked_for(request):
                await _tell(trackers, durable, CLICK, tracked)
        except UnknownTrackerError:
            message = "the tracker must be one that a decision was answered with."
            raise ApiError(404, "unknown_tracker", message) from None
        headers = _HEADERS | {"location": tracked.landing_url}
        return Response(status_code=302, headers=headers)

    return router


async def _tell(
    trackers: Trackers, durable: Durable, kind: str, tracked: Tracked
) -> None:
    """Record the event, unless it was; whatever happens is counted, never an error."""
    judged = trackers.event(kind, tracked)
    if judged is None:
        count(TRACKED, kind, "repeated")
        return
    if judged.rejected:
        count(TRACKED, kind, "expired")
        return
    try:
        failure = await asyncio.wait_for(durable(judged.rows), WAIT_S)
    except TimeoutError:
        count(TRACKED, kind, "unconfirmed")
        return
    if failure is None:
        trackers.recorded(kind, tracked)
    count(TRACKED, kind, "lost" if failure else "recorded")


def _is_asked_for(request: Request) -> bool:
    """Whether somebody looks or clicks: no probe, and nothing fetched ahead."""
    return request.method == "GET" and not _is_ahead(request.headers)


def _is_ahead(headers: Mapping[str, str]) -> bool:
    told = " ".join(headers.get(name, "") for name in _AHEAD).lower()
    return any(word in told for word in _AHEAD_WORDS)
