"""The pure parts of `benchmarks.real_input`, and a slice of the real data where it is."""

import sys
from pathlib import Path

import numpy as np
import pytest

from bandolero.policies import BetaThompson, Fixed, Greedy, Uniform, with_floor
from bandolero.policies.linear_thompson import LinearThompson

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import _logs, _off_policy, _upworthy  # noqa: E402 - needs the path
from benchmarks._off_policy import Log, replay, value  # noqa: E402
from benchmarks._protocols import Flat, WithoutContext  # noqa: E402
from benchmarks._upworthy import HeadlineTest, gap_captured  # noqa: E402

needs_upworthy = pytest.mark.skipif(
    not _upworthy.ARCHIVE.exists(), reason="no Upworthy archive beside the repository"
)
needs_open_bandit = pytest.mark.skipif(
    not _logs.OPEN_BANDIT.exists(), reason="no Open Bandit beside the repository"
)
needs_bank = pytest.mark.skipif(
    not _logs.BANK.exists(), reason="no bank marketing beside the repository"
)


def headline_test(
    rates: tuple[float, ...], each: int, headlines: tuple[int, ...] | None = None
) -> HeadlineTest:
    """A test whose variants were shown `each` times."""
    n = len(rates)
    impressions = np.full(n, each)
    clicks = np.rint(impressions * np.array(rates)).astype(np.int64)
    first = np.arange(n) if headlines is None else np.array(headlines)
    return HeadlineTest(
        "t", impressions, clicks, np.array(rates), first, np.zeros(n, np.int64)
    )


TOY = Log(
    arms=np.array([0, 1, 0, 1, 0, 1]),
    rewards=np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]),
    features=np.ones((6, 1)),
    n_arms=2,
)


# --- the simulator --------------------------------------------------------------------


def test_uniform_earns_the_closed_form() -> None:
    """Uniform's expected clicks are horizon times mean rate, whatever was drawn."""
    test = headline_test((0.01, 0.02, 0.06), each=333)
    played = _upworthy.play(Uniform(), test, 200, 0.01, np.random.default_rng(1))
    assert played.clicks == pytest.approx(999 * 0.03, rel=1e-12)
    assert played.clicks == pytest.approx(_upworthy.uniform_clicks(test), rel=1e-12)


def test_the_best_alone_earns_what_the_oracle_does() -> None:
    """A split that shows only the best variant captures all of the gap, and keeps it."""
    test = headline_test((0.01, 0.02, 0.06), each=333)
    best = Fixed((0.0, 0.0, 1.0))
    played = _upworthy.play(best, test, 200, 0.01, np.random.default_rng(1))
    assert played.clicks == pytest.approx(_upworthy.oracle_clicks(test), rel=1e-12)
    assert played.best_share == 1.0


def test_the_floor_binds_what_explores() -> None:
    """A learner that knows the best from the start still pays the floor, and no more."""
    test = headline_test((0.0, 1.0), each=500)
    sure = BetaThompson(arm_priors=((1.0, 1e6), (1e6, 1.0)))
    played = _upworthy.play(sure, test, 100, 0.1, np.random.default_rng(1))
    share = with_floor(np.array([0.0, 1.0]), 0.1)[1]
    assert share == pytest.approx(0.9)
    assert played.clicks == pytest.approx(1000 * share, rel=1e-9)


def test_a_policy_learns_between_batches() -> None:
    """Greedy splits the first batch, then shows only the variant that always clicks."""
    test = headline_test((0.0, 1.0), each=500)
    played = _upworthy.play(Greedy(), test, 100, 0.0, np.random.default_rng(1))
    assert played.clicks == pytest.approx(50 + 900)


def test_gap_captured_by_hand() -> None:
    """(1 + 4) of (2 + 8) clicks are half; a test without a gap has no part in the mean."""
    uniform = np.array([10.0, 20.0, 5.0])
    oracle = np.array([12.0, 28.0, 5.0])
    gains = gap_captured(np.array([11.5, 23.5, 5.0]), uniform, oracle)
    assert gains.of_all == pytest.approx((1.5 + 3.5) / 10.0)
    assert gains.mean == pytest.approx((0.75 + 3.5 / 8.0) / 2.0)
    # Residuals 0.5, -0.5, 0 have a standard deviation of 1/2.
    assert gains.of_all_error == pytest.approx(3**0.5 * 0.5 / 10.0)


def test_gap_captured_of_many_runs_is_paired_by_test() -> None:
    """Every test played by the oracle gives 1 with no error, every one by uniform 0."""
    tests = [headline_test((0.01, 0.03), 500), headline_test((0.02, 0.1, 0.0), 200)]
    gains, lost = _upworthy.play_all(lambda _: Uniform(), tests, 100, 0.0, (1, 2))
    assert gains.of_all == pytest.approx(0.0, abs=1e-12)
    assert lost == 0.0
    best = [Fixed((0.0, 1.0)), Fixed((0.0, 1.0, 0.0))]
    gains, lost = _upworthy.play_all(lambda i: best[i], tests, 100, 0.0, (1, 2))
    assert gains[:2] == pytest.approx((1.0, 0.0), abs=1e-9)
    worst = [Fixed((1.0, 0.0)), Fixed((0.0, 1.0, 0.0))]
    assert _upworthy.play_all(lambda i: worst[i], tests, 100, 0.0, (1,))[1] == 0.5


def test_shrinking_takes_out_the_spread_that_noise_makes() -> None:
    """Equal rates stay, a spread below its noise vanishes, a clear one stays nearly."""
    small, large = (headline_test((0.02, 0.03), each) for each in (100, 1_000_000))
    assert _upworthy.shrunk(small).rates == pytest.approx([0.025, 0.025])
    assert _upworthy.shrunk(large).rates == pytest.approx([0.02, 0.03], rel=1e-3)
    assert _upworthy.shrunk(large).rates[0] > 0.02


def test_crossed_tests_are_found() -> None:
    """Two headlines by two images, each once, is crossed; a cell short or double is not."""
    four = headline_test((0.1,) * 4, 10, headlines=(0, 0, 1, 1))
    assert _upworthy.is_factorial(four._replace(images=np.array([0, 1, 0, 1])))
    assert not _upworthy.is_factorial(four._replace(images=np.array([0, 1, 0, 0])))
    assert not _upworthy.is_factorial(four)
    assert _upworthy.levels(["b", "a", "b"]).tolist() == [0, 1, 0]
    assert _upworthy.attributes(four)[2] == {"headline": 1, "image": 0}


def test_a_policy_with_context_plays_without() -> None:
    """It sees 1 for features, and ends at the variant that always clicks."""
    test = headline_test((0.0, 1.0), each=500)
    policy = WithoutContext(LinearThompson(1))
    played = _upworthy.play(policy, test, 100, 0.0, np.random.default_rng(1))
    assert played.best_share == pytest.approx(1.0, abs=1e-6)
    assert 900 < played.clicks < 1000


# --- replay ---------------------------------------------------------------------------


def test_replay_accepts_only_rows_that_match() -> None:
    """A policy that always shows arm 1 accepts the rows of arm 1, and gets their mean."""
    run = replay(Flat(Fixed((0.0, 1.0))), TOY, every=2, seed=[1])
    assert run.accepted.tolist() == [False, True, False, True, False, True]
    assert run.weights.tolist() == [0.0, 2.0, 0.0, 2.0, 0.0, 2.0]
    assert value(run.accepted.astype(float), TOY.rewards).mean == pytest.approx(1 / 3)
    assert value(run.weights, TOY.rewards).mean == pytest.approx(1 / 3)


def test_replay_learns_from_accepted_rows_alone() -> None:
    """What is shown the policy is what it accepted, in order, `every` rows at a time."""
    seen: list[tuple[list[int], list[float], int]] = []

    class Watching(Flat):
        def update(
            self,
            state: _off_policy.Floats,
            arms: _off_policy.Ints,
            rewards: _off_policy.Floats,
            features: _off_policy.Floats,
        ) -> _off_policy.Floats:
            seen.append((arms.tolist(), rewards.tolist(), len(features)))
            return state

    replay(Watching(Fixed((1.0, 0.0))), TOY, every=2, seed=[1])
    assert seen == [([0, 0], [1.0, 0.0], 2)]


def test_a_uniform_policy_weighs_all_rows_alike() -> None:
    """Its estimate by weights is the log's own mean and error, its gain nothing."""
    run = replay(Flat(Uniform()), TOY, every=2, seed=[1])
    estimate = value(run.weights, TOY.rewards)
    assert estimate.mean == 0.5
    assert estimate.error == pytest.approx(0.5 / 6**0.5)
    assert estimate[2:] == pytest.approx((0.0, 0.0), abs=1e-15)


def test_replay_agrees_with_playing() -> None:
    """A learner replayed from a uniform log earns what it earns played as long.

    Two arms, each right for one of two kinds of request; 4,000 rows, of which half are
    accepted. Learning is so fast that both means are near 0.8 with errors of 0.009 each;
    a difference of 0.06 has a chance below 1e-5.
    """
    rng = np.random.default_rng(5)
    kind = rng.integers(2, size=4000)
    features = np.stack([np.ones(4000), 2.0 * kind - 1.0], axis=1)
    chance = np.where(kind[:, None] == np.arange(2), 0.8, 0.2)
    table = (rng.random((4000, 2)) < chance).astype(float)
    policy = LinearThompson(2)
    log = _logs.uniform_log(features, table, [6])
    run = replay(policy, log, 50, [7])
    n = int(run.accepted.sum())
    played = _off_policy.play(policy, features[:n], table[:n], 50, [8])
    assert 1800 < n < 2200
    replayed = value(run.accepted.astype(float), log.rewards)
    assert replayed.mean == pytest.approx(played.mean(), abs=0.06)
    assert replayed.mean > 0.7


def test_groups_of_items_are_equally_large() -> None:
    """Items in order of a number, the first half is group 0; sizes must come out even."""
    log = Log(np.array([3, 0, 1, 2]), np.zeros(4), np.ones((4, 1)), 4)
    groups = _logs.grouped(log, np.array([0.4, 0.1, 0.3, 0.2]), 2)
    assert groups.arms.tolist() == [0, 1, 0, 1]
    assert groups.n_arms == 2
    with pytest.raises(ValueError, match="must divide 4"):
        _logs.grouped(log, np.zeros(4), 3)


def test_rare_levels_are_other() -> None:
    """A level that fewer than 1 % of the rows have shares the column "other"."""
    rows = {"device": ["tv"] * 99 + ["pc"] * 100 + ["fax"]}
    features = _logs.one_hot(rows, ["device"])
    assert features.shape == (200, 4)
    assert features.sum(axis=0).tolist() == [200.0, 100.0, 99.0, 1.0]


# --- the real data --------------------------------------------------------------------


@needs_upworthy
def test_upworthy_is_what_its_description_says() -> None:
    """3,357 of 3,358 tests have a click; Thompson sampling gains on a slice of them."""
    tests = _upworthy.read_tests()
    assert len(tests) == 3357
    assert sum(_upworthy.is_factorial(test) for test in tests) == 35
    some = tests[:10]
    gains, _ = _upworthy.play_all(lambda _: BetaThompson(), some, 500, 0.01, (1,))
    assert 0.0 < gains.of_all < 1.0


@needs_upworthy
def test_priors_come_from_the_other_half() -> None:
    """Two priors, each for a half of the tests, of rates of one or two percent."""
    tests = _upworthy.read_tests()
    priors = _upworthy.priors_of_others(tests, seed=1)
    assert len(priors) == len(tests)
    assert len(set(priors)) == 2
    for alpha, beta in set(priors):
        assert 0.01 < alpha / (alpha + beta) < 0.02


@needs_open_bandit
def test_open_bandit_is_a_uniform_log() -> None:
    """10,000 rows of 80 items with 38 clicks; a group of a quarter gets a quarter."""
    log = _logs.open_bandit()
    assert (len(log.arms), log.n_arms, log.rewards.sum()) == (10_000, 80, 38.0)
    assert (log.features[:, 0] == 1.0).all()
    groups = _logs.grouped(log, _logs.open_bandit_items().number, 4)
    # Binomial(10,000, 1/4) with a standard deviation of 43: known data, no chance.
    assert np.abs(np.bincount(groups.arms) - 2500).max() < 200


@needs_bank
def test_bank_marketing_has_one_right_arm_a_row() -> None:
    """Of eleven jobs one is right for each client; a slice of it plays."""
    features, table = _logs.bank()
    assert table.shape == (40_858, 11)
    assert (table.sum(axis=1) == 1.0).all()
    policy = LinearThompson(features.shape[1])
    earned = _off_policy.play(policy, features[:400], table[:400], 200, [1])
    assert set(earned.tolist()) <= {0.0, 1.0}
