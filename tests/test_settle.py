"""Settling: what a decision earned, by hand, against a slow twin, and on DuckDB."""

from collections.abc import Iterator
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from bandolero.experiment import ExperimentRecord, Objective
from bandolero.lake.settling import closed_decisions, objectives_of, settle_twice
from bandolero.settle import (
    GRACE_MS,
    LOST_AFTER_MS,
    NEVER,
    Settled,
    closes_ms,
    live_cuts,
    settle,
)
from reference import Outcome
from strategies import (
    FAR_MS,
    START_MS,
    Row,
    Story,
    cuts_near,
    decision,
    decisions_table,
    event,
    events_table,
    stories,
)

CLICKS = Objective(attribution_window_s=2.0)
SALES = Objective(event="conversion", reward="value", attribution_window_s=2.0)
WINDOW_MS = CLICKS.window_ms
CLOSE_MS = START_MS + WINDOW_MS + GRACE_MS


def outcomes(decisions: pa.Table, settled: Settled) -> dict[str, Outcome]:
    """What was settled, by decision id."""
    ids = decisions["decision_id"].to_pylist()
    columns = (settled.trial, settled.reward_micros, settled.impression)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        ids[i]: Outcome(*row) for i, row in zip(settled.row.tolist(), rows, strict=True)
    }


def settled_one(
    objective: Objective, events: list[Row], cut: int = CLOSE_MS, **fields: Any
) -> Outcome | None:
    """What became of a single decision; None where it has not settled."""
    decisions = decisions_table([decision(**fields)])
    settled = settle(decisions, events_table(events), objective, cut)
    return outcomes(decisions, settled).get("d1")


def reward(
    objective: Objective, events: list[Row], cut: int = CLOSE_MS, **fields: Any
) -> float:
    """What a single settled decision earned, in units."""
    outcome = settled_one(objective, events, cut, **fields)
    assert outcome is not None
    return outcome.reward_micros / 1e6


# --- by hand --------------------------------------------------------------------


def test_click_inside_the_window_earns_one() -> None:
    """A click a millisecond before the deadline is a hit, and two are still one."""
    last = event(at_ms=START_MS + WINDOW_MS - 1)
    assert reward(CLICKS, [last]) == 1.0
    assert reward(CLICKS, [last, event(event_id="e2")]) == 1.0


def test_click_at_the_deadline_earns_nothing() -> None:
    """An event counts if its time is before decided_at + window, not at it."""
    assert reward(CLICKS, [event(at_ms=START_MS + WINDOW_MS)]) == 0.0


def test_window_runs_from_the_decision_not_from_its_block() -> None:
    """A block that was logged late moves the close and leaves the deadline."""
    late = {"log_ms": START_MS + 500}
    click = event(at_ms=START_MS + WINDOW_MS)
    assert settled_one(CLICKS, [click], CLOSE_MS, **late) is None
    assert reward(CLICKS, [click], CLOSE_MS + 500, **late) == 0.0


def test_late_click_counts_in_hindsight_only() -> None:
    """An event logged at the close is not in the live reward, and is in a later one."""
    click = event(log_ms=CLOSE_MS)
    assert reward(CLICKS, [click], CLOSE_MS) == 0.0
    assert reward(CLICKS, [click], CLOSE_MS + 1) == 1.0


def test_grace_lets_the_last_event_in() -> None:
    """An event logged within the second after the window still counts live."""
    assert reward(CLICKS, [event(log_ms=CLOSE_MS - 1)]) == 1.0


@pytest.mark.parametrize("kind", ["conversion", "refund"])
def test_event_without_a_value_earned_nothing(kind: str) -> None:
    """A null value counts 0, whether it is earned or given back; beside it others count."""
    paid = event(type="conversion", value_micros=3_000_000)
    blank = event(event_id="e2", type=kind, value_micros=None)
    assert reward(SALES, [blank]) == 0.0
    assert reward(SALES, [paid, blank]) == 3.0


def test_decision_settles_at_its_close() -> None:
    """A decision is open a millisecond before its close and settled at it."""
    assert settled_one(CLICKS, [], CLOSE_MS - 1) is None
    assert settled_one(CLICKS, [], CLOSE_MS) == Outcome(True, 0, False)


def test_first_of_a_repeated_event_id_stands() -> None:
    """Of two purchases with one id, 2 and then 5, the decision earns 2."""
    first = event(type="conversion", value_micros=2_000_000)
    assert reward(SALES, [first, first | {"value_micros": 5_000_000}]) == 2.0


def test_purchases_with_other_ids_add_up() -> None:
    """Purchases of 2 and 0.5 earn 2.5, and a click beside them nothing."""
    bought = event(type="conversion", value_micros=2_000_000)
    again = event(event_id="e2", type="conversion", value_micros=500_000)
    assert reward(SALES, [bought, again, event(event_id="e3")]) == 2.5


def test_counts_count() -> None:
    """With reward `count` three clicks earn three, whatever their values."""
    clicks = Objective(reward="count", attribution_window_s=2.0)
    told = [event(event_id=f"e{i}", value_micros=7_000_000) for i in range(3)]
    assert reward(clicks, [*told, told[0]]) == 3.0


def test_retract_removes_the_event_it_names() -> None:
    """A click and its retract earn nothing, whichever reached the log first."""
    click, retract = event(), event(event_id="e2", type="retract", retracts="e1")
    assert reward(CLICKS, [click, retract]) == 0.0
    assert reward(CLICKS, [retract, click]) == 0.0


def test_retract_names_one_event_of_one_decision() -> None:
    """A retract leaves other events, and the same id of another decision, alone."""
    told = [
        event(),
        event(event_id="e2", type="retract", retracts="e9"),
        event(event_id="e3", type="retract", retracts="e1", decision_id="d2"),
    ]
    assert reward(CLICKS, told) == 1.0


def test_late_retract_corrects_in_hindsight() -> None:
    """A retract after the close leaves the live reward and takes the later one."""
    retract = event(
        event_id="e2", type="retract", retracts="e1", at_ms=FAR_MS, log_ms=FAR_MS
    )
    assert reward(CLICKS, [event(), retract], CLOSE_MS) == 1.0
    assert reward(CLICKS, [event(), retract], FAR_MS + 1) == 0.0


def test_refund_subtracts_however_late() -> None:
    """A purchase of 5 and a refund of 2 after the window earn 5 live, 3 in hindsight."""
    bought = event(type="conversion", value_micros=5_000_000)
    refund = event(
        event_id="e2",
        type="refund",
        value_micros=2_000_000,
        at_ms=FAR_MS,
        log_ms=FAR_MS,
    )
    assert reward(SALES, [bought, refund], CLOSE_MS) == 5.0
    assert reward(SALES, [bought, refund], FAR_MS + 1) == 3.0


def test_refund_leaves_clicks_alone() -> None:
    """A refund is of a value: a binary reward stays one."""
    assert reward(CLICKS, [event(), event(event_id="e2", type="refund")]) == 1.0


def test_trial_needs_an_impression_where_asked() -> None:
    """With trial `impression` an unseen decision is no trial and earns nothing."""
    seen_only = Objective(trial="impression", attribution_window_s=2.0)
    shown = event(event_id="e2", type="impression")
    assert settled_one(seen_only, [event()]) == Outcome(False, 0, False)
    assert settled_one(seen_only, [event(), shown]) == Outcome(True, 1_000_000, True)
    assert settled_one(CLICKS, [event()]) == Outcome(True, 1_000_000, False)


def test_events_of_others_are_ignored() -> None:
    """An event of a decision that was lost changes nothing."""
    assert reward(CLICKS, [event(decision_id="lost")]) == 0.0


def test_nothing_settles_to_nothing() -> None:
    """No decisions and no events settle to four empty arrays."""
    settled = settle(decisions_table([]), events_table([]), CLICKS, CLOSE_MS)
    assert [len(column) for column in settled] == [0, 0, 0, 0]


def test_decision_logged_an_hour_late_is_never_live() -> None:
    """An hour's delay is learned live; a millisecond more is left to the refresh."""
    rows = [
        decision(decision_id="d0", log_ms=START_MS + LOST_AFTER_MS),
        decision(decision_id="d1", log_ms=START_MS + LOST_AFTER_MS + 1),
    ]
    decisions, events = decisions_table(rows), events_table([])
    cuts = live_cuts(decisions, CLICKS)
    assert cuts.tolist() == [CLOSE_MS + LOST_AFTER_MS, NEVER]
    assert list(outcomes(decisions, settle(decisions, events, CLICKS, cuts))) == ["d0"]
    assert len(settle(decisions, events, CLICKS, FAR_MS).row) == 2


# --- against the twin -------------------------------------------------------------


@given(stories(), st.data())
def test_settle_equals_twin_at_one_cut(story: Story, data: st.DataObject) -> None:
    """At any one cut `settle` says what loops over the definition say."""
    cut = data.draw(cuts_near(story))
    decisions, events = story.tables
    settled = settle(decisions, events, story.objective, cut)
    cuts = [cut] * len(story.decisions)
    expected = reference.settle(story.decisions, story.events, story.objective, cuts)
    assert outcomes(decisions, settled) == expected


@given(stories())
def test_settle_equals_twin_live(story: Story) -> None:
    """With each decision's own close `settle` says what the loops say."""
    decisions, events = story.tables
    cuts = live_cuts(decisions, story.objective)
    assert cuts.tolist() == reference.live_cuts(story.decisions, story.objective)
    settled = settle(decisions, events, story.objective, cuts)
    expected = reference.settle(
        story.decisions, story.events, story.objective, cuts.tolist()
    )
    assert outcomes(decisions, settled) == expected


@given(stories(), st.data())
def test_one_batch_equals_two_halves(story: Story, data: st.DataObject) -> None:
    """Decisions settle alike together, in two parts, and in another order."""
    decisions, events = story.tables
    cut = data.draw(cuts_near(story))
    at = data.draw(st.integers(0, decisions.num_rows))
    whole = outcomes(decisions, settle(decisions, events, story.objective, cut))
    parts: dict[str, Outcome] = {}
    for part in (decisions[at:], decisions[:at]):
        parts |= outcomes(part, settle(part, events, story.objective, cut))
    assert parts == whole


@given(stories(), st.data())
def test_redelivery_changes_nothing(story: Story, data: st.DataObject) -> None:
    """Events that reach the log once more, last and with other values, count once."""
    decisions, events = story.tables
    again = [
        row | {"log_ms": FAR_MS, "value_micros": 77_000_000, "type": "click"}
        for row in story.events
        if data.draw(st.booleans())
    ]
    more = events_table(story.events + again)
    assert outcomes(
        decisions, settle(decisions, more, story.objective, FAR_MS + 1)
    ) == outcomes(decisions, settle(decisions, events, story.objective, FAR_MS + 1))


@given(stories())
def test_rows_point_at_closed_decisions_in_order(story: Story) -> None:
    """`row` holds the indices of the decisions that have closed, ascending."""
    decisions, events = story.tables
    closes = closes_ms(decisions, story.objective)
    cut = int(np.median(closes))
    settled = settle(decisions, events, story.objective, cut)
    assert settled.row.tolist() == np.flatnonzero(closes <= cut).tolist()


# --- the same on DuckDB ------------------------------------------------------------


@pytest.fixture(scope="module")
def duckdb() -> Iterator[Any]:
    """An engine for the lake's expressions."""
    con = ibis.duckdb.connect()
    yield con
    con.disconnect()


def tables_of(told: list[Story]) -> tuple[Any, Any, Any]:
    """Decisions, objectives and events of experiments of several tenants."""
    decisions = pa.concat_tables([story.tables[0] for story in told])
    events = pa.concat_tables([story.tables[1] for story in told])
    events = events.append_column("place", pa.array(np.arange(events.num_rows)))
    records = [
        ExperimentRecord(tenant=s.experiment.tenant or "", spec=s.experiment)
        for s in told
    ]
    live = ibis.literal(True)
    return (
        ibis.memtable(decisions).mutate(is_live=live),
        ibis.memtable(objectives_of(records)),
        ibis.memtable(events).mutate(is_live=live, file=ibis.literal("f")),
    )


Told = dict[str, dict[str, Outcome]]
"""Outcomes by tenant and decision id."""


def told_by(con: Any, settled: Any) -> tuple[Told, Told]:
    """What the expression says: as it was learned live, and as it is."""
    live: Told = {}
    final: Told = {}
    for row in con.to_pyarrow(settled).to_pylist():
        mine = final.setdefault(row["tenant_id"], {})
        assert row["decision_id"] not in mine
        mine[row["decision_id"]] = Outcome(
            row["is_trial"], row["reward_micros"], row["is_impression"]
        )
        if row["live_cut_ms"] >= 0:
            live.setdefault(row["tenant_id"], {})[row["decision_id"]] = Outcome(
                row["was_trial"], row["was_micros"], row["was_impression"]
            )
    return live, final


@settings(max_examples=20)
@given(stories(tenant="acme"), stories(tenant="bolt"), st.data())
def test_expression_equals_settle(
    duckdb: Any, acme: Story, bolt: Story, data: st.DataObject
) -> None:
    """On DuckDB, for all tenants at once, the lake settles exactly as `settle` does."""
    made, asked, told = tables_of([acme, bolt])
    watermark_ms = data.draw(cuts_near(acme))
    closed = closed_decisions(made, asked, watermark_ms)
    live, final = told_by(duckdb, settle_twice(closed, told, watermark_ms))
    for story, tenant in ((acme, "acme"), (bolt, "bolt")):
        learned = [row for row in story.decisions if row["mode"] != "fallback"]
        decisions, events = decisions_table(learned), story.tables[1]
        closes = closes_ms(decisions, story.objective)
        cuts = live_cuts(decisions, story.objective)
        seen = np.where(closes <= watermark_ms, cuts, NEVER)
        for found, cut in ((live, seen), (final, watermark_ms)):
            settled = settle(decisions, events, story.objective, cut)
            assert found.get(tenant, {}) == outcomes(decisions, settled)
