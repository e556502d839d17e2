"""One regression for all arms learns what Bayes' rule says, and shares what arms share."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import reference_joint as reference
from bandolero.attributes import attribute_features, paired_features
from bandolero.codec import pack, unpack
from bandolero.policies.base import grow
from bandolero.policies.linear_thompson import LinearState, LinearThompson
from bandolero.policies.normal_choice import drawn_belief, predictions
from bandolero.policies.shared_linear_thompson import (
    N_DRAWS,
    SharedLinearThompson,
    SharedPrepared,
)
from bandolero.snapshot import state_arrays

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
VARIANTS: list[dict[str, object]] = [
    {"tone": tone, "offer": offer} for tone in ("calm", "loud") for offer in (1, 2, 3)
]


class Trials(NamedTuple):
    """Arms (n,), rewards (n,), features (n, d)."""

    arms: Ints
    rewards: Floats
    features: Floats

    def part(self, which: slice) -> "Trials":
        """Some of them."""
        return Trials(self.arms[which], self.rewards[which], self.features[which])


def trials_of(seed: int, n: int, n_arms: int, d: int) -> Trials:
    """Clicks at a rate of about 4 % with an intercept."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    X[:, 0] = 1.0
    clicks = (rng.random(n) < 0.04).astype(np.float64)
    return Trials(rng.integers(0, n_arms, n), clicks, X)


def rows_of(matrix: Floats) -> tuple[tuple[float, ...], ...]:
    """A matrix as a policy takes it."""
    return tuple(tuple(row) for row in matrix.tolist())


def policy_of(
    d: int, n_arms: int = 6, exploration: float = 0.3
) -> SharedLinearThompson:
    """The policy of some of `VARIANTS`."""
    table = attribute_features(VARIANTS[:n_arms])
    return SharedLinearThompson(d, rows_of(table.matrix), exploration=exploration)


def some_prepared(seed: int, n_arms: int, d: int) -> SharedPrepared:
    """A posterior after 400 trials."""
    policy = policy_of(d, n_arms)
    return policy.prepare(
        policy.update(policy.init(n_arms), *trials_of(seed, 400, n_arms, d))
    )


# --- attributes ---------------------------------------------------------------


def test_attributes_by_hand() -> None:
    """A column for each value in order of appearance; numbers are levels; gaps are 0."""
    table = attribute_features([{"a": "x", "b": 2}, {"b": 2.5}, {"b": True, "a": "x"}])
    assert table.names == ("1", "a=x", "b=2", "b=2.5", "b=True")
    wanted = [[1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 1, 0, 0, 1]]
    assert_array_equal(table.matrix, wanted)


def test_pairs_by_hand() -> None:
    """A pair is one column whichever of its attributes a variant names first."""
    table = paired_features([{"a": "x", "b": "y"}, {"b": "y", "a": "x"}, {"b": "y"}])
    assert table.names == ("1", "a=x", "b=y", "a=x & b=y")
    assert_array_equal(table.matrix, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0]])


levels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))


@given(st.lists(levels, min_size=1, max_size=6), st.booleans())
def test_another_variant_adds_columns_at_the_end(
    given_levels: list[dict[str, str]], paired: bool
) -> None:
    """The table of the first variants is the corner of the table of all."""
    table_of = paired_features if paired else attribute_features
    whole, part = table_of(given_levels), table_of(given_levels[:-1])
    n_arms, n_columns = part.matrix.shape
    assert whole.names[: len(part.names)] == part.names
    assert_array_equal(whole.matrix[:n_arms, :n_columns], part.matrix)
    assert_array_equal(whole.matrix[:n_arms, n_columns:], 0.0)


# --- learning -----------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 25), st.integers(1, 3))
def test_posterior_is_bayes_rule(seed: int, n: int, d: int) -> None:
    """Mean, precision and noise equal the twin's: dense, trial after trial."""
    policy, trials = policy_of(d), trials_of(seed, n, 6, d)
    state = policy.update(policy.init(6), *trials)
    mean, root, noise = policy.posterior(state)
    a = np.array(policy.arm_features)
    prior = np.repeat([1.0] + [policy.effect_precision] * 5, d)
    twin = reference.shared_regression(a, prior, *trials)
    assert_allclose(mean.ravel(), twin.mean, atol=1e-8)
    assert_allclose(np.linalg.inv(root @ root.T), twin.covariance, rtol=1e-6, atol=1e-9)
    assert_allclose(noise, (0.25 + twin.errors) / (1 + n), rtol=1e-8)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 40))
def test_folding_commutes(seed: int, n: int, cut: int) -> None:
    """Two batches, in any order or added, give the state of one batch, to 1e-9."""
    policy, trials = policy_of(3), trials_of(seed, n, 6, 3)
    whole = policy.update(policy.init(6), *trials)
    parts = trials.part(slice(cut, None)), trials.part(slice(0, cut))
    halves = policy.update(policy.update(policy.init(6), *parts[0]), *parts[1])
    added = policy.add(*(policy.update(policy.init(6), *part) for part in parts))
    own = policy.init(6)
    for arm, reward, x in zip(*trials, strict=True):
        policy.observe(own, arm, reward, x)
    for other in (halves, added, own):
        for one, two in zip(whole, other, strict=True):
            assert_allclose(one, two, rtol=1e-9, atol=1e-9)


def test_arms_of_their_own_are_the_disjoint_policy() -> None:
    """With one indicator an arm, and no more, predictions are `linear_thompson`'s."""
    d, trials = 3, trials_of(2, 300, 4, 3)
    disjoint = LinearThompson(d, prior_precision=1.0)
    shared = SharedLinearThompson(d, rows_of(np.eye(4)), effect_precision=1.0)
    state = disjoint.update(disjoint.init(4), *trials)
    mean, _, noise = shared.posterior(state)
    wanted = disjoint.posterior(state)
    assert_allclose(mean, wanted.mean, atol=1e-9)
    assert noise == pytest.approx(wanted.noise_variance, rel=1e-9)


def test_saved_state_goes_on_to_the_bit() -> None:
    """State to bytes and back, then more trials: the same as without the detour."""
    policy, trials = policy_of(3), trials_of(8, 60, 6, 3)
    state = policy.update(policy.init(6), *trials.part(slice(0, 30)))
    arrays = unpack(pack({}, state_arrays("state", state))).arrays
    back = LinearState(*(arrays[f"state.{name}"] for name in LinearState._fields))
    x, eligible = trials.features[0], np.arange(6)
    one, other = (
        policy.draw(
            policy.prepare(policy.update(of, *trials.part(slice(30, None)))),
            eligible,
            x,
            0.5,
        )
        for of in (state, back)
    )
    assert_array_equal(one.probabilities, other.probabilities)


def test_an_arm_added_later_is_part_of_the_posterior() -> None:
    """`grow`, a new value, no migration: the old arms' predictions stay to rounding."""
    old, new = policy_of(2, 2), policy_of(2, 6)
    state = old.update(old.init(2), *trials_of(3, 300, 2, 2))
    grown = grow(state, new.init(6))
    before, after = old.posterior(state), new.posterior(grown)
    predicted = np.array(old.arm_features) @ before.mean
    again = np.array(new.arm_features) @ after.mean
    assert_allclose(again[:2], predicted, atol=1e-9)
    assert np.isfinite(new.prepare(grown).coefficients).all()


def test_collinear_indicators_and_large_counts() -> None:
    """A billion trials do not make the values of an attribute, which sum to 1, singular."""
    policy, trials = policy_of(2), trials_of(4, 600, 6, 2)
    state = policy.update(policy.init(6), *trials)
    many = state._replace(
        gram=state.gram * 2e6,
        moment=state.moment * 2e6,
        squares=state.squares * 2e6,
        trials=state.trials * 2_000_000,
    )
    prepared = policy.prepare(many)
    x = np.array([1.0, 0.3])
    predicted = np.einsum(
        "kc,cis,i->ks", prepared.arm_features, prepared.coefficients, x
    )
    mean = np.array(policy.arm_features) @ policy.posterior(many).mean @ x
    assert_allclose(predicted.mean(axis=1), mean, atol=1e-4)
    assert predicted.std(axis=1).max() < 1e-4


def test_wrong_numbers_of_arms_are_refused() -> None:
    """A state of other arms than the features', ragged or endless features: an error."""
    with pytest.raises(ValueError, match=r"len\(arm_features\) == 6, must be 5"):
        policy_of(1).prepare(policy_of(1).init(5))
    bad = SharedLinearThompson(1, ((1.0, np.nan),))
    with pytest.raises(ValueError, match="must be equal rows of finite numbers"):
        bad.prepare(bad.init(1))
    ragged = SharedLinearThompson(1, ((1.0, 0.0), (1.0,)))
    with pytest.raises(ValueError, match="must be equal rows"):
        ragged.prepare(ragged.init(2))
    with pytest.raises(ValueError, match="arms in 9 … 9"):
        policy_of(1).update(
            policy_of(1).init(6), np.array([9]), np.zeros(1), np.ones((1, 1))
        )


# --- deciding -----------------------------------------------------------------


def belief_of(
    policy: SharedLinearThompson, state: LinearState
) -> tuple[Floats, Floats]:
    """Mean and covariance of what coefficients are drawn from."""
    mean, root, noise = policy.posterior(state)
    prior = np.repeat([1.0] + [policy.effect_precision] * 5, policy.n_features)
    covariance = np.asarray(np.linalg.inv(root @ root.T), np.float64)[None]
    belief = noise * drawn_belief(covariance, prior[None], policy.exploration)[0]
    return mean.ravel(), belief


def test_draws_are_of_the_belief() -> None:
    """Predictions of the draws have the belief's mean and sd: to 0.03 sd and 6 %."""
    policy, trials = policy_of(2), trials_of(5, 500, 6, 2)
    state = policy.update(policy.init(6), *trials)
    mean, belief = belief_of(policy, state)
    prepared, x = policy.prepare(state), np.array([1.0, -0.7])
    predicted = np.einsum("kc,cis,i->ks", *prepared, x)
    for k, a in enumerate(np.array(policy.arm_features)):
        z = np.kron(a, x)
        sd = np.sqrt(z @ belief @ z)
        assert abs(predicted[k].mean() - z @ mean) < 0.03 * sd
        assert predicted[k].std() == pytest.approx(sd, rel=0.06)


def test_shares_are_those_of_the_draws() -> None:
    """Shares equal the twin's count of the stored draws, for some of the arms."""
    policy, prepared = policy_of(4), some_prepared(1, 6, 4)
    rng = np.random.default_rng(2)
    for eligible in (np.arange(6), np.array([1, 2, 5]), np.array([3])):
        x = rng.standard_normal(4)
        values = np.einsum(
            "kc,cis,i->ks", prepared.arm_features[eligible], prepared.coefficients, x
        )
        shares = policy.probabilities(prepared, eligible, x)
        assert_allclose(shares, reference.shares_of_draws(values), atol=1e-12)
        assert shares.sum() == pytest.approx(1.0, abs=1e-12)


def test_shares_are_near_those_of_many_draws() -> None:
    """Against 100,000 independent draws: within 4 standard errors of N_DRAWS draws.

    Were these draws independent, the false alarm would be 6e-5 an arm; Sobol's are nearer.
    """
    policy, trials = policy_of(2), trials_of(6, 500, 6, 2)
    state = policy.update(policy.init(6), *trials)
    prepared = policy.prepare(state)
    rng = np.random.default_rng(7)
    many = rng.multivariate_normal(*belief_of(policy, state), 100_000)
    coefficients = many.T.reshape(6, 2, -1)
    for x in (np.array([1.0, 0.0]), np.array([1.0, 1.5])):
        values = np.einsum("kc,cis,i->ks", prepared.arm_features, coefficients, x)
        p = np.bincount(values.argmax(axis=0), minlength=6) / values.shape[1]
        shares = policy.probabilities(prepared, np.arange(6), x)
        sd = np.sqrt(p * (1.0 - p) / N_DRAWS)
        assert (np.abs(shares - p) <= 4.0 * sd + 1e-3).all()


def test_preparing_twice_gives_the_same_bits() -> None:
    """The numbers behind the draws are fixed."""
    for one, other in zip(some_prepared(9, 6, 3), some_prepared(9, 6, 3), strict=True):
        assert_array_equal(one, other)


def test_propensity_is_the_probability_with_the_floor() -> None:
    """What `draw` returns is p = f + (1 - n f) w to the bit of its own vector."""
    policy, prepared = policy_of(3), some_prepared(3, 6, 3)
    x, eligible = np.ones(3), np.array([0, 2, 3, 5])
    w = policy.probabilities(prepared, eligible, x)
    for u in np.linspace(0.0, 1.0, 101)[:-1]:
        arm, propensity, shares = policy.draw(prepared, eligible, x, float(u), 0.05)
        assert_array_equal(shares, 0.05 + (1.0 - 4 * 0.05) * w)
        at = list(eligible).index(arm)
        assert propensity == shares[at]
        assert shares[:at].sum() <= u + 1e-12
        assert u <= shares[: at + 1].sum() + 1e-12
    assert_allclose(
        policy.draw(prepared, eligible, x, 0.5, 0.9).probabilities, 0.125 + 0.5 * w
    )


def test_realised_shares_match_propensities() -> None:
    """Of 2,000 draws each arm gets its share; false alarm below 1e-3 (4 sigma each)."""
    policy, prepared, n = policy_of(3), some_prepared(4, 6, 3), 2_000
    us = np.random.default_rng(11).random(n)
    drawn = [policy.draw(prepared, np.arange(6), np.ones(3), u, 0.01) for u in us]
    p = drawn[0].probabilities
    got = np.bincount([one.arm for one in drawn], minlength=6) / n
    assert (np.abs(got - p) < 4.0 * np.sqrt(p * (1.0 - p) / n)).all()
    assert all(one.propensity == p[one.arm] for one in drawn)


def test_identical_arms_share_evenly() -> None:
    """Arms of the same attributes get the same share to the bit, whatever their data."""
    rows = rows_of(attribute_features([*VARIANTS, VARIANTS[2], VARIANTS[2]]).matrix)
    policy = SharedLinearThompson(3, rows)
    trials = trials_of(10, 300, 6, 3)
    prepared = policy.prepare(policy.update(policy.init(8), *trials))
    shares = policy.probabilities(prepared, np.arange(8), np.ones(3))
    assert shares[2] == shares[6] == shares[7]
    alone = policy.probabilities(prepared, np.array([2, 6, 7]), np.ones(3))
    assert_allclose(alone, 1.0 / 3.0, rtol=1e-12)


def test_arms_renamed_means_probabilities_renamed() -> None:
    """The order of the eligible arms changes nothing but the order of the shares."""
    policy, prepared = policy_of(4), some_prepared(6, 6, 4)
    order, x = np.array([3, 0, 2, 5, 1, 4]), np.ones(4)
    p = policy.probabilities(prepared, np.arange(6), x)
    assert_array_equal(policy.probabilities(prepared, order, x), p[order])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_features_are_refused(bad: float) -> None:
    """Not a number, infinity and a wrong length raise."""
    policy, prepared = policy_of(2), some_prepared(7, 6, 2)
    prepared.coefficients[:] *= 1e10
    for x in (np.array([1.0, bad]), np.ones(3)):
        with np.errstate(over="ignore", invalid="ignore"):
            with pytest.raises(ValueError, match=r"^features"):
                policy.draw(prepared, np.arange(6), x, 0.5)


def test_predictions_beyond_numbers_are_alike() -> None:
    """Where predictions overflow nothing is ranked: even shares, drawn as they say."""
    policy, prepared = policy_of(2), some_prepared(7, 6, 2)
    prepared.coefficients[:] *= 1e10
    with np.errstate(over="ignore", invalid="ignore"):
        drawn = policy.draw(prepared, np.arange(6), np.array([1.0, 1e300]), 0.5, 0.01)
    assert_allclose(drawn.probabilities, 1.0 / 6.0)
    assert (drawn.arm, drawn.propensity) == (3, drawn.probabilities[3])


def test_prepared_is_only_read() -> None:
    """Read-only arrays serve, as a snapshot holds them."""
    policy, prepared = policy_of(2), some_prepared(12, 6, 2)
    eligible = np.arange(6)
    for array in (*prepared, eligible):
        array.setflags(write=False)
    assert policy.draw(prepared, eligible, np.ones(2), 0.5, 0.01).propensity > 0.0


# --- what sharing is for ------------------------------------------------------


def test_an_arm_without_data_starts_warm() -> None:
    """Loud earns 12 % and calm 3 %; the loud arm nobody saw is preferred at once.

    The disjoint policy gives it the prior alone. Five arms, 400 trials each.
    """
    rng = np.random.default_rng(13)
    arms = np.repeat(np.arange(5), 400)
    rates = np.where(arms < 3, 0.03, 0.12)
    rewards = (rng.random(arms.size) < rates).astype(np.float64)
    policy, disjoint = policy_of(1), LinearThompson(1)
    state = policy.update(policy.init(6), arms, rewards, np.ones((arms.size, 1)))
    predicted = np.array(policy.arm_features) @ policy.posterior(state).mean
    assert predicted[5, 0] == pytest.approx(0.12, abs=0.03)
    shares = policy.probabilities(policy.prepare(state), np.arange(6), np.ones(1))
    assert shares[:3].sum() < 0.01
    assert shares[5] > 0.1
    _, sd = predictions(disjoint.prepare(state), np.array([5]), np.ones(1))
    drawn = np.einsum(
        "c,cis->s", np.array(policy.arm_features)[5], policy.prepare(state)[1]
    )
    assert drawn.std() < 0.25 * sd[0]
