"""The contract of policies, over all kinds without context; each by hand and by its twin."""

from math import fsum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

import reference_policies as reference
from bandolero.codec import pack, unpack
from bandolero.policies import (
    STATES,
    BetaThompson,
    EpsilonGreedy,
    Fixed,
    Forgetful,
    GaussianThompson,
    Greedy,
    PoissonThompson,
    Policy,
    TopTwoThompson,
    Uniform,
    learn,
)
from bandolero.policies.base import Floats, Ints, grow, take
from bandolero.policies.gaussian_thompson import posterior
from bandolero.policies.top_two_thompson import top_two
from bandolero.snapshot import state_arrays, state_of

N_ARMS = 4
EVERY = np.arange(N_ARMS)
ERROR = 1e-9
"""What quadrature may be off by."""

Told = list[tuple[int, float]]

BINARY: list[Policy[Any]] = [
    BetaThompson(),
    BetaThompson(0.5, 20.0, arm_priors=((3.0, 90.0), None, None, (1.0, 8.0))),
    TopTwoThompson(),
    TopTwoThompson(2.0, 30.0, leader_share=0.8),
]
OTHERS: list[Policy[Any]] = [
    PoissonThompson(),
    PoissonThompson(0.1, 2.0, arm_priors=(None, (5.0, 2.0))),
    GaussianThompson(),
    GaussianThompson(prior_mean=1.0, prior_sd=2.0, prior_dof=1.0),
    GaussianThompson(arm_priors=(None, (2.0, 1.0, 5.0, 9.0))),
    Greedy(),
    Greedy(prior_mean=0.5, prior_trials=10.0),
    EpsilonGreedy(),
    Fixed((0.5, 0.0, 0.2, 0.3)),
    Uniform(),
]
POLICIES = BINARY + OTHERS
HALF_LIFE_S = 3600.0
FORGETFUL: list[Any] = [
    BetaThompson(half_life_s=HALF_LIFE_S),
    TopTwoThompson(half_life_s=HALF_LIFE_S),
    PoissonThompson(half_life_s=HALF_LIFE_S),
    GaussianThompson(half_life_s=HALF_LIFE_S),
]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=repr)
every_forgetful = pytest.mark.parametrize("policy", FORGETFUL, ids=lambda p: p.kind)

arms = st.integers(0, N_ARMS - 1)
trials = st.lists(st.tuples(arms, st.integers(0, 3).map(float)), max_size=40)
sets = st.sets(arms, min_size=1).map(lambda some: np.array(sorted(some), np.int64))


def columns(told: Told) -> tuple[Ints, Floats]:
    """Arms and rewards of trials."""
    return (
        np.array([arm for arm, _ in told], dtype=np.int64),
        np.array([reward for _, reward in told], dtype=np.float64),
    )


def learned(policy: Policy[Any], told: Told, n_arms: int = N_ARMS) -> Any:
    """The state after trials; its arrays are read-only, as in a snapshot."""
    state = policy.update(policy.init(n_arms), *columns(told))
    for array in state:
        array.setflags(write=False)
    return state


def image(state: Any) -> list[bytes]:
    """Every byte of a state."""
    return [array.tobytes() for array in state]


def assert_same(one: Any, other: Any) -> None:
    """Counts to the byte, real sums within 1e-9."""
    assert type(one) is type(other)
    for a, b in zip(one, other, strict=True):
        if a.dtype.kind == b.dtype.kind == "i":
            assert a.tobytes() == b.tobytes()
        assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def changes(policy: Policy[Any], told: Told, sign: int = 1) -> tuple[Any, ...]:
    """What a refresh says of late trials: trials, hits, rewards and their squares."""
    at, rewards = columns(told)
    micros = np.rint(1e6 * rewards)

    def summed(values: Floats) -> Ints:
        return sign * np.rint(np.bincount(at, values, N_ARMS)).astype(np.int64)

    ones, hits = np.ones(len(at)), (rewards > 0).astype(float)
    squares = sign * np.bincount(at, rewards**2, N_ARMS)
    return summed(ones), summed(hits), summed(micros), squares


# --- the contract ---------------------------------------------------------------------


@every_policy
@given(told=trials, eligible=sets)
def test_probabilities_are_a_distribution(
    policy: Policy[Any], told: Told, eligible: Ints
) -> None:
    """Whatever was learned, the eligible arms share a probability of 1, none negative."""
    weights = policy.probabilities(learned(policy, told), eligible)
    assert weights.shape == eligible.shape
    assert weights.dtype == np.float64
    assert (weights >= 0.0).all()
    assert_allclose(weights.sum(), 1.0, atol=ERROR)


@every_policy
@given(told=trials, eligible=sets)
def test_eligible_arms_compete_alone(
    policy: Policy[Any], told: Told, eligible: Ints
) -> None:
    """Arms that are not eligible have no say: without them it is the same."""
    state = learned(policy, told)
    assert_allclose(
        policy.probabilities(state, eligible),
        policy.probabilities(take(state, eligible), np.arange(len(eligible))),
        atol=ERROR,
    )


@every_policy
@given(told=trials, order=st.permutations(range(N_ARMS)))
def test_renaming_arms_renames_probabilities(
    policy: Policy[Any], told: Told, order: list[int]
) -> None:
    """A policy knows arms by what they earned, not by their place."""
    state = learned(policy, told)
    assert_allclose(
        policy.probabilities(take(state, np.array(order)), EVERY),
        policy.probabilities(state, EVERY)[order],
        atol=ERROR,
    )


@every_policy
@given(told=trials, at=st.integers(0, 40))
def test_one_batch_equals_two_halves(policy: Policy[Any], told: Told, at: int) -> None:
    """Trials learned at once, in two parts or in reverse give the same counts."""
    whole = learned(policy, told)
    assert_same(policy.update(learned(policy, told[:at]), *columns(told[at:])), whole)
    assert_same(learned(policy, told[::-1]), whole)


@every_policy
@given(told=trials, more=trials)
def test_states_are_never_changed(policy: Policy[Any], told: Told, more: Told) -> None:
    """Every method takes read-only arrays and leaves every byte of them."""
    state, other = learned(policy, told), learned(policy, more)
    before = image(state) + image(other)
    policy.update(state, *columns(more))
    policy.add(state, other)
    policy.probabilities(state, EVERY)
    grow(state, policy.init(N_ARMS + 1))
    if isinstance(policy, Forgetful):
        policy.decay(state, 1000)
    assert image(state) + image(other) == before


@every_policy
@given(told=trials, more=trials)
def test_correction_stands_for_its_data(
    policy: Policy[Any], told: Told, more: Told
) -> None:
    """Adding the sums of late trials equals having learned them; taking them, not."""
    late = policy.correction(N_ARMS, *changes(policy, more))
    added = policy.add(learned(policy, told), late)
    assert_same(added, learned(policy, told + more))
    back = policy.add(added, policy.correction(N_ARMS, *changes(policy, more, -1)))
    assert_same(back, learned(policy, told))


@every_policy
@given(told=trials)
def test_growing_commutes_with_learning(policy: Policy[Any], told: Told) -> None:
    """A state that grows keeps what it learned; growing first or last is the same."""
    more = N_ARMS + 2
    last = grow(learned(policy, told), policy.init(more))
    assert image(last) == image(policy.update(policy.init(more), *columns(told)))
    assert type(last) is type(policy.init(1))


@every_policy
@given(told=trials, more=trials)
def test_saved_and_loaded_goes_on_as_if_never_stopped(
    policy: Policy[Any], told: Told, more: Told
) -> None:
    """A state to bytes and back learns the same bytes and gives the same bits."""
    state = learned(policy, told)
    data = pack({}, state_arrays("state", state))
    loaded = state_of("state", policy.kind, unpack(data).arrays)
    here, there = (policy.update(one, *columns(more)) for one in (state, loaded))
    assert image(here) == image(there)
    bits = [policy.probabilities(one, EVERY).tobytes() for one in (here, there)]
    assert bits[0] == bits[1]


@every_policy
@given(told=st.lists(st.integers(0, 3).map(float), max_size=20))
def test_identical_arms_share_evenly(policy: Policy[Any], told: list[float]) -> None:
    """Arms with one prior and the same rewards have one probability."""
    if policy.kind == "fixed":
        return
    everywhere = [(arm, reward) for reward in told for arm in range(N_ARMS)]
    state = take(learned(policy, everywhere), np.full(N_ARMS, 2))
    assert_allclose(policy.probabilities(state, EVERY), 1 / N_ARMS, atol=ERROR)


@every_policy
def test_policy_says_what_it_is(policy: Policy[Any]) -> None:
    """Every policy keeps the protocol, and its state can be read back by its kind."""
    assert isinstance(policy, Policy)
    assert isinstance(policy.init(N_ARMS), STATES[policy.kind])
    assert policy.mode in {"explore", "fixed"}
    assert all(len(array) == N_ARMS for array in policy.init(N_ARMS))
    assert 0.0 < policy.cost_us(1) <= policy.cost_us(1000)


# --- each by hand ---------------------------------------------------------------------


def test_poisson_posterior_by_hand() -> None:
    """Prior Gamma(1, 1) and counts 2, 0, 3: Gamma(6, 4), mean 1.5."""
    policy = PoissonThompson()
    state = learned(policy, [(1, 2.0), (1, 0.0), (1, 3.0)], 2)
    assert state.shape.tolist() == [1.0, 6.0]
    assert state.rate.tolist() == [1.0, 4.0]
    # P(Gamma(6, 4) > Gamma(1, 1)): the second is an exponential, (4 / 5)^6 is what is left.
    assert_allclose(policy.probabilities(state, np.arange(2)), [0.8**6, 1 - 0.8**6])


def test_gaussian_posterior_by_hand() -> None:
    """Prior mean 0, sd 1, one trial each; rewards 1, 2, 3: mean 6 / 4, variance 6 / 4."""
    policy = GaussianThompson(prior_mean=0.0, prior_sd=1.0, prior_dof=1.0)
    believed = posterior(learned(policy, [(0, 1.0), (0, 2.0), (0, 3.0)], 1))
    # 1 of the prior, 2 within, 1 * 3 / 4 * 2^2 = 3 between: 6 over 4 degrees of freedom.
    assert_allclose([x[0] for x in believed], [1.5, (6 / 4 / 4) ** 0.5, 4.0])


@given(
    st.tuples(*[st.integers(-3, 3), *[st.integers(1, 9)] * 3]),
    st.lists(st.floats(-100, 100).map(lambda x: round(x, 2)), max_size=12),
)
def test_gaussian_posterior_equals_twin(
    prior: tuple[int, int, int, int], rewards: list[float]
) -> None:
    """Sums give what one reward after the other gives, in fractions."""
    mean, sd, n, dof = (float(x) for x in prior)
    policy = GaussianThompson(mean, sd, n, dof)
    believed = posterior(learned(policy, [(0, reward) for reward in rewards], 1))
    exact = reference.student_posterior((mean, sd, n, dof), rewards)
    assert_allclose([x[0] for x in believed], exact, rtol=1e-9, atol=1e-9)


def test_gaussian_prior_comes_from_the_data() -> None:
    """Rewards 0, 4 and 2, 2: pooled mean 2, variance 2; money in cents is no other."""
    policy = GaussianThompson(prior_dof=2.0)
    told = [(0, 0.0), (0, 4.0), (1, 2.0), (1, 2.0)]
    state = learned(policy, told, 3)
    believed = posterior(state)
    assert_allclose(believed.mean, 2.0)
    assert_allclose(believed.scale[2], 2.0**0.5)  # a cold arm: the prior itself
    assert_allclose(believed.scale[:2] ** 2, [(4 + 8) / 4 / 3, 4 / 4 / 3])
    cents = learned(policy, [(arm, 100.0 * reward) for arm, reward in told], 3)
    here, there = (policy.probabilities(s, np.arange(3)) for s in (state, cents))
    assert_allclose(here, there, atol=ERROR)


def test_equal_rewards_say_nothing() -> None:
    """Before two rewards differ there is no scale: arms share evenly."""
    state = learned(GaussianThompson(), [(0, 0.1), (0, 0.1), (1, 0.1)])
    assert GaussianThompson().probabilities(state, EVERY).tolist() == [0.25] * 4


@pytest.mark.parametrize("strength", [10.0, 1000.0])
def test_cold_arm_honours_its_prior(strength: float) -> None:
    """An arm without data has its own prior's mean and spread, other arms' data or not."""
    told = [(0, float(i % 3)) for i in range(30)]
    own = (None, (2.0, 0.5, strength, strength))
    believed = posterior(learned(GaussianThompson(arm_priors=own), told, 2))
    assert believed.mean[1] == 2.0
    assert_allclose(believed.scale[1], 0.5 / strength**0.5)
    rates = (None, (3.0 * strength, 97.0 * strength))
    cold = learned(BetaThompson(arm_priors=rates), told, 2)
    spread = stats.beta(cold.alpha[1], cold.beta[1]).std()
    assert_allclose(spread, (0.03 * 0.97 / (100.0 * strength + 1.0)) ** 0.5)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(0, 10))
def test_top_two_equals_its_story(weights: list[int], tenths: int) -> None:
    """The closed form is what drawing until another arm wins comes to."""
    best = [w / sum(weights) for w in weights]
    told = reference.top_two(best, tenths / 10, depth=400)
    assert_allclose(top_two(np.array(best), tenths / 10), told, atol=1e-12)


def test_top_two_of_many_arms_keeps_its_digits() -> None:
    """300 arms of 1 to 1e-12: equal to exactly rounded sums, the smallest share too."""
    weights = np.random.default_rng(3).permutation(np.geomspace(1.0, 1e-12, 300))
    best = (weights / weights.sum()).tolist()
    odds = [p / fsum(best[:k] + best[k + 1 :]) for k, p in enumerate(best)]
    rest = [fsum(odds[:k] + odds[k + 1 :]) for k in range(300)]
    told = [p * (0.5 + 0.5 * r) for p, r in zip(best, rest, strict=True)]
    assert_allclose(top_two(np.array(best), 0.5), told, rtol=1e-12)


def test_top_two_shows_its_leader_half_the_time() -> None:
    """Where one arm is best for certain, the challengers still share half."""
    policy = TopTwoThompson(arm_priors=((9e4, 1e5), (200, 1e4), (200, 1e4), (1, 1e4)))
    shares = policy.probabilities(policy.init(4), EVERY)
    assert_allclose(shares[0], 0.5)
    assert_allclose(shares[1:3], shares[1])
    assert 0.0 <= shares[3] < shares[1]


def test_top_two_is_smooth_where_tails_take_over() -> None:
    """Challengers' shares as the leader becomes certain: no step of more than 3 points."""
    seen = []
    for hits in range(400, 560, 4):
        priors = ((hits, 9e3), (300, 9e3), (295, 9e3), (300, 9.2e3))
        policy = TopTwoThompson(arm_priors=priors)
        seen.append(policy.probabilities(policy.init(4), EVERY))
    assert np.abs(np.diff(seen, axis=0)).max() < 0.03
    assert np.abs(np.sum(seen, axis=1) - 1.0).max() < 1e-12


def test_greedy_by_hand() -> None:
    """Means 2 / 3 and 2 / 3 share; 1 / 2 gets nothing; epsilon gives each a third of it."""
    told = [(0, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (1, 0.0), (2, 1.0), (2, 0.0)]
    state = learned(Greedy(prior_mean=0.5, prior_trials=2.0), told, 3)
    assert_allclose(state.mean, [2 / 3, 4 / 6, 2 / 4])
    assert Greedy().probabilities(state, np.arange(3)).tolist() == [0.5, 0.5, 0.0]
    mixed = EpsilonGreedy(epsilon=0.3).probabilities(state, np.arange(3))
    assert_allclose(mixed, [0.45, 0.45, 0.1])


# --- forgetting -----------------------------------------------------------------------

timed = st.lists(
    st.tuples(arms, st.integers(0, 1).map(float), st.integers(0, 10**8)),
    min_size=1,
    max_size=30,
)


def folded(policy: Policy[Any], told: list[tuple[int, float, int]], at: int) -> Any:
    """State and its time after trials with log times, in two parts."""
    state, as_of_ms = policy.init(N_ARMS), 0
    for part in (told[:at], told[at:]):
        times = np.array([t for *_, t in part], dtype=np.int64)
        rows = columns([(arm, reward) for arm, reward, _ in part])
        state, as_of_ms = learn(policy, state, as_of_ms, rows, times)
    return state, as_of_ms


@every_forgetful
@given(told=timed, at=st.integers(0, 30))
def test_forgetting_equals_twin_in_any_grouping(
    policy: Any, told: list[tuple[int, float, int]], at: int
) -> None:
    """Every trial has faded since its own time, however the log was cut or ordered."""
    now_ms = max(t for *_, t in told)
    exact = np.array(reference.faded(told, N_ARMS, now_ms, HALF_LIFE_S))
    for order in (told, told[::-1]):
        state, as_of_ms = folded(policy, order, at)
        assert as_of_ms == now_ms
        assert_allclose(state.trials, exact[:, 0], rtol=1e-9, atol=1e-12)
        earned = next(
            getattr(state, name)
            for name in ("successes", "counted", "rewards_micros")
            if hasattr(state, name)
        )
        unit = 1e6 if hasattr(state, "rewards_micros") else 1.0
        assert_allclose(earned / unit, exact[:, 1], rtol=1e-9, atol=1e-12)


@every_forgetful
@given(told=trials, one=st.integers(0, 10**8), other=st.integers(0, 10**8))
def test_decaying_in_two_steps_is_decaying_in_one(
    policy: Any, told: Told, one: int, other: int
) -> None:
    """Time passes alike in one piece or two, up to 1e-12."""
    state = learned(policy, told)
    steps = policy.decay(policy.decay(state, one), other)
    for a, b in zip(steps, policy.decay(state, one + other), strict=True):
        assert_allclose(a, b, rtol=1e-12)


@every_forgetful
def test_forgetting_leads_back_to_the_prior(policy: Any) -> None:
    """After a hundred half-lives nothing is left of the data but the prior's shares."""
    state = learned(policy, [(0, 1.0), (1, 0.0), (1, 1.0), (2, 0.0)])
    later = policy.decay(state, round(100 * 1000 * HALF_LIFE_S))
    assert_allclose(policy.probabilities(later, EVERY), 0.25, atol=1e-6)
    half = policy.decay(state, round(1000 * HALF_LIFE_S))
    assert half.trials.tolist() == [0.5, 1.0, 0.5, 0.0]


@every_forgetful
def test_taking_back_what_has_faded_leaves_no_less_than_nothing(
    policy: Any,
) -> None:
    """An arm's only trial taken back, but for rounding, is an arm without data."""
    state = policy.decay(learned(policy, [(0, 1.0), (1, 1.0), (1, 0.0)]), 1_234_567)
    nearly = (1.0 + 1e-15) * state.trials * np.array([1.0, 0.0, 0.0, 0.0])
    taken = policy.correction(N_ARMS, -nearly, -nearly, -1e6 * nearly, -nearly)
    left = policy.add(state, taken)
    assert left.trials[0] == 0.0
    shares = policy.probabilities(left, EVERY)
    assert_allclose(shares[0], shares[2:], rtol=1e-9)
    assert shares.sum() == pytest.approx(1.0)


@every_policy
def test_without_half_life_nothing_fades(policy: Policy[Any]) -> None:
    """Integer counts stay integers, whatever the time."""
    state, _ = folded(policy, [(0, 1.0, 0), (1, 0.0, 10**9)], 1)
    assert image(state) == image(learned(policy, [(0, 1.0), (1, 0.0)]))


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arms", "rewards", "message"),
    [
        ([0], [np.nan], "rewards has nan or inf"),
        ([0, 1], [1.0, np.inf], "rewards has nan or inf"),
        ([0], [-np.inf], "rewards has nan or inf"),
        ([0, 1], [1.0], r"rewards.shape == \(1,\), must be \(2,\)."),
        ([0], [1.0, 0.0], r"rewards.shape == \(2,\), must be \(1,\)."),
        ([[0]], [[1.0]], r"arms.shape == \(1, 1\), must be \(1,\)."),
        ([N_ARMS], [1.0], r"arms in 4 … 4, must be in 0 … 3."),
        ([-1], [1.0], "arms in -1 … -1"),
        ([0.5], [1.0], "arms.dtype == float64, must be of integers."),
    ],
)
@pytest.mark.parametrize("policy", [*BINARY[::2], *OTHERS[:-2:2]], ids=repr)
def test_bad_trials_are_refused(
    policy: Policy[Any], arms: Any, rewards: Any, message: str
) -> None:
    """No nan, infinity, wrong shape or unknown arm gets into a state that learns."""
    state = policy.init(N_ARMS)
    with pytest.raises(ValueError, match=message):
        policy.update(state, np.array(arms), np.array(rewards))


@pytest.mark.parametrize("reward", [-3.0, -0.5, 0.5, 1.000001])
def test_a_reward_that_is_no_count_is_refused(reward: float) -> None:
    """Counts are whole and not negative; the state stays one that has probabilities."""
    policy = PoissonThompson()
    with pytest.raises(ValueError, match=r"^rewards has .* must be whole and >= 0\.$"):
        policy.update(policy.init(2), np.array([0, 1]), np.array([1.0, reward]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -2.0], r"weights has -2 in it, must be >= 0\."),
        ([1.0, np.nan], "weights has nan or inf"),
        ([1.0], r"weights.shape == \(1,\), must be \(2,\)\."),
    ],
)
@pytest.mark.parametrize("policy", [*BINARY[::2], *OTHERS[:3]], ids=repr)
def test_bad_weights_are_refused(
    policy: Any, weights: list[float], message: str
) -> None:
    """How much a trial counts is one finite number each, and never less than nothing."""
    trials = np.array([0, 1]), np.array([1.0, 0.0])
    with pytest.raises(ValueError, match=message):
        policy.update(policy.init(N_ARMS), *trials, np.array(weights))
