"""Deciding for a request: from memory to an answer, and a record behind.

Nothing here touches the store. The record handed to the writer holds the very
propensity the draw used.
"""

import time
from collections import Counter
from os import urandom
from typing import Any, Literal

import msgspec

from bandolero.draws import NONCE_BYTES
from bandolero.experiment import ExperimentRecord
from bandolero.fold import FALLBACK
from bandolero.snapshot import Drawn, decide
from bandolero_service.errors import ApiError, unknown_experiment
from bandolero_service.record import Decision, Outcome, outcome_of
from bandolero_service.trackers import with_trackers
from bandolero_service.views import View, Views
from bandolero_service.writer import LogWriter

MAX_UNIT_CHARACTERS = 256
_NONCE_POOL = 1024 * NONCE_BYTES


class DecideRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /v1/decide`; all but `experiment` optional."""

    experiment: str
    unit: str | None = None
    context: dict[str, Any] | None = None
    eligible: list[str] | None = None
    consent: Literal["full", "contextual", "none"] = "full"
    trackers: bool = False


class Decider:
    """Answers decide requests of one worker."""

    def __init__(self, views: Views, writer: LogWriter, public_url: str = "") -> None:
        self.by_mode: Counter[tuple[str, str]] = Counter()
        self.ignored: Counter[str] = Counter()
        self._views = views
        self._writer = writer
        self._public_url = public_url
        self._pool = b""
        self._used = 0

    def answer(self, tenant: str, request: DecideRequest) -> bytes:
        """Decide and give the JSON of the answer.

        Raises
        ------
        ApiError
            When the request cannot be served; nothing is recorded then.
        """
        view = self._views.view(tenant, request.experiment)
        if view is None:
            raise unknown_experiment(request.experiment)
        status = view.record.status
        if status != "running" and status != "paused":
            raise _not_running(view.record)
        unit = request.unit if request.consent == "full" else None
        if unit is not None and len(unit) > MAX_UNIT_CHARACTERS:
            rule = f"must have at most {MAX_UNIT_CHARACTERS}"  # and is not repeated
            message = f"unit has {len(unit)} characters, {rule}."
            raise ApiError(422, "invalid_request", message, "unit")
        eligible = view.eligible
        if request.eligible is not None:
            eligible = self._narrowed(view, request.eligible)
        nonce = self._nonce()
        if status == "paused" or request.consent == "none":
            drawn = Drawn(_fallback_arm(view, eligible), 1.0, 0.0, FALLBACK)
        else:
            drawn = decide(view.snapshot, nonce, unit, eligible, request.context)
        snapshot = view.snapshot
        at_ms = time.time_ns() // 1_000_000
        kept = request.consent != "none"
        decision_id = view.signer.mint(
            view.shard, snapshot.key, at_ms, snapshot.version, drawn.arm, nonce, kept
        )
        outcome = self._outcome(view, drawn, eligible)
        if kept:
            draw, pseudonym = drawn.draw, None
            if unit is not None:
                draw, pseudonym = _hidden(view, nonce, unit, draw)
            context = self._context(view, request.context)
            self._writer.decided(
                view.shard,
                Decision(outcome, decision_id, pseudonym, at_ms, draw, context),
            )
        self.by_mode[outcome.mode_and_serving] += 1
        answer = b'{"decision_id":"' + decision_id + outcome.tail
        if request.trackers and kept:
            return with_trackers(answer, view, decision_id, drawn.arm, self._public_url)
        return answer

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

    def _context(self, view: View, given: dict[str, Any] | None) -> str | None:
        """The declared fields as JSON; undeclared ones are counted."""
        if given and not given.keys() <= view.context_names:
            self.ignored["context"] += 1
        return view.encode_context(given or {}) if view.context_names else None

    def _narrowed(self, view: View, wanted: list[str]) -> tuple[int, ...]:
        """Active arms among those wanted; unknown and retired ids are counted."""
        arms = {view.arms[v] for v in wanted if v in view.arms}
        if len(arms) < len(wanted):
            self.ignored["eligible"] += 1
        if not arms:
            message = f"eligible == {wanted[:5]!r}, must name an active variant."
            raise ApiError(422, "nothing_eligible", message, "eligible")
        return tuple(sorted(arms))

    def _nonce(self) -> bytes:
        """Fresh random bytes, drawn from the system a page at a time."""
        if self._used >= len(self._pool):
            self._pool, self._used = urandom(_NONCE_POOL), 0
        nonce = self._pool[self._used : self._used + NONCE_BYTES]
        self._used += NONCE_BYTES
        return nonce


def _hidden(view: View, nonce: bytes, unit: str, draw: float) -> tuple[float, str]:
    """What is stored of a decision's draw and unit, where it has a unit."""
    sticky = view.snapshot.experiment.allocation.sticky == "unit"
    stored = view.signer.masked(nonce, draw) if sticky else draw
    return stored, view.signer.pseudonym(unit)


def _fallback_arm(view: View, eligible: tuple[int, ...] | None) -> int:
    """The control where it may be shown, else the first that may."""
    allowed = view.snapshot.full.eligible if eligible is None else eligible
    control = view.record.spec.control_arm
    return control if control in allowed or not allowed else allowed[0]


def _not_running(record: ExperimentRecord) -> ApiError:
    message = (
        f"experiment == {record.experiment_id!r} is {record.status}, must be running."
    )
    return ApiError(409, f"experiment_{record.status}", message, "experiment")
