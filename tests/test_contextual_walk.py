"""A contextual policy through the running system: asked, told, learned, explained."""

import time
from typing import Any

import pytest

from service_helpers import (
    RARE,
    SLOWER,
    Running,
    click,
    experiment,
    needs_server,
    running_server,
    wait_for,
)

pytestmark = needs_server
BEST = {"mobile": "v0", "desktop": "v1"}
SPEC = {
    "policy": {"kind": "logistic_thompson", "prior_intercept": -1.0},
    "context": [
        {"name": "device", "kind": "categorical", "levels": ["mobile", "desktop"]}
    ],
    "allocation": {"holdout_share": 0.1, "min_share": 0.02},
}


def play(server: Running, name: str, n: int) -> None:
    """Ask for both devices; whoever is best on a device is clicked, nobody else."""
    for device, best in BEST.items():
        answers = server.decide_many(name, n, context={"device": device})
        clicks = [click(a) for a in answers if a["variant"]["id"] == best]
        assert server.tell(clicks)["accepted"] == len(clicks)


def shares(server: Running, name: str, device: str) -> dict[str, float]:
    """The probabilities that the next decision for a device is explained with."""
    answers = server.decide_many(name, 20, context={"device": device})
    answer = next(a for a in answers if a["mode"] == "explore")
    told = explained(server, answer["decision_id"])
    assert told["rederived"]["same"] is True, told
    assert told["rederived"]["propensity"] == answer["propensity"]
    probabilities: dict[str, float] = told["probabilities"]
    assert probabilities[answer["variant"]["id"]] == pytest.approx(
        answer["propensity"], rel=1e-6
    )
    return probabilities


def explained(server: Running, decision_id: str) -> dict[str, Any]:
    """The explanation of a decision, once it is in the log."""

    def found() -> Any:
        path = f"/v1/decisions/{decision_id}"
        answer = server.call("GET", path, key=server.key())
        return answer.body if answer.status == 200 else None

    told: dict[str, Any] = wait_for(found, 10, "the decision in the log")
    return told


def replayed(server: Running, name: str) -> str:
    """What replay says, once the lake holds what is served."""

    def agrees() -> str:
        done = server.cli("replay", name)
        assert "does not give" not in done.stderr, done.stderr
        return done.stdout if done.returncode == 0 else ""

    said: str = wait_for(agrees, 40, "a replay")
    return said


@pytest.mark.timeout(150 * SLOWER)
def test_each_device_gets_what_works_there() -> None:
    """Clicks by device move each device's probabilities; every decision is explained and
    drawn again to the bit; replay gives the served state; the report is by all requests."""
    with running_server() as server:
        name = "devices"
        server.begin(experiment(name, 3, **SPEC))
        before = shares(server, name, "mobile")
        assert max(before.values()) < 0.5
        for _ in range(8):
            play(server, name, 60)
            time.sleep(0.3)

        def learned() -> bool:
            return all(
                shares(server, name, device)[best] > 0.8
                for device, best in BEST.items()
            )

        wait_for(learned, 30, "both devices are learned")
        assert "fold to the state of snapshot" in replayed(server, name)
        body = server.ok("GET", f"/v1/experiments/{name}/report")
        strata = body["sample_ratio"]["strata"]
        assert len(strata) == 3
        assert min(stratum["p_value"] for stratum in strata) > RARE
        assert any("1 / propensity" in note for note in body["notes"])
