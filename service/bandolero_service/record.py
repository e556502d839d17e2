"""The record of a decision: what is the same for many, made once; the rest, per request.

An `Outcome` is everything about showing an arm that does not depend on the request. The
request path hands over an outcome and five values; the writer's thread joins them.
"""

from typing import Any, NamedTuple

from bandolero import __version__
from bandolero.fold import FALLBACK
from bandolero.snapshot import EXACT, Distribution, Drawn
from bandolero_service.views import View

Row = tuple[Any, ...]


class Outcome(NamedTuple):
    """What answer and record say of an arm drawn in a mode, whatever the request.

    tail: the answer after the decision id. mode_and_serving: for counting. The others
    are runs of columns of `bandolero.log.DECISIONS`.
    """

    tail: bytes
    mode_and_serving: tuple[str, str]
    tenant: tuple[str]
    experiment: tuple[str, int, str, str]
    snapshot: tuple[int, list[str] | None]
    distribution: tuple[float, list[float] | None, str | None, str, str]


class Decision(NamedTuple):
    """A decision on its way to the log."""

    outcome: Outcome
    decision_id: bytes
    unit: str | None
    decided_at_ms: int
    draw: float
    context: str | None

    def row(self) -> Row:
        """The decision as a row of `bandolero.log.DECISIONS`."""
        outcome, decision_id, unit, decided_at_ms, draw, context = self
        return (
            *outcome.tenant,
            decision_id.decode(),
            *outcome.experiment,
            unit,
            decided_at_ms,
            *outcome.snapshot,
            draw,
            *outcome.distribution,
            context,
        )


def outcome_of(
    view: View, drawn: Drawn, eligible: tuple[int, ...] | None, serving: str
) -> Outcome:
    """The outcome of drawing an arm.

    Parameters
    ----------
    eligible
        Arms that could be drawn; None where these are the snapshot's own.
    """
    record, snapshot = view.record, view.snapshot
    ids, probabilities, rule = _told(view, drawn, eligible)
    mode, propensity = drawn.mode, drawn.propensity
    return Outcome(
        tail=_tail(view, drawn, serving),
        mode_and_serving=(mode, serving),
        tenant=(record.tenant,),
        experiment=(
            record.spec.experiment,
            snapshot.spec_version,
            __version__,
            view.variant_id(drawn.arm),
        ),
        snapshot=(snapshot.version, ids),
        distribution=(propensity, probabilities, rule, mode, serving),
    )


def _tail(view: View, drawn: Drawn, serving: str) -> bytes:
    return (
        b'",%b,"propensity":%b,"snapshot_version":%d,"mode":"%b","serving":"%b","fallback":%b}'
        % (
            view.answers[drawn.arm],
            repr(drawn.propensity).encode(),
            view.snapshot.version,
            drawn.mode.encode(),
            serving.encode(),
            b"true" if drawn.mode == FALLBACK else b"false",
        )
    )


def _told(
    view: View, drawn: Drawn, eligible: tuple[int, ...] | None
) -> tuple[list[str] | None, list[float] | None, str | None]:
    """What a record says of its distribution: eligible, probabilities, rule.

    All null when it is the snapshot's own. A holdout, a narrowed set, a context that
    decided and a snapshot that was never published (cold) say it in full.
    """
    snapshot = view.snapshot
    if drawn.mode == FALLBACK:
        return [view.variant_id(drawn.arm)], [1.0], None
    if drawn.probabilities is not None:
        arms = snapshot.full.eligible if eligible is None else eligible
        ids = [view.variant_id(arm) for arm in arms]
        return ids, drawn.probabilities.tolist(), EXACT
    if eligible is None and drawn.mode != "holdout" and snapshot.version > 0:
        return None, None, None
    given: Distribution
    given = snapshot.full if eligible is None else snapshot.distribution(eligible)
    ids = [view.variant_id(arm) for arm in given.eligible]
    if drawn.mode == "holdout":
        return ids, [drawn.propensity] * len(ids), None
    return ids, [given.probabilities[arm] for arm in given.eligible], given.rule
