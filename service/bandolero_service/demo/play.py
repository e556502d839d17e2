"""Plays tests over HTTP: paced, interleaved, each decision clicked with its known rate.

Three threads with a connection each: batches of decisions, single decisions (whose latency
is what an ad server would see), and clicks. All traffic is drawn from a seed; the answers
are not, since the server draws every decision's nonce itself.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
import numpy as np

from bandolero_service.demo.client import Answer, Client, Faults
from bandolero_service.demo.plan import Counts, Plan, Rates, due, mix, variant_id

BATCH_SIZE = 100
SINGLE_SHARE = 0.025
CLICKS_PER_POST = 500
# Clicks wait so long for company; it has to be well below the attribution window.
CLICK_DELAY_S = 0.1
N_MOMENTS = 200


class _Variant(msgspec.Struct):
    id: str


class _Error(msgspec.Struct):
    code: str = "unknown"


class _Decision(msgspec.Struct):
    decision_id: str = ""
    variant: _Variant | None = None
    serving: str = "live"
    fallback: bool = False
    error: _Error | None = None


class _Batch(msgspec.Struct):
    decisions: list[_Decision]


_read_single = msgspec.json.Decoder(_Decision).decode
_read_batch = msgspec.json.Decoder(_Batch).decode


@dataclass
class Lane:
    """One thread's share of the decisions, and what came of it.

    `size` decisions per request; 1 means `POST /v1/decide`.
    """

    plan: Plan
    client: Client
    faults: Faults
    clicks_out: "queue.SimpleQueue[str | None]"
    horizons: Counts
    size: int
    rng: np.random.Generator
    latencies_s: list[float] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.issued = np.zeros_like(self.horizons)
        self.shown = np.zeros(self.plan.rates.shape, dtype=np.int64)
        self.clicks = np.zeros_like(self.shown)
        self._arms = {variant_id(arm): arm for arm in range(self.plan.rates.shape[1])}

    def run(self, started: float, stop: threading.Event) -> None:
        """Ask for decisions at the plan's pace until all are made."""
        with closing(self.client):
            while not stop.is_set() and (self.issued < self.horizons).any():
                progress = min(1.0, (time.monotonic() - started) / self.plan.seconds)
                waiting = due(self.horizons, self.issued, progress)
                if waiting.sum() >= (self.size if progress < 1.0 else 1):
                    self._ask(mix(self.rng, waiting, self.size))
                else:
                    time.sleep(0.002)

    def _ask(self, tests: Counts) -> None:
        """One request; the time from sending it to having its answer is its latency."""
        requests = [{"experiment": self.plan.experiment_ids[test]} for test in tests]
        sent = time.perf_counter()
        if self.size == 1:
            answer = self.client.call("POST", "/v1/decide", requests[0])
        else:
            answer = self.client.call(
                "POST", "/v1/decide/batch", {"requests": requests}
            )
        self.latencies_s.append(time.perf_counter() - sent)
        np.add.at(self.issued, tests, 1)
        self._record(tests, self._decisions(answer, len(tests)))

    def _decisions(self, answer: Answer, n_asked: int) -> list[_Decision]:
        """The decisions of an answer; none, and a fault, if it is not 200."""
        path = "decide" if self.size == 1 else "decide/batch"
        if answer.status != 200:
            self.faults.add(f"{path} answered {answer.status}", n_asked)
            return []
        if self.size == 1:
            return [_read_single(answer.body)]
        return _read_batch(answer.body).decisions

    def _record(self, tests: Counts, decisions: list[_Decision]) -> None:
        """Count what was shown and pass on what is clicked."""
        luck = self.rng.random(len(tests))
        for test, decision, number in zip(tests, decisions, luck, strict=False):
            if decision.variant is None:
                code = decision.error.code if decision.error else "no variant"
                self.faults.add(f"decision refused: {code}")
                continue
            self.served["fallback" if decision.fallback else decision.serving] += 1
            arm = self._arms[decision.variant.id]
            self.shown[test, arm] += 1
            if number < self.plan.rates[test, arm]:
                self.clicks[test, arm] += 1
                self.clicks_out.put(decision.decision_id)


def send_clicks(
    client: Client, clicks: "queue.SimpleQueue[str | None]", faults: Faults
) -> None:
    """Post clicks in small batches until None comes."""
    n_sent, ended = 0, False
    with closing(client):
        while not ended:
            decision_ids = [clicks.get()]
            time.sleep(CLICK_DELAY_S)
            while not clicks.empty() and len(decision_ids) < CLICKS_PER_POST:
                decision_ids.append(clicks.get())
            ended = None in decision_ids
            events = [
                {
                    "event_id": f"click-{n_sent + n}",
                    "decision_id": decision_id,
                    "type": "click",
                }
                for n, decision_id in enumerate(decision_ids)
                if decision_id is not None
            ]
            if events:
                _post_clicks(client, events, faults)
            n_sent += len(events)


def _post_clicks(client: Client, events: list[dict[str, str]], faults: Faults) -> None:
    """One `POST /v1/events`; whatever is not accepted is a fault."""
    answer = client.call("POST", "/v1/events", {"events": events})
    if answer.status != 202:
        faults.add(f"events answered {answer.status}", len(events))
        return
    for refusal in answer.json()["rejected"]:
        faults.add(f"event rejected: {refusal['error']['code']}")


@dataclass(frozen=True)
class Play:
    """What was played: shown at each moment (n_moments, n_tests, n_arms), and timings."""

    seconds: float
    moments_s: Rates
    shown_over_time: Counts
    clicks: Counts
    single_latencies_s: Rates
    batch_latencies_s: Rates
    served: Counter[str]

    @property
    def shown(self) -> Counts:
        """Decisions by (test, arm) at the end."""
        last: Counts = self.shown_over_time[-1]
        return last


class Player:
    """Runs the three threads and watches them."""

    def __init__(
        self, plan: Plan, connect: Callable[[], Client], faults: Faults
    ) -> None:
        self._plan = plan
        self._faults = faults
        self._clicks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._clicker = connect()
        streams = np.random.SeedSequence(plan.seed).spawn(2)
        singles = np.ceil(plan.horizons * SINGLE_SHARE).astype(np.int64)
        self._lanes = [
            Lane(
                plan,
                connect(),
                faults,
                self._clicks,
                horizons,
                size,
                np.random.default_rng(stream),
            )
            for horizons, size, stream in zip(
                (singles, plan.horizons - singles),
                (1, BATCH_SIZE),
                streams,
                strict=True,
            )
        ]

    @property
    def shown(self) -> Counts:
        """Decisions so far by (test, arm)."""
        return self._lanes[0].shown + self._lanes[1].shown

    def play(self, watch: Callable[[Counts], None]) -> Play:
        """Play the plan to its end, telling `watch` what has been shown so far."""
        started, stop = time.monotonic(), threading.Event()
        moments: list[tuple[float, Counts]] = [(0.0, self.shown)]
        with ThreadPoolExecutor(max_workers=3) as pool:
            lanes = [pool.submit(lane.run, started, stop) for lane in self._lanes]
            clicker = pool.submit(
                send_clicks, self._clicker, self._clicks, self._faults
            )
            try:
                while not all(lane.done() for lane in lanes):
                    time.sleep(max(0.1, self._plan.seconds / N_MOMENTS))
                    moments.append((time.monotonic() - started, self.shown))
                    watch(moments[-1][1])
                    _raise_first((*lanes, clicker))
            finally:
                stop.set()
                self._clicks.put(None)
            _raise_first(lanes)
            seconds = time.monotonic() - started
            clicker.result()
        moments.append((seconds, self.shown))
        return self._result(seconds, moments)

    def _result(self, seconds: float, moments: list[tuple[float, Counts]]) -> Play:
        single, batch = self._lanes
        return Play(
            seconds=seconds,
            moments_s=np.array([moment for moment, _ in moments]),
            shown_over_time=np.stack([shown for _, shown in moments]),
            clicks=single.clicks + batch.clicks,
            single_latencies_s=np.array(single.latencies_s),
            batch_latencies_s=np.array(batch.latencies_s),
            served=single.served + batch.served,
        )


def _raise_first(futures: Sequence[Future[None]]) -> None:
    """Pass on the error of a thread that has ended with one."""
    for future in futures:
        if future.done():
            future.result()
