"""`/v1/decide`, `/v1/decide/batch` and `/v1/events` as plain ASGI routes.

These carry the traffic, so they skip the framework: a header look-up, a typed decode, an
answer of joined bytes. Everything else goes on to the application behind.
"""

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from time import monotonic, perf_counter_ns
from typing import Any

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from bandolero_service.api.bodies import refuse_encoded
from bandolero_service.api.gate import Gate
from bandolero_service.api.one_write import OneWrite
from bandolero_service.api.request_ids import REQUEST_ID, Traced, given_id, new_id
from bandolero_service.api.seals import Sealed
from bandolero_service.decide import Decider, DecideRequest, no_request
from bandolero_service.errors import (
    NOT_JSON,
    ApiError,
    cut_off,
    not_decoded,
    store_down,
    too_many,
)
from bandolero_service.events import EventDesk
from bandolero_service.logs import Trace
from bandolero_service.metrics import FAULTS, REFUSED, count
from bandolero_service.rates import Meter, parse_rate
from bandolero_service.settings import Settings
from bandolero_service.store import ApiKey, StoreDownError
from bandolero_service.views import Views
from bandolero_service.writer import LogWriter

MAX_BATCH = 1000
LATENCY_BOUNDS_US = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000, 100_000)
CONTENT_ENCODING = b"content-encoding"
_JSON = (b"content-type", b"application/json")
Headers = Sequence[tuple[bytes, bytes]]
log = logging.getLogger(__name__)


class DecideBatch(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/decide/batch`."""

    requests: list[DecideRequest]


class LooseBatch(msgspec.Struct, forbid_unknown_fields=True):
    """The same, where not every item is a request: they are read one by one."""

    requests: list[msgspec.Raw]


Answer = tuple[int, bytes]
Handler = Callable[[ApiKey, bytes], Answer | Awaitable[Answer]]


class DataPlane:
    """The ASGI application: hot routes here, the rest by `app`."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        views: Views,
        writer: LogWriter,
        settings: Settings,
    ) -> None:
        self.decider = Decider(views, writer, settings.public_url)
        self.desk = EventDesk(views, settings)
        self.latency_us = [0] * (len(LATENCY_BOUNDS_US) + 1)
        self.latency_sum_us = 0
        self._app = Traced(Sealed(app))
        self._gate = gate
        self._meters: dict[str, Meter] = {}
        self._workers = settings.workers
        self._one_write = OneWrite()
        self._views = views
        self._writer = writer
        self._max_body_bytes = settings.max_body_bytes
        self._decode_request = msgspec.json.Decoder(DecideRequest).decode
        self._decode_batch = msgspec.json.Decoder(DecideBatch).decode
        self._decode_loose = msgspec.json.Decoder(LooseBatch).decode
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/decide": ("decide", self._decide),
            "/v1/decide/batch": ("decide", self._decide_batch),
            "/v1/events": ("events", self._events),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None and _announced_bytes(scope) <= self._max_body_bytes:
            await self._app(scope, receive, send)
            return
        more: Headers = ()
        given = dict(scope["headers"])
        request_id = given_id(scope["headers"]) if REQUEST_ID in given else None
        key: ApiKey | None = None
        try:
            if route is None:  # here, because the framework would refuse in plain text
                raise too_large(self._max_body_bytes)
            if scope["method"] != "POST":
                raise ApiError(405, "method_not_allowed", "the method must be POST.")
            header = given.get(b"authorization", b"")
            key = self._views.authorised.get((header, route[0]))
            if key is None:
                key = await self._check(scope, header, route[0])
            if key.rate:
                more = self._metered(key)
            if CONTENT_ENCODING in given:
                refuse_encoded(given[CONTENT_ENCODING].decode("latin-1"))
            message = await receive()
            body = message.get("body", b"")
            if message.get("more_body", False) or len(body) > self._max_body_bytes:
                body = await self._rest(body, receive)
            answer = route[1](key, body)
            status, content = answer if isinstance(answer, tuple) else await answer
        except ApiError as error:
            count(REFUSED, error.code)
            status, content = error.status, msgspec.json.encode(error.body())
            more = [*more, *error.headers()]
        except StoreDownError:  # only an API key seen for the first time asks the store
            count(REFUSED, "store_down")
            status, content = 503, msgspec.json.encode(store_down().body())
            more = store_down().headers()
        except Exception:  # a fault of ours must not cut the connection without a word
            count(FAULTS)
            request_id = request_id or new_id()
            about = Trace(request_id.decode(), scope["path"], key and key.key_id)
            log.exception("POST %s failed", about.route, extra=asdict(about))
            fault = ApiError(500, "internal", "something failed on our side.")
            status, content = 500, msgspec.json.encode(fault.body())
        usual = status < 300 and request_id is None and not more
        if usual and self._one_write.answered(send, status, content):
            return
        headers = [_JSON, (b"content-length", b"%d" % len(content)), *more]
        if request_id is not None or status >= 400:
            headers.append((REQUEST_ID, request_id or new_id()))
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": content})

    def _decide(self, key: ApiKey, body: bytes) -> Answer:
        began = perf_counter_ns()
        try:
            request = self._decode_request(body)
        except NOT_JSON as error:
            raise no_request(error) from None
        answer = self.decider.answer(key.tenant, request)
        us = (perf_counter_ns() - began) // 1000
        self.latency_sum_us += us
        self.latency_us[bisect_left(LATENCY_BOUNDS_US, us)] += 1
        return 200, answer

    def _decide_batch(self, key: ApiKey, body: bytes) -> Answer:
        try:
            requests = self._decode_batch(body).requests
        except NOT_JSON:
            answers = self._one_by_one(key.tenant, body)
        else:
            _check_length(requests)
            answers = self.decider.answers(key.tenant, requests)
        return 200, b'{"decisions":[' + b",".join(answers) + b"]}"

    def _one_by_one(self, tenant: str, body: bytes) -> list[bytes]:
        """Answers to a batch in which some item is no request, with its error in place."""
        try:
            items = self._decode_loose(body).requests
        except NOT_JSON as error:
            raise not_decoded(error) from None
        _check_length(items)
        return [self._answer_or_refusal(tenant, item) for item in items]

    def _answer_or_refusal(self, tenant: str, item: msgspec.Raw) -> bytes:
        try:
            return self.decider.answers(tenant, [self._decode_request(item)])[0]
        except NOT_JSON as error:
            return msgspec.json.encode(no_request(error).body())

    async def _events(self, key: ApiKey, body: bytes) -> Answer:
        judged = self.desk.judge(key.tenant, self.desk.read(body))
        if judged.accepted:
            failure = await self.durable(judged.rows)
            if failure is not None:
                message = (
                    f"events could not be made durable: {failure}; send them again."
                )
                raise ApiError(503, "not_durable", message)
        told = {"accepted": judged.accepted, "rejected": judged.rejected}
        return 202, msgspec.json.encode(told)

    async def durable(self, rows: dict[int, list[tuple[Any, ...]]]) -> str | None:
        """Wait until events are in the log or the spool; why not, where they are not."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str | None] = loop.create_future()

        def done(failure: str | None) -> None:
            loop.call_soon_threadsafe(_resolve, future, failure)

        self._writer.told(rows, done)
        return await future

    async def _check(self, scope: Scope, header: bytes, wanted: str) -> ApiKey:
        """Check a header for the first time; a key made a moment ago asks the store."""
        address, _ = scope["client"] or ("", 0)
        return await asyncio.to_thread(self._gate.key, header, address, wanted)

    def _metered(self, key: ApiKey) -> Headers:
        """Count a request of a key with a rate; what the answer says of it."""
        meter = self._meters.get(key.key_id)
        if meter is None:
            meter = Meter(parse_rate(key.rate), self._workers)
            self._meters[key.key_id] = meter
        quota = meter.take(monotonic())
        if not quota.allowed:
            raise too_many("requests of one key", quota)
        return quota.headers()

    async def _rest(self, body: bytes, receive: Receive) -> bytes:
        """The whole body, refused as soon as it is known to be too large."""
        while len(body) <= self._max_body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise cut_off()
            body += bytes(message.get("body", b""))
            if not message.get("more_body", False):
                break
        if len(body) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        return body


def too_large(max_bytes: int) -> ApiError:
    """A body past its bound."""
    return ApiError(413, "too_large", f"the body must have at most {max_bytes} bytes.")


def _check_length(requests: Sequence[Any]) -> None:
    if len(requests) > MAX_BATCH:
        message = f"requests has {len(requests)} items, must have <= {MAX_BATCH}."
        raise ApiError(422, "too_many_requests_in_batch", message, "requests")


def _announced_bytes(scope: Scope) -> int:
    """The length of the body, where a header tells it."""
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _resolve(future: "asyncio.Future[str | None]", failure: str | None) -> None:
    if not future.done():
        future.set_result(failure)
