"""Sums of rewards: exact while an int64 holds them, refused beyond, never wrapped."""

from typing import Any

import numpy as np
import pytest

from bandolero.epochs import Epoch, empty_epoch, merge
from bandolero.fold import advance, init_fold, with_correction
from bandolero.micros import END, MAX_MICROS, SumTooLargeError, added, sum_by, units
from bandolero.policies import (
    BetaThompson,
    GaussianThompson,
    Greedy,
    LinearThompson,
    Policy,
    policy_of,
)
from bandolero.report.counts import summed
from bandolero.settle import GRACE_MS, settle
from strategies import (
    START_MS,
    decision,
    decisions_table,
    event,
    events_table,
    experiment,
)

SALES = experiment(
    objective={"event": "conversion", "reward": "value", "attribution_window_s": 2.0},
    policy={"kind": "gaussian_thompson"},
)
CLOSE_MS = START_MS + SALES.objective.window_ms + GRACE_MS
MANY = END // MAX_MICROS
"""As many events of the largest value as an int64 has room for."""


def bought(n: int, micros: int, **given: Any) -> list[dict[str, Any]]:
    """Sales of that much each, of one decision."""
    sale = event(type="conversion", value_micros=micros) | given
    return [{**sale, "event_id": f"e{i}"} for i in range(n)]


def epoch(micros: int) -> Epoch:
    """A day on which the first variant earned that much."""
    empty = empty_epoch(0, "explore", 1, np.array([0.5, 0.5]))
    return empty._replace(rewards_micros=np.array([micros, 1]))


def test_the_largest_events_fill_an_int64_and_not_one_more() -> None:
    """9,223 events of the greatest value add up exactly; the next is refused by name."""
    assert MANY == 9223
    row = np.zeros(MANY + 1, np.int64)
    micros = np.full(MANY + 1, MAX_MICROS)
    assert sum_by(row[:-1], micros[:-1], 2).tolist() == [MANY * MAX_MICROS, 0]
    with pytest.raises(
        SumTooLargeError, match="must fit an int64 of millionths"
    ) as told:
        sum_by(row + 1, micros, 2)
    assert told.value.at == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_both_signs_meet_their_end_alike(sign: int) -> None:
    """Values that cancel are exact however large; a sum beyond either end is refused."""
    huge = sign * (END // 2)
    both = np.array([huge, huge, -huge])
    assert sum_by(np.zeros(3, np.int64), both, 1).tolist() == [huge]
    with pytest.raises(SumTooLargeError):
        added(np.array([0, huge]), np.array([0, huge + sign]))
    assert added(np.array([huge]), np.array([-huge])).tolist() == [0]


def test_what_has_faded_adds_up_as_real_numbers() -> None:
    """Real numbers have no end to wrap around at."""
    assert added(np.array([1e19]), np.array([1e19])).tolist() == [2e19]


def test_a_decision_that_earned_too_much_is_named() -> None:
    """What a decision's events are worth is never a number that wrapped around."""
    made = decisions_table([decision()])
    full = events_table(bought(9, 10**18))
    assert settle(made, full, SALES.objective, CLOSE_MS).reward_micros[0] == 9 * 10**18
    with pytest.raises(OverflowError, match="decision_id == 'd1': rewards add up to"):
        settle(made, events_table(bought(10, 10**18)), SALES.objective, CLOSE_MS)
    back = events_table(bought(10, 10**18, type="refund"))
    with pytest.raises(OverflowError, match="decision_id == 'd1'"):
        settle(made, back, SALES.objective, CLOSE_MS)


@pytest.mark.parametrize("kind", ["gaussian_thompson", "uniform"])
def test_a_variant_that_earned_too_much_is_named(kind: str) -> None:
    """A fold says whose rewards no longer fit; what was learned before stays."""
    spec = experiment(
        objective={"event": "conversion", "reward": "value"}, policy={"kind": kind}
    )
    rows = [decision(decision_id=f"d{i}", variant_id="v2") for i in range(2)]
    told = [
        sale | {"event_id": f"{i}-{j}"}
        for i in range(2)
        for j, sale in enumerate(bought(5, 10**18, decision_id=f"d{i}"))
    ]
    made, events = decisions_table(rows), events_table(told)
    fold = advance(spec, init_fold(spec), made[:1], events, {})
    (day,) = fold.epochs.values()
    assert day.rewards_micros.tolist() == [0, 5 * 10**18, 0]
    with pytest.raises(OverflowError, match="variant_id == 'v2': rewards add up to"):
        advance(spec, fold, made[1:], events, {})


def test_a_correction_that_does_not_fit_is_refused() -> None:
    """Neither does what a refresh found wrap around."""
    policy: Any = policy_of(SALES)
    ones = np.ones(2, np.int64)
    state = policy.correction(2, ones, ones, np.array([END - 1, 0]))
    with pytest.raises(OverflowError, match="variant_id == 'v1'"):
        with_correction(SALES, state, policy.correction(2, ones, ones, 10**6 * ones))


def test_days_that_no_longer_fit_one_epoch_can_be_reported() -> None:
    """Epochs are never merged beyond an int64; a report of them adds up in units."""
    with pytest.raises(SumTooLargeError):
        merge(epoch(END - 1), epoch(1))
    assert summed([epoch(END - 1), epoch(END - 1)], 2).rewards.tolist() == [
        2 * (END - 1) / 1e6,
        2e-6,
    ]
    assert units([], 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("policy", [GaussianThompson(), Greedy()])
def test_rewards_that_add_up_to_too_much_are_refused(policy: Policy[Any]) -> None:
    """A state's sums of rewards never wrap, in one update or over several."""
    arms = np.zeros(5_000, np.int64)
    state = policy.update(policy.init(2), arms, np.full(5_000, 1e9))
    assert state.rewards_micros.tolist() == [5 * 10**18, 0]
    with pytest.raises(OverflowError, match="rewards add up to"):
        policy.update(state, arms, np.full(5_000, 1e9))
    twice = np.zeros(10_000, np.int64)
    with pytest.raises(OverflowError, match="rewards add up to"):
        policy.update(policy.init(2), twice, np.full(10_000, 1e9))


@pytest.mark.parametrize("reward", [1e13, -1e13, END / 1e6, 1e200])
@pytest.mark.parametrize("policy", [GaussianThompson(), Greedy(), BetaThompson()])
def test_a_reward_that_no_int64_holds_is_refused(
    policy: Policy[Any], reward: float
) -> None:
    """A single reward beyond what millionths can count is a fault of its own."""
    arms, rewards = np.array([0, 1]), np.array([1.0, reward])
    with pytest.raises(ValueError, match=r"rewards has one of .* in it, must be below"):
        policy.update(policy.init(2), arms, rewards)


def test_a_reward_that_no_int64_holds_is_refused_by_regressions() -> None:
    """So it is where features are learned from."""
    policy = LinearThompson(2)
    with pytest.raises(ValueError, match="must be below"):
        policy.update(policy.init(1), np.array([0]), np.array([1e13]), np.ones((1, 2)))
