"""Taking events: each is judged by its decision id alone, then made durable.

A batch is never refused for one bad event: that one is rejected by its index, with the
field, its value and the rule, and the others are accepted.
"""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from bandolero.documents import shown
from bandolero.micros import MAX_MICROS
from bandolero_service.errors import NOT_JSON, ApiError, field_named_in, not_decoded
from bandolero_service.ids import DecisionId, ForgedIdError, Signer
from bandolero_service.record import Row
from bandolero_service.settings import Settings
from bandolero_service.views import Views

MAX_EVENTS = 1000
MAX_ID_CHARACTERS = 128
MICROS = 1_000_000
MAX_VALUE = MAX_MICROS / MICROS
DAY_MS = 86_400_000
_USUAL_TYPES = frozenset(("impression", "click", "conversion", "refund", "retract"))
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")


class Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One event as a client sends it."""

    event_id: str
    decision_id: str
    type: str
    value: float = 1.0
    at: datetime | None = None
    retracts: str | None = None


class EventBatch(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/events`."""

    events: list[Event]


class LooseBatch(msgspec.Struct, forbid_unknown_fields=True):
    """The same, where not every item is an event: they are read one by one."""

    events: list[msgspec.Raw]


class Judged:
    """A batch after judging: rows by shard, and what was rejected."""

    def __init__(self) -> None:
        self.accepted = 0
        self.rows: dict[int, list[Row]] = defaultdict(list)
        self.rejected: list[dict[str, Any]] = []

    def reject(self, index: int, error: ApiError) -> None:
        """Note that an event was rejected."""
        self.rejected.append({"index": index, "error": error.detail()})


class EventDesk:
    """Judges the events of one worker."""

    def __init__(self, views: Views, settings: Settings) -> None:
        self.accepted = 0
        self.rejected: Counter[str] = Counter()
        self._views = views
        self._max_age_ms = round(settings.accept_events_days * DAY_MS)
        self._decode_batch = msgspec.json.Decoder(EventBatch).decode
        self._decode_loose = msgspec.json.Decoder(LooseBatch).decode
        self._decode = msgspec.json.Decoder(Event).decode

    def judge(self, tenant: str, events: Sequence[Event | ApiError]) -> Judged:
        """Sort a batch, as `read`, into rows for the log and rejections."""
        now_ms = time.time_ns() // 1_000_000
        judged, signer = Judged(), self._views.signer(tenant)
        for index, event in enumerate(events):
            try:
                if isinstance(event, ApiError):
                    raise event
                shard, row = self._row(tenant, signer, event, now_ms)
            except ApiError as error:
                self.rejected[error.code] += 1
                judged.reject(index, error)
            else:
                judged.rows[shard].append(row)
                judged.accepted += 1
        self.accepted += judged.accepted
        return judged

    def read(self, body: bytes) -> Sequence[Event | ApiError]:
        """The events of a body; where one is none, what is wrong with it.

        Raises
        ------
        ApiError
            When the body is no batch of events, or too large a one.
        """
        try:
            events = self._decode_batch(body).events
        except NOT_JSON:
            return self._one_by_one(body)
        _check_length(events)
        return events

    def _one_by_one(self, body: bytes) -> list[Event | ApiError]:
        try:
            items = self._decode_loose(body).events
        except NOT_JSON as error:
            raise not_decoded(error) from None
        _check_length(items)
        return [self._event(item) for item in items]

    def _event(self, item: msgspec.Raw) -> Event | ApiError:
        try:
            return self._decode(item)
        except NOT_JSON as error:
            field = field_named_in(str(error))
            return ApiError(422, "invalid_event", f"{error}.", field)

    def _row(
        self, tenant: str, signer: Signer, event: Event, now_ms: int
    ) -> tuple[int, Row]:
        """The event's shard and its row of `bandolero.log.EVENTS`."""
        _check(event)
        decision = self._decision(signer, event, now_ms)
        name = self._views.experiment_id(tenant, decision.key)
        return decision.shard, (
            tenant,
            event.event_id,
            event.decision_id,
            name,
            event.type,
            round(event.value * MICROS),
            event.retracts,
            decision.decided_at_ms,
            _event_time_ms(event.at, decision.decided_at_ms, now_ms),
            now_ms,
        )

    def _decision(self, signer: Signer, event: Event, now_ms: int) -> DecisionId:
        try:
            decision = signer.read(event.decision_id)
        except ForgedIdError:
            given = shown(event.decision_id)
            message = f"decision_id == {given}, must be one you were given."
            raise ApiError(422, "unknown_decision", message, "decision_id") from None
        if not decision.kept:
            message = (
                "decision_id was given without consent, must be of one that is kept."
            )
            raise ApiError(422, "no_consent", message, "decision_id")
        if now_ms - decision.decided_at_ms > self._max_age_ms:
            days = self._max_age_ms / DAY_MS
            message = f"decision_id is older than {days:g} days, must be younger."
            raise ApiError(422, "expired_decision", message, "decision_id")
        return decision


def _check_length(events: Sequence[Any]) -> None:
    if len(events) > MAX_EVENTS:
        message = f"events has {len(events)} items, must have <= {MAX_EVENTS}."
        raise ApiError(422, "too_many_events", message, "events")


def _check(event: Event) -> None:
    """Rules of single fields."""
    _check_id("event_id", event.event_id)
    if event.retracts is not None:
        _check_id("retracts", event.retracts)
    if event.type not in _USUAL_TYPES and not _TYPE.fullmatch(event.type):
        rule = "must be a lower-case word of at most 32 characters"
        raise _broken("type", event.type, rule)
    if event.type == "refund" and event.value <= 0.0:
        raise _broken("value", event.value, "must be > 0 in a refund, which subtracts")
    if not 0.0 <= event.value <= MAX_VALUE:  # not a number is not within
        rule = f"must lie between 0 and {MAX_VALUE:g}: a refund or a retract takes back"
        raise _broken("value", event.value, rule)
    if (event.type == "retract") != (event.retracts is not None):
        rule = "must name an event_id in a retract, and only there"
        raise _broken("retracts", event.retracts, rule)
    if event.retracts == event.event_id:
        raise _broken("retracts", event.retracts, "must name another event")
    if event.at is not None and event.at.tzinfo is None:
        raise _broken("at", event.at.isoformat(), "must have a time zone")


def _check_id(field: str, name: str) -> None:
    if not 1 <= len(name) <= MAX_ID_CHARACTERS:
        rule = f"must have 1 to {MAX_ID_CHARACTERS} characters, not {len(name)}"
        raise _broken(field, name, rule)


def _broken(field: str, value: object, rule: str) -> ApiError:
    return ApiError(422, "invalid_event", f"{field} == {shown(value)}, {rule}.", field)


def _event_time_ms(at: datetime | None, decided_at_ms: int, received_at_ms: int) -> int:
    """The client's time if it lies between decision and receipt, else the receipt's."""
    if at is not None:
        at_ms = int(at.timestamp() * 1000)
        if decided_at_ms <= at_ms <= received_at_ms:
            return at_ms
    return received_at_ms
