"""What a report says in words: one headline, and notes for whoever acts on it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bandolero.experiment import Experiment
from bandolero.fold import Correction
from bandolero.policy_specs import CONTEXTUAL
from bandolero.report.model import (
    Corrected,
    LevelRow,
    SampleRatioCheck,
    Stratum,
    Totals,
    VariantRow,
    Verdict,
)
from bandolero.report.wording import (
    Scale,
    amount,
    count,
    duration,
    evidence,
    lift,
    lift_interval,
    moment,
    names,
    probability,
    scale_of,
)

STANDS_OUT = 0.95
"""From this probability to be best on, the headline names a variant as best."""
NEGLIGIBLE_LOSS = 0.01
"""Up to this expected loss, as a share of its rate, a variant is a safe choice."""
FEW_TRIALS = 100
"""A variant with fewer trials is named as having few, and never as best."""


class Facts(NamedTuple):
    """What there is to put into words.

    left_out: what the refresh knew and the report does not hold; None where it holds all.
    alike: variants that always earned the same, where rewards are not binary.
    """

    spec: Experiment
    rows: Sequence[VariantRow]
    totals: Totals
    check: SampleRatioCheck
    correction: Corrected | None
    left_out: Correction | None
    alike: Sequence[str]

    @property
    def scale(self) -> Scale:
        """How rates are written."""
        spec = self.spec
        rates = (row.rate for row in self.rows)
        return scale_of(spec.objective.reward, spec.currency, rates)

    @property
    def by_context(self) -> bool:
        """Whether a request's context decided the probabilities."""
        return self.spec.policy.kind in CONTEXTUAL

    @property
    def adaptive(self) -> bool:
        """Whether traffic followed the results: that of files was not our policy's."""
        kind = self.spec.policy.kind
        return (
            kind not in {"fixed", "uniform"} and self.unlearned < self.totals.decisions
        )

    @property
    def unlearned(self) -> int:
        """Decisions that the live fold never learned."""
        return 0 if self.correction is None else self.correction.decisions


class Words(NamedTuple):
    """The verdict, its sentence, and the notes below it."""

    verdict: Verdict
    headline: str
    notes: tuple[str, ...]


def judge(facts: Facts) -> Words:
    """Say what the numbers mean, the most important first."""
    verdict, headline = _headline(facts)
    notes = (
        *_split_notes(facts),
        *_data_notes(facts),
        *_reading_notes(facts, verdict),
        *_time_notes(facts),
    )
    return Words(verdict, headline, notes)


def _headline(facts: Facts) -> tuple[Verdict, str]:
    if facts.totals.trials == 0 and facts.left_out is not None:
        return "empty", (
            "Nothing to compare: no trial of these days was learned live, and what only "
            "the refresh counted is left out."
        )
    if facts.totals.trials == 0:
        return "empty", "Nothing to compare yet: no trial has settled."
    if (worst := mismatched(facts.check)) is not None:
        return "mismatch", (
            "Do not act on this report yet: decisions did not split as logged "
            f"({evidence(worst)})."
        )
    rivals = [row for row in facts.rows if row.probability_best is not None]
    if not rivals:
        return "empty", (
            "Nothing to compare yet: no variant has two trials with unlike rewards."
        )
    if len(rivals) == 1:
        return "empty", f"Nothing to compare {rivals[0].variant_id} with yet."
    return _compared(facts, rivals)


def _compared(facts: Facts, rivals: list[VariantRow]) -> tuple[Verdict, str]:
    """The headline where there is a comparison."""
    best = max(rivals, key=lambda row: row.probability_best or 0.0)
    chance = f"P(best) {probability(best.probability_best)}"
    loss = f"expected loss {facts.scale.loss(best.expected_loss)}"
    stands_out = (best.probability_best or 0.0) >= STANDS_OUT
    if stands_out and best.trials >= FEW_TRIALS:
        against = _against_control(facts, best)
        return "best", f"{_named(best)} is probably best: {chance}, {loss}{against}."
    safest = min(rivals, key=lambda row: row.expected_loss or 0.0)
    rate = safest.mean if facts.by_context else safest.rate
    given_away = _relative_loss(safest.expected_loss, rate)
    if safest.trials >= FEW_TRIALS and given_away:
        return "safe", (
            f"No variant stands out, but {_named(safest)} is a safe choice: showing it "
            f"alone gives away about {given_away} of its rate "
            f"(P(best) {probability(safest.probability_best)})."
        )
    leads = f"{_named(best)} leads with {chance}, {loss}{thin(best)}"
    return "open", f"No variant stands out yet: {leads}."


def thin(row: VariantRow | LevelRow) -> str:
    """That a variant has few trials, as the end of a sentence; empty where it has not."""
    if row.trials >= FEW_TRIALS:
        return ""
    return f", on only {amount(row.trials, 'trial')}"


def _against_control(facts: Facts, row: VariantRow) -> str:
    """How far a variant is ahead of the control, as the end of a sentence."""
    if row.lift is None or row.variant_id == _control(facts.spec):
        return ""
    between = lift_interval(row.lift_lower, row.lift_upper)
    return f"; lift over control {lift(row.lift)} ({between})"


def _relative_loss(loss: float | None, rate: float | None) -> str:
    """A negligible expected loss as a share of the rate; empty where it is not."""
    if loss is None or not rate:
        return ""
    relative = loss / abs(rate)
    return probability(relative) if relative <= NEGLIGIBLE_LOSS else ""


def mismatched(check: SampleRatioCheck) -> Stratum | None:
    """The stratum that fails the sample-ratio check most clearly, if any."""
    failed = [stratum for stratum in check.strata if stratum.verdict == "mismatch"]
    return min(failed, key=lambda s: s.p_value or 0.0) if failed else None


def split_sentence(check: SampleRatioCheck) -> str:
    """The verdict of the sample-ratio check, and what it rests on."""
    if check.verdict == "not checked":
        return f"not checked ({check.reason})."
    worst = mismatched(check) or check.strata[-1]
    tested = amount(worst.decisions, "decision")
    if check.verdict == "too few":
        return f"too few decisions to check ({tested})."
    against = "against the logged propensities"
    where = f"{tested}, mode {worst.mode}, {evidence(worst)}"
    return f"{check.verdict}, {against} ({where})."


def _split_notes(facts: Facts) -> Iterator[str]:
    """What the sample-ratio check says."""
    check = facts.check
    if (worst := mismatched(check)) is not None:
        yield (
            "Sample ratio mismatch: decisions did not split between the variants as "
            "the logged propensities say "
            f"(mode {worst.mode}, {evidence(worst)}). Look for lost, "
            "repeated or filtered decisions before you act on anything here."
        )
    if facts.spec.allocation.sticky == "unit":
        yield (
            "Draws are sticky: trials of one unit are not independent, but the intervals "
            "treat them so, and are too narrow where units come back often."
        )
    elif check.unknown:
        yield (
            f"{amount(check.unknown, 'decision')} stand outside the sample-ratio check, "
            "because their probabilities are not known."
        )


def _data_notes(facts: Facts) -> Iterator[str]:
    """What is thin or missing in the data."""
    few = [row for row in facts.rows if _is_few(row)]
    if few and facts.totals.trials:
        listed = names(f"{row.variant_id} ({count(row.trials)})" for row in few)
        yield f"Fewer than {FEW_TRIALS} trials: {listed}. Their rates say little yet."
    if facts.spec.objective.trial == "impression" and not facts.totals.impressions:
        yield "Only decisions with an impression count as trials, and none here has one."
    missing = [row.variant_id for row in facts.rows if _is_missing(row)]
    if missing and facts.spec.objective.reward != "binary":
        yield (
            "Not compared, for having fewer than two trials, or because no two rewards "
            f"differ: {names(missing)}."
        )
    alike = [row.variant_id for row in facts.rows if _is_alike(facts, row)]
    if alike:
        yield (
            f"Always the same reward: {names(alike)}. Without a spread of their own they "
            "are compared by that of all variants together."
        )
    idle = [r for r in facts.rows if r.status != "active" and r.probability_best]
    if idle:
        listed = names(f"{row.variant_id} ({row.status})" for row in idle)
        yield (
            "P(best) compares every variant that is active or has data, so also "
            f"{listed}."
        )


def _is_few(row: VariantRow) -> bool:
    return row.status == "active" and row.trials < FEW_TRIALS


def _is_missing(row: VariantRow) -> bool:
    return row.probability_best is None and row.status == "active"


def _is_alike(facts: Facts, row: VariantRow) -> bool:
    return row.probability_best is not None and row.variant_id in facts.alike


def _reading_notes(facts: Facts, verdict: Verdict) -> Iterator[str]:
    """What the reader has to bear in mind about the method."""
    if facts.by_context and facts.totals.trials:
        yield (
            "The context decided who saw which variant. Interval, P(best), expected loss "
            "and lift weight every trial by 1 / propensity: they compare what variants "
            "would earn if all requests saw them. The rate column is not weighted; share "
            "now is that of a request that says nothing."
        )
    elif facts.adaptive and facts.totals.trials:
        yield (
            "Traffic followed the results. The posterior allows for that as long as the "
            "true rates do not change over time; a plain z-test on these counts would "
            "not, and would call equal variants different too often."
        )
    half_life_s = getattr(facts.spec.policy, "half_life_s", None)
    if half_life_s is not None and facts.totals.trials:
        yield (
            f"To the policy data count half after {duration(half_life_s)}; this report "
            "counts all of them in full, so its P(best) is not what traffic follows."
        )
    if facts.adaptive and verdict == "best":
        yield (
            "P(best) is no stopping rule: in experiments with two equal variants, one "
            "passes 95 % at some moment in more than half of them. Trust it when it "
            "stays."
        )
    if facts.spec.objective.reward != "binary" and facts.totals.trials:
        yield (
            "Intervals of a mean reward are approximately normal; where a few rewards "
            "are very large, they need many more trials to be trusted."
        )


def _time_notes(facts: Facts) -> Iterator[str]:
    """What may still change, and what was changed."""
    if facts.totals.pending:
        window = duration(facts.spec.objective.attribution_window_s)
        be = "is" if facts.totals.pending == 1 else "are"
        yield (
            f"{amount(facts.totals.pending, 'decision')} {be} pending: the attribution "
            f"window of {window} has not closed, and no other number counts them."
        )
    if facts.correction is not None and facts.correction.variants:
        yield _added(facts.correction)
    if facts.left_out is not None:
        yield _left_out(sum(facts.left_out.unlearned.values()))


def _left_out(decisions: int) -> str:
    """What a report of some days lacks, as a sentence."""
    counted = (
        f"{amount(decisions, 'decision')} of any day not learned live (ingested from files, "
        "or logged over an hour late), "
    )
    return (
        "What only the refresh counted is left out, because the report is restricted to "
        f"some days: {counted if decisions else ''}late events, refunds and retractions. "
        "The report of all days has it."
    )


def _added(added: Corrected) -> str:
    """What the newest refresh knew beyond the live counts, as a sentence."""
    until = f"up to {moment(added.watermark_ms)}"
    if not added.decisions:
        return (
            f"Late events, refunds and retractions {until} "
            f"are included; they changed the totals by {_signed(added.trials)} trials "
            f"and {_signed(added.rewards)} rewards."
        )
    be = "was" if added.decisions == 1 else "were"
    return (
        f"{amount(added.decisions, 'decision')} {be} not learned live, but counted by the "
        "refresh (ingested from files, or logged over an hour late). With late events, "
        f"refunds and retractions {until} that changed the totals by "
        f"{_signed(added.trials)} trials and {_signed(added.rewards)} rewards."
    )


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "−") + count(abs(value))


def _named(row: VariantRow) -> str:
    idle = f" ({row.status})" if row.status != "active" else ""
    return f"{row.variant_id}{idle}"


def _control(spec: Experiment) -> str:
    return spec.variant_ids[spec.control_arm]
