"""Trackers: URLs that let a page tell an impression or a click without a key.

A secret key cannot sit in a page, so the answer to a decide request carries two URLs on
request, each good for one event of that decision and nothing else. The landing URL of a
click is the variant's own; nothing of a tracker's query is ever read.
"""

from typing import NamedTuple

import msgspec

from bandolero.landing import landing_url
from bandolero_service.events import Event, EventDesk, Judged
from bandolero_service.ids import ForgedIdError, key_in
from bandolero_service.views import View, Views

IMPRESSION, CLICK = "impression", "click"
PATHS = {IMPRESSION: "/v1/t/i/", CLICK: "/v1/t/c/"}
MAX_REMEMBERED = 100_000


class Tracked(NamedTuple):
    """What a good token names: a decision of a tenant, and where its click leads."""

    tenant: str
    decision_id: str
    landing_url: str | None


class UnknownTrackerError(LookupError):
    """A token that was not given out."""


class Trackers:
    """Reads the tokens that come in, and makes events of them, each once."""

    def __init__(self, views: Views, desk: EventDesk) -> None:
        self._views = views
        self._desk = desk
        self._recorded: dict[str, None] = {}

    def read(self, kind: str, token: str) -> Tracked:
        """What a token of this kind names.

        Raises
        ------
        UnknownTrackerError
            When nobody was given it for this.
        """
        key = key_in(token)
        view = None if key is None else self._views.view_of_key(key)
        if view is None:
            raise UnknownTrackerError
        try:
            decision_id = view.signer.tracked(kind.encode(), token)
        except ForgedIdError:
            raise UnknownTrackerError from None
        variants = view.record.spec.variants
        arm = view.signer.read(decision_id).arm
        known = arm < len(variants)  # a variant added a moment ago may not be
        url = landing_url(variants[arm].creative) if known else None
        return Tracked(view.record.tenant, decision_id, url)

    def event(self, kind: str, tracked: Tracked) -> Judged | None:
        """The event that a request tells; None where it was told before.

        It is rejected where the decision is too old for events, and for nothing else:
        the token was good.
        """
        event_id = f"tracker-{kind}"
        if f"{event_id} {tracked.decision_id}" in self._recorded:
            return None
        told = Event(event_id, tracked.decision_id, kind)
        return self._desk.judge(tracked.tenant, [told])

    def recorded(self, kind: str, tracked: Tracked) -> None:
        """Remember that an event is durable, so that its repeats cost nothing.

        The newest only: an event told again is still one, being of the same id.
        """
        self._recorded[f"tracker-{kind} {tracked.decision_id}"] = None
        if len(self._recorded) > MAX_REMEMBERED:
            del self._recorded[next(iter(self._recorded))]


def with_trackers(
    answer: bytes, view: View, decision_id: bytes, arm: int, public_url: str
) -> bytes:
    """An answer with the trackers of its decision; a click where it can lead somewhere."""
    kinds = [IMPRESSION]
    if landing_url(view.record.spec.variants[arm].creative) is not None:
        kinds.append(CLICK)
    base = public_url.rstrip("/")
    urls = {
        kind: base
        + PATHS[kind]
        + view.signer.token(kind.encode(), decision_id).decode()
        for kind in kinds
    }
    return answer[:-1] + b',"trackers":' + msgspec.json.encode(urls) + b"}"
