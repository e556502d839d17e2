"""What the demo plays, as arrays, and who is next: every test progresses alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandolero.simulate import Environment

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What is played: arrays over (test, arm), zero where a test has fewer arms."""

    experiment_ids: tuple[str, ...]
    horizons: Counts
    rates: Rates
    seconds: float
    seed: int


def make_plan(
    tests: Sequence[Environment],
    experiment_ids: Sequence[str],
    seconds: float,
    seed: int,
) -> Plan:
    """Lay the tests out as arrays."""
    rates = np.zeros((len(tests), max(test.n_arms for test in tests)))
    for row, test in zip(rates, tests, strict=True):
        row[: test.n_arms] = test.rates
    horizons = np.array([test.horizon for test in tests], dtype=np.int64)
    return Plan(tuple(experiment_ids), horizons, rates, seconds, seed)


def variant_id(arm: int) -> str:
    """Name the variant of an arm: p1 for arm 0."""
    return f"p{arm + 1}"


def due(horizons: Counts, issued: Counts, progress: float) -> Counts:
    """Decisions to ask for now, (n_tests,), so that every test progresses alike.

    Examples
    --------
    >>> due(np.array([1000, 200]), np.array([400, 100]), progress=0.5)
    array([100,   0])
    """
    target = np.floor(horizons * progress).astype(np.int64)
    missing: Counts = np.maximum(target - issued, 0)
    return missing


def mix(rng: np.random.Generator, waiting: Counts, size: int) -> Counts:
    """At most `size` of the waiting decisions, as shuffled test indices."""
    size = min(size, int(waiting.sum()))
    taken = rng.multivariate_hypergeometric(waiting, size, method="marginals")
    tests: Counts = np.repeat(np.arange(len(waiting)), taken)
    rng.shuffle(tests)
    return tests
