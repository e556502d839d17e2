"""How fast the contextual policies learn: `python -m benchmarks.contextual_learning`.

Problem P1: 10 ads, 16 features, click rates of 3 to 4 % when shown at random, 5 to 6 % for
the best ad, 10 to 11 % for the best ad of each request; 100,000 requests. Regret is the sum
of (best click rate - that of the ad shown). All policies see the same requests and, for the
same ad, the same clicks. Every policy has its default settings and no floor; it learns each
reward at once or `delay` requests later, and serves from a snapshot made every ten
requests. Defaults were chosen on seeds 100 … 147; do not print them among the results.

With a delay of n all policies serve the first n requests at random; what that costs no
policy can save, so it is printed too.

`--seeds 200 262 --policies logistic_thompson linear_thompson --delays 0 10000`
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import print_header

from bandolero.policies.lin_ucb import LinUcb
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson

Floats = NDArray[np.float64]

N_ARMS, N_FEATURES, N_REQUESTS = 10, 16, 100_000
SNAPSHOT_EVERY = 10
DELAYS = (0, 10_000)
SEEDS = (200, 262)


class Problem(NamedTuple):
    """Requests of one seed: features (n, d), click rates (n, k), uniform numbers (n,)."""

    X: Floats
    rates: Floats
    U: Floats


def problem(seed: int, n_requests: int = N_REQUESTS) -> Problem:
    """P1 of a seed."""
    rng = np.random.default_rng(1000 + seed)
    intercept = np.log(0.025 / 0.975) + 0.25 * rng.standard_normal(N_ARMS)
    slopes = 0.25 * rng.standard_normal((N_ARMS, N_FEATURES - 1))
    X = np.ones((n_requests, N_FEATURES))
    X[:, 1:] = rng.standard_normal((n_requests, N_FEATURES - 1))
    U = rng.random(n_requests)
    rates = 1.0 / (1.0 + np.exp(-(intercept + X[:, 1:] @ slopes.T)))
    return Problem(X, rates, U)


POLICIES: dict[str, Callable[[], Any]] = {
    "linear_thompson": lambda: LinearThompson(N_FEATURES),
    "logistic_thompson": lambda: LogisticThompson(N_FEATURES),
    "logistic_thompson, diagonal": lambda: LogisticThompson(N_FEATURES, "diagonal"),
    "lin_ucb": lambda: LinUcb(N_FEATURES),
}


def regret_of(policy: Any, given: Problem, delay: int, seed: int) -> float:
    """Regret of a policy over all requests; `seed` fixes its draws."""
    X, rates, U = given
    draws = np.random.default_rng(seed).random(len(X))
    eligible = np.arange(N_ARMS)
    state = policy.init(N_ARMS)
    arms = np.zeros(len(X), np.int64)
    learned, prepared = 0, policy.prepare(state)
    for t in range(0, len(X), SNAPSHOT_EVERY):
        if t - delay > learned:
            now = slice(learned, t - delay)
            shown = rates[np.arange(now.start, now.stop), arms[now]]
            clicks = (U[now] < shown).astype(np.float64)
            state = policy.update(state, arms[now], clicks, X[now])
            learned, prepared = now.stop, policy.prepare(state)
        for i in range(t, min(t + SNAPSHOT_EVERY, len(X))):
            arms[i] = policy.draw(prepared, eligible, X[i], draws[i])[0]
    return float((rates.max(axis=1) - rates[np.arange(len(X)), arms]).sum())


def blind_regret(given: Problem, delay: int) -> float:
    """Expected regret of showing ads at random until the first reward is known."""
    rates = given.rates[:delay]
    return float((rates.max(axis=1) - rates.mean(axis=1)).sum())


def main() -> None:
    """Print a table a delay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs=2, type=int, default=SEEDS)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES))
    parser.add_argument("--delays", nargs="*", type=int, default=DELAYS)
    args = parser.parse_args()
    print_header("Learning, problem P1: regret with default settings")
    seeds = range(*args.seeds)
    for delay in args.delays:
        blind = np.mean([blind_regret(problem(s), delay) for s in seeds])
        print(
            f"delay {delay:,}, seeds {seeds.start} … {seeds.stop - 1}: {blind:.0f} blind"
        )
        for name in args.policies:
            began = time.process_time()
            regrets = np.array(
                [regret_of(POLICIES[name](), problem(s), delay, s) for s in seeds]
            )
            took_s = (time.process_time() - began) / len(seeds)
            error = regrets.std(ddof=min(1, len(seeds) - 1)) / len(seeds) ** 0.5
            each = " ".join(f"{r:.0f}" for r in regrets)
            print(
                f"{name:30} {regrets.mean():7.0f} ± {error:3.0f} (se)  {took_s:.1f} s"
            )
            print(f"  {each}", flush=True)


if __name__ == "__main__":
    main()
