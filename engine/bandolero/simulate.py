"""Environments with known truth: what serving earns can be compared with what it could earn.

An `Environment` is a test without context: creatives, a click rate for each, a horizon.
`synthetic_tests` makes any number of them from a seed, shaped like real headline tests;
`sample_table` plays each once, split evenly, and gives the counts as such an archive would.

    python -m bandolero.simulate --out data/sample_tests.parquet

writes the sample in `data/`, the same bytes on every run with the same pyarrow.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# Shaped after the 3,358 tests of the Upworthy Research Archive: medians and spreads of
# horizon, of the mean click rate and of the number of variants, read off their totals.
N_VARIANTS = (3, 4, 5, 6, 7, 8)
N_VARIANTS_SHARE = (0.05, 0.52, 0.19, 0.18, 0.04, 0.02)
HORIZON_MEDIAN, HORIZON_LOG_SD = 14_400, 0.42
CLICK_RATE_MEDIAN, CLICK_RATE_LOG_SD = 0.015, 0.5
CLICK_RATE_RANGE = (0.005, 0.04)
# Standard deviation of the variants' true rates over their mean, noise taken out.
SPREAD_RANGE = (0.1, 0.35)

SAMPLE_SEED, SAMPLE_N_TESTS = 2026, 60

# A test is one story, a variant one way to tell it. Our own words, read from no archive.
SUBJECTS = (
    "a retired bus driver", "a village baker", "a class of ten-year-olds", "a night nurse", "a young welder",
    "a lighthouse keeper", "a pair of twin sisters", "a shy librarian", "a former goalkeeper", "a piano tuner",
    "a team of beekeepers", "a grandmother of nine", "a ferry captain", "a school cook", "a self-taught astronomer",
)  # fmt: skip
DEEDS = (
    "turned an empty car park into an orchard", "built a library out of old doors", "taught the whole street to swim",
    "mapped every footpath by hand", "repaired a hundred bicycles for free", "wrote a letter to every neighbour",
    "planted a forest one seed at a time", "opened a kitchen with no price list", "learned to sing at seventy",
    "made a playground from a wrecked boat", "started a choir for people who cannot sing",
    "kept a diary of the river for forty years", "sewed a coat for every scarecrow", "gave away the last loaf each night",
)  # fmt: skip
PLACES = (
    "at the edge of town", "on a windy hill", "behind the old station", "by the harbour", "in a quiet suburb",
    "two hours from the nearest road", "under a motorway bridge", "in the middle of winter",
)  # fmt: skip
CROWDS = (
    "the neighbours", "the children", "the mayor and the postman", "people who had never met", "three generations",
    "strangers from the next valley", "the people who laughed at first", "the people on the morning train",
)  # fmt: skip
TWISTS = (
    "the phone would not stop ringing", "the whole street went quiet", "something small changed",
    "the doubts were gone by Sunday", "it all began to make sense", "the second part got even better",
    "nobody wanted to go home", "the numbers told another story",
)  # fmt: skip
ANGLES = (
    "{subject} {deed}. Then {twist}.",
    "How {subject} {deed}, and why {crowd} joined in",
    "The day {subject} {deed} {place}",
    "Why {crowd} still talk about it: {subject} {deed}",
    "Nobody {place} saw it coming until {subject} {deed}",
    "{number} things {crowd} learned when {subject} {deed}",
    "First {subject} {deed}. Ask {crowd} what came next.",
    "When {subject} {deed}, {twist}",
    "It started {place}. {number} years later {twist}.",
    "All it took {place} was one idea, and {crowd} noticed",
)
LEADS = (
    "What happened {place}, as {crowd} tell it.",
    "A short film, made {place}.",
    "Give it two minutes: {crowd} did.",
)


@dataclass(frozen=True)
class Environment:
    """A test whose click rates are known.

    Parameters
    ----------
    name
        Unique among the tests it is played with.
    headlines, descriptions
        What each variant says, `n_arms` each.
    click_rates
        Probability that showing a variant earns a click, `n_arms`, each in [0, 1].
    horizon
        How many decisions the test lasts.

    Examples
    --------
    >>> test = Environment("hats", ("Red", "Blue"), ("", ""), (0.01, 0.03), 1000)
    >>> test.uniform_clicks, test.oracle_clicks, test.best
    (20.0, 30.0, 1)
    """

    name: str
    headlines: tuple[str, ...]
    descriptions: tuple[str, ...]
    click_rates: tuple[float, ...]
    horizon: int

    def __post_init__(self) -> None:
        sizes = {len(self.headlines), len(self.descriptions), len(self.click_rates)}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(
                f"sizes of texts and rates == {sorted(sizes)}, must be one number > 0."
            )
        if not all(0.0 <= rate <= 1.0 for rate in self.click_rates):
            raise ValueError(f"click_rates == {self.click_rates}, must be in [0, 1].")
        if self.horizon < 1:
            raise ValueError(f"horizon == {self.horizon}, must be >= 1.")

    @property
    def n_arms(self) -> int:
        """Number of variants."""
        return len(self.click_rates)

    @cached_property
    def rates(self) -> NDArray[np.float64]:
        """The click rates as a read-only array, (n_arms,)."""
        rates = np.array(self.click_rates)
        rates.flags.writeable = False
        return rates

    @property
    def best(self) -> int:
        """The arm with the highest click rate, the first of equals."""
        return int(self.rates.argmax())

    @property
    def uniform_clicks(self) -> float:
        """Expected clicks over the horizon when all variants are shown alike."""
        return float(self.horizon * self.rates.mean())

    @property
    def oracle_clicks(self) -> float:
        """Expected clicks over the horizon when only the best is shown."""
        return float(self.horizon * self.rates.max())


def synthetic_tests(seed: int, n_tests: int) -> tuple[Environment, ...]:
    """Headline tests with known rates, `n_tests` of them.

    Each has its own generator, so the first tests do not depend on how many follow. Within
    a test the rates are Beta-distributed around the test's own mean.

    Examples
    --------
    >>> few, many = synthetic_tests(1, 2), synthetic_tests(1, 5)
    >>> few == many[:2]
    True
    """
    streams = np.random.SeedSequence(seed).spawn(n_tests)
    return tuple(
        _synthetic_test(np.random.default_rng(stream), f"sample-{number:03d}")
        for number, stream in enumerate(streams, start=1)
    )


def _synthetic_test(rng: np.random.Generator, name: str) -> Environment:
    """One test: its texts, then its rates, then its horizon."""
    n_arms = int(rng.choice(N_VARIANTS, p=N_VARIANTS_SHARE))
    headlines, descriptions = _write_story(rng, n_arms)
    return Environment(
        name=name,
        headlines=headlines,
        descriptions=descriptions,
        click_rates=tuple(_click_rates(rng, n_arms).tolist()),
        horizon=round(HORIZON_MEDIAN * np.exp(HORIZON_LOG_SD * rng.standard_normal())),
    )


def _write_story(
    rng: np.random.Generator, n_arms: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Headlines and descriptions of one story told in `n_arms` different ways."""
    facts = {
        "subject": str(rng.choice(SUBJECTS)),
        "deed": str(rng.choice(DEEDS)),
        "place": str(rng.choice(PLACES)),
        "crowd": str(rng.choice(CROWDS)),
        "twist": str(rng.choice(TWISTS)),
        "number": int(rng.integers(3, 13)),
    }
    angles = rng.permutation(len(ANGLES))[:n_arms]
    headlines = tuple(_sentence(ANGLES[angle], facts) for angle in angles)
    lead = _sentence(str(rng.choice(LEADS)), facts)
    return headlines, (lead,) * n_arms


def _sentence(template: str, facts: dict[str, object]) -> str:
    """Fill in a template; each of its sentences starts with a capital."""
    sentences = template.format(**facts).split(". ")
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _click_rates(rng: np.random.Generator, n_arms: int) -> NDArray[np.float64]:
    """Beta-distributed rates around a mean, with a given relative spread, (n_arms,)."""
    mean = CLICK_RATE_MEDIAN * np.exp(CLICK_RATE_LOG_SD * rng.standard_normal())
    mean = np.clip(mean, *CLICK_RATE_RANGE)
    spread = rng.uniform(*SPREAD_RANGE)
    # The Beta of this mean and variance (mean * spread)^2.
    strength = (1.0 - mean) / (mean * spread**2) - 1.0
    return rng.beta(mean * strength, (1.0 - mean) * strength, size=n_arms)


def sample_table(tests: Sequence[Environment], seed: int) -> pa.Table:
    """Impressions and clicks of each variant after one evenly split run of each test.

    The columns are named as in the Upworthy Research Archive, a row per variant, so that
    one reader serves both. The clicks are drawn, hence clicks / impressions is near the
    click rate, not equal to it.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for test in tests:
        impressions = rng.multinomial(
            test.horizon, np.full(test.n_arms, 1.0 / test.n_arms)
        )
        clicks = rng.binomial(impressions, test.rates)
        rows += [
            {
                "clickability_test_id": test.name,
                "headline": test.headlines[arm],
                "excerpt": test.descriptions[arm],
                "impressions": int(impressions[arm]),
                "clicks": int(clicks[arm]),
            }
            for arm in range(test.n_arms)
        ]
    return pa.Table.from_pylist(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the sample of synthetic tests; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bandolero.simulate", description=main.__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument(
        "--seed", type=int, default=SAMPLE_SEED, help="default %(default)s"
    )
    parser.add_argument(
        "--tests", type=int, default=SAMPLE_N_TESTS, help="default %(default)s"
    )
    options = parser.parse_args(arguments)
    table = sample_table(synthetic_tests(options.seed, options.tests), options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, options.out, compression="zstd")
    sys.stdout.write(
        f"{options.out}: {table.num_rows} variants in {options.tests} tests\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
