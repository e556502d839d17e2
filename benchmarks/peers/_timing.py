"""How every bandit is timed, ours and theirs: CPU time, one core, medians, JSON lines.

Runs in the peers' own environments, so it uses nothing but the standard library.
"""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

N_FEATURES = 32
N_ITEMS = 1000
CLICK_RATE = 0.03
FLAT_ARMS = (10, 50, 1000)
ARMS = (10, 50)
BATCH_ARMS = 50
STRETCH_NS = 10_000_000
"""A stretch of calls takes at least this long, where a call is short."""
BUDGET_S = 1.0
WARM_UP_S = 1.5
MIN_STRETCHES, MAX_STRETCHES = 5, 200
MAX_SHORT_STRETCHES = 3_000
"""Of updates, which are timed few at a time: else a busy moment would hold them all."""
N_UPDATES = 50
"""Decisions that are open while updates are timed."""


class Bandit(NamedTuple):
    """One bandit under test.

    decide
        From a token (without context) or a context to what `update` needs: an arm, or a
        record of the decision.
    update
        Learn from (token or context, what `decide` returned, reward).
    context
        From 32 numbers to a context as the package takes it; not timed.
    settle
        Called with all that a stretch decided; not timed. For those that keep accounts of
        open decisions; few are open at once then.
    both
        Decide and learn, from a token and a reward, where that is not simply one after
        the other.
    decide_batch, n_batch
        Make so many decisions in one call.
    """

    decide: Callable[[Any], Any]
    update: Callable[[Any, Any, float], object]
    context: Callable[[list[float]], Any] = list
    settle: Callable[[list[Any]], object] | None = None
    both: Callable[[Any, float], object] | None = None
    decide_batch: Callable[[], object] | None = None
    n_batch: int = 0


class Method(NamedTuple):
    """A bandit of a package, made for a number of arms.

    has_propensity
        Whether a decision comes with the probability it was made with.
    full_covariance
        Whether an update is of a full covariance matrix (or its inverse).
    no_update
        Why updates are not timed, where they are not.
    """

    name: str
    make: Callable[[int], Bandit]
    has_propensity: bool = False
    full_covariance: bool = False
    no_update: str = ""


def run(flat: Sequence[Method], contextual: Sequence[Method]) -> None:
    """Time all workloads of a package; print a JSON line for each."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rng = random.Random(7)
    tokens = [rng.randbytes(8) for _ in range(N_ITEMS)]
    rows = [
        [1.0, *(rng.gauss(0.0, 1.0) for _ in range(N_FEATURES - 1))]
        for _ in range(N_ITEMS)
    ]
    for method in flat:
        for n_arms in FLAT_ARMS:
            _attempt(method, n_arms, partial(_time_flat, method, n_arms, tokens))
    for method in contextual:
        for n_arms in ARMS:
            _attempt(method, n_arms, partial(_time_contextual, method, n_arms, rows))


def report(
    work: str, method: Method, n_arms: int, took: list[float], note: str = ""
) -> None:
    """Print what was measured, microseconds each."""
    row = {
        "work": work,
        "method": method.name,
        "n_arms": n_arms,
        "us": statistics.median(took),
        "low": min(took),
        "high": max(took),
        "has_propensity": method.has_propensity,
        "full_covariance": method.full_covariance,
        "note": note,
    }
    print(json.dumps(row), flush=True)


def us_per_call(call: Callable[[Any], Any], bandit: Bandit, items: Any) -> list[float]:
    """CPU microseconds per call, of each of several stretches."""
    fresh, n, took, spent = cycle(items), 1, [0], 0
    most = 10_000 if bandit.settle is None else 100
    while took[0] < STRETCH_NS and n < most:
        n = n * 10 if took[0] else 1
        took = [_stretch(call, bandit, list(islice(fresh, n)))]
    took = []
    while len(took) < MIN_STRETCHES or (
        spent < BUDGET_S * 1e9 and len(took) < MAX_STRETCHES
    ):
        took.append(_stretch(call, bandit, list(islice(fresh, n))))
        spent += took[-1]
    return [ns / n / 1e3 for ns in took]


def us_per_update(bandit: Bandit, items: list[Any], open_at_once: int) -> list[float]:
    """CPU microseconds per update, the decisions before it not counted."""
    fresh, clicks = cycle(items), cycle(_clicks())
    took: list[float] = []
    began = time.process_time()
    while len(took) < MIN_STRETCHES or (
        time.process_time() - began < BUDGET_S and len(took) < MAX_SHORT_STRETCHES
    ):
        some = [
            (x, bandit.decide(x), next(clicks)) for x in islice(fresh, open_at_once)
        ]
        start = time.process_time_ns()
        for x, decided, click in some:
            bandit.update(x, decided, click)
        took.append((time.process_time_ns() - start) / open_at_once / 1e3)
    return took


def _time_flat(method: Method, n_arms: int, tokens: list[bytes]) -> None:
    bandit = method.make(n_arms)
    _warm_up(bandit, tokens, n_arms)
    report("W1", method, n_arms, us_per_call(bandit.decide, bandit, tokens))
    if n_arms != BATCH_ARMS:
        return
    clicks = cycle(_clicks())
    decide, update, at_once = bandit.decide, bandit.update, bandit.both

    def in_turn(token: bytes) -> None:
        update(token, decide(token), next(clicks))

    def together(token: bytes) -> None:
        at_once(token, next(clicks))  # type: ignore[misc]  # not called where it is None

    both = in_turn if at_once is None else together
    took = us_per_call(both, bandit._replace(settle=None), tokens)
    report("W1u", method, n_arms, took)
    if bandit.decide_batch is not None:
        batch, n = bandit.decide_batch, bandit.n_batch
        took = [us / n for us in us_per_call(lambda _: batch(), bandit, tokens)]
        report("W4", method, n_arms, took, f"{n:,} a call")


def _time_contextual(method: Method, n_arms: int, rows: list[list[float]]) -> None:
    bandit = method.make(n_arms)
    contexts = [bandit.context(row) for row in rows]
    if not method.no_update:
        _warm_up(bandit, contexts, n_arms)
    report("W2", method, n_arms, us_per_call(bandit.decide, bandit, contexts))
    if method.no_update:
        _fail("W3", method, n_arms, method.no_update)
        return
    slow = _stretch(bandit.decide, bandit, contexts[:1]) > 1_000_000
    took = us_per_update(bandit, contexts, 2 if slow else N_UPDATES)
    report("W3", method, n_arms, took)


def _warm_up(bandit: Bandit, items: list[Any], n_arms: int) -> None:
    """Let it learn a little, so that its arms are not all alike."""
    began, clicks = time.process_time(), cycle(_clicks())
    for x in islice(cycle(items), 20 * n_arms):
        bandit.update(x, bandit.decide(x), next(clicks))
        if time.process_time() - began > WARM_UP_S:
            break


def _stretch(call: Callable[[Any], Any], bandit: Bandit, items: list[Any]) -> int:
    if bandit.settle is None:
        start = time.process_time_ns()
        for x in items:
            call(x)
        return time.process_time_ns() - start
    start = time.process_time_ns()
    decided = [call(x) for x in items]
    took = time.process_time_ns() - start
    bandit.settle(decided)
    return took


def _clicks() -> list[float]:
    rng = random.Random(8)
    return [float(rng.random() < CLICK_RATE) for _ in range(997)]


def _attempt(method: Method, n_arms: int, measure: Callable[[], None]) -> None:
    try:
        measure()
    except Exception as error:  # noqa: BLE001 - one bandit's fault is a row of the report
        _fail("error", method, n_arms, f"{type(error).__name__}: {error}")


def _fail(work: str, method: Method, n_arms: int, why: str) -> None:
    row = {"work": work, "method": method.name, "n_arms": n_arms, "error": why[:300]}
    print(json.dumps(row), flush=True)
    print(f"{method.name}, {n_arms} arms, {work}: {why}", file=sys.stderr)
