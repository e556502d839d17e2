"""P(best) and expected loss of Beta posteriors are exact, whatever the posteriors."""

import math
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy import stats

import reference
from bandolero.quadrature import beats, best_of, integrate, log_nodes_below
from reference import Kind

Floats = NDArray[np.float64]


class Case(NamedTuple):
    """Arms, and what `reference.best_of_kinds` says of one arm of each kind."""

    name: str
    kinds: list[Kind]
    n_panels: int
    probability_best: list[float]
    expected_loss: list[float]

    @property
    def alpha(self) -> Floats:
        """Of every arm."""
        return np.array([k.alpha for k in self.kinds for _ in range(k.n_arms)], float)

    @property
    def beta(self) -> Floats:
        """Of every arm."""
        return np.array([k.beta for k in self.kinds for _ in range(k.n_arms)], float)

    @property
    def firsts(self) -> list[int]:
        """The first arm of each kind."""
        ends = np.cumsum([k.n_arms for k in self.kinds])
        return [0, *ends[:-1].tolist()]


# Numbers are made, and made again by the slow test below, by best_of_kinds(kinds,
# n_panels) of tests/reference.py, in 40-digit arithmetic.
CASES = [
    Case(
        "few trials",
        [Kind(5, 7), Kind(3, 9)],
        40,
        [0.8192724458204335, 0.18072755417956657],
        [0.0184636783775295, 0.18513034504419618],
    ),
    Case(
        "no successes",
        [Kind(1, 1001), Kind(11, 991), Kind(1, 11)],
        60,
        [3.271079680615639e-05, 0.11377974483019793, 0.886187544372996],
        [0.08302752130637764, 0.07304748138621796, 0.0006921919650602734],
    ),
    Case(
        "no successes at all",
        [Kind(1, 1001, 2), Kind(1, 31)],
        60,
        [0.022414559001285, 0.95517088199743],
        [0.030304286531191743, 5.22905232077112e-05],
    ),
    Case(
        "no data and a tiny prior",
        [Kind(0.5, 0.5), Kind(0.5, 20.5, 3)],
        400,
        [0.8681092095104316, 0.04396359682985616],
        [0.005861784000186602, 0.4820522601906628],
    ),
    Case(
        "rates near one",
        [Kind(9999, 1), Kind(9990, 12), Kind(100, 1)],
        150,
        [0.9898708308341035, 0.00022947088772763455, 0.009899698278168853],
        [1.0128053363364537e-06, 0.0011007728533267383, 0.009802002904346237],
    ),
    Case(
        "rates of one in a million",
        [Kind(1001, 1e9), Kind(951, 1e9), Kind(1, 1e6)],
        60,
        [0.5525801696616358, 0.08079581820901643, 0.36662401212934775],
        [3.694680784597313e-07, 4.1946798085987425e-07, 3.704680764587343e-07],
    ),
    Case(
        "a billion trials",
        [
            Kind(500_000_000, 5e8),
            Kind(500_020_000, 499_980_000),
            Kind(499_990_000, 500_010_000),
        ],
        60,
        [0.16778525877110523, 0.7697559708390798, 0.06245877038981503],
        [2.2824952188732508e-05, 2.824952188732509e-06, 3.282495218873251e-05],
    ),
    Case(
        "narrow inside wide",
        [Kind(50, 950), Kind(51e6, 949e6), Kind(2, 30)],
        60,
        [0.22422865256235636, 0.27219070429147413, 0.5035806431461695],
        [0.02395742819822326, 0.02295742819822326, 0.01145742819822326],
    ),
    Case(
        "one clearly best",
        [Kind(50, 950), Kind(90, 910)],
        60,
        [0.00020103454408667307, 0.9997989654559133],
        [0.04000057537002854, 5.753700285371647e-07],
    ),
    Case("fifty alike", [Kind(100, 1900, 50)], 60, [0.02], [0.011591186474070155]),
    Case(
        "a thousand",
        [Kind(500, 9500, 700), Kind(520, 9480, 200), Kind(3, 60, 100)],
        60,
        [6.546163702393789e-19, 2.4386855134819475e-17, 0.009999999999999946],
        [0.08846432012349699, 0.08646432012349699, 0.09084527250444938],
    ),
    Case(
        "a thousand without successes but one",
        [Kind(1, 1001, 999), Kind(2, 1001)],
        150,
        [0.0009935293423395982, 0.007464187002741411],
        [0.0064586766164585144, 0.005462662662312967],
    ),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

parameters = st.tuples(
    st.one_of(st.integers(1, 100), st.floats(0.5, 1e6)),
    st.one_of(st.integers(1, 100), st.floats(0.5, 1e9)),
).map(lambda pair: (float(pair[0]), float(pair[1])))
posteriors = st.lists(parameters, min_size=1, max_size=6).map(np.array)


@each_case
def test_equals_forty_digits(case: Case) -> None:
    """P(best) is within 1e-11, and the loss within 1e-10 of itself, of the truth."""
    best = best_of(case.alpha, case.beta)
    p, loss = best.probability_best[case.firsts], best.expected_loss[case.firsts]
    assert_allclose(p, case.probability_best, rtol=0, atol=1e-11)
    assert_allclose(loss, case.expected_loss, rtol=1e-10)


@pytest.mark.slow
@each_case
def test_references_are_what_the_twin_says(case: Case) -> None:
    """The numbers above come out of the 40-digit twin again."""
    won, lost = reference.best_of_kinds(case.kinds, case.n_panels)
    assert_allclose([float(p) for p in won], case.probability_best, rtol=1e-13)
    assert_allclose([float(x) for x in lost], case.expected_loss, rtol=1e-13)


@each_case
def test_total_needs_no_normalising(case: Case) -> None:
    """The integrals of all arms sum to 1 by themselves: no mass is lost or doubled."""
    probability, _ = integrate(case.alpha, case.beta)
    assert abs(probability.sum() - 1.0) < 1e-11
    assert abs(best_of(case.alpha, case.beta).probability_best.sum() - 1.0) < 1e-14


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 400)), min_size=2, max_size=4)
)
def test_equals_the_definition(counts: list[tuple[int, int]]) -> None:
    """Few arms with moderate counts: equal to the integrals by scipy's Beta."""
    alpha, beta = np.array(counts, float).T
    won, lost = reference.best_of(alpha, beta)
    best = best_of(alpha, beta)
    assert_allclose(best.probability_best, won, atol=1e-8)
    assert_allclose(best.expected_loss, lost, atol=1e-8)


@given(*[st.integers(1, 40)] * 4)
def test_two_arms_equal_miller(a: int, b: int, c: int, d: int) -> None:
    """P(x_k > x_j) equals Miller's sum in rational numbers."""
    exact = float(reference.probability_above(a, b, c, d))
    assert beats(a, b, c, d) == pytest.approx(exact, abs=1e-13)


def test_two_arms_by_hand() -> None:
    """P(Beta(5, 7) > Beta(3, 9)) is 2117 / 2584; Beta(2, 1) beats Beta(1, 1) by 2 : 1."""
    assert beats(5, 7, 3, 9) == pytest.approx(2117 / 2584, abs=1e-14)
    assert beats(2, 1, 1, 1) == pytest.approx(2 / 3, abs=1e-14)


def test_uniform_loss_by_hand() -> None:
    """The highest of n uniform rates is n / (n + 1) on average: the loss is that less 1/2."""
    for n_arms in (1, 2, 3, 10):
        best = best_of(np.ones(n_arms), np.ones(n_arms))
        assert_allclose(best.expected_loss, n_arms / (n_arms + 1) - 0.5, atol=1e-14)


@given(posteriors)
def test_is_a_distribution(arms: Floats) -> None:
    """Probabilities lie in [0, 1] and sum to 1; they did so before normalising."""
    raw, _ = integrate(arms[:, 0].copy(), arms[:, 1].copy())
    assert abs(raw.sum() - 1.0) < 1e-10
    best = best_of(arms[:, 0], arms[:, 1])
    assert (best.probability_best >= 0.0).all()
    assert abs(best.probability_best.sum() - 1.0) < 1e-12


@given(posteriors)
def test_losses_differ_as_means_do(arms: Floats) -> None:
    """Expected losses of two arms differ by their means' difference; none is negative."""
    loss = best_of(arms[:, 0], arms[:, 1]).expected_loss
    mean = arms[:, 0] / arms.sum(axis=1)
    assert (loss >= 0.0).all()
    assert_allclose(loss - loss[0], mean[0] - mean, atol=1e-12)


@given(posteriors, st.randoms(use_true_random=False))
def test_renamed_arms_rename_the_result(arms: Floats, random: Random) -> None:
    """In another order, the arms have the same probabilities and losses."""
    order = random.sample(range(len(arms)), len(arms))
    here, there = best_of(*arms.T), best_of(*arms[order].T)
    assert_allclose(there.probability_best, here.probability_best[order], atol=1e-10)
    assert_allclose(there.expected_loss, here.expected_loss[order], atol=1e-12)


@given(parameters, st.integers(1, 8))
def test_identical_arms_share_evenly(arm: tuple[float, float], n_arms: int) -> None:
    """Arms with one posterior are best with one probability."""
    best = best_of(np.full(n_arms, arm[0]), np.full(n_arms, arm[1]))
    assert_allclose(best.probability_best, 1.0 / n_arms, rtol=1e-12)


@given(posteriors)
def test_a_success_more_is_never_worse(arms: Floats) -> None:
    """One more success raises an arm's P(best), one more failure lowers it."""
    step = np.eye(len(arms))[0]
    now = best_of(*arms.T).probability_best[0]
    up = best_of(arms[:, 0] + step, arms[:, 1]).probability_best[0]
    down = best_of(arms[:, 0], arms[:, 1] + step).probability_best[0]
    assert down - 1e-10 <= now <= up + 1e-10


def test_an_arm_without_conversions_is_not_a_coin_flip() -> None:
    """No conversion in 1,000 trials against 50: far from 50 % likely to be better."""
    assert beats(1.0, 1001.0, 51.0, 951.0) < 1e-13
    assert 0.0 < beats(1.0, 11.0, 51.0, 951.0) < 0.9


def test_a_hopeless_arm_costs_its_distance() -> None:
    """An arm that cannot win has P(best) 0, and loses the difference of the means."""
    best = best_of(np.array([5e6, 9e6]), np.array([95e6, 91e6]))
    assert best.probability_best.tolist() == [0.0, 1.0]
    assert_allclose(best.expected_loss, [0.04, 0.0], atol=1e-15)


def test_no_digits_lost_by_cancellation() -> None:
    """The loss between two arms of 1e8 trials keeps its digits: it is that of Normals.

    Where counts are so large, the logits are Normal to 1 in 1e4; the closed form by
    incomplete betas has lost as much already at 1e7.
    """
    a, b = np.array([5e6, 5.005e6]), np.array([95e6, 94.995e6])
    mean, n = a / (a + b), a + b + 1.0
    sd = float(np.sqrt((mean * (1.0 - mean) / n).sum()))
    t = (mean[1] - mean[0]) / sd
    density = np.exp(-0.5 * t * t) / np.sqrt(2.0 * np.pi)
    loss = sd * (density - t * stats.norm.sf(t))
    assert best_of(a, b).expected_loss[1] == pytest.approx(loss, rel=2e-3)


def test_lists_and_read_only_arrays_will_do() -> None:
    """Counts as integers, and arrays that a snapshot froze, give the same."""
    alpha, beta = np.array([5, 3]), np.array([7, 9])
    alpha.flags.writeable = False
    frozen, plain = (
        best_of(alpha, beta),
        best_of(alpha.astype(float), beta.astype(float)),
    )
    assert_allclose(frozen.probability_best, plain.probability_best, rtol=0)


@given(parameters, st.sampled_from([1.0, 0.9, 0.05, 1e-4]))
def test_nodes_integrate_moments(arm: tuple[float, float], end: float) -> None:
    """Nodes below an end hold the posterior's probability and mean below it."""
    a, b = arm
    logs, weights = log_nodes_below(a, b, math.log(end))
    x = np.exp(logs)
    below = stats.beta(a, b).cdf(end)
    mean = a / (a + b) * stats.beta(a + 1.0, b).cdf(end)
    assert weights.sum() == pytest.approx(below, abs=1e-9)
    assert weights @ x == pytest.approx(mean, abs=1e-9)
