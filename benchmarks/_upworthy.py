"""Headline tests of the Upworthy Research Archive as a simulator, and what policies earn.

The archive knows impressions and clicks of every package. Here a package's observed click
rate is taken for its true one and a test is played again: as many decisions as it had
impressions, in batches between which a policy learns. Observed rates are true rates plus
noise, so the best of a test looks better than it was, and so does every gap; `shrunk`
takes out as much noise as there should be.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from benchmarks._protocols import WithoutContext
from numpy.typing import NDArray

from bandolero.inference.families import BetaFamily, rates
from bandolero.inference.priors import fit
from bandolero.policies import Policy, with_floor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ARCHIVE = Path(__file__).parents[2] / "shared/data/upworthy/tests.parquet"
LOST_SHARE = 0.05
"""A policy that wants to show the best variant less than this has lost it."""


class HeadlineTest(NamedTuple):
    """A test of the archive; arrays (n_arms,).

    impressions, clicks
        As observed.
    rates
        Taken for the truth.
    headlines, images
        Levels 0, 1, … of the two attributes, in order of appearance.
    """

    name: str
    impressions: Ints
    clicks: Ints
    rates: Floats
    headlines: Ints
    images: Ints

    @property
    def horizon(self) -> int:
        """Decisions: the impressions there were."""
        return int(self.impressions.sum())


class Played(NamedTuple):
    """One run of a policy on a test.

    clicks
        Expected, given the probabilities it served with.
    best_share
        What it would give the best variants in the end, before the floor.
    """

    clicks: float
    best_share: float


class Gains(NamedTuple):
    """What a policy gained over uniform, in parts of what the oracle gains.

    of_all, of_all_error
        Of the clicks of all tests together; standard error over tests.
    mean, mean_error
        Mean of the tests that have a gap.
    """

    of_all: float
    of_all_error: float
    mean: float
    mean_error: float


def read_tests(path: Path = ARCHIVE) -> tuple[HeadlineTest, ...]:
    """All tests with at least two packages and a click, in order of name."""
    columns = ["clickability_test_id", "headline", "eyecatcher_id"]
    rows = pq.read_table(path, columns=[*columns, "impressions", "clicks"]).to_pylist()
    shown = [row for row in rows if row["impressions"] > 0]
    shown.sort(key=_name)  # stable: packages stay in the archive's order
    tests = (_test(name, list(packages)) for name, packages in groupby(shown, _name))
    return tuple(t for t in tests if len(t.rates) > 1 and t.clicks.sum() > 0)


def _name(row: dict[str, Any]) -> str:
    return str(row["clickability_test_id"])


def _test(name: str, packages: Sequence[dict[str, Any]]) -> HeadlineTest:
    impressions = np.array([row["impressions"] for row in packages])
    clicks = np.array([row["clicks"] for row in packages])
    headlines = levels(row["headline"] for row in packages)
    images = levels(row["eyecatcher_id"] for row in packages)
    return HeadlineTest(
        name, impressions, clicks, clicks / impressions, headlines, images
    )


def levels(values: Iterable[object]) -> Ints:
    """0, 1, … for different values in order of appearance, (n_values,)."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values])


def is_factorial(test: HeadlineTest) -> bool:
    """Whether every headline was tried with every image once, two of each at least."""
    n_headlines, n_images = test.headlines.max() + 1, test.images.max() + 1
    cells = set(zip(test.headlines.tolist(), test.images.tolist(), strict=True))
    complete = len(cells) == len(test.rates) == n_headlines * n_images
    return bool(complete and min(n_headlines, n_images) > 1)


def attributes(test: HeadlineTest) -> list[dict[str, object]]:
    """Which headline and which image each variant has."""
    pairs = zip(test.headlines.tolist(), test.images.tolist(), strict=True)
    return [{"headline": headline, "image": image} for headline, image in pairs]


def shrunk(test: HeadlineTest) -> HeadlineTest:
    """The test with rates drawn to their mean by the share of their spread that is noise.

    By moments: of the variance s^2 of the observed rates, p (1 - p) mean(1 / n) is noise.
    """
    mean = float(test.clicks.sum() / test.impressions.sum())
    noise = mean * (1.0 - mean) * float((1.0 / test.impressions).mean())
    spread = float(test.rates.var(ddof=1))
    kept = max(0.0, 1.0 - noise / spread) if spread > 0.0 else 0.0
    return test._replace(rates=mean + kept * (test.rates - mean))


def priors_of_others(
    tests: Sequence[HeadlineTest], seed: int
) -> list[tuple[float, ...]]:
    """Alpha and beta of a prior for each test, fitted on the random half that it is not in."""
    half = np.random.default_rng(seed).permutation(len(tests)) % 2
    fitted = []
    for side in (0, 1):
        past = [test for test, own in zip(tests, half, strict=True) if own != side]
        clicks = np.concatenate([test.clicks for test in past])
        impressions = np.concatenate([test.impressions for test in past])
        prior = fit(BetaFamily(), rates(clicks, impressions))
        if prior is None:
            raise ValueError(f"tests == {len(tests)}, must be enough to fit a prior.")
        fitted.append(prior)
    return [fitted[own] for own in half]


def play(
    policy: Policy[Any] | WithoutContext,
    test: HeadlineTest,
    batch: int,
    min_share: float,
    rng: np.random.Generator,
) -> Played:
    """Play a test once: `batch` decisions, then what they earned is learned, and so on.

    Which variants are shown is multinomial, what each earns binomial: as if one by one.
    """
    rates, every = test.rates, np.arange(len(test.rates))
    floor = min_share if policy.mode == "explore" else 0.0
    state, clicks = policy.init(len(rates)), 0.0
    wanted = policy.probabilities(state, every)
    for start in range(0, test.horizon, batch):
        n = min(batch, test.horizon - start)
        shares = with_floor(wanted, floor)
        clicks += n * float(shares @ rates)
        shown = rng.multinomial(n, shares)
        won = rng.binomial(shown, rates)
        arms = np.concatenate([np.repeat(every, won), np.repeat(every, shown - won)])
        rewards = np.repeat([1.0, 0.0], [won.sum(), n - won.sum()])
        state = policy.update(state, arms, rewards)
        wanted = policy.probabilities(state, every)
    return Played(clicks, float(wanted[rates == rates.max()].sum()))


def uniform_clicks(test: HeadlineTest) -> float:
    """Expected clicks when all variants are shown alike."""
    return float(test.horizon * test.rates.mean())


def oracle_clicks(test: HeadlineTest) -> float:
    """Expected clicks when only the best is shown: fixed, in hindsight."""
    return float(test.horizon * test.rates.max())


def gap_captured(clicks: Floats, uniform: Floats, oracle: Floats) -> Gains:
    """(clicks - uniform) / (oracle - uniform) of all tests and on average, (n_tests,) each.

    The error of the ratio of sums is that of its linearisation.
    """
    gain, gap = clicks - uniform, oracle - uniform
    n, of_all = len(gap), float(gain.sum() / gap.sum())
    residuals = gain - of_all * gap
    of_all_error = float(n**0.5 * residuals.std(ddof=1) / gap.sum())
    # Below this a gap is the rounding of equal rates.
    each = gain[gap > 1e-9 * oracle] / gap[gap > 1e-9 * oracle]
    mean_error = float(each.std(ddof=1) / len(each) ** 0.5)
    return Gains(of_all, of_all_error, float(each.mean()), mean_error)


Make = Callable[[int], Policy[Any] | WithoutContext]
"""A policy for the test of an index."""


def play_all(
    make: Make,
    tests: Sequence[HeadlineTest],
    batch: int,
    min_share: float,
    seeds: Sequence[int],
) -> tuple[Gains, float]:
    """Play every test once a seed with the policy `make(index)`; gains, and share lost.

    A run is lost where the policy ends up with less than LOST_SHARE for the best.
    """
    clicks, lost = np.zeros((2, len(seeds), len(tests)))
    for run, seed in enumerate(seeds):
        for index, test in enumerate(tests):
            rng = np.random.default_rng([seed, index])
            played = play(make(index), test, batch, min_share, rng)
            clicks[run, index] = played.clicks
            lost[run, index] = played.best_share < LOST_SHARE
    gains = gap_captured(
        clicks.mean(axis=0),
        np.array([uniform_clicks(test) for test in tests]),
        np.array([oracle_clicks(test) for test in tests]),
    )
    return gains, float(lost.mean())
