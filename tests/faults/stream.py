"""Clients that decide and click without pause, with a ledger of what they were told.

They are what an ad server is: connections are kept, and a request whose connection is
cut before its answer is asked again on a new one. A decision is *refused* when it is
answered with anything but a decision, or not at all within `PATIENCE_S`. Events are sent
again, under the same ids, until they are accepted: that is what a client may rely on.
"""

import http.client
import json
import random
import threading
import time
from collections import Counter
from typing import Any, NamedTuple, Self

from service_helpers import SLOWER, Answer, Running, click, wait_for
from traffic import now

BATCH = 10
PATIENCE_S = 20.0 * SLOWER
CLICKS_WITHIN_S = 0.9
"""Clicks are told only of answers this quick, so that all are within a window of 1 s."""
RETOLD = 0.1
"""Share of accepted batches that are told again: events are a set."""


class Decided(NamedTuple):
    """A decision as the client knows it, and when it was asked for (seconds, wall)."""

    decision_id: str
    variant: str
    at_s: float


class Client:
    """One kept connection; what is cut is asked again on a new one."""

    def __init__(self, server: Running, key: str) -> None:
        self.n_cut = 0
        self.asked_s = 0.0
        """When the last request was sent, for the last time (seconds, wall)."""
        self._server = server
        self._headers = {
            "content-type": "application/json",
            "authorization": f"Bearer {key}",
        }
        self._connection = self._new()

    def ask(self, path: str, body: Any) -> Answer | None:
        """The answer to a POST, or None where there was none within `PATIENCE_S`."""
        data = json.dumps(body).encode()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                return self._once(path, data)
            except (OSError, http.client.HTTPException):
                self.n_cut += 1
                self._connection.close()
                self._connection = self._new()
                time.sleep(0.01)
        return None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _new(self) -> http.client.HTTPConnection:
        where = ("127.0.0.1", self._server.port)
        return http.client.HTTPConnection(*where, timeout=PATIENCE_S)

    def _once(self, path: str, data: bytes) -> Answer:
        self.asked_s = time.time()
        self._connection.request("POST", path, data, self._headers)
        answer = self._connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, json.loads(answer.read()), headers)


class Stream:
    """Producers on threads of their own; they click on v1, and on nothing else."""

    def __init__(self, server: Running, name: str, n_producers: int = 1) -> None:
        self.decisions: list[Decided] = []
        self.refused: list[str] = []
        self.accepted: list[str] = []
        self.hits: Counter[str] = Counter()
        self.took_s: list[float] = []
        """How long each batch of decisions took to be answered."""
        self.n_cut = 0
        self._server = server
        self._name = name
        self._key = server.key()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(i),))
            for i in range(n_producers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_for(lambda: len(self.decisions) > 100, 20, "the stream flows")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def tallied(self) -> dict[str, tuple[int, int]]:
        """Trials and rewards by variant, as the clients know them."""
        trials = Counter(d.variant for d in self.decisions)
        return {v: (trials[v], self.hits[v]) for v in ("v0", "v1", "v2")}

    def _run(self, rng: random.Random) -> None:
        client = Client(self._server, self._key)
        while not self._stop.is_set():
            made = self._decide(client)
            events = [click(d._asdict(), d.decision_id[-20:], at=now()) for d in made]
            if events:
                self._tell(client, events, rng)
                self.hits.update(d.variant for d in made)
            time.sleep(0.01)
        client.close()
        self.n_cut += client.n_cut

    def _decide(self, client: Client) -> list[Decided]:
        """Ask for a batch of decisions; those that are to be clicked."""
        began = time.monotonic()
        requests = {"requests": [{"experiment": self._name}] * BATCH}
        answer = client.ask("/v1/decide/batch", requests)
        took_s = time.monotonic() - began
        self.took_s.append(took_s)
        made = answer.body.get("decisions", []) if answer else []
        good = [d for d in made if "decision_id" in d]
        if len(good) < BATCH:
            self.refused.append(repr(answer)[:300])
        at_s = client.asked_s
        told = [Decided(d["decision_id"], d["variant"]["id"], at_s) for d in good]
        self.decisions += told
        in_time = took_s < CLICKS_WITHIN_S
        return [d for d in told if in_time and d.variant == "v1"]

    def _tell(self, client: Client, events: list[Any], rng: random.Random) -> None:
        while not _is_accepted(client, events):
            time.sleep(0.05)
        self.accepted += [event["event_id"] for event in events]
        if rng.random() < RETOLD:
            client.ask("/v1/events", {"events": events})


def _is_accepted(client: Client, events: list[Any]) -> bool:
    answer = client.ask("/v1/events", {"events": events})
    return answer is not None and answer.status == 202
