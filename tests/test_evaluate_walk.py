"""What the running system logged, evaluated beside it."""

import json
import time
from typing import Any

import pytest

from bandolero.lake.catalog import Lake
from service_helpers import Running, click, experiment, wait_for
from traffic import now

N = 1500
RATE = {"v0": 2, "v1": 4, "v2": 8}
"""Of a variant's decisions, every so many-th is clicked."""


@pytest.mark.slow
def test_a_running_system_can_be_evaluated(running: Running) -> None:
    """Decisions, propensities and sets as served: weights average 1, the value is right.

    Nothing says which variants were eligible but the snapshots in the lake. A policy
    learns from one half and is evaluated on the other.
    """
    running.begin(experiment("off-policy", 3, allocation={"holdout_share": 0.3}))
    seen = dict.fromkeys(RATE, 0)
    for _ in range(N // 500):
        clicks = []
        decisions, at = running.decide_many("off-policy", 500), now()
        for decision in decisions:
            variant_id = decision["variant"]["id"]
            seen[variant_id] += 1
            if seen[variant_id] % RATE[variant_id] == 0:
                clicks.append(click(decision, at=at))
        running.tell(clicks)
    closed_ms = time.time_ns() // 1_000_000 + 3_000
    lake = Lake(running.data_dir / "lake")
    wait_for(lambda: lake.watermark_ms() > closed_ms, 30, "the lake holds all that")

    told = evaluated(running, "uniform")
    truth = sum(1 / every for every in RATE.values()) / 3
    assert (told["trials"], told["learned_from"], told["pending"]) == (N, 0, 0)
    weights = told["support"]["weights"]
    assert abs(weights["mean"] - 1.0) < 4.0 * weights["error"] + 1e-9
    bounds = told["estimates"]["dr"]["bernstein"]
    assert bounds["low"] < truth < bounds["high"]
    halves = evaluated(running, "beta_thompson")
    assert halves["learned_from"] + halves["trials"] == N


def evaluated(running: Running, kind: str) -> Any:
    """What `bandolero evaluate` says of a kind of policy."""
    done = running.cli("evaluate", "off-policy", "--policy", kind, "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["supported"], found["reasons"]
    return found
