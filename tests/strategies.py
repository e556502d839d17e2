"""Logs as they come in life, for Hypothesis: decisions, and all that is told of them.

Times lie where it matters: at a deadline, at a close, an hour late, and a millisecond
beside each. Event ids repeat, retracts name what was never told, refunds come without a
purchase, events of other decisions lie in between.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from bandolero.experiment import Experiment, Objective, parse_experiment
from bandolero.log import DECISIONS_TABLE, EVENTS_TABLE
from bandolero.settle import GRACE_MS, LOST_AFTER_MS

Row = dict[str, Any]

START_MS = 1_795_219_200_000 - 5_000
"""Five seconds before midnight (UTC), so that a log spans two days."""
VARIANTS = ("v1", "v2", "v3")
VECTORS = {
    1: np.array([0.5, 0.25, 0.25]),
    2: np.array([0.5, 0.25, 0.25]),
    3: np.array([0.125, 0.125, 0.75]),
}
UNKNOWN_VERSION = 9
FAR_MS = START_MS + 10 * LOST_AFTER_MS
"""A log time after which nothing happens."""


class Story(NamedTuple):
    """One experiment's log, rows in log order."""

    experiment: Experiment
    decisions: list[Row]
    events: list[Row]

    @property
    def objective(self) -> Objective:
        """What its decisions can earn."""
        return self.experiment.objective

    @property
    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Decisions and events as the engine takes them."""
        return decisions_table(self.decisions), events_table(self.events)


def experiment(**fields: Any) -> Experiment:
    """An experiment with three variants; fields as in its file."""
    variants = [{"id": variant_id} for variant_id in VARIANTS]
    named = {"experiment": "hats", "tenant": "acme", "variants": variants}
    return parse_experiment(named | fields)


def decision(**fields: Any) -> Row:
    """A decision's row, with all that is not given."""
    row: Row = {
        "tenant_id": "acme",
        "decision_id": "d1",
        "experiment_id": "hats",
        "variant_id": "v1",
        "decided_at_ms": START_MS,
        "snapshot_version": 1,
        "eligible": None,
        "probabilities": None,
        "propensity": 0.5,
        "mode": "explore",
    } | fields
    return _logged(row, row["decided_at_ms"])


def event(**fields: Any) -> Row:
    """An event's row, with all that is not given: a click, told as it happens."""
    row: Row = {
        "tenant_id": "acme",
        "event_id": "e1",
        "decision_id": "d1",
        "experiment_id": "hats",
        "type": "click",
        "value_micros": 1_000_000,
        "retracts": None,
        "decided_at_ms": START_MS,
        "at_ms": START_MS + 1,
    } | fields
    row = {"received_at_ms": row.get("log_ms", row["at_ms"])} | row
    return _logged(row, row["received_at_ms"])


def decisions_table(rows: list[Row]) -> pa.Table:
    """Decisions, in two chunks, as a read of several blocks gives them."""
    return _table(rows, DECISIONS_TABLE)


def events_table(rows: list[Row]) -> pa.Table:
    """Events, in two chunks."""
    return _table(rows, EVENTS_TABLE)


def objectives(reward: str | None = None) -> st.SearchStrategy[Row]:
    """What decisions can earn within two seconds, as in a file."""
    rewards = st.sampled_from(["binary", "value", "count"])
    return st.fixed_dictionaries(
        {
            "event": st.sampled_from(["click", "conversion", "impression"]),
            "reward": rewards if reward is None else st.just(reward),
            "trial": st.sampled_from(["decision", "impression"]),
            "attribution_window_s": st.just(2.0),
        }
    )


@st.composite
def stories(draw: st.DrawFn, reward: str | None = None, tenant: str = "acme") -> Story:
    """A few decisions, and about four events each."""
    objective = draw(objectives(reward))
    kind = "beta_thompson" if objective["reward"] == "binary" else "uniform"
    spec = experiment(objective=objective, tenant=tenant, policy={"kind": kind})
    made = draw(st.lists(_decisions(tenant), min_size=1, max_size=6))
    for i, row in enumerate(made):
        row["decision_id"] = f"d{i}"
    told = draw(st.lists(_events(made, spec.objective), max_size=4 * len(made)))
    return Story(spec, _in_log_order(made), _in_log_order(told))


FORGETFUL = {
    "binary": "top_two_thompson",
    "count": "poisson_thompson",
    "value": "gaussian_thompson",
}
"""A policy that can forget, by the reward it learns from."""


def forgetting(story: Story, half_life_s: float) -> Story:
    """The same story, of an experiment whose data fade."""
    spec = story.experiment.model_dump(mode="json")
    kind = FORGETFUL[spec["objective"]["reward"]]
    spec["policy"] = {"kind": kind, "half_life_s": half_life_s}
    return story._replace(experiment=parse_experiment(spec))


def cuts_near(story: Story) -> st.SearchStrategy[int]:
    """Log times about the closes of a story's decisions."""
    window_ms = story.objective.window_ms
    closes = [row["log_ms"] + window_ms + GRACE_MS for row in story.decisions]
    near = st.tuples(st.sampled_from(closes), st.integers(-1, 1)).map(sum)
    return near | st.sampled_from([START_MS - 1, FAR_MS])


@st.composite
def _decisions(draw: st.DrawFn, tenant: str) -> Row:
    made_ms = START_MS + draw(st.integers(0, 10_000))
    late_ms = draw(st.sampled_from([0, 7, LOST_AFTER_MS, LOST_AFTER_MS + 1]))
    how = {
        "mode": draw(st.sampled_from(["explore", "explore", "fixed", "fallback"])),
        "variant_id": draw(st.sampled_from(VARIANTS)),
        "snapshot_version": draw(st.sampled_from([*VECTORS, UNKNOWN_VERSION])),
    }
    if draw(st.booleans()):
        among = draw(st.sampled_from([("v1", "v3"), VARIANTS]))
        how["mode"] = draw(st.sampled_from(["explore", "holdout"]))
        how["eligible"] = list(among)
        how["probabilities"] = [1.0 / len(among)] * len(among)
        how["variant_id"] = draw(st.sampled_from(among))
    return decision(
        tenant_id=tenant, decided_at_ms=made_ms, log_ms=made_ms + late_ms, **how
    )


@st.composite
def _events(draw: st.DrawFn, made: list[Row], objective: Objective) -> Row:
    of = draw(st.sampled_from(made))
    window_ms = objective.window_ms
    close_ms = of["log_ms"] + window_ms + GRACE_MS
    at_ms = of["decided_at_ms"] + draw(
        st.sampled_from([0, 1, window_ms - 1, window_ms, window_ms + 1])
    )
    logged_ms = draw(
        st.sampled_from([at_ms, close_ms - 1, close_ms, close_ms + 1, FAR_MS - 1])
    )
    kind = draw(
        st.sampled_from([objective.event] * 3 + ["impression", "refund", "retract"])
    )
    return event(
        tenant_id=of["tenant_id"],
        event_id=f"e{draw(st.integers(0, 4))}",
        decision_id=draw(st.sampled_from([of["decision_id"]] * 4 + ["not-ours"])),
        type=kind,
        value_micros=draw(st.sampled_from([None, 0, 1, 1_000_000, 2_345_678, 10**13])),
        retracts=f"e{draw(st.integers(0, 5))}" if kind == "retract" else None,
        at_ms=at_ms,
        received_at_ms=max(at_ms, logged_ms),
        log_ms=logged_ms,
    )


def _in_log_order(rows: list[Row]) -> list[Row]:
    """Rows by log time, each in a block of its own."""
    ordered = sorted(rows, key=lambda row: row["log_ms"])
    return [row | {"log_id": f"{row['log_ms']}-{i}"} for i, row in enumerate(ordered)]


def _logged(row: Row, at_ms: int) -> Row:
    """The row with a place in the log, if it has none."""
    log_ms = row.get("log_ms", at_ms)
    return {"log_ms": log_ms, "log_id": f"{log_ms}-0"} | row


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    half = len(rows) // 2
    parts = [pa.Table.from_pylist(p, schema) for p in (rows[:half], rows[half:])]
    return pa.concat_tables(parts)
