"""The best combination of many values is found: by trying all, or by climbing well."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import reference_joint as reference
from bandolero.policies import product_choice
from bandolero.policies.product_choice import ProductPrepared

Floats = NDArray[np.float64]
ALONE = np.ones(1)


def random_problem(
    seed: int, n_values: tuple[int, ...], n_draws: int
) -> ProductPrepared:
    """Problems with weights of values and pairs of the same size, never begun."""
    rng, total = np.random.default_rng(seed), sum(n_values)
    first = np.concatenate(([0], np.cumsum(n_values)))
    attribute = np.repeat(np.arange(len(n_values)), n_values)
    pairs = rng.standard_normal((n_draws, total, total))
    pairs *= attribute[:, None] < attribute
    return ProductPrepared(
        rng.standard_normal((n_draws, 1, total)).astype(np.float32),
        (pairs + pairs.transpose(0, 2, 1)).astype(np.float32),
        first,
        (rng.random((8, len(n_values))) * n_values).astype(np.int64),
        np.zeros((n_draws, len(n_values)), np.int64),
    )


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.data(),
)
def test_trying_all_finds_the_best(
    seed: int, sizes: list[int], data: st.DataObject
) -> None:
    """A small product's best combination is the twin's, some values being forbidden."""
    problem = random_problem(seed, tuple(sizes), 2)
    allowed = [
        sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))) for n in sizes
    ]
    mask = np.zeros(sum(sizes), np.bool_)
    for begin, some in zip(problem.first, allowed, strict=False):
        mask[begin + np.array(some)] = True
    best = product_choice.best(problem, ALONE, mask)
    for s in range(2):
        weights = problem.values[s, 0].astype(np.float64)
        pairs = problem.pairs[s].astype(np.float64)
        twin, worth = reference.best_combination(weights, pairs, allowed, problem.first)
        got = reference.worth_of(problem, best, ALONE)[s]
        assert got == pytest.approx(worth, abs=1e-4)
        assert all(v in some for v, some in zip(best[s], allowed, strict=True))
        if len(twin) == 1:
            assert best[s].tolist() == twin


def test_climbing_finds_the_best_of_4_x_4_x_4() -> None:
    """Of 400 random problems the very best in 95 %, and never anything above it."""
    problem, mask = random_problem(5, (4, 4, 4), 400), np.ones(12, np.bool_)
    exact = reference.worth_of(
        problem, product_choice.best(problem, ALONE, mask), ALONE
    )
    climbed = product_choice.best(problem, ALONE, mask, exact_max=0)
    reached = reference.worth_of(problem, climbed, ALONE)
    assert (reached <= exact + 1e-5).all()
    assert np.mean(reached >= exact - 1e-5) >= 0.95


def test_climbing_ends_where_no_single_value_is_better() -> None:
    """At 6 x 10 with half of the values forbidden: allowed, and best in each coordinate."""
    n_values = (10,) * 6
    problem, mask = random_problem(6, n_values, 20), np.ones(60, np.bool_)
    mask[::2] = False
    best = product_choice.best(problem, ALONE, mask)
    worth = reference.worth_of(problem, best, ALONE)
    assert mask[problem.first[:-1] + best].all()
    for a, v in product(range(6), range(1, 10, 2)):
        other = best.copy()
        other[:, a] = v
        assert (reference.worth_of(problem, other, ALONE) <= worth + 1e-4).all()
