"""One contract for all policies: functions from a state into the simplex."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import reference
from bandolero.draws import Draws
from bandolero.policies import (
    STATES,
    BetaState,
    BetaThompson,
    Fixed,
    Policy,
    Uniform,
    choose,
    choose_batch,
    cumulative,
    policy_of,
    with_floor,
)
from bandolero.policies.base import Floats, Ints, grow
from strategies import experiment

N_ARMS = 4
POLICIES: list[Policy[Any]] = [
    BetaThompson(),
    BetaThompson(prior_alpha=0.5, prior_beta=20.0),
    Fixed((0.5, 0.0, 0.2, 0.3)),
    Uniform(),
]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=repr)
ERROR = 1e-9
"""What quadrature may be off by."""
JUST_BELOW_ONE = 1.0 - 2.0**-53

trials = st.lists(st.tuples(st.integers(0, N_ARMS - 1), st.booleans()), max_size=40)
sets = st.sets(st.integers(0, N_ARMS - 1), min_size=1).map(
    lambda arms: np.array(sorted(arms), dtype=np.int64)
)
shares = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12).filter(
    lambda weights: sum(weights) > 1e-3
)
distributions = shares.map(lambda w: np.array(w) / sum(w))
EVERY = np.arange(N_ARMS)


def columns(told: list[tuple[int, bool]]) -> tuple[Ints, Floats]:
    """Arms and rewards of trials."""
    arms = np.array([arm for arm, _ in told], dtype=np.int64)
    return arms, np.array([float(hit) for _, hit in told])


def learned(policy: Policy[Any], told: list[tuple[int, bool]]) -> Any:
    """The state after trials; its arrays are read-only, as in a snapshot."""
    state = policy.update(policy.init(N_ARMS), *columns(told))
    for array in state:
        array.setflags(write=False)
    return state


def image(state: Any) -> list[bytes]:
    """Every byte of a state."""
    return [array.tobytes() for array in state]


# --- the contract ---------------------------------------------------------------------


@every_policy
@given(told=trials, eligible=sets)
def test_probabilities_are_a_distribution(
    policy: Policy[Any], told: list[tuple[int, bool]], eligible: Ints
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
    policy: Policy[Any], told: list[tuple[int, bool]], eligible: Ints
) -> None:
    """Arms that are not eligible have no say: without them it is the same."""
    state = learned(policy, told)
    alone = type(state)(*(array[eligible] for array in state))
    assert_allclose(
        policy.probabilities(state, eligible),
        policy.probabilities(alone, np.arange(len(eligible))),
        atol=ERROR,
    )


@every_policy
@given(told=trials, order=st.permutations(range(N_ARMS)))
def test_renaming_arms_renames_probabilities(
    policy: Policy[Any], told: list[tuple[int, bool]], order: list[int]
) -> None:
    """A policy knows arms by what they earned, not by their place."""
    state = learned(policy, told)
    renamed = type(state)(*(array[order] for array in state))
    assert_allclose(
        policy.probabilities(renamed, EVERY),
        policy.probabilities(state, EVERY)[order],
        atol=ERROR,
    )


@every_policy
@given(told=trials, at=st.integers(0, 40))
def test_one_batch_equals_two_halves(
    policy: Policy[Any], told: list[tuple[int, bool]], at: int
) -> None:
    """Trials learned at once, in two parts or in reverse give the same bytes."""
    whole = image(learned(policy, told))
    parts = policy.update(learned(policy, told[:at]), *columns(told[at:]))
    assert image(parts) == whole
    assert image(learned(policy, told[::-1])) == whole


@every_policy
@given(told=trials, more=trials)
def test_states_are_never_changed(
    policy: Policy[Any], told: list[tuple[int, bool]], more: list[tuple[int, bool]]
) -> None:
    """Every method takes read-only arrays and leaves every byte of them."""
    state, other = learned(policy, told), learned(policy, more)
    before = image(state) + image(other)
    policy.update(state, *columns(more))
    policy.add(state, other)
    policy.probabilities(state, EVERY)
    grow(state, policy.init(N_ARMS + 1))
    assert image(state) + image(other) == before


@every_policy
@given(told=trials, more=trials)
def test_correction_stands_for_its_data(
    policy: Policy[Any], told: list[tuple[int, bool]], more: list[tuple[int, bool]]
) -> None:
    """Adding the counts of late trials equals having learned them, prior once."""
    arms, rewards = columns(more)
    shown = np.bincount(arms, minlength=N_ARMS)
    hits = np.bincount(arms[rewards > 0], minlength=N_ARMS)
    late = policy.correction(N_ARMS, shown, hits)
    added = policy.add(learned(policy, told), late)
    assert image(added) == image(learned(policy, told + more))
    back = policy.add(added, policy.correction(N_ARMS, -shown, -hits))
    assert image(back) == image(learned(policy, told))


@every_policy
@given(told=trials)
def test_growing_commutes_with_learning(
    policy: Policy[Any], told: list[tuple[int, bool]]
) -> None:
    """A state that grows keeps what it learned; growing first or last is the same."""
    more = N_ARMS + 2
    last = grow(learned(policy, told), policy.init(more))
    first = policy.update(policy.init(more), *columns(told))
    assert image(last) == image(first)
    assert type(last) is type(policy.init(1))


@every_policy
def test_policy_says_what_it_is(policy: Policy[Any]) -> None:
    """Every policy keeps the protocol, and its state can be read back by its kind."""
    assert isinstance(policy, Policy)
    assert isinstance(policy.init(N_ARMS), STATES[policy.kind])
    assert policy.mode in {"explore", "fixed"}
    assert all(len(array) == N_ARMS for array in policy.init(N_ARMS))
    assert 0.0 < policy.cost_us(1) <= policy.cost_us(1000)


# --- each by hand ---------------------------------------------------------------------


def test_beta_thompson_by_hand() -> None:
    """One success of one against no data: P(Beta(2, 1) > Beta(1, 1)) = 2/3."""
    policy = BetaThompson()
    state = policy.update(policy.init(2), *columns([(0, True)]))
    eligible = np.arange(2)
    assert_allclose(policy.probabilities(state, eligible), [2 / 3, 1 / 3], atol=ERROR)


def test_beta_thompson_equals_twin() -> None:
    """The probabilities are those of exact fractions for integer posteriors."""
    state = BetaState(np.ones(2), np.ones(2), np.array([7, 4]), np.array([20, 22]))
    exact = float(reference.probability_above(8, 14, 5, 19))
    assert_allclose(
        BetaThompson().probabilities(state, np.arange(2)),
        [exact, 1.0 - exact],
        atol=ERROR,
    )


def test_fixed_split_is_renormalised() -> None:
    """Of weights 0.5, 0, 0.2, 0.3 the last two alone get 0.4 and 0.6."""
    policy = POLICIES[2]
    state = policy.init(N_ARMS)
    assert_allclose(policy.probabilities(state, np.array([2, 3])), [0.4, 0.6])
    assert policy.probabilities(state, np.array([1])).tolist() == [1.0]


def test_fixed_split_gives_newcomers_nothing() -> None:
    """A variant that came after the weights has weight zero."""
    fresh = POLICIES[2].init(N_ARMS + 1)
    assert POLICIES[2].probabilities(fresh, np.arange(N_ARMS + 1))[-1] == 0.0


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ({"kind": "beta_thompson", "prior_alpha": 2.0}, BetaThompson(2.0, 1.0)),
        (
            {"kind": "fixed", "weights": {"v3": 0.75, "v1": 0.25}},
            Fixed((0.25, 0, 0.75)),
        ),
        ({"kind": "uniform"}, Uniform()),
    ],
)
def test_experiment_names_its_policy(spec: dict[str, Any], policy: Policy[Any]) -> None:
    """A specification gives its policy, weights in the order of the variants."""
    assert policy_of(experiment(policy=spec)) == policy


# --- floor and choice -------------------------------------------------------------------


@given(distributions, st.floats(0.0, 1.0, exclude_max=True))
def test_floor_equals_twin(weights: Floats, min_share: float) -> None:
    """p = f + (1 - n f) w with f = min(min_share, 0.5 / n): a distribution above f."""
    lifted = with_floor(weights, min_share)
    assert_allclose(lifted, reference.with_floor(list(weights), min_share), rtol=1e-15)
    assert_allclose(lifted.sum(), 1.0, atol=1e-12)
    assert (lifted >= min(min_share, 0.5 / len(weights))).all()


def test_floor_by_hand() -> None:
    """Of (0.9, 0.1) with a floor of 0.1 becomes (0.82, 0.18); of 0.4, (0.7, 0.3)."""
    weights = np.array([0.9, 0.1])
    assert_allclose(with_floor(weights, 0.1), [0.82, 0.18])
    assert_allclose(with_floor(weights, 0.4), [0.7, 0.3])
    assert with_floor(weights, 0.0).tolist() == [0.9, 0.1]


@given(distributions, st.floats(0.0, 1.0, exclude_max=True))
def test_choose_equals_twin(weights: Floats, draw: float) -> None:
    """`choose` finds the stretch that a walk along the interval finds."""
    arm, _ = reference.choose(weights.tolist(), draw)
    assert choose(cumulative(weights), draw) == arm


@given(
    st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=8).filter(any),
    st.sampled_from([0.0, 2.0**-53, 0.5, JUST_BELOW_ONE]),
)
def test_impossible_arms_are_never_drawn(weights: list[float], draw: float) -> None:
    """An arm of probability zero is not drawn, not even at either end of [0, 1)."""
    probabilities = np.array(weights) / sum(weights)
    assert probabilities[choose(cumulative(probabilities), draw)] > 0.0


def test_rounding_leaves_no_gap_at_the_end() -> None:
    """Ten shares of 0.1 sum to less than 1, and yet the last draw finds an arm."""
    probabilities = [0.1] * 10
    assert float(np.cumsum(probabilities)[-1]) < 1.0
    assert choose(cumulative(np.array(probabilities)), JUST_BELOW_ONE) == 9
    assert Draws(JUST_BELOW_ONE, 0.0).arm < 1.0


@given(distributions, st.lists(st.floats(0.0, 1.0, exclude_max=True), max_size=9))
def test_choose_batch_equals_choose(weights: Floats, draws: list[float]) -> None:
    """A batch draws what `choose` draws one by one, at every border and beside it too."""
    sums = cumulative(weights)
    at = np.array([*sums, 0.0, 2.0**-53, JUST_BELOW_ONE])
    beside = np.concatenate([at, np.nextafter(at, 0.0), np.nextafter(at, 1.0)])
    every = np.concatenate([np.array(draws), beside[beside < 1.0]])
    chosen = choose_batch(weights, every)
    assert chosen.arms.tolist() == [choose(sums, draw) for draw in every]
    assert chosen.propensities.tolist() == weights[chosen.arms].tolist()


@pytest.mark.parametrize("n_arms", [1, 2, 50, 64, 1000])
def test_choose_batch_of_many_arms(n_arms: int) -> None:
    """The guide table is right where bins hold many arms, and arms span many bins."""
    weights = np.random.default_rng(n_arms).dirichlet(np.full(n_arms, 0.05))
    draws = np.concatenate([np.arange(4096) / 4096, np.cumsum(weights[:-1])])
    draws, sums = draws[draws < 1.0], cumulative(weights)
    expected = [choose(sums, draw) for draw in draws]
    assert choose_batch(weights, draws).arms.tolist() == expected


@pytest.mark.parametrize("draws", [[1.0], [-0.1, 0.5], [0.5, float("nan")], [[0.5]]])
def test_choose_batch_refuses_other_draws(draws: list[Any]) -> None:
    """A draw outside of [0, 1) is nobody's, so it is named and refused."""
    with pytest.raises(ValueError, match="draws"):
        choose_batch(np.array([0.5, 0.5]), np.array(draws))


def test_choose_batch_of_nothing() -> None:
    """No draws give no arms."""
    assert choose_batch(np.array([1.0]), np.empty(0)).arms.size == 0
