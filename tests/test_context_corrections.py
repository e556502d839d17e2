"""Late events under a contextual policy: the refresh says what changed, and where."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from bandolero.epochs import moments_of
from bandolero.experiment import Experiment
from bandolero.fold import Correction, Fold, advance, init_fold, with_correction
from bandolero.lake.catalog import INGESTED, Lake
from bandolero.lake.refresh import refresh
from bandolero.policies import LinearState, LinearThompson, aged, policy_of
from bandolero.policies.base import Floats, Ints
from bandolero_service.folding import correction_state
from report_cases import report_of
from strategies import (
    FAR_MS,
    START_MS,
    Row,
    decisions_table,
    event,
    events_table,
)
from test_contextual import (
    CONTEXT,
    DESKTOP,
    KINDS,
    MOBILE,
    VARIANTS,
    clicked,
    folded,
    made,
    record_of,
    spec_of,
)

SUMS = [kind for kind in KINDS if kind["kind"] != "logistic_thompson"]
UNTIL_MS = FAR_MS
ROWS = [made(i, i % 3, (MOBILE, DESKTOP)[i % 2]) for i in range(12)]


def late(i: int) -> Row:
    """A click on a decision in time, told long after its close."""
    return clicked(i) | {"log_ms": FAR_MS - 5, "log_id": f"{FAR_MS - 5}-{i}"}


def undone(i: int) -> Row:
    """The click taken back, long after the close."""
    at_ms = START_MS + 10 * i + 600
    return event(
        event_id="undo",
        decision_id=f"d{i}",
        type="retract",
        retracts="c",
        at_ms=at_ms,
        received_at_ms=FAR_MS - 4,
        log_ms=FAR_MS - 4,
        log_id=f"{FAR_MS - 4}-{i}",
    )


def correction_of(folder: Path, spec: Experiment, told: list[Row]) -> Correction:
    """What a refresh finds."""
    lake = Lake(folder)
    tables = {"decisions": decisions_table(ROWS), "events": events_table(told)}
    lake.commit("0", 0, UNTIL_MS, tables)
    (found,) = refresh(lake, [record_of(spec)]).corrections
    return found


def published(correction: Correction) -> dict[str, Any]:
    """A correction as the store keeps it."""
    names = ("watermark_ms", "changes", "faded", "by_context")
    return {name: getattr(correction, name) for name in names}


def hindsight(spec: Experiment, on_time: set[int]) -> Fold:
    """What would have been learned had all been told in time."""
    return folded(spec, ROWS, [clicked(i) for i in sorted(on_time)], [])


@pytest.mark.parametrize("policy", SUMS, ids=str)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_correction_makes_the_state_final(
    tmp_path_factory: pytest.TempPathFactory,
    policy: dict[str, Any],
    data: st.DataObject,
) -> None:
    """Live sums plus the correction are the sums of what was clicked in the end."""
    some = st.sets(st.integers(0, 11))
    in_time, after = data.draw(some), data.draw(some)
    back = data.draw(some) & in_time
    after -= in_time
    spec = spec_of(policy)
    told = [clicked(i) for i in sorted(in_time)]
    told += [late(i) for i in sorted(after)] + [undone(i) for i in sorted(back)]
    correction = correction_of(tmp_path_factory.mktemp("lake"), spec, told)
    live = hindsight(spec, in_time).state
    change = correction_state(spec, published(correction), UNTIL_MS)
    assert (change is None) == (not after and not back)
    state = with_correction(spec, live, change)
    final = hindsight(spec, (in_time | after) - back).state
    for one, other in zip(state, final, strict=True):
        assert_allclose(one, other, rtol=1e-9, atol=1e-9)


HALF_LIFE_S = 60.0
FADING = [kind | {"half_life_s": HALF_LIFE_S} for kind in SUMS]


def spread(rows: list[Row]) -> list[Row]:
    """The same half a minute apart, told late only after all have closed."""
    times = ("decided_at_ms", "at_ms", "received_at_ms", "log_ms")
    apart = []
    for row in rows:
        shift_ms = 30_000 * int(row["decision_id"][1:])
        moved = {n: row[n] + shift_ms for n in times if row.get(n) is not None}
        if row["log_ms"] > FAR_MS - 10:
            moved["log_ms"] = START_MS + 500_000
        apart.append(row | moved | {"log_id": f"{moved['log_ms']}-0"})
    return apart


@pytest.mark.parametrize("policy", FADING, ids=str)
def test_correction_makes_a_faded_state_final(
    tmp_path: Path, policy: dict[str, Any]
) -> None:
    """Live sums and correction, both faded, are all trials weighted by their ages.

    Decisions are half a half-life apart; the night is ten after the first.
    """
    spec = spec_of(policy)
    made, told = spread(ROWS), [clicked(0), clicked(1), clicked(8)]
    after = [late(3), late(10), undone(1)]
    watermark_ms = START_MS + 600_000
    tables = {
        "decisions": decisions_table(made),
        "events": events_table(spread([*told, *after])),
    }
    lake = Lake(tmp_path)
    lake.commit("0", 0, watermark_ms, tables)
    (correction,) = refresh(lake, [record_of(spec)]).corrections
    now_ms = watermark_ms + 70_000
    rule: Any = policy_of(spec)

    def at_last(on_time: set[int]) -> Any:
        told = events_table(spread([clicked(i) for i in sorted(on_time)]))
        fold = advance(spec, init_fold(spec), decisions_table(made), told, {})
        return rule.decay(fold.state, now_ms - fold.learned_to_ms)

    change: Any = correction_state(spec, published(correction), now_ms)
    state = with_correction(spec, at_last({0, 1, 8}), change)
    scale = float(np.abs(change.moment).max())
    assert scale > 0.0
    for one, other in zip(state, at_last({0, 3, 8, 10}), strict=True):
        assert_allclose(one, other, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("policy", [SUMS[0], FADING[0], FADING[2]], ids=str)
@pytest.mark.parametrize("n_fields", [1, 2], ids=["texts alone", "with numbers"])
def test_what_came_from_files_is_refitted(
    tmp_path: Path, policy: dict[str, Any], n_fields: int
) -> None:
    """No live fold learned it: the correction alone is the fold of all, faded by its age."""
    spec = spec_of(policy, context=CONTEXT[:n_fields])
    made, told = spread(ROWS), spread([clicked(i) for i in (0, 3, 7)])
    lake = Lake(tmp_path)
    for table, rows in (
        ("decisions", decisions_table(made)),
        ("events", events_table(told)),
    ):
        shard = f"{INGESTED}{table}-0123456789ab"
        lake.commit(shard, 0, START_MS + 600_000, {table: rows})
    (correction,) = refresh(lake, [record_of(spec)]).corrections
    change: Any = correction_state(spec, published(correction), correction.watermark_ms)
    whole = advance(
        spec, init_fold(spec), decisions_table(made), events_table(told), {}
    )
    rule: Any = policy_of(spec)
    state = aged(rule, whole.state, correction.watermark_ms - whole.learned_to_ms)
    refitted = rule.add(rule.init(3), change)
    for one, other in zip(refitted, state, strict=True):
        assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    facts = sum(moments_of(epoch) for epoch in whole.epochs.values())
    for arm, variant_id in enumerate(VARIANTS):
        sums = correction.by_context[variant_id]["moments"]
        assert_allclose(sums, np.asarray(facts)[2:, arm], rtol=1e-9)


def test_report_counts_what_was_late_where_it_belongs(tmp_path: Path) -> None:
    """Corrected moments are those of the final clicks, and so is what a report says."""
    spec = spec_of()
    told = [clicked(0), clicked(1), late(3), late(4), undone(1)]
    correction = correction_of(tmp_path, spec, told)
    live, final = hindsight(spec, {0, 1}), hindsight(spec, {0, 3, 4})
    one, two = (next(iter(fold.epochs.values())) for fold in (live, final))
    added = np.zeros_like(moments_of(one))
    for variant_id, change in correction.by_context.items():
        added[2:, spec.variant_ids.index(variant_id)] += change["moments"]
    assert_allclose(moments_of(one) + added, moments_of(two), rtol=1e-12)
    corrected = report_of(record_of(spec), one, correction=correction)
    straight = report_of(record_of(spec), two)
    for a, b in zip(corrected.variants, straight.variants, strict=True):
        assert a.rewards == b.rewards
        assert a.interval_lower == pytest.approx(b.interval_lower)
        assert a.probability_best == pytest.approx(b.probability_best)


def test_clicks_all_taken_back_are_no_clicks(tmp_path: Path) -> None:
    """Rounding that is left of a variant's clicks is no evidence for it."""
    spec = spec_of()
    told = [clicked(0), clicked(3), undone(0), undone(3), clicked(1)]
    correction = correction_of(tmp_path, spec, told)
    (epoch,) = hindsight(spec, {0, 1, 3}).epochs.values()
    assert epoch.moments is not None
    epoch.moments[4:, 0] += 1e-8  # what adding in another order may leave
    report = report_of(record_of(spec), epoch, correction=correction)
    one, two, _ = report.variants
    assert one.rewards == 0.0
    assert one.mean is not None
    assert two.mean is not None
    assert one.mean < two.mean
    assert one.probability_best is not None
    assert one.probability_best < 0.5


def test_another_tenants_decision_of_the_same_id_is_another(tmp_path: Path) -> None:
    """Decisions are told apart by their rows: ids may stand twice in a lake."""
    spec, lake = spec_of(), Lake(tmp_path)
    theirs = made(3, 2, DESKTOP, tenant_id="rival")
    rows = [theirs, *ROWS]
    tables = {"decisions": decisions_table(rows), "events": events_table([late(3)])}
    lake.commit("0", 0, UNTIL_MS, tables)
    (found,) = refresh(lake, [record_of(spec)]).corrections
    assert found.by_context.keys() == {"v1"}
    (alone,) = (correction_of(tmp_path / "alone", spec, [late(3)]),)
    assert found.by_context == alone.by_context


def test_a_state_that_depends_on_the_order_stays(tmp_path: Path) -> None:
    """A logistic state takes no correction; its report does."""
    spec = spec_of({"kind": "logistic_thompson"})
    correction = correction_of(tmp_path, spec, [clicked(0), late(3)])
    assert correction.changes["v1"]["hits"] == 1
    assert correction.by_context["v1"].keys() == {"moments"}
    assert correction_state(spec, published(correction), UNTIL_MS) is None


def test_a_correction_has_no_prior() -> None:
    """Added to a state it moves sums, and leaves the prior as it was."""
    spec = spec_of()
    change = {"gram": [1.0] * 21, "moment": [2.0] * 6, "squares": [1.0]}
    body = {
        "watermark_ms": UNTIL_MS,
        "changes": {"v2": {"trials": 1}},
        "by_context": {"v2": change},
    }
    state = hindsight(spec, set()).state
    assert isinstance(state, LinearState)
    after: Any = with_correction(spec, state, correction_state(spec, body, UNTIL_MS))
    assert np.array_equal(after.prior_precision, state.prior_precision)
    assert (after.trials - state.trials).tolist() == [0, 1, 0]
    assert_allclose(after.moment[1] - state.moment[1], 2.0)


def linear_trials(seed: int, n: int) -> tuple[Ints, Floats, Floats]:
    """Arms, rewards and features of trials on two arms and two features."""
    rng = np.random.default_rng(seed)
    rewards = (rng.random(n) < 0.3).astype(float)
    return rng.integers(0, 2, n), rewards, rng.standard_normal((n, 2))


def test_taking_back_more_than_was_learned_leaves_none() -> None:
    """An arm with sums that no data could give has none; the others keep theirs."""
    policy = LinearThompson(2)
    state = policy.update(policy.init(2), *linear_trials(4, 20))
    more = policy.update(
        policy.init(2), np.zeros(30, np.int64), *linear_trials(5, 30)[1:]
    )
    back = more._replace(
        gram=-more.gram, moment=-more.moment, squares=-more.squares, trials=-more.trials
    )
    left = policy.add(state, back)
    assert (left.trials[0], left.gram[0].any(), left.squares[0]) == (0, False, 0.0)
    assert np.array_equal(left.gram[1], state.gram[1])
    assert np.isfinite(policy.prepare(left).mean).all()
