"""Decisions and events as a worker hands them to its writer."""

from typing import Any

from bandolero.log import EVENTS
from bandolero_service.record import Decision, Outcome, Row, Told


def decision(
    decision_id: str, mode: str = "explore", variant_id: str = "v0", shard: int = 1
) -> Decision:
    """A decision of acme's experiment hats."""
    told = Told(
        tenant_id="acme",
        experiment_id="hats",
        spec_version=1,
        engine_version="0",
        variant_id=variant_id,
        snapshot_version=1,
        eligible=None,
        rule=None,
        mode=mode,
        serving="live",
    )
    outcome = Outcome(shard, b"", (mode, "live"), told, 0.5, None)
    return outcome, decision_id.encode(), None, 1_000, 0.5, None


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
