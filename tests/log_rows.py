"""Rows of decisions and events as a worker hands them to its writer."""

from typing import Any

from bandolero.log import DECISIONS, EVENTS

Row = tuple[Any, ...]


def decision_row(decision_id: str, **given: Any) -> Row:
    """A decision of acme's experiment hats; fields not given are plausible."""
    row: dict[str, Any] = dict.fromkeys(DECISIONS.names)
    row |= {
        "tenant_id": "acme",
        "decision_id": decision_id,
        "experiment_id": "hats",
        "spec_version": 1,
        "engine_version": "0",
        "variant_id": "v0",
        "decided_at_ms": 1_000,
        "snapshot_version": 1,
        "draw": 0.5,
        "propensity": 0.5,
        "mode": "explore",
        "serving": "live",
    }
    return tuple((row | given).values())


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
