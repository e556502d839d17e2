"""What reports say of variants: comparison with control, lift, sample-ratio check."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy import stats

import reference
from bandolero.inference.compare import compare_means, compare_rates
from bandolero.inference.lift import lift_of_means, lift_of_rates, ratio_below
from bandolero.inference.sample_ratio import (
    SampleRatio,
    sample_ratio,
    sample_ratio_by_weights,
)
from bandolero.quadrature import best_of, best_of_normals
from reference import Kind

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# --- rates --------------------------------------------------------------------


def test_rates_by_hand() -> None:
    """Beta(5, 7) against a control of Beta(3, 9): every column has its known value."""
    table = compare_rates(np.array([3.0, 5.0]), np.array([9.0, 7.0]), control=0)
    assert_allclose(table.mean, [3 / 12, 5 / 12])
    assert_allclose(table.interval_lower, stats.beta.ppf(0.025, [3, 5], [9, 7]))
    assert_allclose(table.interval_upper, stats.beta.ppf(0.975, [3, 5], [9, 7]))
    assert_allclose(table.probability_best, [1 - 2117 / 2584, 2117 / 2584])
    assert_allclose(table.probability_beat_control, [np.nan, 2117 / 2584])
    # E[1 / x] = 11 / 2 for Beta(3, 9).
    assert_allclose(table.lift, [np.nan, 5 / 12 * 11 / 2 - 1])
    assert_allclose(table.expected_loss[0] - table.expected_loss[1], 2 / 12)


def test_control_may_be_any_arm() -> None:
    """nan stands in control's own row, and only there."""
    for control in range(3):
        table = compare_rates(np.array([9.0, 5, 7]), np.array([90.0, 90, 90]), control)
        for column in (table.probability_beat_control, table.lift, table.lift_lower):
            assert np.flatnonzero(np.isnan(column)).tolist() == [control]


@pytest.mark.parametrize(
    ("first", "second", "control", "credibility", "message"),
    [
        ([1.0, -1.0], [1.0, 1.0], 0, 0.95, "alpha has -1 in it, must be positive"),
        ([1.0, 1.0], [1.0, np.nan], 0, 0.95, "beta has nan in it, must be positive"),
        ([1.0, 1.0], [1.0, 0.0], 0, 0.95, "beta has 0 in it, must be positive"),
        ([1.0, 1.0], [1.0, 1.0], -1, 0.95, r"control == -1, must be in 0 … 1\."),
        ([1.0, 1.0], [1.0, 1.0], 2, 0.95, r"control == 2, must be in 0 … 1\."),
        ([1.0, 1.0], [1.0, 1.0], 0, 95, r"credibility == 95, must be in \(0, 1\)\."),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: list[float],
    second: list[float],
    control: int,
    credibility: float,
    message: str,
) -> None:
    """Field, value and rule are named before anything is integrated."""
    columns = np.array(first), np.array(second)
    with pytest.raises(ValueError, match=message):
        compare_rates(*columns, control, credibility)
    if "alpha" not in message:  # a mean may be negative
        with pytest.raises(ValueError, match=message.replace("beta", "sd")):
            compare_means(*columns, control, credibility)


def test_one_arm_alone() -> None:
    """A lone control is best, loses nothing, and has no lift."""
    for table in (
        compare_rates(np.array([3.0]), np.array([9.0]), 0),
        compare_means(np.array([3.0]), np.array([9.0]), 0),
    ):
        assert table.probability_best.tolist() == [1.0]
        assert_allclose(table.expected_loss, [0.0], atol=1e-14)
        assert np.isnan(table.lift).all()


def test_an_arm_without_conversions_probably_loses() -> None:
    """0 of 1,000 against 50 of 1,000 is not given 50 %; as control, its lift has no mean."""
    alpha, beta = np.array([1.0, 51.0]), np.array([1001.0, 951.0])
    table = compare_rates(alpha, beta, control=1)
    assert table.probability_best[0] < 1e-12
    assert table.probability_beat_control[0] < 1e-12
    assert table.lift_upper[0] < -0.9
    turned = compare_rates(alpha, beta, control=0)
    assert np.isnan(turned.lift[1])
    assert 5.0 < turned.lift_lower[1] < turned.lift_upper[1] < np.inf


@pytest.mark.parametrize(
    ("variant", "control"),
    [
        (Kind(121, 881), Kind(101, 901)),
        (Kind(1, 40), Kind(11, 91)),
        (Kind(11, 91), Kind(1, 40)),
        (Kind(60, 2), Kind(50, 3)),
        (Kind(3, 1), Kind(2, 1)),
        (Kind(50, 950), Kind(5, 95)),
    ],
)
def test_lift_intervals_hold_their_probability(variant: Kind, control: Kind) -> None:
    """At the ends of a 90 % interval, the double integral gives 5 % and 95 %."""
    lift = lift_of_rates(*variant[:2], *control[:2], 0.9)
    for end, probability in ((lift.lower, 0.05), (lift.upper, 0.95)):
        below = reference.ratio_below(1.0 + end, variant, control)
        assert below == pytest.approx(probability, abs=1e-7)


@pytest.mark.parametrize("control", [0.006, 0.005, 1e-3, 1e-9])
def test_lift_over_a_control_that_may_be_zero(control: float) -> None:
    """log x of Beta(a, 1) is -Exp(a): ends by hand, infinite where no float holds them.

    P(log ratio > t) = a / (a + c) e^(-c t) for t > 0.
    """
    lift = lift_of_rates(2.0, 1.0, control, 1.0, 0.95)
    for end, tail in ((lift.lower, 0.975), (lift.upper, 0.025)):
        log_ratio = -math.log(tail * (2.0 + control) / 2.0) / control
        if log_ratio > 700.0:
            assert end == math.inf
        else:
            assert math.log1p(end) == pytest.approx(log_ratio, rel=1e-4)


@given(*[st.floats(-9.0, 9.0).map(lambda x: 10.0**x)] * 4)
def test_lift_interval_always_exists(a: float, b: float, c: float, d: float) -> None:
    """Whatever the posteriors: two numbers from -1 up, an upper one perhaps infinite."""
    lift = lift_of_rates(a, b, c, d, 0.95)
    assert -1.0 <= lift.lower <= lift.upper + 1e-6


def test_lift_of_two_uniform_rates_by_hand() -> None:
    """P(x / x_c <= r) of uniform rates is r / 2 up to 1, then 1 - 1 / (2 r)."""
    lift = lift_of_rates(1.0, 1.0, 1.0, 1.0, 0.95)
    assert (1.0 + lift.lower, 1.0 + lift.upper) == pytest.approx((0.05, 20.0))


@given(*[st.floats(1.0, 1e8)] * 4)
def test_lift_of_roles_swapped(a: float, b: float, c: float, d: float) -> None:
    """Control's lift over the variant is the inverse of the variant's over control."""
    there, back = lift_of_rates(a, b, c, d, 0.95), lift_of_rates(c, d, a, b, 0.95)
    assert (1 + there.lower) * (1 + back.upper) == pytest.approx(1.0, rel=1e-5)
    assert (1 + there.upper) * (1 + back.lower) == pytest.approx(1.0, rel=1e-5)


@given(*[st.floats(0.5, 1e6)] * 4)
def test_lift_agrees_with_chance_to_win(a: float, b: float, c: float, d: float) -> None:
    """P(ratio <= 1) is the probability that control is better."""
    better = best_of(np.array([c, a]), np.array([d, b])).probability_best[0]
    assert ratio_below(a, b, c, d)(0.0) == pytest.approx(better, abs=2e-4)
    if min(b, d) >= 1.0:
        assert ratio_below(a, b, c, d)(0.0) == pytest.approx(better, abs=1e-8)


def test_lift_at_a_billion_trials() -> None:
    """With 1e9 trials on both sides the interval is the Normal one of log ratios."""
    a, b, c, d = 5.001e7, 9.4999e8, 5e7, 9.5e8
    lift = lift_of_rates(a, b, c, d, 0.95)
    sd = math.sqrt(b / a / (a + b) + d / c / (c + d))
    center = math.log(a / c)
    assert lift.lower == pytest.approx(math.expm1(center - 1.95996 * sd), abs=1e-7)
    assert lift.upper == pytest.approx(math.expm1(center + 1.95996 * sd), abs=1e-7)


def test_intervals_cover_their_share() -> None:
    """Rates from the prior lie in 90 % intervals 90 % of the time, lifts as well.

    600 seeded experiments; a right program fails by chance less than once in 10,000.
    """
    rng = np.random.default_rng(1)
    truth = rng.beta(3.0, 57.0, (600, 2))
    hits = rng.binomial(400, truth)
    inside = []
    for rates, x in zip(truth, hits, strict=True):
        table = compare_rates(3.0 + x, 457.0 - x, 0, credibility=0.9)
        lift = rates[1] / rates[0] - 1.0
        inside.append(
            (
                table.interval_lower[1] <= rates[1] <= table.interval_upper[1],
                table.lift_lower[1] <= lift <= table.lift_upper[1],
            )
        )
    misses = 600 - np.sum(inside, axis=0)
    low, high = (stats.binom.ppf(p, 600, 0.1) for p in (2e-5, 1 - 2e-5))
    assert ((misses >= low) & (misses <= high)).all()


# --- means --------------------------------------------------------------------


def test_means_by_hand() -> None:
    """Two Normals: P(best) is Phi(t), the loss sd (phi(t) - t Phi(-t))."""
    table = compare_means(np.array([10.0, 11.0]), np.array([0.6, 0.8]), control=0)
    phi, beat = stats.norm.pdf(1.0), stats.norm.cdf(1.0)
    assert_allclose(table.probability_best, [1 - beat, beat])
    assert_allclose(table.probability_beat_control, [np.nan, beat])
    assert_allclose(table.expected_loss, [phi + beat, phi - (1 - beat)])
    assert_allclose(table.interval_upper, [10 + 1.959964 * 0.6, 11 + 1.959964 * 0.8])


@given(
    st.lists(
        st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=6
    )
)
def test_means_are_consistent(arms: list[tuple[float, float]]) -> None:
    """P(best) sums to 1; losses differ as the means do and are not negative."""
    mean, sd = np.array(arms).T
    best = best_of_normals(mean, sd)
    unit = max(np.abs(mean).max(), sd.max())
    assert abs(best.probability_best.sum() - 1.0) < 1e-12
    assert (best.expected_loss >= 0.0).all()
    differences = best.expected_loss - best.expected_loss[0]
    assert_allclose(differences, mean[0] - mean, atol=1e-10 * unit)


@given(*[st.floats(-5.0, 5.0)] * 2, *[st.floats(-3.0, 3.0)] * 2)
def test_two_means_equal_the_closed_form(
    m: float, n: float, log_s: float, log_t: float
) -> None:
    """P(best) of two Normals is one Normal probability, however unlike their widths."""
    s, t = 10.0**log_s, 10.0**log_t
    best = best_of_normals(np.array([m, n]), np.array([s, t]))
    exact = stats.norm.cdf((m - n) / math.hypot(s, t))
    assert best.probability_best[0] == pytest.approx(exact, abs=1e-10)


def test_normals_are_what_betas_become() -> None:
    """Ten rates with 1e8 trials each: Normal posteriors say what the Beta ones say."""
    alpha = 5e6 + np.linspace(0.0, 5e3, 10)
    beta = 1e8 - alpha
    mean = alpha / 1e8
    betas = best_of(alpha, beta)
    normals = best_of_normals(mean, np.sqrt(mean * (1 - mean) / 1e8))
    assert_allclose(normals.probability_best, betas.probability_best, atol=1e-4)
    assert_allclose(normals.expected_loss, betas.expected_loss, rtol=1e-3)


def test_chance_to_win_is_not_turned_by_a_negative_control() -> None:
    """A control that loses money: less loss still wins, and no lift is claimed."""
    table = compare_means(np.array([-2.0, -1.0]), np.array([0.1, 0.1]), control=0)
    assert table.probability_beat_control[1] > 0.999
    assert table.probability_best[1] > 0.999
    assert np.isnan([table.lift[1], table.lift_lower[1], table.lift_upper[1]]).all()


def test_a_control_near_zero_has_no_lift() -> None:
    """Four standard deviations above zero are asked for, more for wider intervals."""
    assert math.isnan(lift_of_means(1.0, 0.1, 0.3, 0.1, 0.95).mean)
    assert lift_of_means(1.0, 0.1, 0.41, 0.1, 0.95).lower > 0.3
    assert math.isnan(lift_of_means(1.0, 0.1, 0.41, 0.1, 0.9999).mean)


def test_lift_of_means_holds_its_probability() -> None:
    """The interval's ends leave 2.5 % of a million ratios outside, within 5 sd."""
    rng = np.random.default_rng(2)
    ratio = rng.normal(1.1, 0.05, 10**6) / rng.normal(1.0, 0.08, 10**6)
    lift = lift_of_means(1.1, 0.05, 1.0, 0.08, 0.95)
    assert np.mean(ratio < 1 + lift.lower) == pytest.approx(0.025, abs=8e-4)
    assert np.mean(ratio > 1 + lift.upper) == pytest.approx(0.025, abs=8e-4)
    assert lift.mean == pytest.approx(ratio.mean() - 1.0, abs=1e-3)


@pytest.mark.parametrize("unit", [1e-290, 1e-6, 1e12, 1e290])
def test_revenue_does_not_overflow(unit: float) -> None:
    """In any currency: loss and interval scale with the unit, the rest does not change."""
    mean, sd = np.array([1.0, 1.1, 0.9]), np.array([0.1, 0.1, 0.2])
    small, large = compare_means(mean, sd, 0), compare_means(mean * unit, sd * unit, 0)
    for name in ("probability_best", "lift", "lift_lower", "lift_upper"):
        assert_allclose(getattr(large, name), getattr(small, name), rtol=1e-9)
    assert_allclose(large.expected_loss / unit, small.expected_loss, rtol=1e-9)


# --- sample ratio -------------------------------------------------------------


def bandit_log(
    rng: np.random.Generator, n_epochs: int = 40, n_arms: int = 4
) -> tuple[Ints, Floats]:
    """Counts and probabilities of a bandit that favours what happened to convert."""
    rates = np.linspace(0.048, 0.052, n_arms)
    successes, trials = np.zeros(n_arms), np.zeros(n_arms)
    counts, probabilities = [], []
    for _ in range(n_epochs):
        draws = rng.beta(1 + successes, 20 + trials - successes, (100, n_arms))
        won = np.bincount(draws.argmax(axis=1), minlength=n_arms) / 100
        e = 0.02 + (1 - 0.02 * n_arms) * won
        n = rng.multinomial(500, e)
        successes, trials = successes + rng.binomial(n, rates), trials + n
        counts.append(n)
        probabilities.append(e)
    return np.array(counts), np.array(probabilities)


def test_healthy_bandits_pass_at_the_nominal_rate() -> None:
    """Of 400 healthy logs 5 % have p < 0.05, the median p is 1/2; equal shares reject all.

    Seeded; a right program fails by chance less than once in 10,000.
    """
    rng = np.random.default_rng(3)
    logs = [bandit_log(rng) for _ in range(400)]
    p_values = np.array([sample_ratio(*log).p_value for log in logs])
    low, high = (stats.binom.ppf(p, 400, 0.05) for p in (2e-5, 1 - 2e-5))
    assert low <= (p_values < 0.05).sum() <= high
    assert np.median(p_values) == pytest.approx(0.5, abs=0.1)
    equal = [stats.chisquare(counts.sum(axis=0)).pvalue for counts, _ in logs]
    assert np.mean(np.array(equal) < 0.001) > 0.95


def test_a_leak_is_found() -> None:
    """When 5 % of the most served arm's decisions are lost, it is found in all 20 logs."""
    rng = np.random.default_rng(4)
    for _ in range(20):
        counts, probabilities = bandit_log(rng, n_epochs=240)
        leaky = counts.sum(axis=0).argmax()
        counts[:, leaky] = rng.binomial(counts[:, leaky], 0.95)
        result = sample_ratio(counts, probabilities)
        assert result.verdict == "mismatch"


def test_e_value_stays_small_at_any_look() -> None:
    """Looked at after every epoch, at most 1 in 20 healthy logs ever has e > 20.

    Ville's inequality; 200 seeded logs, allowed the 99.99 % point of its binomial.
    """
    rng = np.random.default_rng(5)
    ever = 0
    for _ in range(200):
        n, e = bandit_log(rng, n_epochs=15)
        looks = [sample_ratio(n[:t], e[:t]).log_e_value for t in range(1, 16)]
        ever += max(looks) > math.log(20.0)
    assert ever <= stats.binom.ppf(0.9999, 200, 0.05)


def test_e_value_finds_a_leak() -> None:
    """A leak that lasts makes the e-value pass a thousand by itself."""
    rng = np.random.default_rng(6)
    counts, probabilities = bandit_log(rng, n_epochs=200)
    counts[:, 0] = rng.binomial(counts[:, 0], 0.7)
    assert sample_ratio(counts, probabilities).log_e_value > math.log(1000.0)


epoch_logs = st.integers(2, 5).flatmap(
    lambda n_arms: st.lists(
        st.tuples(
            st.lists(st.integers(0, 30), min_size=n_arms, max_size=n_arms),
            st.lists(st.integers(1, 20), min_size=n_arms, max_size=n_arms),
        ),
        min_size=1,
        max_size=6,
    )
)


@given(epoch_logs)
def test_e_value_equals_betting_one_by_one(
    epochs: list[tuple[list[int], list[int]]],
) -> None:
    """The closed form equals the product over single decisions."""
    counts, weights = (np.array(column) for column in zip(*epochs, strict=True))
    e = weights / weights.sum(axis=1, keepdims=True)
    twin = reference.log_e_value(counts, e)
    assert sample_ratio(counts, e).log_e_value == pytest.approx(twin, abs=1e-8)


@given(epoch_logs)
def test_chi_square_equals_the_pseudo_inverse(
    epochs: list[tuple[list[int], list[int]]],
) -> None:
    """With enough decisions per arm, chi-square is Z' Sigma^+ Z."""
    counts, weights = (np.array(column) for column in zip(*epochs, strict=True))
    e = weights / weights.sum(axis=1, keepdims=True)
    counts = counts + 200
    result = sample_ratio(counts, e)
    assert result.df == counts.shape[1] - 1
    twin = reference.surplus_chi_square(counts, e)
    assert result.chi2 == pytest.approx(twin, rel=1e-8, abs=1e-8)


def test_a_fixed_split_is_the_textbook_test() -> None:
    """One epoch: Pearson's chi-square, and Lindon and Malek's e-value, however cut."""
    shares, counts = np.array([0.5, 0.3, 0.2]), np.array([[520, 290, 190]])
    whole = sample_ratio(counts, shares[None])
    pearson = stats.chisquare(counts[0], 1000 * shares)
    assert whole.df == 2
    assert whole.chi2 == pytest.approx(pearson.statistic)
    assert whole.p_value == pytest.approx(pearson.pvalue)
    lindon = reference.log_e_value_fixed(counts[0], shares, 100.0)
    assert whole.log_e_value == pytest.approx(lindon)
    cut = sample_ratio(
        np.array([[100, 50, 50], [0, 0, 0], [420, 240, 140]]), np.tile(shares, (3, 1))
    )
    assert cut[:5] == pytest.approx(whole[:5])


def test_float32_probabilities_will_do() -> None:
    """Rows off 1 by rounding are normalised, also with 1e9 decisions."""
    e = np.array([[0.7, 0.2, 0.1]], dtype=np.float32)
    counts = np.array([[700_000_000, 200_000_000, 100_000_000]])
    assert sample_ratio(counts, e.astype(float)).verdict == "ok"


def test_traffic_in_an_impossible_arm_is_a_mismatch() -> None:
    """A single decision for an arm of probability 0 is enough."""
    e = np.array([[0.5, 0.5, 0.0]])
    result = sample_ratio(np.array([[500, 500, 1]]), e)
    assert result == SampleRatio(math.inf, 0, 0.0, 1, math.inf, "mismatch")
    assert sample_ratio(np.array([[500, 500, 0]]), e).verdict == "ok"


def test_arms_that_never_met_are_tested_apart() -> None:
    """Two pairs of arms in turns: a degree of freedom for each pair."""
    e = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.25, 0.75]])
    result = sample_ratio(np.array([[520, 480, 0, 0], [0, 0, 250, 750]]), e)
    assert result.df == 2
    assert result.chi2 == pytest.approx(1.6)
    bridged = sample_ratio(
        np.array([[520, 480, 0, 0], [0, 0, 250, 750], [25, 25, 25, 25]]),
        np.vstack([e, np.full(4, 0.25)]),
    )
    assert bridged.df == 3


@pytest.mark.parametrize(
    ("counts", "probabilities"),
    [
        (np.zeros((0, 3), int), np.zeros((0, 3))),
        (np.zeros((2, 3), int), np.full((2, 3), 1 / 3)),
        (np.array([[1000]]), np.array([[1.0]])),
        (np.array([[1000, 0], [0, 500]]), np.array([[1.0, 0.0], [0.0, 1.0]])),
        (np.array([[4, 3]]), np.array([[0.5, 0.5]])),
        (np.array([[100_000, 2]]), np.array([[0.99999, 0.00001]])),
    ],
    ids=["no epochs", "no decisions", "one arm", "no choice", "seven", "rare arm"],
)
def test_too_few_to_say(counts: Ints, probabilities: Floats) -> None:
    """Where nothing was left to chance, or nearly nothing, there is no verdict."""
    result = sample_ratio(counts, probabilities)
    assert (result.verdict, result.df) == ("too few", 0)
    assert math.isnan(result.p_value)
    assert result.log_e_value < 3.0


def test_rare_arms_are_tested_together() -> None:
    """Arms with few expected decisions share a degree of freedom, and are still tested."""
    e = np.array([[0.49, 0.49, *[0.002] * 10]])
    healthy = np.array([[490, 490, *[2] * 10]])
    assert sample_ratio(healthy, e).df == 2
    assert sample_ratio(healthy, e).verdict == "ok"
    assert sample_ratio(np.array([[490, 490, *[6] * 10]]), e).verdict == "mismatch"


def by_weights(p: Floats, n: int, seed: int, lost: float = 0.0) -> SampleRatio:
    """The check of n draws by one vector, of which some of the first arm's got lost."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, p).astype(float)
    counts[0] -= rng.binomial(int(counts[0]), lost)
    among = np.full(len(p), counts.sum())
    return sample_ratio_by_weights(among, counts, counts / p, counts / p**2)


def test_split_by_weights_finds_lost_draws_and_little_else() -> None:
    """Of 1,000 healthy logs at most a few have p < 0.01; a fifth of an arm's draws lost is
    seen in each of 20."""
    p = np.array([0.25, 0.25, 0.45, 0.05])
    healthy = [by_weights(p, 1000, seed).p_value for seed in range(1000)]
    assert np.mean(np.array(healthy) < 0.01) < 0.02
    for seed in range(20):
        assert by_weights(p, 5000, seed, lost=0.2).verdict == "mismatch"


def test_split_by_weights_says_nothing_of_uneven_propensities() -> None:
    """Where a few large weights decide, and where draws are few, nothing is tested."""
    weights = np.concatenate([np.full(900, 1.1), np.full(3, 40.0)])
    sums = np.array([[weights.sum()], [(weights**2).sum()]])
    uneven = sample_ratio_by_weights(np.array([5000.0]), np.array([903.0]), *sums)
    few = sample_ratio_by_weights(
        np.array([40.0]), np.array([5.0]), np.array([20.0]), np.array([80.0])
    )
    assert (uneven.verdict, few.verdict) == ("too few", "too few")
