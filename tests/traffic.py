"""Traffic of known outcome: decisions and events, and what they must add up to.

The tally is kept apart from all code under test: by what the client was answered and
what it sent.
"""

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from bandolero.settle import GRACE_MS
from service_helpers import Running, click, experiment

CLICK_RATES = {"v0": 0.1, "v1": 0.5, "v2": 0.25, "v3": 0.0}
WINDOW_S = 4.0
CLOSE_MS = round(1000 * WINDOW_S) + GRACE_MS
"""After a decision is logged it is settled."""
IN_TIME_S = WINDOW_S - 0.4
"""An event told this long after its decision was asked for is in its window."""


class Made(NamedTuple):
    """A decision as the client knows it: its answer, and a time in its window."""

    answer: Any
    at: str

    @property
    def variant(self) -> str:
        """The variant that was shown."""
        return str(self.answer["variant"]["id"])


@dataclass
class Tally:
    """What an experiment must add up to, by variant id."""

    decisions: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    clicked: list[Made] = field(default_factory=list)
    missed: list[Made] = field(default_factory=list)
    resend: list[Any] = field(default_factory=list)
    n_events: int = 0


def specification(experiment_id: str) -> Any:
    """Four variants, a holdout, a floor and a context."""
    return experiment(
        experiment_id,
        4,
        allocation={"holdout_share": 0.1, "min_share": 0.05},
        objective={"event": "click", "attribution_window_s": WINDOW_S},
        context=[{"name": "hour", "kind": "cyclic", "period": 24.0}],
    )


def now() -> str:
    """The time as a client would write it."""
    return datetime.now(UTC).isoformat()


def play(server: Running, name: str, tally: Tally, rng: random.Random, n: int) -> None:
    """Ask for about `n` decisions and tell their clicks, with everything that happens.

    Some requests are narrowed, some have a unit. Some clicks are sent twice in a batch,
    sent again later, have a second click behind them, or are retracted; some decisions
    have no consent, and nothing may come of them.
    """
    while n > 0:
        began = time.monotonic()
        requests = [_request(name, rng) for _ in range(min(n, 40))]
        body = server.ok("POST", "/v1/decide/batch", {"requests": requests})
        at = now()
        events, without_consent = [], []
        for request, answer in zip(requests, body["decisions"], strict=True):
            made = Made(answer, at)
            if request.get("consent") == "none":
                without_consent.append(click(answer, at=at))
                continue
            tally.decisions[made.variant] += 1
            events += _events_of(made, tally, rng)
        told = server.tell(without_consent)
        assert [one["error"]["code"] for one in told["rejected"]] == [
            "no_consent"
        ] * len(without_consent)
        rng.shuffle(events)
        _tell(server, tally, events)
        _tell(server, tally, rng.choices(events, k=5) if events else [])
        elapsed = time.monotonic() - began
        assert elapsed < IN_TIME_S, f"too slow to know what is late: {elapsed:.1f} s"
        n -= len(requests)


def _request(name: str, rng: random.Random) -> Any:
    request: dict[str, Any] = {
        "experiment": name,
        "context": {"hour": rng.randrange(24)},
    }
    if rng.random() < 0.2:
        request["eligible"] = rng.sample(["v0", "v1", "v2", "v3"], rng.randrange(2, 4))
    if rng.random() < 0.5:
        request["unit"] = f"u{rng.randrange(50)}"
    if rng.random() < 0.05:
        request["consent"] = "none"
    return request


def _events_of(made: Made, tally: Tally, rng: random.Random) -> list[Any]:
    """Events of one decision, in any order: they are a set."""
    if rng.random() >= CLICK_RATES[made.variant]:
        tally.missed.append(made)
        return [{**click(made.answer, "seen", at=made.at), "type": "impression"}]
    first = click(made.answer, "first", at=made.at)
    chance = rng.random()
    if chance < 0.1:
        tally.missed.append(made)
        return [first, retraction(made, "first")]
    tally.hits[made.variant] += 1
    tally.clicked.append(made)
    tally.resend.append(first)
    if chance < 0.3:
        return [first, first]
    if chance < 0.5:
        return [first, click(made.answer, "second", at=made.at)]
    return [first]


def retraction(made: Made, event_id: str) -> Any:
    """An event that takes another one back."""
    undo = {"event_id": f"undo-{event_id}", "type": "retract", "retracts": event_id}
    return {**click(made.answer), **undo}


def _tell(server: Running, tally: Tally, events: list[Any]) -> None:
    told = server.tell(events)
    assert told == {"accepted": len(events), "rejected": []}
    tally.n_events += len(events)
