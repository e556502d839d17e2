"""Joint posteriors, listed variants and products: `python -m benchmarks.factorial`.

CPU time of the calling thread, from Python. Decisions come with their propensity and a
floor, a fresh context each where there is one; beliefs are those after 20,000 trials.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import Spread, print_header, print_row, spread

from bandolero.attributes import attribute_features
from bandolero.policies.factorial_thompson import FactorialThompson
from bandolero.policies.product_choice import ProductPrepared, best
from bandolero.policies.product_thompson import ProductThompson
from bandolero.policies.shared_linear_thompson import SharedLinearThompson

Floats = NDArray[np.float64]

N_TRIALS = 20_000
D = 8
RNG = np.random.default_rng(7)


def main() -> None:
    """Print the tables."""
    print_header("One posterior for all variants")
    print_row("listed variants, us", "median (min … max)", "bar")
    for shape in ((5, 2), (5, 5, 2)):
        variants: list[dict[str, object]] = [
            dict(zip("abc", row, strict=False)) for row in product(*map(range, shape))
        ]
        rows = attribute_features(variants).matrix.tolist()
        for d in (1, D):
            shared = SharedLinearThompson(d, tuple(tuple(row) for row in rows))
            listed(shared, len(variants))
            listed(FactorialThompson.of(variants, d), len(variants))
    print()
    print_row("6 attributes of 10 values, us", "median (min … max)", "bar")
    for d in (1, D):
        products(ProductThompson((10,) * 6, d))
    products(ProductThompson((10, 10, 10), D))
    print()
    print_row("6 x 10 with context, as climbed", "median (min … max) of 5 contexts")
    same, lost = found(ProductThompson((10,) * 6, D))
    print_row("  draws that got their very best, %", same.text(0))
    print_row("  lost of what the best is worth, %", lost.text())


def listed(policy: SharedLinearThompson, n_arms: int) -> None:
    """Print what a policy over listed variants costs."""
    X, clicks = contexts(policy.n_features), (RNG.random(N_TRIALS) < 0.04).astype(float)
    arms, eligible = RNG.integers(0, n_arms, N_TRIALS), np.arange(n_arms)
    state = policy.update(policy.init(n_arms), arms, clicks, X)
    prepared, rows = policy.prepare(state), cycle(list(X[:2000]))
    size = f"{n_arms} variants, {policy.n_features} features"
    took = us_of(lambda: policy.draw(prepared, eligible, next(rows), 0.3, 0.01), 500)
    print_row(f"  {policy.kind}, {size}", took.text(1))
    took = us_of(partial(policy.prepare, state), 5, 10)
    print_row(f"    prepare, {np.prod(prepared[1].shape[:2])} weights", took.text(0))


def products(policy: ProductThompson) -> None:
    """Print what a product costs."""
    X, clicks = contexts(policy.n_features), (RNG.random(N_TRIALS) < 0.04).astype(float)
    shown = (RNG.random((N_TRIALS, len(policy.n_values))) * policy.n_values).astype(int)
    first = policy.init()
    state = policy.update(first, shown, clicks, X)
    prepared, rows = policy.prepare(state), cycle(list(X[:2000]))
    size = " x ".join(map(str, policy.n_values))
    print_row(f"  {size}, {policy.n_features} features, {policy.n_weights} weights", "")
    took = us_of(lambda: policy.draw(prepared, next(rows), 0.3, 0.001), 50)
    print_row("    one decision", took.text(1), "<= 1000 us")
    some = [np.arange(1, n) for n in policy.n_values]
    took = us_of(lambda: policy.draw(prepared, next(rows), 0.3, 0.001, some), 50)
    print_row("    one decision, a value of each forbidden", took.text(1), "<= 1000 us")
    batch = partial(policy.update, first, shown, clicks, X)
    took = us_of(batch, 1, 10, each=N_TRIALS)
    print_row("    one update, in a batch", took.text(3))
    took = us_of(lambda: policy.observe(state, shown[0], 0.0, X[0]), 500)
    print_row("    one update, from Python, in place", took.text(1))
    took = us_of(partial(policy.prepare, state), 1, 10)
    print_row("    prepare", took.text(0))
    n_bytes = sum(array.nbytes for array in prepared)
    print_row("    prepared, MB", f"{n_bytes / 1e6:.1f}")


def found(policy: ProductThompson) -> tuple[Spread, Spread]:
    """How many climbs end at the best combination there is, and what the others lose."""
    X, clicks = contexts(policy.n_features), (RNG.random(N_TRIALS) < 0.04).astype(float)
    shown = (RNG.random((N_TRIALS, len(policy.n_values))) * policy.n_values).astype(int)
    prepared = policy.prepare(policy.update(policy.init(), shown, clicks, X))
    mask = np.ones(sum(policy.n_values), np.bool_)
    same, lost = [], []
    for x in X[:5]:
        climbed = best(prepared, x, mask)
        exact = best(prepared, x, mask, exact_max=policy.n_combinations)
        same.append(100.0 * float((climbed == exact).all(axis=1).mean()))
        top = worth(prepared, exact, x).mean()
        lost.append(100.0 * float(1.0 - worth(prepared, climbed, x).mean() / top))
    return spread(same), spread(lost)


def worth(prepared: ProductPrepared, chosen: NDArray[np.int64], x: Floats) -> Floats:
    """What each draw's combination is worth, above an average one."""
    at, draws = prepared.first[:-1] + chosen, np.arange(len(chosen))[:, None]
    alone = np.einsum("sdw,d->sw", prepared.values, x)[draws, at].sum(axis=1)
    pairs = prepared.pairs[draws[:, :, None], at[:, :, None], at[:, None, :]]
    return np.asarray(alone + 0.5 * pairs.sum(axis=(1, 2)), np.float64)


def contexts(d: int) -> Floats:
    """Contexts with an intercept."""
    X = RNG.standard_normal((N_TRIALS, d))
    X[:, 0] = 1.0
    return X


def us_of(
    call: Callable[[], Any], n_calls: int, n_runs: int = 30, each: int = 1
) -> Spread:
    """CPU microseconds per call over `n_runs` stretches; the first call not counted."""
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
