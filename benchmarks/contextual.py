"""Contextual decisions and updates, d = 32: `python -m benchmarks.contextual`.

Decisions are timed from Python, with their propensity and a floor, a fresh context each;
arms of random posteriors, so that many are in the race (the slow case). Errors are those
of P(best | x), against `best_of_normals`, which is right to 1e-10.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import Spread, print_header, print_row, spread

from bandolero.experiment import CategoricalField, CyclicField, NumericField
from bandolero.features import FeatureMap
from bandolero.policies.lin_ucb import LinUcb
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson
from bandolero.policies.normal_choice import best_of_predictions, draw_batch
from bandolero.quadrature import best_of_normals

Floats = NDArray[np.float64]

D = 32
N_TRIALS = 1_000_000
DRAW_BARS = {10: "<= 5 us", 50: "<= 20 us"}
RNG = np.random.default_rng(7)


def main() -> None:
    """Print the tables."""
    print_header("Contextual policies, 32 features, full covariance unless said")
    X = RNG.standard_normal((2000, D))
    X[:, 0] = 1.0
    policies: dict[str, Any] = {
        "linear_thompson": LinearThompson(D),
        "logistic_thompson": LogisticThompson(D),
        "logistic_thompson, diagonal": LogisticThompson(D, "diagonal"),
        "lin_ucb": LinUcb(D),
    }
    print_row("one decision with its propensity", "us, median (min … max)", "bar")
    for name, policy in policies.items():
        for n_arms in (10, 50):
            row = f"  {name}, {n_arms} variants"
            bar = "" if name == "lin_ucb" else DRAW_BARS[n_arms]
            print_row(row, draw_us(policy, n_arms, X).text(), bar)
    for n_arms in (10, 50, 1000):
        row = f"  linear_thompson, {n_arms} variants, in a batch"
        print_row(row, batch_us(policies["linear_thompson"], n_arms, X).text())
    print()

    print_row("one update", "us, median (min … max)", "bar")
    for name, policy in policies.items():
        if name == "lin_ucb":
            continue
        print_row(f"  {name}, in a batch of 1e6", update_us(policy).text(), "<= 0.5 us")
        print_row("    from Python, in place", observe_us(policy, X).text())
        print_row("    from Python, a new state", update_one_us(policy, X).text())
    print()

    print_row("prepare, once per snapshot", "us, median (min … max)")
    for name, policy in policies.items():
        for n_arms in (10, 50):
            state = learned(policy, n_arms, X)
            took = us_of(partial(policy.prepare, state), 20)
            print_row(f"  {name}, {n_arms} variants", took.text(0))
    features = FeatureMap(
        [
            CategoricalField(kind="categorical", name="device", levels=["pc", "tv"]),
            CategoricalField(kind="categorical", name="city", levels=list("abcdefgh")),
            CyclicField(kind="cyclic", name="hour", period=24.0),
            NumericField(kind="numeric", name="age"),
        ]
    )
    context = {"device": "tv", "city": "e", "hour": 14, "age": 0.3}
    took = us_of(lambda: features.encode(context), 2000)
    print_row("encode a context of 4 fields", took.text())
    print()

    print_row("error of P(best | x)", "largest of 200 cases", "bar")
    for n_arms in (2, 10, 50, 1000):
        bar = "<= 1e-3"
        print_row(f"  {n_arms} variants", f"{error_of(n_arms):.1e}", bar)


def learned(policy: Any, n_arms: int, X: Floats) -> Any:
    """State after 2,000 trials at a click rate of 5 %."""
    arms = np.arange(len(X)) % n_arms
    clicks = (RNG.random(len(X)) < 0.05).astype(np.float64)
    return policy.update(policy.init(n_arms), arms, clicks, X)


def draw_us(policy: Any, n_arms: int, X: Floats) -> Spread:
    """One decision from Python."""
    prepared = policy.prepare(learned(policy, n_arms, X))
    for array in prepared:
        array.setflags(write=False)
    eligible, rows = np.arange(n_arms), cycle(list(X))
    return us_of(lambda: policy.draw(prepared, eligible, next(rows), 0.3, 0.01), 2000)


def batch_us(policy: Any, n_arms: int, X: Floats) -> Spread:
    """One decision of a batch of 2,000."""
    prepared = policy.prepare(learned(policy, n_arms, X))
    eligible, u = np.arange(n_arms), RNG.random(len(X))
    call = partial(draw_batch, prepared, eligible, X, u, 0.01)
    return us_of(call, 1, 10, each=len(X))


def update_us(policy: Any) -> Spread:
    """One of a million updates over 10 arms, the copy of the state in it."""
    X = RNG.standard_normal((N_TRIALS, D))
    arms, clicks = RNG.integers(0, 10, N_TRIALS), np.zeros(N_TRIALS)
    clicks[::20] = 1.0
    state = policy.init(10)
    return us_of(partial(policy.update, state, arms, clicks, X), 1, 5, each=N_TRIALS)


def observe_us(policy: Any, X: Floats) -> Spread:
    """One update in place, 10 arms."""
    state, rows = policy.init(10), cycle(list(X))
    return us_of(lambda: policy.observe(state, 3, 0.0, next(rows)), 2000)


def update_one_us(policy: Any, X: Floats) -> Spread:
    """One update that leaves the old state alone, 10 arms."""
    state, arm, click = policy.init(10), np.array([3]), np.zeros(1)
    return us_of(lambda: policy.update(state, arm, click, X[:1]), 500)


def error_of(n_arms: int) -> float:
    """Largest error over means and scales of every kind."""
    worst = 0.0
    for case in range(200 if n_arms < 1000 else 20):
        sd = np.exp((0.0, 0.3, 1.0, 3.0)[case % 4] * RNG.standard_normal(n_arms))
        mean = (0.0, 0.3, 1.0, 5.0)[case // 4 % 4] * RNG.standard_normal(n_arms)
        exact = best_of_normals(mean, sd).probability_best
        error = np.abs(best_of_predictions(mean, sd) - exact).max()
        worst = max(worst, float(error))
    return worst


def us_of(
    call: Callable[[], object], n_calls: int, n_runs: int = 30, each: int = 1
) -> Spread:
    """CPU microseconds per call over `n_runs` stretches; the first, compiling, not counted.

    A call does `each` of what is timed.
    """
    call()
    took = []
    for _ in range(n_runs):
        began = time.thread_time_ns()
        for _ in range(n_calls):
            call()
        took.append((time.thread_time_ns() - began) / n_calls / each / 1e3)
    return spread(took)


if __name__ == "__main__":
    main()
