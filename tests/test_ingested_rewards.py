"""What the audit of a night says of rewards that came by files."""

from pathlib import Path

from bandolero.lake.catalog import Lake
from bandolero.lake.refresh import refresh
from bandolero.lake.traffic import FAST, TrafficRules
from strategies import START_MS, decision, event
from test_refresh import SALES, record_of
from test_refresh_night import ingest


def test_corrections_of_ingested_rewards_are_listed(
    tmp_path: Path,
) -> None:
    """Nobody learned them, so what refunds and retractions changed is told, and no more;
    what is taken out was a trial before."""
    lake = Lake(tmp_path)
    made = [decision(decision_id=f"i{i}") for i in range(4)]
    ingest(lake, "decisions", made)
    bought = {"type": "conversion", "value_micros": 5_000_000}
    told = [event(decision_id=f"i{i}", **bought) for i in range(3)]
    told += [
        event(decision_id="i0", event_id="e2", type="retract", retracts="e1"),
        event(decision_id="i1", event_id="e2", type="refund", value_micros=2_000_000),
        event(decision_id="i3", event_id="e9", at_ms=START_MS + 1),
    ]
    ingest(lake, "events", told)
    rules = TrafficRules(fastest_click_ms=100)
    found = refresh(lake, [record_of(SALES)], rules=rules)
    rows = {
        row["decision_id"]: (
            row["was_trial"],
            row["was_micros"],
            row["is_trial"],
            row["reward_micros"],
            row["reason"],
        )
        for row in found.audit.to_pylist()
    }
    assert rows == {
        "i0": (True, 5_000_000, True, 0, "retract"),
        "i1": (True, 5_000_000, True, 3_000_000, "refund"),
        "i3": (True, 0, False, 0, FAST),
    }
    assert found.late_events == 0
