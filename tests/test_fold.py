"""The fold: live, replayed, or in any grouping, it counts the same, to the byte."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import reference_policies
from bandolero.epochs import DAY_MS, Epoch, epoch_key, merge, padded
from bandolero.experiment import BetaThompsonSpec, Experiment
from bandolero.fold import Fold, advance, grown, init_fold
from bandolero.policies import BetaState
from bandolero.settle import GRACE_MS
from strategies import (
    FORGETFUL,
    START_MS,
    UNKNOWN_VERSION,
    VARIANTS,
    VECTORS,
    Row,
    Story,
    decision,
    decisions_table,
    event,
    events_table,
    experiment,
    forgetting,
    stories,
)

SPEC = experiment(objective={"attribution_window_s": 2.0})
SALES = experiment(
    objective={"event": "conversion", "reward": "value"}, policy={"kind": "uniform"}
)


def fold_of(
    rows: list[Row], told: list[Row] | None = None, spec: Experiment = SPEC
) -> Fold:
    """What is learned from decisions and events, from nothing."""
    decisions, events = decisions_table(rows), events_table(told or [])
    return advance(spec, init_fold(spec), decisions, events, VECTORS)


def folded(story: Story, ends: list[int]) -> Fold:
    """What is learned of a story batch by batch, each with the events it may see."""
    decisions, events = story.tables
    fold = init_fold(story.experiment)
    bounds = [0, *sorted(ends), decisions.num_rows]
    for start, end in pairwise(bounds):
        part = decisions.slice(start, end - start)
        fold = advance(story.experiment, fold, part, events, VECTORS)
    return fold


def image(fold: Fold, *, exactly: bool = True) -> tuple[Any, ...]:
    """Every byte of a fold; without the squares of values where they are rounded."""
    epochs = {
        key: [
            part.tobytes() if isinstance(part, np.ndarray) else part
            for part in (epoch if exactly else epoch[:-2])
        ]
        for key, epoch in fold.epochs.items()
    }
    return [array.tobytes() for array in fold.state], epochs, fold.learned_to_ms


def only(fold: Fold) -> Epoch:
    """The one epoch of a fold."""
    (epoch,) = fold.epochs.values()
    return epoch


# --- any grouping ------------------------------------------------------------------


@given(stories(), st.data())
def test_any_grouping_gives_the_same_bytes(story: Story, data: st.DataObject) -> None:
    """One fold of all decisions equals folds of any batches, bit for bit.

    Squared rewards of a value are sums of floating-point numbers, equal to 1e-12.
    """
    n = len(story.decisions)
    ends = data.draw(st.lists(st.integers(0, n), max_size=4))
    whole, parts = folded(story, []), folded(story, ends)
    exactly = story.objective.reward != "value"
    assert image(parts, exactly=exactly) == image(whole, exactly=exactly)
    for key, epoch in whole.epochs.items():
        other = parts.epochs[key].rewards_squared
        np.testing.assert_allclose(other, epoch.rewards_squared, rtol=1e-12)


@given(stories(reward="binary"), st.data())
def test_events_of_the_past_may_be_forgotten(story: Story, data: st.DataObject) -> None:
    """Events of decisions folded before, and those after the close, are not needed."""
    at = data.draw(st.integers(0, len(story.decisions)))
    spec, (decisions, _) = story.experiment, story.tables
    early = {row["decision_id"] for row in story.decisions[:at]}
    held = [row for row in story.events if row["decision_id"] not in early]
    fold = advance(
        spec, init_fold(spec), decisions[:at], events_table(story.events), VECTORS
    )
    fold = advance(spec, fold, decisions[at:], events_table(held), VECTORS)
    assert image(fold) == image(folded(story, []))


@given(stories())
def test_fold_equals_twin(story: Story) -> None:
    """Every epoch holds, per variant, what counting row by row gives."""
    vectors = {version: list(shares) for version, shares in VECTORS.items()}
    expected = reference.tallies(
        story.decisions, story.events, story.objective, vectors, list(VARIANTS)
    )
    found: dict[tuple[Any, ...], reference.Tally] = {}
    for epoch in folded(story, []).epochs.values():
        known = not np.isnan(epoch.probabilities).any()
        shares = tuple(epoch.probabilities.tolist()) if known else None
        for arm, variant_id in enumerate(VARIANTS):
            counts = (
                epoch.decisions,
                epoch.trials,
                epoch.impressions,
                epoch.rewards_micros,
            )
            tally = reference.Tally(*(int(count[arm]) for count in counts))
            if tally.decisions:
                found[epoch.day, epoch.mode, shares, variant_id] = tally
    assert found == expected


@given(stories(reward="binary"))
def test_state_is_the_sum_of_the_epochs(story: Story) -> None:
    """What the policy learned is what the rollups count: trials, and those with a hit."""
    fold = folded(story, [])
    assert isinstance(fold.state, BetaState)
    trials, hits = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for epoch in fold.epochs.values():
        trials += epoch.trials
        hits += epoch.rewards_micros // 1_000_000
    assert fold.state.trials.tolist() == trials.tolist()
    assert fold.state.successes.tolist() == hits.tolist()


# --- forgetting -----------------------------------------------------------------------

every_reward = pytest.mark.parametrize("reward", sorted(FORGETFUL))


@every_reward
@given(st.data())
def test_fading_folds_agree_in_any_grouping(reward: str, data: st.DataObject) -> None:
    """Batches of a fading fold give one fold's state and its time; rollups do not fade.

    To 1e-9 of the largest number: values may be taken back, and what is left is rounding.
    """
    plain = data.draw(stories(reward=reward))
    story, n = forgetting(plain, 60.0), len(plain.decisions)
    ends = data.draw(st.lists(st.integers(0, n), max_size=4))
    whole, parts = folded(story, []), folded(story, ends)
    assert parts.learned_to_ms == whole.learned_to_ms
    for one, other in zip(parts.state, whole.state, strict=True):
        scale = np.abs(other).max() if np.isfinite(other).all() else 1.0
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * max(scale, 1.0))
    assert image(whole)[1] == image(folded(plain, []))[1]


@given(stories(reward="binary"))
def test_every_trial_fades_from_its_own_close(plain: Story) -> None:
    """The state is that of a twin who weighs each settled trial by its own age."""
    story = forgetting(plain, 60.0)
    told = reference.trials(story.decisions, story.events, story.objective, VARIANTS)
    fold = folded(story, [])
    assert isinstance(fold.state, BetaState)
    assert fold.learned_to_ms == max((at_ms for *_, at_ms in told), default=0)
    exact = np.array(reference_policies.faded(told, 3, fold.learned_to_ms, 60.0))
    np.testing.assert_allclose(fold.state.trials, exact[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fold.state.successes, exact[:, 1], rtol=1e-9, atol=1e-12)


def test_a_half_life_between_two_trials_counts_the_first_half() -> None:
    """Two decisions a minute apart, half-life a minute: trials 1/2 + 1 when the last closed."""
    spec = SPEC.model_copy(update={"policy": BetaThompsonSpec(half_life_s=60.0)})
    rows = [decision(), decision(decision_id="d2", decided_at_ms=START_MS + 60_000)]
    fold = fold_of(rows, [event()], spec)
    assert fold.learned_to_ms == START_MS + 60_000 + 2_000 + GRACE_MS
    assert isinstance(fold.state, BetaState)
    assert fold.state.trials.tolist() == [1.5, 0.0, 0.0]
    assert fold.state.successes.tolist() == [0.5, 0.0, 0.0]
    counted = sum(int(epoch.trials[0]) for epoch in fold.epochs.values())
    assert counted == 2


def test_fold_is_as_of_its_last_trial_also_where_nothing_fades() -> None:
    """The time is kept by every fold; a batch without a trial leaves it."""
    fold = fold_of([decision()])
    assert fold.learned_to_ms == START_MS + 2_000 + GRACE_MS
    none = decisions_table([]), events_table([])
    assert advance(SPEC, fold, *none, VECTORS).learned_to_ms == fold.learned_to_ms
    assert init_fold(SPEC).learned_to_ms == 0


# --- by hand ------------------------------------------------------------------------


def test_two_decisions_and_a_click() -> None:
    """v1 shown twice and clicked once gives Beta(1 + 1, 1 + 1), v2 and v3 the prior."""
    rows = [decision(), decision(decision_id="d2")]
    fold = fold_of(rows, [event()])
    assert isinstance(fold.state, BetaState)
    assert fold.state.alpha.tolist() == [2.0, 1.0, 1.0]
    assert fold.state.beta.tolist() == [2.0, 1.0, 1.0]
    epoch = only(fold)
    assert epoch.decisions.tolist() == [2, 0, 0]
    assert epoch.rewards_micros.tolist() == [1_000_000, 0, 0]
    assert epoch.probabilities.tolist() == [0.5, 0.25, 0.25]


def test_rewards_and_their_squares() -> None:
    """Purchases of 2 and 3 after two decisions sum to 5, their squares to 13."""
    bought = {"type": "conversion", "value_micros": 2_000_000}
    other = {"decision_id": "d2", "type": "conversion", "value_micros": 3_000_000}
    rows = [decision(), decision(decision_id="d2")]
    epoch = only(fold_of(rows, [event(**bought), event(**other)], SALES))
    assert epoch.rewards_micros[0] == 5_000_000
    assert epoch.rewards_squared[0] == pytest.approx(13.0)


def test_fallback_is_never_learned() -> None:
    """A decision made as fallback is neither a trial nor part of an epoch."""
    fold = fold_of([decision(mode="fallback")], [event()])
    assert image(fold) == image(init_fold(SPEC))


def test_variant_the_experiment_lacks_is_left_out() -> None:
    """A decision of a variant that is not the experiment's is not learned, others are."""
    rows = [decision(variant_id="v9"), decision(decision_id="d2")]
    assert image(fold_of(rows)) == image(fold_of(rows[1:]))


def test_equal_probabilities_merge_across_versions() -> None:
    """Snapshots 1 and 2 with one vector are one epoch, which says so; 3 is another."""
    rows = [
        decision(decision_id=f"d{version}", snapshot_version=version)
        for version in (1, 3, 2)
    ]
    epochs = list(fold_of(rows).epochs.values())
    assert {(epoch.versions, int(epoch.decisions[0])) for epoch in epochs} == {
        ((1, 2), 2),
        ((3, 3), 1),
    }


def test_days_and_modes_part_epochs() -> None:
    """Epochs with one vector are apart by the UTC day of the decision and by mode."""
    rows = [
        decision(decision_id="d1"),
        decision(decision_id="d2", decided_at_ms=START_MS + 6_000),
        decision(decision_id="d3", mode="fixed"),
    ]
    epochs = fold_of(rows).epochs.values()
    today = START_MS // DAY_MS
    assert sorted((epoch.day, epoch.mode) for epoch in epochs) == [
        (today, "explore"),
        (today, "fixed"),
        (today + 1, "explore"),
    ]


def test_narrowed_set_has_its_own_epoch() -> None:
    """A narrowed decision counts under its logged probabilities, zero elsewhere."""
    narrow = {"eligible": ["v1", "v3"], "probabilities": [0.625, 0.375]}
    fold = fold_of([decision(), decision(decision_id="d2", variant_id="v3", **narrow)])
    vectors = {tuple(e.probabilities): e.decisions for e in fold.epochs.values()}
    assert vectors[0.5, 0.25, 0.25].tolist() == [1, 0, 0]
    assert vectors[0.625, 0.0, 0.375].tolist() == [0, 0, 1]


def test_holdout_has_its_own_epoch() -> None:
    """A holdout counts under the uniform probabilities it was drawn with."""
    held = {
        "mode": "holdout",
        "eligible": ["v1", "v2"],
        "probabilities": [0.5, 0.5],
    }
    epoch = only(fold_of([decision(**held)]))
    assert epoch.mode == "holdout"
    assert epoch.probabilities.tolist() == [0.5, 0.5, 0.0]


def test_unknown_snapshot_is_kept_apart() -> None:
    """Decisions of a snapshot that nobody knows count, with nan for probabilities."""
    rows = [
        decision(snapshot_version=UNKNOWN_VERSION),
        decision(decision_id="d2", snapshot_version=UNKNOWN_VERSION + 1),
        decision(decision_id="d3"),
    ]
    fold = fold_of(rows)
    unknown, known = sorted(
        fold.epochs.values(), key=lambda epoch: float(epoch.probabilities[0]) == 0.5
    )
    assert np.isnan(unknown.probabilities).all()
    assert unknown.decisions.tolist() == [2, 0, 0]
    assert known.decisions.tolist() == [1, 0, 0]


def test_decision_that_never_settles_live_is_in_no_epoch() -> None:
    """What reached the log more than an hour late is left to the refresh."""
    late = decision(log_ms=START_MS + 3_600_001)
    assert image(fold_of([late])) == image(init_fold(SPEC))


def test_nothing_folds_to_nothing() -> None:
    """A batch without a decision leaves the fold as it was."""
    assert image(fold_of([])) == image(init_fold(SPEC))


def test_fold_given_is_not_changed() -> None:
    """Advancing a fold leaves the old one as it was: a failed commit loses nothing."""
    fold = fold_of([decision()])
    before = image(fold)
    rows = decisions_table([decision(decision_id="d2")])
    advance(SPEC, fold, rows, events_table([event()]), VECTORS)
    assert image(fold) == before


# --- variants added later --------------------------------------------------------------

MORE = SPEC.model_copy(
    update={
        "variants": [*SPEC.variants, SPEC.variants[0].model_copy(update={"id": "v4"})]
    }
)


def test_added_variant_begins_with_its_prior() -> None:
    """A fold grows by a variant: old counts stay, the new one has the prior only."""
    fold = grown(MORE, fold_of([decision()], [event()]))
    assert isinstance(fold.state, BetaState)
    assert fold.state.trials.tolist() == [1, 0, 0, 0]
    assert fold.state.alpha.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert grown(MORE, fold) is fold


@pytest.mark.parametrize("version", [1, UNKNOWN_VERSION])
def test_growing_before_or_after_is_the_same(version: int) -> None:
    """Folding before and after a variant came equals folding all with it, to the byte."""
    rows = [
        decision(snapshot_version=version),
        decision(decision_id="d2", snapshot_version=version),
    ]
    none = events_table([])
    both = [decisions_table(rows[:1]), decisions_table(rows[1:])]
    fold = advance(SPEC, init_fold(SPEC), both[0], none, VECTORS)
    fold = advance(MORE, fold, both[1], none, VECTORS)
    whole = advance(MORE, init_fold(MORE), pa.concat_tables(both), none, VECTORS)
    assert image(fold) == image(whole)


def test_added_variant_does_not_split_an_epoch() -> None:
    """An epoch goes on when a variant comes that is not served yet."""
    short = fold_of([decision()])
    assert set(short.epochs) == {epoch_key(padded(only(short), 4))}


def test_merge_takes_arms_of_both() -> None:
    """Merging an older epoch into a wider one, or the reverse, adds by arm."""
    short = only(fold_of([decision()]))
    wide = padded(only(fold_of([decision(variant_id="v2")])), 4)
    assert merge(short, wide).decisions.tolist() == [1, 1, 0, 0]
    assert merge(wide, short).decisions.tolist() == [1, 1, 0, 0]
