"""Decisions and events as a worker hands them to its writer."""

from typing import Any

from bandolero.log import EVENTS
from bandolero_service.record import Decision, Outcome, Row


def decision(
    decision_id: str, mode: str = "explore", variant_id: str = "v0"
) -> Decision:
    """A decision of acme's experiment hats."""
    outcome = Outcome(
        tail=b"",
        mode_and_serving=(mode, "live"),
        tenant=("acme",),
        experiment=("hats", 1, "0", variant_id),
        snapshot=(1, None),
        distribution=(0.5, None, None, mode, "live"),
    )
    return Decision(outcome, decision_id.encode(), None, 1_000, 0.5, None)


def event_row(event_id: str, **given: Any) -> Row:
    """A click of acme's experiment hats; fields not given are plausible."""
    row: dict[str, Any] = dict.fromkeys(EVENTS.names)
    row |= {
        "tenant_id": "acme",
        "event_id": event_id,
        "decision_id": "d",
        "experiment_id": "hats",
        "type": "click",
        "value_micros": 1_000_000,
        "decided_at_ms": 1_000,
        "at_ms": 1_500,
        "received_at_ms": 1_600,
    }
    return tuple((row | given).values())
