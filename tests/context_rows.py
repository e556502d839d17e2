"""Decisions that a context decided, and what they earned, for a lake of many kinds."""

import json

import numpy as np

from strategies import FAR_MS, START_MS, VARIANTS, Row, decision, event, experiment

BY_CONTEXT = [
    experiment(
        objective={"reward": "value", "event": "conversion"},
        context=[{"name": "device", "kind": "categorical", "levels": ["mobile"]}],
        policy={"kind": "linear_thompson", "half_life_s": 36_000.0},
    ),
    experiment(
        objective={"attribution_window_s": 2.0},
        context=[{"name": "hour", "kind": "cyclic", "period": 24.0}],
        policy={"kind": "logistic_thompson"},
    ),
]
"""A regression that forgets, and one that learns in log order."""


def by_context(
    rng: np.random.Generator, names: list[str]
) -> tuple[list[Row], list[Row]]:
    """A hundred decisions of contexts, and conversions of every third, half of them late."""
    made: list[Row] = []
    told: list[Row] = []
    for i in range(100):
        at_ms = START_MS + 100 * i
        mine = {"decision_id": f"c{i}", "decided_at_ms": at_ms}
        said = {"device": str(rng.choice(["mobile", "tv"])), "hour": i % 24}
        made.append(
            decision(
                **mine,
                experiment_id=names[i % len(names)],
                variant_id=str(rng.choice(VARIANTS)),
                propensity=float(rng.uniform(0.1, 0.9)),
                mode="explore",
                context=json.dumps(said, separators=(",", ":")),
            )
        )
    for i, row in enumerate(made[::3]):
        seen_ms = row["decided_at_ms"] + 9
        told.append(
            event(
                decision_id=row["decision_id"],
                decided_at_ms=row["decided_at_ms"],
                type=("click", "conversion")[i // 2 % 2],
                value_micros=3_000_000,
                at_ms=seen_ms,
                log_ms=(seen_ms, FAR_MS - 1)[i % 2],
            )
        )
    return made, told
