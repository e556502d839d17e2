"""What the played tests earned, beside what uniform serving and an oracle would have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bandolero.simulate import Environment
from bandolero_service.demo.plan import Counts, Rates, variant_id
from bandolero_service.demo.play import Play

N_STEPS = 50


@dataclass(frozen=True)
class Earnings:
    """Expected clicks of one traffic served in three ways, and the clicks that came.

    Examples
    --------
    >>> Earnings(decisions=100, uniform=2.0, bandolero=2.5, oracle=4.0, clicks=3).gap_captured
    0.25
    """

    decisions: int
    uniform: float
    bandolero: float
    oracle: float
    clicks: int

    @property
    def gap_captured(self) -> float | None:
        """Share of the way from uniform to oracle; None where there is no way to go."""
        gap = self.oracle - self.uniform
        return (
            (self.bandolero - self.uniform) / gap if gap > 1e-12 * self.oracle else None
        )

    def __add__(self, other: "Earnings") -> "Earnings":
        return Earnings(
            self.decisions + other.decisions,
            self.uniform + other.uniform,
            self.bandolero + other.bandolero,
            self.oracle + other.oracle,
            self.clicks + other.clicks,
        )


NOTHING = Earnings(decisions=0, uniform=0.0, bandolero=0.0, oracle=0.0, clicks=0)


def earnings(test: Environment, shown: Counts, clicks: Counts) -> Earnings:
    """What a test earned, from decisions and clicks by arm; the arrays may be longer."""
    shown = shown[: test.n_arms]
    decisions = int(shown.sum())
    return Earnings(
        decisions=decisions,
        uniform=float(decisions * test.rates.mean()),
        bandolero=float(shown @ test.rates),
        oracle=float(decisions * test.rates.max()),
        clicks=int(clicks.sum()),
    )


def total_earnings(
    tests: Sequence[Environment], shown: Counts, clicks: Counts
) -> Earnings:
    """The sum over tests; rows of `shown` and `clicks` are tests."""
    return sum(map(earnings, tests, shown, clicks), start=NOTHING)


@dataclass(frozen=True)
class Outcome:
    """One test after the play: its earnings, and what its report says.

    Parameters
    ----------
    leader
        The arm with the highest probability to be best.
    variants
        The report's rows in order of arm, each with the true `click_rate` beside it.
    """

    test: Environment
    experiment_id: str
    earnings: Earnings
    leader: int
    variants: tuple[Mapping[str, Any], ...]

    @property
    def leading(self) -> Mapping[str, Any]:
        """The leader's row."""
        return self.variants[self.leader]

    @property
    def leader_is_best(self) -> bool:
        """Whether no variant has a higher click rate than the leader."""
        return bool(self.test.rates[self.leader] >= self.test.rates.max())

    @property
    def rewards(self) -> int:
        """Clicks that the learner counted."""
        return int(sum(row["rewards"] for row in self.variants))


def outcome(
    test: Environment, experiment_id: str, played: Earnings, report: Mapping[str, Any]
) -> Outcome:
    """Join a test, its earnings and its report."""
    rows = {row["variant_id"]: row for row in report["variants"]}
    variants = tuple(
        {**rows[variant_id(arm)], "headline": test.headlines[arm], "click_rate": rate}
        for arm, rate in enumerate(test.click_rates)
    )
    leader = int(np.argmax([row["probability_best"] for row in variants]))
    return Outcome(test, experiment_id, played, leader, variants)


@dataclass(frozen=True)
class Course:
    """How the run went, all tests summed, (n_steps,) each.

    `best_share` is the share of the decisions *since the step before* that showed the best
    variant of their test, `uniform_share` what uniform serving would have given it.
    """

    seconds: Rates
    decisions: Rates
    uniform: Rates
    bandolero: Rates
    oracle: Rates
    best_share: Rates
    uniform_share: Rates


def course(tests: Sequence[Environment], play: Play) -> Course:
    """The run at about 50 moments at which there was something new."""
    chosen = np.unique(
        np.linspace(0, len(play.moments_s) - 1, N_STEPS + 1).round().astype(int)
    )
    shown = play.shown_over_time[chosen]
    moving = np.concatenate([[True], np.diff(shown.sum(axis=(1, 2))) > 0])
    seconds, shown = play.moments_s[chosen][moving], shown[moving]
    by_test = shown.sum(axis=2)
    rates = np.zeros(shown.shape[1:])
    for row, test in zip(rates, tests, strict=True):
        row[: test.n_arms] = test.rates
    best = shown[:, np.arange(len(tests)), [test.best for test in tests]].sum(axis=1)
    alike = by_test @ np.array([1.0 / test.n_arms for test in tests])
    decisions = by_test.sum(axis=1)
    return Course(
        seconds=seconds[1:],
        decisions=decisions[1:].astype(np.float64),
        uniform=by_test[1:] @ np.array([test.rates.mean() for test in tests]),
        bandolero=(shown[1:] * rates).sum(axis=(1, 2)),
        oracle=by_test[1:] @ rates.max(axis=1),
        best_share=np.diff(best) / np.diff(decisions),
        uniform_share=np.diff(alike) / np.diff(decisions),
    )


@dataclass(frozen=True)
class Timings:
    """How fast the answers came, seen by the client; milliseconds and decisions a second.

    `decisions_per_s` is what the pace asked for; `batch_decisions_per_s` is the speed while
    a batch was being answered.
    """

    decisions_per_s: float
    batch_decisions_per_s: float
    single_ms_p50: float
    single_ms_p99: float
    batch_ms_p50: float
    batch_ms_p99: float


def timings(play: Play) -> Timings:
    """Percentiles and rates of a play; zero where nothing was measured."""
    in_batches = play.shown.sum() - len(play.single_latencies_s)
    return Timings(
        decisions_per_s=float(play.shown.sum() / play.seconds),
        batch_decisions_per_s=float(
            in_batches / max(play.batch_latencies_s.sum(), 1e-9)
        ),
        single_ms_p50=_percentile_ms(play.single_latencies_s, 50),
        single_ms_p99=_percentile_ms(play.single_latencies_s, 99),
        batch_ms_p50=_percentile_ms(play.batch_latencies_s, 50),
        batch_ms_p99=_percentile_ms(play.batch_latencies_s, 99),
    )


def _percentile_ms(seconds: Rates, percent: float) -> float:
    return float(np.percentile(seconds, percent) * 1000) if len(seconds) else 0.0
