"""Gates of priors: each by hand, and how often an equally good prior is blocked."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import betaln

from bandolero.inference.families import BetaFamily, Facts, rates
from bandolero.inference.priors import fit
from bandolero.lake.gates import (
    FIRST_TRIALS,
    MIN_EXPERIMENTS,
    Finding,
    Replay,
    drift,
    first_value,
    log_score,
    sample_ratios,
)
from bandolero.lake.stages import Stages, stages_of
from bandolero.policies import BetaThompson
from bandolero.policies.base import Floats, Ints

BETA = BetaFamily()
OLD = (12.0, 388.0)


def blocked(findings: list[Finding]) -> int:
    """How many block."""
    return sum(finding.blocks for finding in findings)


# --- log score --------------------------------------------------------------------------------


def test_log_score_by_hand() -> None:
    """Five experiments, 1 hit in 10 each: log of B(3, 17) / B(2, 8) against B(2, 10) / B(1, 1)."""
    names = [f"x{i}" for i in range(5)]
    facts = rates(np.full(5, 1), np.full(5, 10))
    finding = log_score(
        BETA, facts, names, (1.0, 1.0), dict.fromkeys(names, (2.0, 8.0))
    )
    better = betaln(3, 17) - betaln(2, 8) - betaln(2, 10) + betaln(1, 1)
    assert better > 0.0
    assert not finding.blocks
    assert f"{better:+.4f} a variant (noise 0.0000" in finding.message


def test_log_score_blocks_what_foretells_worse_beyond_noise() -> None:
    """A prior of rates of 30 % for variants of 3 % is blocked; of four experiments none is."""
    rng = np.random.default_rng(1)
    names = [f"x{i}" for i in range(8)]
    facts = rates(rng.binomial(1000, 0.03, 8), np.full(8, 1000))
    wrong = dict.fromkeys(names, (120.0, 280.0))
    assert log_score(BETA, facts, names, OLD, wrong).blocks
    few = dict.fromkeys(names[: MIN_EXPERIMENTS - 1], (120.0, 280.0))
    assert not log_score(BETA, facts, names, OLD, few).blocks


def test_one_large_experiment_does_not_outvote_the_others() -> None:
    """A prior that fits the 300 variants of one experiment, and not the 20 others', is blocked."""
    rng = np.random.default_rng(2)
    names = ["odd"] * 300 + [f"x{i}" for i in range(20)]
    rate = np.where(np.array(names) == "odd", 0.5, 0.03)
    facts = rates(rng.binomial(1000, rate), np.full(320, 1000))
    swayed = dict.fromkeys(names, (50.0, 50.0)) | {"odd": OLD}
    assert log_score(BETA, facts, names, OLD, swayed).blocks


def leave_one_out(facts: Facts, names: list[str]) -> dict[str, Any]:
    """A fit without each experiment."""
    whose = np.array(names)
    return {name: fit(BETA, facts.of(whose != name)) for name in set(names)}


def test_an_equally_good_prior_keeps_its_score() -> None:
    """Of ten nights on which old and new are fits to nearly the same data none is blocked.

    Of 200 tried none was either; about a third would have been without the slack, for
    the old prior has seen the experiments it is judged by.
    """
    n, names = 60, [f"x{i // 4:02d}" for i in range(60)]
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        facts = rates(rng.binomial(1000, rng.beta(*OLD, n)), np.full(n, 1000))
        old = fit(BETA, facts.of(np.arange(n) < 52))
        assert old is not None
        found.append(log_score(BETA, facts, names, old, leave_one_out(facts, names)))
    assert blocked(found) == 0


# --- first value ------------------------------------------------------------------------------


def stages(rows: list[dict[str, Any]]) -> Stages:
    """Rows of (variant, stage, propensity, rewards) as stages of two variants."""
    table = pa.Table.from_pylist([_row(**row) for row in rows])
    return stages_of(table, ["v1", "v2"])


def _row(variant: str, stage: int, e: float, rewards: list[float]) -> dict[str, Any]:
    r, w = np.array(rewards), 1.0 / e
    return {
        "variant_id": variant,
        "stage": stage,
        "decisions": len(r),
        "trials": len(r),
        "hits": int((r > 0).sum()),
        "rewards_micros": int(r.sum() * 1e6),
        "rewards_squared": float((r**2).sum()),
        "weights": len(r) * w,
        "weights_squared": len(r) * w**2,
        "weighted_rewards": w * float(r.sum()),
        "squared_weighted_rewards": w**2 * float(r.sum()),
        "squared_weighted_squares": w**2 * float((r**2).sum()),
    }


def test_first_value_is_the_difference_of_the_rows() -> None:
    """From sums comes the mean of (w_new - w_old) (r - mean r) over the rows themselves."""
    rng = np.random.default_rng(3)
    made = {
        (v, s): (rng.random(900) < p).astype(float)
        for v, p in (("v1", 0.1), ("v2", 0.3))
        for s in (0, 1)
    }
    rows = stages([{"variant": v, "stage": s, "e": 0.5, "rewards": r.tolist()} for (v, s), r in made.items()])  # fmt: skip
    new = BetaThompson(arm_priors=((90.0, 10.0), (10.0, 90.0)))
    old = BetaThompson()
    finding = first_value([Replay(rows, new, old)])
    chosen: dict[Any, list[Floats]] = {new: [], old: []}
    for (v, s), r in made.items():
        for policy, columns in chosen.items():
            past = policy.init(2)
            for (w, t), earned in made.items():
                if t < s:
                    arm = np.full(len(earned), int(w == "v2"))
                    past = policy.update(past, arm, earned)
            is_best = past.mean >= past.mean.max()
            p = (is_best / is_best.sum())[int(v == "v2")]
            columns.append(np.full(len(r), p))
    rewards = np.concatenate(list(made.values()))
    new_p, old_p = (np.concatenate(columns) for columns in chosen.values())
    w_new, w_old, residual = new_p / 0.5, old_p / 0.5, rewards - rewards.mean()
    gain = ((w_new - w_old) * residual).mean()
    assert f"earn {gain:+.3g} each" in finding.message
    value = rewards.mean() + (w_old * residual).mean()
    assert f"to {value:.3g}" in finding.message


def replay_of(rng: np.random.Generator, new: BetaThompson, old: BetaThompson) -> Replay:
    """A uniform log of two variants of 2 % and 6 %, ten stages."""
    rows = [
        {
            "variant": v,
            "stage": s,
            "e": 0.5,
            "rewards": (rng.random(40 * 2 ** min(s, 4)) < p).astype(float).tolist(),
        }
        for s in range(8)
        for v, p in (("v1", 0.02), ("v2", 0.06))
    ]
    return Replay(stages(rows), new, old)


def test_first_value_blocks_a_prior_that_shows_the_worse() -> None:
    """A prior sure of the worse variant loses a third of the clicks: blocked; its reverse not."""
    rng = np.random.default_rng(4)
    wrong = BetaThompson(arm_priors=((900.0, 9100.0), (100.0, 9900.0)))
    replays = [replay_of(rng, wrong, BetaThompson()) for _ in range(5)]
    assert first_value(replays).blocks
    back = [one._replace(new=one.old, old=one.new) for one in replays]
    assert not first_value(back).blocks
    assert not first_value([]).blocks


def test_an_equally_good_prior_keeps_its_value() -> None:
    """Of 40 nights with a prior a tenth stronger or weaker none is blocked."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        strength = rng.uniform(0.9, 1.1)
        new = BetaThompson(12.0 * strength, 388.0 * strength)
        found.append(first_value([replay_of(rng, new, BetaThompson(*OLD))]))
    assert blocked(found) == 0


def test_first_value_lets_the_true_prior_pass() -> None:
    """Of 24 nights of uniform logs none keeps the prior that rates are drawn from back,
    though who knows it explores more than who thinks that anything may be: a log does not
    show what exploring is worth."""
    true, flat = BetaThompson(20.0, 480.0), BetaThompson()
    found = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        logs = [stages_of_ten(rng, rng.beta(20, 480, 10)) for _ in range(20)]
        found.append(first_value([Replay(log, true, flat) for log in logs]))
    assert blocked(found) == 0


def stages_of_ten(rng: np.random.Generator, rates: Floats) -> Stages:
    """A uniform log of ten variants, twelve stages that double."""
    n = 4.0 * 2.0 ** np.arange(12)[:, None] * np.ones(10)
    hits, w = rng.binomial(n.astype(np.int64), rates).astype(float), 10.0
    moments = n * w, n * w**2, hits * w, hits * w**2, hits * w**2
    return Stages(n, n, hits, 1e6 * hits, hits, *moments)


def test_only_first_decisions_are_judged() -> None:
    """Stages that begin after a thousand trials a variant are left out."""
    rows = [
        {"variant": v, "stage": s, "e": 0.5, "rewards": [0.0, 1.0] * FIRST_TRIALS}
        for s in range(3)
        for v in ("v1", "v2")
    ]
    wrong = BetaThompson(arm_priors=((9e5, 1e5), (1e5, 9e5)))
    some, all_ = (
        first_value([Replay(stages(r), wrong, BetaThompson())])
        for r in (rows[:2], rows)
    )
    assert some.message == all_.message


# --- sample ratio -----------------------------------------------------------------------------


def test_sample_ratio_by_hand() -> None:
    """Of ten experiments one of p = 9e-5 is below 0.001 after all, one of 2e-4 is not."""
    others = {f"x{i}": 0.5 for i in range(9)}
    assert sample_ratios(others | {"odd": 9e-5}).blocks
    assert "least of odd" in sample_ratios(others | {"odd": 9e-5}).message
    assert not sample_ratios(others | {"odd": 2e-4}).blocks
    assert not sample_ratios({}).blocks


def test_healthy_splits_are_blocked_once_in_a_thousand_nights() -> None:
    """Of 2,000 nights of thirty uniform p-values two are expected to be blocked: at most eight."""
    rng = np.random.default_rng(5)
    nights = rng.random((2000, 30))
    found = [sample_ratios({str(i): p for i, p in enumerate(n)}) for n in nights]
    assert blocked(found) <= 8


# --- drift ------------------------------------------------------------------------------------


def days_of(
    rng: np.random.Generator, last: float = 1.0, n_days: int = 12
) -> tuple[Ints, Ints, Facts]:
    """Thirty variants a day; days differ by a tenth, and the newest by a factor more."""
    p = rng.beta(*OLD, 30)
    season = np.exp(0.1 * rng.standard_normal(n_days))
    season[-1] *= last
    days, variants = (a.ravel() for a in np.mgrid[0:n_days, 0:30])
    hits = rng.binomial(400, p[variants] * season[days])
    return days, variants, rates(hits, np.full(len(hits), 400))


def test_drift_by_hand() -> None:
    """Ten days of 40 and 60 hits by turns, then one of 5: an eleventh as many, blocked."""
    days = np.arange(11)
    hits = np.array([40, 60] * 5 + [25])
    facts = rates(hits, np.full(11, 1000))
    finding = drift(days, np.zeros(11, np.int64), facts, 11)
    assert not finding.blocks
    few = rates(np.array([40, 60] * 5 + [21]), np.array([1000] * 10 + [9000]))
    assert drift(days, np.zeros(11, np.int64), few, 11).blocks
    assert not drift(
        days[:4], np.zeros(4, np.int64), rates(hits[:4], hits[:4] * 20), 3
    ).blocks


def test_a_day_without_any_hit_is_drift() -> None:
    """Where fifty hits are foretold and none comes the clicks are lost: that is blocked."""
    facts = rates(np.array([50] * 10 + [0]), np.full(11, 1000))
    assert drift(np.arange(11), np.zeros(11, np.int64), facts, 11).blocks
    few = rates(np.array([50] * 10 + [0]), np.array([1000] * 10 + [200]))
    assert not drift(np.arange(11), np.zeros(11, np.int64), few, 11).blocks
    none = rates(np.zeros(11, np.int64), np.full(11, 1000))
    assert not drift(np.arange(11), np.zeros(11, np.int64), none, 11).blocks


def test_new_variants_are_no_drift() -> None:
    """What was first shown on the newest days has nothing to differ from."""
    days = np.append(np.repeat(np.arange(8), 1), 9)
    variants = np.append(np.zeros(8, np.int64), 1)
    facts = rates(np.array([50] * 8 + [500]), np.full(9, 1000))
    assert not drift(days, variants, facts, 9).blocks


@pytest.mark.parametrize(("last", "low", "high"), [(1.0, 0, 5), (0.3, 180, 200)])
def test_drift_is_told_from_a_season(last: float, low: int, high: int) -> None:
    """Of 200 nights whose days differ by a tenth at most five are blocked; of those on
    which two thirds of the clicks are lost nearly all are."""
    found = []
    for seed in range(200):
        days, variants, facts = days_of(np.random.default_rng(seed), last)
        found.append(drift(days, variants, facts, 11))
    assert low <= blocked(found) <= high
