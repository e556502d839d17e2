"""Events held by the learner, and closed decisions by experiment."""

import pyarrow as pa
from hypothesis import given

from bandolero_service.closed import DECISIONS_LEARNED, by_experiment
from bandolero_service.held import BUCKET_MS, EVENTS_HELD, MAX_PARTS, HeldEvents
from strategies import START_MS, Row, Story, decision, event, stories


def held_rows(rows: list[Row]) -> pa.Table:
    """Events as the learner reads them."""
    return pa.Table.from_pylist(rows, EVENTS_HELD)


def learned_rows(rows: list[Row]) -> pa.Table:
    """Decisions as the learner reads them."""
    return pa.Table.from_pylist(rows, DECISIONS_LEARNED)


def told(i: int, decided_at_ms: int, log_id: str) -> Row:
    """An event of the i-th decision."""
    ms = int(log_id.partition("-")[0])
    return event(
        event_id=f"e{log_id}",
        decision_id=f"d{i}",
        decided_at_ms=decided_at_ms,
        log_id=log_id,
        log_ms=ms,
    )


def test_events_are_found_and_forgotten_by_decision() -> None:
    """A decision's events come in log order, from however many reads, until they are let go."""
    held = HeldEvents()
    for i in range(3 * MAX_PARTS):
        at_ms = START_MS + BUCKET_MS * (i % 2)
        held.add(held_rows([told(i % 2, at_ms, f"{START_MS + i}-0")]))
    one = learned_rows([decision(decision_id="d0", decided_at_ms=START_MS)])
    found = held.of(one).to_pylist()
    assert [row["log_ms"] - START_MS for row in found] == list(
        range(0, 3 * MAX_PARTS, 2)
    )
    assert held.oldest() == f"{START_MS}-0"
    held.forget(one)
    assert len(held.of(one)) == 0
    assert len(held) == 3 * MAX_PARTS // 2
    assert held.oldest() == f"{START_MS + 1}-0"


def test_only_settled_decisions_are_forgotten() -> None:
    """An event of a decision of the same seconds that is still open stays."""
    held = HeldEvents()
    rows = [told(i, START_MS, f"{START_MS + i}-0") for i in range(3)]
    held.add(held_rows(rows))
    held.forget(learned_rows([decision(decision_id="d1", decided_at_ms=START_MS)]))
    left = held.of(learned_rows([decision(decided_at_ms=START_MS)]))
    assert left["decision_id"].to_pylist() == ["d0", "d2"]


def test_lost_events_are_forgotten_by_time() -> None:
    """Events of decisions made before a time are let go; nothing held has no oldest."""
    held = HeldEvents()
    held.add(held_rows([told(0, START_MS, f"{START_MS}-0")]))
    held.add(held_rows([]))
    held.forget_before(START_MS)
    assert len(held) == 1
    held.forget_before(START_MS + BUCKET_MS)
    assert (len(held), held.oldest()) == (0, None)


def test_a_decision_from_the_future_keeps_nothing_for_ever() -> None:
    """An event whose decision a clock that was ahead dated is let go by its own log time."""
    held = HeldEvents()
    ahead_ms = START_MS + 1_000 * BUCKET_MS
    for i in range(2):
        held.add(held_rows([told(i, ahead_ms, f"{START_MS + i}-0")]))
    assert held.forget_before(START_MS + 1) == 1
    assert (len(held), held.oldest()) == (1, f"{START_MS + 1}-0")
    assert held.forget_before(START_MS + 2) == 1
    assert held.oldest() is None


@given(stories(tenant="acme"), stories(tenant="bolt"))
def test_closed_decisions_are_split_by_experiment(acme: Story, bolt: Story) -> None:
    """Each experiment gets its decisions and the events of these, in log order; no other."""
    for story in (acme, bolt):
        for row in [*story.decisions, *story.events]:
            row["decision_id"] = f"{row['tenant_id']}{row['decision_id']}"
    mixed = [*acme.decisions, *bolt.decisions]
    mixed.sort(key=lambda row: row["log_ms"])
    events = [*acme.events, *bolt.events]
    split = by_experiment(learned_rows(mixed), held_rows(events))
    found = {name: (made, mine) for name, made, mine in split}
    assert found.keys() == {"acme/hats", "bolt/hats"}
    for story in (acme, bolt):
        decisions, told_of_them = found[f"{story.experiment.tenant}/hats"]
        ids = [row["decision_id"] for row in story.decisions]
        assert sorted(decisions["decision_id"].to_pylist()) == sorted(ids)
        assert decisions["log_ms"].to_pylist() == sorted(
            decisions["log_ms"].to_pylist()
        )
        mine = [row["event_id"] for row in story.events if row["decision_id"] in ids]
        assert told_of_them["event_id"].to_pylist() == mine


def test_no_decisions_are_of_no_experiment() -> None:
    """Nothing closed, nothing to fold."""
    assert list(by_experiment(learned_rows([]), held_rows([]))) == []
