"""Deciding for a request: from memory to an answer, and a record behind.

Nothing here touches the store. The record handed to the writer holds the very
propensity the draw used.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from os import urandom
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np

from bandolero.draws import NONCE_BYTES
from bandolero.experiment import ExperimentRecord
from bandolero.fold import FALLBACK
from bandolero.log import MAX_UNIT_CHARACTERS
from bandolero.snapshot import Drawn, decide, decide_alike
from bandolero_service.contexts import MAX_CONTEXT_BYTES, Context, read_context
from bandolero_service.errors import (
    NOT_JSON,
    ApiError,
    not_decoded,
    unknown_experiment,
)
from bandolero_service.record import Outcome, outcome_of
from bandolero_service.trackers import with_trackers
from bandolero_service.views import View, Views
from bandolero_service.writer import LogWriter

NONCES_AT_ONCE = 1024
_AN_OBJECT = msgspec.Meta(extra_json_schema={"type": ["object", "null"]})


Consent = Literal["full", "contextual", "none"]


class DecideRequest(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Body of `POST /v1/decide`; all but `experiment` optional.

    The context stays text until its experiment's view reads it: few are new to it.
    """

    experiment: str
    unit: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    context: Annotated[msgspec.Raw | msgspec.UnsetType, _AN_OBJECT] = msgspec.UNSET
    eligible: list[str] | None = None
    consent: Consent = "full"
    trackers: bool = False

    @property
    def is_usual(self) -> bool:
        """Whether it asks for nothing that needs a look of its own."""
        return self.consent == "full" and self.eligible is None and not self.trackers


class Decider:
    """Answers decide requests of one worker."""

    def __init__(self, views: Views, writer: LogWriter, public_url: str = "") -> None:
        self.by_mode: Counter[tuple[str, str]] = Counter()
        self.ignored: Counter[str] = Counter()
        self._views = views
        self._public_url = public_url
        self._decided = writer.decided
        self._all_decided = writer.all_decided
        self._nonces = _fresh_nonces()

    def answer(self, tenant: str, request: DecideRequest) -> bytes:
        """Decide and give the JSON of the answer.

        Raises
        ------
        ApiError
            When the request cannot be served; nothing is recorded then.
        """
        return self._answer(tenant, request, time.time_ns() // 1_000_000)

    def answers(self, tenant: str, requests: Sequence[DecideRequest]) -> list[bytes]:
        """Decide for each at the same time; what is refused gets its error in place."""
        at_ms = time.time_ns() // 1_000_000
        answers = [b""] * len(requests)
        usual: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            if request.is_usual:
                usual[request.experiment].append(i)
            else:
                answers[i] = self._answer_or_refusal(tenant, request, at_ms)
        for places in usual.values():
            some = self._alike(tenant, [requests[i] for i in places], at_ms)
            for i, answer in zip(places, some, strict=True):
                answers[i] = answer
        return answers

    def _alike(
        self, tenant: str, requests: list[DecideRequest], at_ms: int
    ) -> list[bytes]:
        """Answers to usual requests for one experiment: by column, where that will do."""
        view = self._views.of(tenant).get(requests[0].experiment)
        units = [request.unit for request in requests]
        longest = max(map(len, filter(None, units)), default=0)
        if view is not None and view.is_alike and longest <= MAX_UNIT_CHARACTERS:
            try:
                contexts = [_context_of(view, request) for request in requests]
                return self._by_column(view, units, contexts, at_ms)
            except (ApiError, *NOT_JSON):
                pass  # one of them; the others must not suffer
        return [self._answer_or_refusal(tenant, each, at_ms) for each in requests]

    def _by_column(
        self,
        view: View,
        units: list[str | None],
        contexts: list[Context],
        at_ms: int,
    ) -> list[bytes]:
        """What `_answer` does, for all of an experiment at once."""
        snapshot, signer = view.snapshot, view.signer
        nonces = list(islice(self._nonces, len(units)))
        arms, draws = decide_alike(snapshot, nonces)
        shares, mode = snapshot.full.probabilities, snapshot.mode
        outcome_of_arm = {
            arm: self._outcome(view, Drawn(arm, shares[arm], 0.0, mode), None)
            for arm in set(arms)
        }
        outcomes = [outcome_of_arm[arm] for arm in arms]
        key, version = snapshot.key, snapshot.version
        ids = signer.mint_alike(view.shard, key, at_ms, version, arms, nonces)
        hide = signer.pseudonym
        hidden = [None if unit is None else hide(unit) for unit in units]
        kept, times = [context.kept for context in contexts], [at_ms] * len(units)
        columns = outcomes, ids, hidden, times, draws, kept
        self._all_decided(zip(*columns, strict=True))
        self.by_mode[outcomes[0].mode_and_serving] += len(outcomes)
        for context in contexts:
            if context.ignored:
                self.ignored.update(context.ignored)
        return [
            b'{"decision_id":"' + decision_id + outcome.tail
            for decision_id, outcome in zip(ids, outcomes, strict=True)
        ]

    def _answer_or_refusal(
        self, tenant: str, request: DecideRequest, at_ms: int
    ) -> bytes:
        try:
            return self._answer(tenant, request, at_ms)
        except ApiError as error:
            return msgspec.json.encode(error.body())

    def _answer(self, tenant: str, request: DecideRequest, at_ms: int) -> bytes:
        view = self._views.of(tenant).get(request.experiment)
        if view is None:
            raise unknown_experiment(request.experiment)
        consent, status = request.consent, view.record.status
        if status != "running" and status != "paused":
            raise _not_running(view.record)
        unit = request.unit if consent == "full" else None
        if unit is not None and len(unit) > MAX_UNIT_CHARACTERS:
            raise _too_long(unit)
        context = self._context(view, request)
        eligible = view.eligible
        if request.eligible is not None:
            eligible = self._narrowed(view, request.eligible)
        nonce, snapshot, kept = next(self._nonces), view.snapshot, consent != "none"
        if status == "paused" or not kept or eligible == ():
            drawn = Drawn(_fallback_arm(view, eligible), 1.0, 0.0, FALLBACK)
        else:
            drawn = decide(snapshot, nonce, unit, eligible, context.given)
        decision_id = view.signer.mint(
            view.shard, snapshot.key, at_ms, snapshot.version, drawn.arm, nonce, kept
        )
        outcome = self._outcome(view, drawn, eligible)
        self.by_mode[outcome.mode_and_serving] += 1
        if kept:
            draw, pseudonym = _stored(view, nonce, unit, drawn.draw)
            record = outcome, decision_id, pseudonym, at_ms, draw, context.kept
            self._decided(record)
        answer = b'{"decision_id":"' + decision_id + outcome.tail
        if request.trackers and kept:
            return with_trackers(answer, view, decision_id, drawn.arm, self._public_url)
        return answer

    def _context(self, view: View, request: DecideRequest) -> Context:
        """What a request says of itself; what of it is ignored is counted."""
        try:
            context = _context_of(view, request)
        except NOT_JSON as error:
            raise not_decoded(error, "context") from None
        if context.ignored:
            self.ignored.update(context.ignored)
        return context

    def _outcome(
        self, view: View, drawn: Drawn, eligible: tuple[int, ...] | None
    ) -> Outcome:
        """The outcome of a draw; remembered where it is from the snapshot's own set."""
        serving = "stale" if view.shard in self._views.stale_shards else "live"
        if view.snapshot.version == 0:
            serving = "cold"
        if eligible is not None or drawn.probabilities is not None:
            return outcome_of(view, drawn, eligible, serving)
        key = (drawn.arm, drawn.mode, serving)
        outcome = view.outcomes.get(key)
        if outcome is None:
            outcome = outcome_of(view, drawn, None, serving)
            view.outcomes[key] = outcome
        return outcome

    def _narrowed(self, view: View, wanted: list[str]) -> tuple[int, ...]:
        """Active arms among those wanted; unknown and retired ids are counted."""
        arms = {view.arms[v] for v in wanted if v in view.arms}
        if len(arms) < len(wanted):
            self.ignored["eligible"] += 1
        if not arms:
            message = f"eligible == {wanted[:5]!r}, must name an active variant."
            raise ApiError(422, "nothing_eligible", message, "eligible")
        return tuple(sorted(arms))


def no_request(error: Exception) -> ApiError:
    """What is wrong with the body of a decide request; of a consent, what it may be."""
    refused = not_decoded(error)
    if refused.field != "consent":
        return refused
    rule = f"must be one of {', '.join(get_args(Consent))}"
    message = f"{refused.message.removesuffix('.')}, {rule}."
    return ApiError(refused.status, refused.code, message, refused.field)


def _fresh_nonces() -> Iterator[bytes]:
    """Random bytes for ever, drawn from the system a page at a time."""
    while True:
        page = urandom(NONCES_AT_ONCE * NONCE_BYTES)
        yield from np.frombuffer(page, f"V{NONCE_BYTES}").tolist()


def _stored(
    view: View, nonce: bytes, unit: str | None, draw: float
) -> tuple[float, str | None]:
    """What is stored of a decision's draw and unit."""
    if unit is None:
        return draw, None
    if view.is_sticky:
        draw = view.signer.masked(nonce, draw)
    return draw, view.signer.pseudonym(unit)


def _fallback_arm(view: View, eligible: tuple[int, ...] | None) -> int:
    """The control where it may be shown, else the first that may.

    Where none that the snapshot knows may be, those that it does not know yet may.
    """
    allowed = view.snapshot.full.eligible if eligible is None else eligible
    control = view.record.spec.control_arm
    allowed = allowed or view.record.active_arms
    return control if control in allowed else allowed[0]


def _context_of(view: View, request: DecideRequest) -> Context:
    """The context as the view reads it; without consent it is only checked."""
    if request.context is msgspec.UNSET:
        return view.no_context
    text = bytes(request.context)
    if len(text) > MAX_CONTEXT_BYTES:
        rule = f"must have at most {MAX_CONTEXT_BYTES}"
        message = f"context has {len(text)} bytes, {rule}."
        raise ApiError(422, "invalid_request", message, "context")
    if request.consent == "none":
        read_context(text)
        return view.no_context
    return view.context(text)


def _too_long(unit: str) -> ApiError:
    rule = f"must have at most {MAX_UNIT_CHARACTERS}"  # and is not repeated
    message = f"unit has {len(unit)} characters, {rule}."
    return ApiError(422, "invalid_request", message, "unit")


def _not_running(record: ExperimentRecord) -> ApiError:
    message = (
        f"experiment == {record.experiment_id!r} is {record.status}, must be running."
    )
    return ApiError(409, f"experiment_{record.status}", message, "experiment")
