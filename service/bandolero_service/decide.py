"""Deciding for a request: from memory to an answer, and a record behind.

Nothing here touches the store. The record handed to the writer holds the very
propensity the draw used.
"""

import time
from collections import Counter
from os import urandom
from typing import Any, Literal

import msgspec

from bandolero import __version__
from bandolero.draws import NONCE_BYTES
from bandolero.experiment import ExperimentRecord
from bandolero.features import known_context
from bandolero.fold import FALLBACK
from bandolero.snapshot import Distribution, Drawn, decide
from bandolero_service.errors import ApiError, unknown_experiment
from bandolero_service.ids import DecisionId
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


class Decider:
    """Answers decide requests of one worker."""

    def __init__(self, views: Views, writer: LogWriter) -> None:
        self.by_mode: Counter[tuple[str, str]] = Counter()
        self.ignored: Counter[str] = Counter()
        self._views = views
        self._writer = writer
        self._pool = b""
        self._used = 0
        self._encode = msgspec.json.Encoder().encode

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
            rule = f"must have at most {MAX_UNIT_CHARACTERS} characters."
            raise ApiError(
                422, "invalid_request", f"unit == {unit[:20]!r}…, {rule}", "unit"
            )
        eligible = view.eligible
        if request.eligible is not None:
            eligible = self._narrowed(view, request.eligible)
        nonce = self._nonce()
        if status == "paused" or request.consent == "none":
            drawn = Drawn(_fallback_arm(view, eligible), 1.0, 0.0, FALLBACK)
        else:
            drawn = decide(view.snapshot, nonce, unit, eligible)
        at_ms = time.time_ns() // 1_000_000
        snapshot = view.snapshot
        decision_id = view.signer.mint(
            DecisionId(
                view.shard, snapshot.key, at_ms, snapshot.version, drawn.arm, nonce
            )
        )
        serving = "cold" if snapshot.version == 0 else self.serving
        if request.consent != "none":
            row = self._row(view, request, drawn, decision_id, at_ms, eligible, serving)
            self._writer.decided(view.shard, row)
        self.by_mode[drawn.mode, serving] += 1
        return (
            b'{"decision_id":"%b",%b,"propensity":%b,"snapshot_version":%d,"mode":"%b","serving":"%b","fallback":%b}'
            % (
                decision_id.encode(),
                view.answers[drawn.arm],
                repr(drawn.propensity).encode(),
                snapshot.version,
                drawn.mode.encode(),
                serving.encode(),
                b"true" if drawn.mode == FALLBACK else b"false",
            )
        )

    @property
    def serving(self) -> str:
        """`live`, or `stale` when the store has not been seen for a while."""
        return "stale" if self._views.stale else "live"

    def _row(
        self,
        view: View,
        request: DecideRequest,
        drawn: Drawn,
        decision_id: str,
        at_ms: int,
        eligible: tuple[int, ...] | None,
        serving: str,
    ) -> tuple[Any, ...]:
        """The decision as a row of `bandolero.log.DECISIONS`."""
        record, snapshot = view.record, view.snapshot
        unit = request.unit if request.consent == "full" else None
        told = _told(view, drawn, eligible)
        return (
            record.tenant,
            decision_id,
            record.spec.experiment,
            snapshot.spec_version,
            __version__,
            view.variant_id(drawn.arm),
            None if unit is None else view.signer.pseudonym(unit),
            at_ms,
            snapshot.version,
            *told[:1],
            drawn.draw,
            drawn.propensity,
            *told[1:],
            drawn.mode,
            serving,
            self._context(record, request.context),
        )

    def _context(
        self, record: ExperimentRecord, given: dict[str, Any] | None
    ) -> str | None:
        """The declared fields as JSON; undeclared ones are counted."""
        schema = record.spec.context
        known = known_context(schema, given or {})
        if given and not given.keys() <= known.keys():
            self.ignored["context"] += 1
        if not schema:
            return None
        encoded: bytes = self._encode(known)
        return encoded.decode()

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


def _told(
    view: View, drawn: Drawn, eligible: tuple[int, ...] | None
) -> tuple[list[str] | None, list[float] | None, str | None]:
    """What a record says of its distribution: eligible, probabilities, rule.

    All null when it is the snapshot's own. A holdout, a narrowed set and a snapshot that
    was never published (cold) say it in full.
    """
    snapshot = view.snapshot
    if drawn.mode == FALLBACK:
        return [view.variant_id(drawn.arm)], [1.0], None
    if eligible is None and drawn.mode != "holdout" and snapshot.version > 0:
        return None, None, None
    given: Distribution
    given = snapshot.full if eligible is None else snapshot.distribution(eligible)
    ids = [view.variant_id(arm) for arm in given.eligible]
    if drawn.mode == "holdout":
        return ids, [drawn.propensity] * len(ids), None
    return ids, [given.probabilities[arm] for arm in given.eligible], given.rule


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
