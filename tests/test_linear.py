"""Linear regressions learn what Bayes' rule says, and decide with the right propensity."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import reference_contextual as reference
from bandolero.codec import pack, unpack
from bandolero.policies.base import choose, cumulative, grow, with_floor
from bandolero.policies.lin_ucb import LinUcb
from bandolero.policies.linear_thompson import OPTIMISM, LinearState, LinearThompson
from bandolero.policies.normal_choice import (
    Prepared,
    best_of_predictions,
    draw,
    draw_batch,
    drawn_belief,
    predictions,
    probabilities,
    quadratic_terms,
)
from bandolero.quadrature import best_of_normals
from bandolero.snapshot import state_arrays

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ERROR_MAX = 1e-4


class Trials(NamedTuple):
    """Arms (n,), rewards (n,), features (n, d)."""

    arms: Ints
    rewards: Floats
    features: Floats

    def part(self, which: slice | Ints) -> "Trials":
        """Some of them."""
        return Trials(self.arms[which], self.rewards[which], self.features[which])


def trials_of(seed: int, n: int, n_arms: int, d: int) -> Trials:
    """Clicks at a rate of about 4 % with an intercept."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    X[:, 0] = 1.0
    clicks = (rng.random(n) < 0.04).astype(np.float64)
    return Trials(rng.integers(0, n_arms, n), clicks, X)


def some_prepared(
    seed: int, n_arms: int, d: int, *, diagonal: bool = False
) -> Prepared:
    """A posterior of random means and covariances."""
    rng = np.random.default_rng(seed)
    roots = rng.standard_normal((n_arms, d, d + 2)) / d
    mean = 0.3 * rng.standard_normal((n_arms, d))
    if diagonal:
        variance = roots[:, :, 0] ** 2
    else:
        variance = quadratic_terms(roots @ roots.transpose(0, 2, 1))
    return Prepared(mean, variance, 0.1 * rng.standard_normal(variance.shape))


sizes = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 25), st.integers(1, 6))


# --- learning -----------------------------------------------------------------


@given(sizes, st.sampled_from([0.1, 1.0, 30.0]))
def test_posterior_is_bayes_rule(size: tuple[int, int, int], precision: float) -> None:
    """Mean, covariance and noise equal the twin's, which learns trial after trial."""
    seed, n, d = size
    arms, rewards, X = trials_of(seed, n, 2, d)
    policy = LinearThompson(d, prior_mean=0.02, prior_precision=precision)
    state = policy.update(policy.init(2), arms, rewards, X)
    mean, covariance, noise = policy.posterior(state)
    errors = 0.25
    for k in range(2):
        prior = np.full(d, 0.02), np.full(d, precision)
        twin = reference.linear_regression(*prior, X[arms == k], rewards[arms == k])
        assert_allclose(mean[k], twin.mean, atol=1e-9)
        assert_allclose(covariance[k], twin.covariance, rtol=1e-8, atol=1e-12)
        errors += twin.errors
    assert_allclose(noise, errors / (1 + n), rtol=1e-9)


@given(sizes, st.integers(0, 25))
def test_folding_commutes(size: tuple[int, int, int], cut: int) -> None:
    """Two batches, in any order, give the state of one batch, to 1e-9."""
    seed, n, d = size
    trials = trials_of(seed, n, 3, d)
    policy = LinearThompson(d)
    whole = policy.update(policy.init(3), *trials)
    halves = policy.init(3)
    for part in (slice(cut, None), slice(0, cut)):
        halves = policy.update(halves, *trials.part(part))
    for one, other in zip(whole, halves, strict=True):
        assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    added = policy.add(
        policy.update(policy.init(3), *trials.part(slice(0, cut))),
        policy.update(policy.init(3), *trials.part(slice(cut, None))),
    )
    for one, other in zip(whole, added, strict=True):
        assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_one_feature_by_hand() -> None:
    """Prior precision 2, rewards 1 and 0 at x = 1 and 2: precision 7, mean 1 / 7."""
    policy = LinearThompson(1, prior_precision=2.0)
    trials = np.array([0, 0]), np.array([1.0, 0.0]), np.array([[1.0], [2.0]])
    mean, covariance, noise = policy.posterior(policy.update(policy.init(1), *trials))
    assert mean[0, 0] == pytest.approx(1 / 7)
    assert covariance[0, 0, 0] == pytest.approx(1 / 7)
    assert noise == pytest.approx((0.25 + 1.0 - 1 / 7) / 3)


def test_update_leaves_the_old_state_alone() -> None:
    """A state is never changed by `update`; `observe` changes its own to the same."""
    policy = LinearThompson(3)
    trials = trials_of(1, 20, 2, 3)
    old = policy.init(2)
    for array in old:
        array.setflags(write=False)
    new = policy.update(old, *trials)
    assert old.trials.sum() == 0
    assert new.trials.sum() == 20
    own = policy.init(2)
    for arm, reward, x in zip(*trials, strict=True):
        policy.observe(own, arm, reward, x)
    for one, other in zip(own, new, strict=True):
        assert_array_equal(one, other)


def test_cold_arm_honours_the_prior() -> None:
    """An arm without data has prior mean, and variance sigma^2 / precision x' x."""
    policy = LinearThompson(2, prior_mean=0.5, prior_precision=10.0)
    prepared = policy.prepare(policy.init(1))
    mean, sd = predictions(prepared, np.arange(1), np.array([1.0, 2.0]))
    assert mean[0] == pytest.approx(1.5)
    assert sd[0] == pytest.approx(np.sqrt(0.25 / 10.0 * 5.0))


@pytest.mark.parametrize("diagonal", [False, True])
def test_drawn_belief_by_the_definition(diagonal: bool) -> None:
    """Precision of what is drawn: the prior's, and what data added over exploration^2."""
    rng = np.random.default_rng(14)
    prior = np.exp(rng.standard_normal((2, 4)))
    X = rng.standard_normal((2, 9, 4))
    added = X.transpose(0, 2, 1) @ X
    if diagonal:
        added = added * np.eye(4)
    start = prior[:, :, None] * np.eye(4)
    covariance = np.asarray(np.linalg.inv(start + added), np.float64)
    given: Floats = np.einsum("kii->ki", covariance) if diagonal else covariance
    belief = drawn_belief(given, prior, 0.25)
    full = belief[:, :, None] * np.eye(4) if diagonal else belief
    assert_allclose(np.linalg.inv(full), start + added / 0.25**2, rtol=1e-9, atol=1e-9)
    assert_allclose(drawn_belief(given, prior, 1.0), given, rtol=1e-12)


def test_arms_added_later_start_at_the_prior() -> None:
    """`grow` keeps what is learned and gives new arms the prior."""
    policy = LinearThompson(3)
    state = policy.update(policy.init(2), *trials_of(3, 50, 2, 3))
    grown = grow(state, policy.init(4))
    assert_array_equal(grown.gram[:2], state.gram)
    old, new = policy.posterior(state), policy.posterior(grown)
    assert_allclose(new.mean[:2], old.mean)
    assert_array_equal(new.mean[2:], 0.0)


def test_exploration_follows_the_noise() -> None:
    """At a click rate of 4 % the noise is 0.04 * 0.96, and at tenfold rewards a hundredfold.

    The textbook's scale of 1 would be five times as wide.
    """
    policy = LinearThompson(3)
    arms, rewards, X = trials_of(5, 20_000, 2, 3)
    clicks = policy.posterior(policy.update(policy.init(2), arms, rewards, X))
    euros = policy.posterior(policy.update(policy.init(2), arms, 10.0 * rewards, X))
    assert clicks.noise_variance == pytest.approx(0.04 * 0.96, rel=0.1)
    assert euros.noise_variance == pytest.approx(100 * clicks.noise_variance, rel=0.01)


def test_predictions_narrow_with_data() -> None:
    """After n trials an arm's standard deviation is about sigma sqrt(d / n) and falling.

    A library that draws with covariance A instead of its inverse widens instead.
    """
    policy = LinearThompson(8, exploration=1.0)
    x = np.ones(8)
    widths = []
    for n in (200, 800, 3200):
        state = policy.update(policy.init(1), *trials_of(6, n, 1, 8))
        widths.append(float(predictions(policy.prepare(state), np.arange(1), x)[1][0]))
        sigma = np.sqrt(policy.posterior(state).noise_variance)
        assert widths[-1] == pytest.approx(sigma * np.sqrt(8 / n), rel=0.2)
    assert widths[0] / widths[2] == pytest.approx(4.0, rel=0.3)


def test_units_of_features_do_not_matter() -> None:
    """A feature in millionths, its prior with it, gives the same predictions."""
    trials = trials_of(7, 300, 2, 4)
    unit = np.array([1.0, 1e6, 1e-6, 1.0])
    policy, x = LinearThompson(4), np.array([1.0, 0.5, -0.5, 2.0])
    plain = policy.update(policy.init(2), *trials)
    scaled = policy.init(2)
    scaled = scaled._replace(prior_precision=scaled.prior_precision * unit**2)
    scaled = policy.update(scaled, *trials[:2], trials.features * unit)
    one = predictions(policy.prepare(plain), np.arange(2), x)
    other = predictions(policy.prepare(scaled), np.arange(2), x * unit)
    assert_allclose(one, other, rtol=1e-7)


def test_saved_state_goes_on_to_the_bit() -> None:
    """State to bytes and back, then more trials: the same as without the detour."""
    policy = LinearThompson(4)
    trials = trials_of(8, 60, 3, 4)
    state = policy.update(policy.init(3), *trials.part(slice(0, 30)))
    arrays = unpack(pack({}, state_arrays("state", state))).arrays
    back = LinearState(*(arrays[f"state.{name}"] for name in LinearState._fields))
    x, eligible = trials.features[0], np.arange(3)
    shares = []
    for of in (state, back):
        new = policy.update(of, *trials.part(slice(30, None)))
        shares.append(policy.probabilities(policy.prepare(new), eligible, x))
    assert_array_equal(shares[0], shares[1])


@pytest.mark.parametrize(
    ("arms", "rewards", "features", "message"),
    [
        ([0], [0.0], [[1.0]], r"features.shape == \(1, 1\), must be \(1, 2\)."),
        ([0], [0.0, 1.0], [[1.0, 1.0]], r"rewards.shape == \(2,\), must be \(1,\)."),
        ([2], [0.0], [[1.0, 1.0]], r"arms in 2 … 2, must be in 0 … 1."),
        ([-1], [0.0], [[1.0, 1.0]], r"arms in -1 … -1"),
        ([0], [np.nan], [[1.0, 1.0]], "rewards has nan or inf"),
        ([0], [0.0], [[1.0, np.inf]], "features has nan or inf"),
    ],
)
def test_bad_trials_are_refused(
    arms: list[int], rewards: list[float], features: list[list[float]], message: str
) -> None:
    """Wrong shapes, unknown arms, nan and inf never reach a kernel."""
    policy = LinearThompson(2)
    given = np.array(arms), np.array(rewards), np.array(features)
    with pytest.raises(ValueError, match=message):
        policy.update(policy.init(2), *given)


def test_bonus_is_what_is_not_drawn() -> None:
    """Prediction m' x + OPTIMISM sigma x' (V - B) x; none of it at exploration 1."""
    x, state = np.array([1.0, 0.5, -2.0]), LinearThompson(3).init(3)
    state = LinearThompson(3).update(state, *trials_of(15, 60, 2, 3))
    for exploration in (0.15, 0.5, 1.0):
        policy = LinearThompson(3, exploration=exploration)
        mean, V, noise = policy.posterior(state)
        rest = V - drawn_belief(V, state.prior_precision, exploration)
        bonus = OPTIMISM * np.sqrt(noise) * np.einsum("i,kij,j->k", x, rest, x)
        got, _ = predictions(policy.prepare(state), np.arange(3), x)
        assert_allclose(got, mean @ x + bonus, atol=1e-12)
        assert bonus[2] == pytest.approx(0.0, abs=1e-9)
        assert (bonus[:2] > 0.0).all() == (exploration < 1.0)


@pytest.mark.parametrize("other", [1e9, 1e8, 2e8])
def test_large_features_that_say_the_same_are_solved(other: float) -> None:
    """Two columns of up to 1e9 in proportion round the prior away, and nothing breaks."""
    rng, policy = np.random.default_rng(8), LinearThompson(3)
    size = rng.random(300)
    X = np.column_stack([np.ones(300), 1e9 * size, other * size])
    trials = rng.integers(0, 3, 300), (rng.random(300) < 0.1).astype(float), X
    prepared = policy.prepare(policy.update(policy.init(3), *trials))
    drawn = policy.draw(prepared, np.arange(3), X[0], 0.5)
    assert drawn.probabilities.sum() == pytest.approx(1.0)
    assert np.isfinite(prepared.variance).all()


def test_bonus_is_in_units_of_the_reward() -> None:
    """Rewards in cents, with them the first guess of the noise: predictions in cents."""
    arms, rewards, X = trials_of(16, 200, 2, 3)
    euros, cents = LinearThompson(3), LinearThompson(3, noise_variance=2500.0)
    one = euros.prepare(euros.update(euros.init(2), arms, rewards, X))
    other = cents.prepare(cents.update(cents.init(2), arms, 100.0 * rewards, X))
    for name, scale in (("mean", 100.0), ("variance", 1e4), ("bonus", 100.0)):
        assert_allclose(getattr(other, name), scale * getattr(one, name), rtol=1e-9)


# --- deciding -----------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.sampled_from([0.0, 0.5, 1.5]))
def test_best_equals_the_definition(seed: int, n_arms: int, spread: float) -> None:
    """P(best) is within 1e-6 of the twin's for a few arms."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(n_arms)
    sd = np.exp(spread * rng.standard_normal(n_arms))
    assert_allclose(
        best_of_predictions(mean, sd), reference.best_of_normals(mean, sd), atol=2e-6
    )


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2, 3, 10, 50, 300]),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    st.booleans(),
)
def test_error_is_as_stated(
    seed: int, n_arms: int, spread: float, apart: float, scaled: bool
) -> None:
    """P(best) is within 1e-4 of the truth, whatever the arms' number and scales."""
    rng = np.random.default_rng(seed)
    sd = np.exp(spread * rng.standard_normal(n_arms))
    mean = apart * rng.standard_normal(n_arms) * (sd if scaled else 1.0)
    shares = best_of_predictions(mean, sd)
    exact = best_of_normals(mean, sd).probability_best
    assert np.abs(shares - exact).max() < ERROR_MAX
    assert abs(shares.sum() - 1.0) < 1e-12
    assert (shares >= 0.0).all()


@pytest.mark.parametrize("seed", range(2))
def test_error_with_a_thousand_arms(seed: int) -> None:
    """As above for 1,000 arms, alike and not."""
    rng = np.random.default_rng(seed)
    mean, sd = rng.standard_normal(1000), np.full(1000, 0.5 + seed)
    exact = best_of_normals(mean, sd).probability_best
    assert np.abs(best_of_predictions(mean, sd) - exact).max() < ERROR_MAX


@pytest.mark.parametrize("n_arms", [2, 3, 10, 50])
def test_identical_arms_share_evenly(n_arms: int) -> None:
    """Equal posteriors get equal shares to the bit, also at the ends of the scales."""
    for mean, sd in ((0.0, 1.0), (1e-12, 1e-9), (1e9, 1e-3), (0.0, 0.0)):
        shares = best_of_predictions(np.full(n_arms, mean), np.full(n_arms, sd))
        assert_array_equal(shares, shares[0])
        assert_allclose(shares, 1.0 / n_arms, rtol=1e-12)


def test_certainty() -> None:
    """Arms without any variance: the highest wins alone."""
    shares = best_of_predictions(np.array([0.1, 0.3, 0.2]), np.zeros(3))
    assert_array_equal(shares, [0.0, 1.0, 0.0])


@pytest.mark.parametrize("diagonal", [False, True])
def test_predictions_are_the_quadratic_form(diagonal: bool) -> None:
    """Mean m' x + x' C x and variance x' V x, from packed coefficients, of some arms."""
    prepared = some_prepared(1, 5, 7, diagonal=diagonal)
    x = np.random.default_rng(2).standard_normal(7)
    eligible = np.array([1, 4])
    mean, sd = predictions(prepared, eligible, x)
    row, column = np.diag_indices(7) if diagonal else np.triu_indices(7)
    for k, arm in enumerate(eligible):
        form = float(np.sum(prepared.variance[arm] * x[row] * x[column]))
        added = float(np.sum(prepared.bonus[arm] * x[row] * x[column]))
        assert mean[k] == pytest.approx(prepared.mean[arm] @ x + added, abs=1e-12)
        assert sd[k] == pytest.approx(np.sqrt(form), rel=1e-12)


def test_probabilities_are_those_of_posterior_draws() -> None:
    """Shares of 40,000 draws of coefficients agree; false alarm below 1e-4 (4 sigma)."""
    policy = LinearThompson(4, exploration=1.0)
    trials = trials_of(9, 150, 5, 4)
    state = policy.update(policy.init(5), *trials)
    mean, covariance, noise = policy.posterior(state)
    rng, x, n = np.random.default_rng(10), trials.features[0], 40_000
    values = np.stack(
        [
            rng.multivariate_normal(m, noise * V, n) @ x
            for m, V in zip(mean, covariance, strict=True)
        ]
    )
    shares = np.bincount(values.argmax(axis=0), minlength=5) / n
    p = policy.probabilities(policy.prepare(state), np.arange(5), x)
    assert (np.abs(shares - p) < 4.0 * np.sqrt(p * (1.0 - p) / n) + 1e-4).all()


def test_propensity_is_the_probability_with_the_floor() -> None:
    """What `draw` returns is p = f + (1 - n f) w to the bit of its own vector."""
    prepared = some_prepared(3, 6, 5)
    x, eligible = np.ones(5), np.array([0, 2, 3, 5])
    w = probabilities(prepared, eligible, x)
    for u in np.linspace(0.0, 1.0, 101)[:-1]:
        arm, propensity, shares = draw(prepared, eligible, x, float(u), 0.05)
        assert_array_equal(shares, 0.05 + (1.0 - 4 * 0.05) * w)
        at = list(eligible).index(arm)
        assert propensity == shares[at]
        assert shares[:at].sum() <= u + 1e-12
        assert u <= shares[: at + 1].sum() + 1e-12
    _, _, halved = draw(prepared, eligible, x, 0.5, 0.9)
    assert_allclose(halved, 0.125 + 0.5 * w)


def test_realised_shares_match_propensities() -> None:
    """Of 3,000 draws each arm gets its share; false alarm below 1e-3 (4 sigma each)."""
    prepared, n = some_prepared(4, 8, 5), 3_000
    u = np.random.default_rng(11).random(n)
    X = np.repeat(np.ones((1, 5)), n, axis=0)
    arms, _, shares = draw_batch(prepared, np.arange(8), X, u, 0.01)
    p = shares[0]
    got = np.bincount(arms, minlength=8) / n
    assert (np.abs(got - p) < 4.0 * np.sqrt(p * (1.0 - p) / n)).all()


def test_batch_and_threads_give_the_same_bits() -> None:
    """One by one, as a batch, or from four threads at once: the same numbers."""
    prepared = some_prepared(5, 10, 6)
    rng = np.random.default_rng(12)
    X, u, eligible = rng.standard_normal((50, 6)), rng.random(50), np.arange(1, 10)
    for array in (*prepared, X, eligible):
        array.setflags(write=False)
    batch = draw_batch(prepared, eligible, X, u, 0.01)

    def one(i: int) -> tuple[int, float, Floats]:
        return draw(prepared, eligible, X[i], float(u[i]), 0.01)

    with ThreadPoolExecutor(4) as pool:
        for i, (arm, propensity, shares) in enumerate(pool.map(one, range(50))):
            assert (arm, propensity) == (batch.arms[i], batch.propensities[i])
            assert_array_equal(shares, batch.probabilities[i])


def test_arms_renamed_means_probabilities_renamed() -> None:
    """The order of the eligible arms changes nothing but the order of the shares."""
    prepared = some_prepared(6, 7, 4)
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    x = np.ones(4)
    p = probabilities(prepared, np.arange(7), x)
    assert_allclose(probabilities(prepared, order, x), p[order], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_features_are_refused(bad: float) -> None:
    """Not a number, infinity and a wrong length raise, in every entry."""
    prepared, eligible = some_prepared(7, 3, 2), np.arange(3)
    for x in (np.array([1.0, bad]), np.ones(3)):
        with pytest.raises(ValueError, match=r"^features"):
            draw(prepared, eligible, x, 0.5)
        with pytest.raises(ValueError, match=r"^features"):
            predictions(prepared, eligible, x)
    X = np.array([[1.0, 1.0], [1.0, bad]])
    with pytest.raises(ValueError, match=r"X\[1\]"):
        draw_batch(prepared, eligible, X, np.full(2, 0.5))
    with pytest.raises(ValueError, match="shape"):
        draw_batch(prepared, eligible, np.ones((2, 3)), np.full(2, 0.5))


def test_lin_ucb_takes_the_highest_bound() -> None:
    """All probability on the highest mean + alpha sd; ties share; the floor is kept."""
    policy, eligible = LinUcb(3, alpha=2.0), np.arange(4)
    fresh = policy.prepare(policy.init(4))
    assert_array_equal(policy.probabilities(fresh, eligible, np.ones(3)), 0.25)
    state = policy.update(policy.init(4), *trials_of(13, 200, 4, 3))
    prepared = policy.prepare(state)
    x = np.array([1.0, 0.3, -0.2])
    mean, covariance, noise = policy.regression.posterior(state)
    bound = mean @ x + 2.0 * np.sqrt(noise * np.einsum("i,kij,j->k", x, covariance, x))
    drawn = policy.draw(prepared, eligible, x, 0.999, 0.01)
    assert policy.probabilities(prepared, eligible, x)[bound.argmax()] == 1.0
    assert drawn.probabilities[bound.argmax()] == pytest.approx(0.97)
    assert drawn.propensity == drawn.probabilities[drawn.arm]


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.01, 0.2, 0.9]),
    st.sampled_from([0.0, 0.25, 0.5, 0.999, 1.0 - 2.0**-53]),
)
def test_lin_ucb_draws_as_choose_does(
    means: list[float], min_share: float, u: float
) -> None:
    """Its kernel gives what the floor over shared ties and `choose` give, bit for bit."""
    policy, eligible = LinUcb(1), np.arange(len(means))
    prepared = policy.prepare(policy.init(len(means)))
    prepared = prepared._replace(mean=np.array(means)[:, None])
    ties = np.array(means) == max(means)
    shares = with_floor(ties / np.count_nonzero(ties), min_share)
    drawn = policy.draw(prepared, eligible, np.ones(1), u, min_share)
    assert drawn.probabilities.tolist() == shares.tolist()
    assert drawn.arm == choose(cumulative(shares), u)
    assert drawn.propensity == shares[drawn.arm]
