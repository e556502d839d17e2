"""What a report says of the levels of a field: first whether they differ, then each."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bandolero.inference.interaction import Interaction
from bandolero.report.model import LevelRow, Verdict
from bandolero.report.verdict import FEW_TRIALS, STANDS_OUT, thin
from bandolero.report.wording import (
    amount,
    brief,
    lift,
    lift_interval,
    moment,
    names,
    p_value,
    probability,
)

DIFFERS_BELOW = 0.01
"""Below this p-value levels are said to differ in how their variants compare."""


class SegmentFacts(NamedTuple):
    """What there is to say of all levels; see `bandolero.report.model.Segment`.

    n_levels: how many are shown. mismatch: whether decisions did not split as logged.
    is_fuller: whether levels hold what the totals beside them leave out. sticky: whether
    trials of a unit are not independent.
    """

    field: str
    watermark_ms: int | None
    n_levels: int
    smaller: int
    unseen: Sequence[str]
    interaction: Interaction | None
    mismatch: bool
    is_fuller: bool
    sticky: bool


def names_from(n_levels: int) -> float:
    """The P(best) from which a level names a variant: one slip for all levels together.

    Examples
    --------
    >>> round(names_from(1), 3), round(names_from(5), 3)
    (0.95, 0.99)
    """
    return 1.0 - (1.0 - STANDS_OUT) / max(n_levels, 1)


def headline(facts: SegmentFacts) -> str:
    """Whether to look at levels at all."""
    if facts.watermark_ms is None:
        return f"No refresh has counted the levels of {facts.field} yet."
    until = moment(facts.watermark_ms)
    if facts.n_levels == 0:
        return f"The refresh up to {until} has counted no decision of this report."
    if facts.mismatch:
        return "Do not act on any level: decisions did not split as logged."
    if facts.interaction is None:
        return (
            f"Too little to say whether {facts.field} matters to which variant is best."
        )
    p = p_value(facts.interaction.p_value)
    if facts.interaction.p_value < DIFFERS_BELOW:
        return f"How variants compare depends on {facts.field} ({p})."
    return (
        f"No sign that {facts.field} matters to how variants compare ({p}): the report of "
        "all requests says more of each level than the level itself."
    )


def of_level(
    rows: Sequence[LevelRow], control: str, bar: float, mismatch: bool
) -> tuple[Verdict, str]:
    """A level's verdict and its sentence."""
    if mismatch:
        return "mismatch", "Not to be read: decisions did not split as logged."
    rivals = [row for row in rows if row.probability_best is not None]
    if not any(row.trials for row in rows) or not rivals:
        return "empty", "Nothing to compare yet."
    if len(rivals) == 1:
        return "empty", f"Nothing to compare {rivals[0].variant_id} with yet."
    best = max(rivals, key=lambda row: row.probability_best or 0.0)
    chance = f"P(best) {probability(best.probability_best)}"
    if best.trials < FEW_TRIALS or (best.probability_best or 0.0) < bar:
        leads = f"{best.variant_id} leads with {chance}{thin(best)}"
        return "open", f"No variant stands out: {leads}."
    against = ""
    if best.lift is not None and best.variant_id != control:
        between = lift_interval(best.lift_lower, best.lift_upper)
        against = f"; lift over control {lift(best.lift)} ({between})"
    return "best", f"{best.variant_id} is probably best: {chance}{against}."


def notes(facts: SegmentFacts) -> Iterator[str]:
    """What to bear in mind about levels."""
    if facts.watermark_ms is None or facts.n_levels == 0:
        return
    fuller = ", which the totals of these days leave out" if facts.is_fuller else ""
    yield (
        f"Levels are counted by the refresh, here up to {moment(facts.watermark_ms)}, with "
        "decisions not learned live (ingested ones for instance), late events, refunds and "
        f"retractions{fuller}. What settled since is counted under all requests only."
    )
    if facts.n_levels > 1:
        luck = 1.0 - (1.0 - 2.0 * (1.0 - STANDS_OUT)) ** facts.n_levels
        yield (
            f"Among {facts.n_levels} levels luck alone has many tries: with two variants "
            f"that are equal everywhere, one reaches P(best) {probability(STANDS_OUT)} at "
            f"some level in {probability(luck)} of such reports. So a level names a variant "
            f"only from {probability(names_from(facts.n_levels))} on, which keeps that "
            "near 10 % at one look; each further field, and each further look, adds its own."
        )
    yield (
        "Levels borrow nothing from each other, and have no sample-ratio check of their "
        "own: that is of all requests."
    )
    if facts.sticky:
        yield (
            "Draws are sticky, and levels take trials for independent: where units come "
            "back often, levels differ by chance more than is said."
        )
    if facts.smaller:
        yield f"The {amount(facts.smaller, 'smallest level')} are put together as one."
    if facts.unseen:
        yield f"Never seen: {names(map(brief, facts.unseen))}."
