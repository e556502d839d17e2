"""What a report holds: plain frozen data, with None where a number is not known."""

from dataclasses import dataclass
from typing import Literal

from bandolero.inference.interaction import Interaction
from bandolero.policy_specs import CONTEXTUAL

LEVELS_SHOWN, ROWS_SHOWN = 20, 10
"""So many levels, and variants of each, are shown to people."""
Verdict = Literal["empty", "mismatch", "best", "safe", "open"]
Check = Literal["ok", "mismatch", "too few", "not checked"]


@dataclass(frozen=True)
class VariantRow:
    """One variant's line, fields in the order of the columns.

    headline: the first slot of its creative. mean: posterior mean of the rate; where a
    context decided, of what the rate would be if all requests saw the variant. share_now: its probability in the newest
    snapshot, None where it is not served. rewards, expected_loss: in units, or a share where the reward is binary.
    lift: relative to control (0.1 is 10 % more). lift_upper: None beside a lower end where
    control may be as good as zero. None: nothing to say it from.
    """

    variant_id: str
    headline: str
    status: str
    decisions: int
    trials: int
    impressions: int
    rewards: float
    rate: float | None
    pending: int
    mean: float | None
    interval_lower: float | None
    interval_upper: float | None
    probability_best: float | None
    probability_beat_control: float | None
    expected_loss: float | None
    lift: float | None
    lift_lower: float | None
    lift_upper: float | None
    share_now: float | None


@dataclass(frozen=True)
class MetricRow:
    """What a variant earned by a metric; fields as in `VariantRow`."""

    variant_id: str
    trials: int
    rewards: float
    rate: float | None
    mean: float | None
    interval_lower: float | None
    interval_upper: float | None
    probability_beat_control: float | None
    lift: float | None
    lift_lower: float | None
    lift_upper: float | None


@dataclass(frozen=True)
class MetricTable:
    """A metric as the newest refresh settled it, rows in arm order.

    window_s: how long a decision can earn by it. guardrail: whether it is to be watched,
    not won.
    """

    name: str
    event: str
    reward: str
    window_s: float
    guardrail: bool
    watermark_ms: int
    variants: tuple[MetricRow, ...]


@dataclass(frozen=True)
class LevelRow:
    """What a variant earned where a context field had one level; as in `VariantRow`."""

    variant_id: str
    headline: str
    status: str
    decisions: int
    trials: int
    impressions: int
    rewards: float
    rate: float | None
    mean: float | None
    interval_lower: float | None
    interval_upper: float | None
    probability_best: float | None
    probability_beat_control: float | None
    expected_loss: float | None
    lift: float | None
    lift_lower: float | None
    lift_upper: float | None


@dataclass(frozen=True)
class Level:
    """The requests of one level, rows in arm order.

    level: None where it is all levels, or the smaller ones together. verdict: `best`
    where its own trials carry a name, `open` where they do not.
    """

    level: str | None
    decisions: int
    trials: int
    impressions: int
    rewards: float
    rate: float | None
    verdict: Verdict
    headline: str
    variants: tuple[LevelRow, ...]

    def shown(self, control: str) -> tuple[LevelRow, ...]:
        """Rows for reading: the probably best first, and the control whatever its rank."""
        ranked = sorted(self.variants, key=_by_chance)
        cut = [row for row in ranked[ROWS_SHOWN:] if row.variant_id == control]
        return (*ranked[:ROWS_SHOWN], *cut)


@dataclass(frozen=True)
class Segment:
    """A report level by level of a context field, as the newest refresh counted them.

    watermark_ms: None before the first refresh. names_from: the P(best) from which a
    level names a variant. interaction: whether levels differ in how variants compare;
    None where that cannot be said. levels: in the order of the specification, those seen.
    smaller: how many levels `rest` puts together. whole: the sum of all.
    """

    field: str
    watermark_ms: int | None
    headline: str
    names_from: float
    interaction: Interaction | None
    levels: tuple[Level, ...]
    smaller: int
    rest: Level | None
    whole: Level | None
    unseen: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def shown(self) -> tuple[Level, ...]:
        """Levels for reading, the largest ones; programs read all."""
        by_size = sorted(self.levels, key=lambda one: -one.decisions)
        largest = {one.level for one in by_size[:LEVELS_SHOWN]}
        return tuple(one for one in self.levels if one.level in largest)

    @property
    def all_levels(self) -> tuple[Level, ...]:
        """Levels that add up to the whole: those shown, and the rest."""
        return self.levels if self.rest is None else (*self.levels, self.rest)


@dataclass(frozen=True)
class Totals:
    """Sums over all variants."""

    decisions: int
    trials: int
    impressions: int
    rewards: float
    rate: float | None
    pending: int


@dataclass(frozen=True)
class Stratum:
    """The sample-ratio check of one mode, of all (`combined`), of files (`ingested`).

    p_value: right at one look, and corrected for `n_tests`: where a context decided, each
    variant is tested alone, and chi2 and p_value are of the one that is furthest off.
    log_e_value: right at any number of looks. None where there is none, or where a variant
    of probability 0 was drawn (chi2, log_e_value).
    """

    mode: str
    decisions: int
    chi2: float | None
    df: int
    p_value: float | None
    n_tests: int
    log_e_value: float | None
    verdict: Check


@dataclass(frozen=True)
class SampleRatioCheck:
    """Whether decisions split as the logged propensities said they would.

    strata: `ingested`, one a mode, then `combined`, as far as there are any. unknown: decisions left out because their
    probabilities are not known. reason: why there was no check, else empty.
    """

    verdict: Check
    strata: tuple[Stratum, ...]
    unknown: int
    reason: str


@dataclass(frozen=True)
class Corrected:
    """What the refresh added to the report; net differences, so they may be negative.

    decisions: those that the live fold never learned, ingested ones for instance.
    """

    watermark_ms: int
    variants: int
    decisions: int
    trials: int
    impressions: int
    rewards: float


@dataclass(frozen=True)
class Traffic:
    """Decisions per variant in one stretch of time, in the order of the rows.

    day: days since 1970 (UTC), or None where the stretch is one of epochs in a row.
    """

    day: int | None
    decisions: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """All that is known of an experiment, for any format to show.

    generated_at_ms: when the data was read. from_day, to_day: days since 1970 (UTC) that
    it was restricted to, both included. credibility: of every interval. metrics: none
    where no refresh has settled them, or days were asked for. segment: None where none
    was asked for.
    """

    experiment_id: str
    tenant: str
    placement: str | None
    status: str
    policy: str
    control: str
    event: str
    reward: str
    trial: str
    currency: str | None
    generated_at_ms: int
    spec_version: int
    snapshot_version: int | None
    from_day: int | None
    to_day: int | None
    credibility: float
    verdict: Verdict
    headline: str
    totals: Totals
    sample_ratio: SampleRatioCheck
    correction: Corrected | None
    notes: tuple[str, ...]
    variants: tuple[VariantRow, ...]
    metrics: tuple[MetricTable, ...]
    segment: Segment | None
    traffic: tuple[Traffic, ...]

    @property
    def by_context(self) -> bool:
        """Whether a request's context decided what it saw."""
        return self.policy in CONTEXTUAL

    @property
    def ranked(self) -> tuple[VariantRow, ...]:
        """Rows for reading: the probably best first, those never compared last."""
        return tuple(sorted(self.variants, key=_by_chance))

    @property
    def leader(self) -> VariantRow | None:
        """The variant that is most probably the best, once there are trials."""
        best = self.ranked[0]
        if self.totals.trials == 0 or best.probability_best is None:
            return None
        return best


def _by_chance(row: VariantRow | LevelRow) -> float:
    """Lower for what is more probably the best."""
    return 1.0 if row.probability_best is None else -row.probability_best
