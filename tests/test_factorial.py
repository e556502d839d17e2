"""Combinations of attribute values: learned by their parts, found, drawn with propensity."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import reference_joint as reference
from bandolero.attributes import attribute_features, paired_features
from bandolero.codec import pack, unpack
from bandolero.policies.beta_thompson import BetaThompson
from bandolero.policies.factorial_thompson import FactorialThompson
from bandolero.policies.product_choice import ProductPrepared
from bandolero.policies.product_thompson import (
    N_DRAWS,
    ProductState,
    ProductThompson,
)
from bandolero.policies.shared_linear_thompson import SharedLinearThompson
from bandolero.snapshot import state_arrays

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Trials = tuple[Ints, Floats, Floats]
SMALL = ProductThompson((3, 2, 4), 2)
ALONE = np.ones(1)


def trials_of(seed: int, n: int, policy: ProductThompson, rate: float = 0.1) -> Trials:
    """Clicks that know nothing of what was shown, with an intercept."""
    rng = np.random.default_rng(seed)
    shown = (rng.random((n, len(policy.n_values))) * policy.n_values).astype(np.int64)
    X = rng.standard_normal((n, policy.n_features))
    X[:, 0] = 1.0
    return shown, (rng.random(n) < rate).astype(np.float64), X


def some_prepared(seed: int, policy: ProductThompson) -> ProductPrepared:
    """A belief after 500 trials."""
    return policy.prepare(policy.update(policy.init(), *trials_of(seed, 500, policy)))


# --- listed variants ----------------------------------------------------------


def test_factorial_is_the_shared_regression_with_pairs() -> None:
    """The same posterior and shares as `SharedLinearThompson` with paired features."""
    variants = [{"a": a, "b": b} for a in "xyz" for b in "uv"]
    policy = FactorialThompson.of(variants, n_features=2)
    table = paired_features(variants)
    rows = tuple(tuple(row) for row in table.matrix.tolist())
    twin = SharedLinearThompson(2, rows)
    rng = np.random.default_rng(1)
    X = np.column_stack([np.ones(300), rng.standard_normal(300)])
    trials = rng.integers(0, 6, 300), (rng.random(300) < 0.1).astype(float), X
    state = policy.update(policy.init(6), *trials)
    shares = policy.probabilities(policy.prepare(state), np.arange(6), X[0])
    wanted = twin.probabilities(twin.prepare(state), np.arange(6), X[0])
    assert_array_equal(shares, wanted)
    assert policy.kind == "factorial_thompson"


def test_pairs_find_what_single_values_cannot() -> None:
    """An exclusive or: no value is better than another, one pair of them is best.

    With values alone no arm gets above 60 %; with pairs the two best have all.
    """
    variants = [{"a": a, "b": b} for a in "xy" for b in "uv"]
    arms = np.repeat(np.arange(4), 1000)
    rewards = (np.arange(4000) % 10 < np.where(np.isin(arms, [0, 3]), 3, 1)).astype(
        float
    )
    paired = FactorialThompson.of(variants, 1)
    single = SharedLinearThompson(
        1, tuple(tuple(row) for row in attribute_features(variants).matrix.tolist())
    )
    state = paired.update(paired.init(4), arms, rewards, np.ones((4000, 1)))
    with_pairs = paired.probabilities(paired.prepare(state), np.arange(4), ALONE)
    without = single.probabilities(single.prepare(state), np.arange(4), ALONE)
    assert with_pairs[[0, 3]].sum() == pytest.approx(1.0)
    assert without.max() < 0.6


# --- the product space: learning ----------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 2))
def test_learns_as_the_twin(seed: int, n: int, d: int) -> None:
    """Every weight's mean and variance equal those of its integrals, trial after trial."""
    policy = ProductThompson(
        (2, 3), d, -0.5, prior_variance=0.6, value_variance=0.4, pair_variance=0.2
    )
    shown, rewards, X = trials_of(seed, n, policy, 0.4)
    state = policy.update(policy.init(), shown, rewards, X)
    rows = [
        reference.combination_features((2, 3), row, x)
        for row, x in zip(shown.tolist(), X, strict=True)
    ]
    sizes = d, 5 * d, 6
    prior = np.repeat([0.6, 0.4, 0.2], sizes)
    start = np.zeros(sum(sizes))
    start[0] = -0.5
    dense = np.array(rows).reshape(n, sum(sizes))
    mean, variance = reference.probit_filter(start, prior, dense, rewards)
    for got, common, values, pairs in (
        (mean, state.common_mean, state.value_mean, state.pair_mean),
        (variance, state.common_variance, state.value_variance, state.pair_variance),
    ):
        flat = np.concatenate([common, values.ravel(), pairs[:2, 2:].ravel()])
        assert_allclose(flat, got, atol=1e-7)
    assert policy.n_weights == sum(sizes)
    assert state.trials[0] == n


def test_one_trial_by_hand() -> None:
    """Four weights of N(0, 1/4): a click moves each by phi(0) / Phi(0) / 4 / sqrt 2."""
    policy = ProductThompson(
        (2, 2), 1, 0.0, prior_variance=0.25, value_variance=0.25, pair_variance=0.25
    )
    one = np.array([[1, 0]]), np.ones(1), np.ones((1, 1))
    state = policy.update(policy.init(), *one)
    moved = 0.25 * np.sqrt(2.0 / np.pi) / np.sqrt(2.0)
    assert state.common_mean[0] == pytest.approx(moved)
    assert_allclose(state.value_mean[:, 0], [0.0, moved, moved, 0.0])
    assert state.pair_mean[1, 2] == pytest.approx(moved)
    shrunk = 0.25 * (1.0 - 2.0 / np.pi * 0.25 / 2.0)
    assert state.pair_variance[1, 2] == pytest.approx(shrunk)
    assert np.count_nonzero(state.pair_mean) == 1


def test_one_batch_equals_two_halves() -> None:
    """Trials in the order of the log, in any batches: the same bits, and so by `observe`."""
    shown, rewards, X = trials_of(1, 200, SMALL)
    whole = SMALL.update(SMALL.init(), shown, rewards, X)
    halves = SMALL.update(SMALL.init(), shown[:77], rewards[:77], X[:77])
    halves = SMALL.update(halves, shown[77:], rewards[77:], X[77:])
    own = SMALL.init()
    for combination, reward, x in zip(shown, rewards, X, strict=True):
        SMALL.observe(own, combination, reward, x)
    for one, other, third in zip(whole, halves, own, strict=True):
        assert_array_equal(one, other)
        assert_array_equal(one, third)


def test_saved_state_goes_on_to_the_bit() -> None:
    """State to bytes and back, then more trials: the same; the old state is unchanged."""
    shown, rewards, X = trials_of(2, 60, SMALL)
    state = SMALL.update(SMALL.init(), shown[:30], rewards[:30], X[:30])
    arrays = unpack(pack({}, state_arrays("state", state))).arrays
    back = ProductState(*(arrays[f"state.{name}"] for name in ProductState._fields))
    later = shown[30:], rewards[30:], X[30:]
    for array in state:
        array.setflags(write=False)
    for one, other in zip(
        SMALL.update(state, *later), SMALL.update(back, *later), strict=True
    ):
        assert_array_equal(one, other)


def test_surprises_do_not_break_it() -> None:
    """Huge features, and clicks that were all but impossible, leave everything finite."""
    state = ProductThompson((2, 2), 2, prior_intercept=-60.0).init()
    policy = ProductThompson((2, 2), 2)
    for scale in (1.0, 1e3, 1e9, 1e20):
        x = np.array([[1.0, scale], [1.0, -scale], [1.0, scale]])
        shown = np.array([[0, 0], [0, 1], [1, 1]])
        state = policy.update(state, shown, np.array([1.0, 1.0, 0.0]), x)
        assert all(np.isfinite(array).all() for array in state)
    for variance in (state.common_variance, state.value_variance, state.pair_variance):
        assert (variance >= 0.0).all()


def test_values_added_later_start_at_the_prior() -> None:
    """`grow` keeps what is learned of values and pairs, and gives new ones the prior."""
    old, new = ProductThompson((2, 3), 2), ProductThompson((3, 3), 2)
    shown, rewards, X = trials_of(3, 100, old)
    state = old.update(old.init(), shown, rewards, X)
    grown, fresh = new.grow(state, old), new.init()
    kept = np.array([0, 1, 3, 4, 5])
    assert_array_equal(grown.value_mean[kept], state.value_mean)
    assert_array_equal(grown.pair_variance[np.ix_(kept, kept)], state.pair_variance)
    assert_array_equal(grown.value_variance[2], fresh.value_variance[2])
    assert_array_equal(grown.pair_variance[2], fresh.pair_variance[2])
    assert_array_equal(grown.common_mean, state.common_mean)
    more = new.update(grown, shown, rewards, X)
    again = old.update(state, shown, rewards, X)
    assert_array_equal(more.value_mean[kept], again.value_mean)
    assert more.trials[0] == 200


@pytest.mark.parametrize(
    ("shown", "rewards", "features", "message"),
    [
        (
            [[0, 0]],
            [0.0],
            [[1.0]],
            r"combinations.shape == \(1, 2\), must be \(1, 3\).",
        ),
        ([[0, 0, 0]], [0.0], [[1.0]], r"features.shape == \(1, 1\), must be \(1, 2\)."),
        ([[0, 2, 0]], [0.0], [[1.0, 1.0]], "combinations must be values below"),
        ([[0, -1, 0]], [0.0], [[1.0, 1.0]], "combinations must be values below"),
        ([[0, 0, 0]], [0.5], [[1.0, 1.0]], "rewards must be 0 or 1"),
        ([[0, 0, 0]], [np.nan], [[1.0, 1.0]], "rewards must be 0 or 1"),
        ([[0, 0, 0]], [0.0], [[1.0, np.inf]], "features must be numbers"),
        ([[0, 0, 0]], [0.0], [[1.0, np.nan]], "features must be numbers"),
    ],
)
def test_bad_trials_are_refused(
    shown: list[list[int]],
    rewards: list[float],
    features: list[list[float]],
    message: str,
) -> None:
    """Wrong shapes, unknown values, other rewards, nan and inf never reach a kernel."""
    given_trials = np.array(shown), np.array(rewards), np.array(features)
    with pytest.raises(ValueError, match=message):
        SMALL.update(SMALL.init(), *given_trials)


def test_impossible_products_are_refused() -> None:
    """No attribute, an attribute without values, more combinations than draws can tell."""
    for n_values in ((), (2, 0), (10,) * 13):
        with pytest.raises(ValueError, match=r"^n_"):
            ProductThompson(n_values)


# --- the product space: deciding ----------------------------------------------


def test_shares_are_those_of_the_draws() -> None:
    """Shares equal counts of each draw's best by the definition, with context and mask."""
    prepared, x = some_prepared(1, SMALL), np.array([1.0, -0.6])
    allowed = [np.array([0, 2]), np.arange(2), np.array([1, 2, 3])]
    for some in (None, allowed):
        values = [range(n) for n in SMALL.n_values] if some is None else some
        combos = np.array(list(product(*values)))
        worth = np.array(
            [reference.worth_of(prepared, np.tile(c, (N_DRAWS, 1)), x) for c in combos]
        )
        wanted = reference.shares_of_draws(worth)
        found, shares = SMALL.probabilities(prepared, x, some)
        assert shares.sum() == pytest.approx(1.0, abs=1e-12)
        for combination, share in zip(found, shares, strict=True):
            at = np.flatnonzero((combos == combination).all(axis=1))[0]
            assert share == pytest.approx(wanted[at], abs=1e-12)


def test_draws_are_of_the_belief() -> None:
    """Drawn weights have the state's means, and the prior's spread before any data."""
    policy = ProductThompson((3, 2, 4), 2)
    shown, rewards, X = trials_of(4, 2_000, policy)
    state = policy.update(policy.init(), shown, rewards, X)
    prepared, fresh = policy.prepare(state), policy.prepare(policy.init())
    sd = np.sqrt(state.value_variance.T)
    off = np.abs(prepared.values.mean(axis=0) - state.value_mean.T)
    assert (off < 5.0 * sd / np.sqrt(N_DRAWS)).all()
    assert (prepared.values.std(axis=0) < sd).all()
    assert fresh.values.std() == pytest.approx(np.sqrt(policy.value_variance), rel=0.05)
    assert fresh.pairs[:, 0, 3].std() == pytest.approx(
        np.sqrt(policy.pair_variance), rel=0.2
    )
    assert_array_equal(fresh.pairs, fresh.pairs.transpose(0, 2, 1))
    assert_array_equal(fresh.pairs[:, :3, :3], 0.0)


@pytest.mark.parametrize(("n_features", "n"), [(1, 4_000), (2, 1_000)])
def test_realised_shares_match_propensities(n_features: int, n: int) -> None:
    """Over all u, combinations and values come as often as their propensities say.

    A grid of n numbers u leaves an error of 20 / n at most; nothing is random.
    """
    policy = ProductThompson((3, 2, 4), n_features)
    prepared, x = some_prepared(5, policy), np.full(n_features, 1.0)
    counts = np.zeros((3, 2, 4))
    stated = np.full((3, 2, 4), np.nan)
    for u in (np.arange(n) + 0.5) / n:
        values, propensity = policy.draw(prepared, x, float(u), 0.02)
        counts[tuple(values)] += 1
        stated[tuple(values)] = propensity
    assert stated.sum() == pytest.approx(1.0, abs=1e-12)
    assert_allclose(counts / n, stated, atol=20 / n)
    assert stated.min() >= 0.08 / 24
    by_value = policy.value_probabilities(prepared, x, 0.02)
    for a, shares in enumerate(by_value):
        others = tuple(b for b in range(3) if b != a)
        assert_allclose(stated.sum(axis=others), shares, atol=1e-12)
        assert shares.min() >= 0.02


def test_floor_takes_at_most_half() -> None:
    """A floor of 20 % for each of four values leaves half of the traffic to the policy."""
    policy = ProductThompson((4, 2))
    prepared = some_prepared(6, policy)
    best = policy.probabilities(prepared, ALONE)
    propensity = policy.draw(prepared, ALONE, 0.75, 0.2).propensity
    share = policy.draw(prepared, ALONE, 0.5).propensity
    assert propensity == pytest.approx(0.5 / 8 + 0.5 * share)
    assert best.shares.max() >= share
    one = [np.array([1]), np.array([0])]
    only = policy.draw(prepared, ALONE, 0.1, 0.2, one)
    assert (only.values.tolist(), only.propensity) == ([1, 0], 1.0)


def test_a_decision_without_context_is_looked_up() -> None:
    """The look-up, and the search with all values allowed, find combinations as good."""
    policy = ProductThompson((5, 5, 5, 12))
    prepared = some_prepared(7, policy)
    every = [np.arange(n) for n in policy.n_values]
    known = reference.worth_of(prepared, policy.best(prepared, ALONE), ALONE)
    found = reference.worth_of(prepared, policy.best(prepared, ALONE, every), ALONE)
    assert policy.best(prepared, ALONE) is prepared.best
    assert_allclose(found, known, atol=1e-4)


def test_prepared_is_only_read_and_repeats() -> None:
    """Read-only arrays serve, and preparing twice gives the same bits."""
    one, other = some_prepared(8, SMALL), some_prepared(8, SMALL)
    arrays: tuple[NDArray[np.generic], ...] = tuple(one)
    for array, twin in zip(arrays, other, strict=True):
        assert_array_equal(array, twin)
        array.setflags(write=False)
    assert SMALL.draw(one, np.ones(2), 0.5, 0.01).propensity > 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e31])
def test_bad_features_are_refused(bad: float) -> None:
    """Not a number, infinity, endless and a wrong length raise."""
    prepared = some_prepared(9, SMALL)
    for x in (np.array([1.0, bad]), np.ones(3)):
        with pytest.raises(ValueError, match=r"^features"):
            SMALL.draw(prepared, x, 0.5)


@pytest.mark.parametrize(
    "allowed", [[[0], [0]], [[0], [0], []], [[0], [2], [0]], [[0], [-1], [0]]]
)
def test_bad_choices_are_refused(allowed: list[list[int]]) -> None:
    """A narrowed choice names each attribute, with known values, one at least."""
    prepared = some_prepared(10, SMALL)
    some = [np.array(values, np.int64) for values in allowed]
    with pytest.raises(ValueError, match=r"allowed"):
        SMALL.draw(prepared, np.ones(2), 0.5, 0.01, some)


# --- what factors are for -----------------------------------------------------


def clicks_of(seed: int) -> Floats:
    """Click rates of 4 x 4 x 4 combinations: effects of values and of pairs, (4, 4, 4)."""
    rng = np.random.default_rng(seed)
    a, b, c = np.ogrid[:4, :4, :4]
    log_odds = -3.2 + sum(0.4 * rng.standard_normal(4)[i] for i in (a, b, c))
    for i, j in ((a, b), (a, c), (b, c)):
        log_odds = log_odds + 0.1 * rng.standard_normal((4, 4))[i, j]
    return np.asarray(1.0 / (1.0 + np.exp(-log_odds)), np.float64)


def regret_of_product(rates: Floats, seed: int, n_batches: int) -> float:
    """Clicks lost in batches of 1,000 with a floor of 0.2 % a value."""
    rng, lost = np.random.default_rng(seed), 0.0
    policy = ProductThompson(rates.shape)
    state = policy.init()
    for _ in range(n_batches):
        prepared = policy.prepare(state)
        shown = np.array(
            [policy.draw(prepared, ALONE, u, 0.002).values for u in rng.random(1000)]
        )
        earned = rates[tuple(shown.T)]
        lost += float((rates.max() - earned).sum())
        clicks = (rng.random(1000) < earned).astype(np.float64)
        state = policy.update(state, shown, clicks, np.ones((1000, 1)))
    return lost


def regret_of_beta(rates: Floats, seed: int, n_batches: int) -> float:
    """The same with each combination an arm of its own."""
    rng, lost, flat = np.random.default_rng(seed), 0.0, rates.ravel()
    policy = BetaThompson()
    state = policy.init(flat.size)
    for _ in range(n_batches):
        p = policy.probabilities(state, np.arange(flat.size))
        arms = rng.choice(flat.size, 1000, p=p / p.sum())
        lost += float((flat.max() - flat[arms]).sum())
        state = policy.update(
            state, arms, (rng.random(1000) < flat[arms]).astype(float)
        )
    return lost


@pytest.mark.slow
def test_factors_lose_less_than_independent_arms() -> None:
    """Over 20,000 trials of 4 problems of 64 arms: less than 3/4 of the clicks lost.

    On average a third is (about 210 of 650 clicks, on 32 seeds); of 4 seeds 3/4 is 6
    standard errors away.
    """
    seeds = range(4)
    by_parts = sum(regret_of_product(clicks_of(s), s, 20) for s in seeds)
    by_arms = sum(regret_of_beta(clicks_of(s), s, 20) for s in seeds)
    assert by_parts < 0.75 * by_arms


def test_a_new_combination_starts_warm() -> None:
    """Value 0 of each attribute earns more; all three together, never shown, are best."""
    policy, rng = ProductThompson((4, 4, 4)), np.random.default_rng(20)
    shown = rng.integers(0, 4, (6_000, 3))
    shown = shown[(shown == 0).sum(axis=1) < 3]
    rates = 0.03 * 2.0 ** (shown == 0).sum(axis=1)
    clicks = (rng.random(len(shown)) < rates).astype(np.float64)
    state = policy.update(policy.init(), shown, clicks, np.ones((len(shown), 1)))
    combinations, shares = policy.probabilities(policy.prepare(state), ALONE)
    assert shares[(combinations == 0).all(axis=1)].sum() > 0.9


def test_context_changes_what_is_best() -> None:
    """Value 0 earns where the feature is 1, value 1 where it is -1: each is found."""
    policy, rng = ProductThompson((2, 3), 2), np.random.default_rng(21)
    n = 6_000
    shown = np.column_stack([rng.integers(0, 2, n), rng.integers(0, 3, n)])
    X = np.column_stack([np.ones(n), rng.choice([-1.0, 1.0], n)])
    good = (shown[:, 0] == 0) == (X[:, 1] > 0.0)
    clicks = (rng.random(n) < np.where(good, 0.12, 0.04)).astype(np.float64)
    prepared = policy.prepare(policy.update(policy.init(), shown, clicks, X))
    for sign, wanted in ((1.0, 0), (-1.0, 1)):
        shares = policy.value_probabilities(prepared, np.array([1.0, sign]))
        assert shares[0][wanted] > 0.95
