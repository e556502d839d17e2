"""Gates: what keeps a refreshed prior from being published.

A gate blocks where its evidence is beyond noise, and passes where there is too little to
say. What is compared is the refreshed prior, fitted without the experiment it is judged
by, with the one in force; an equally good one is blocked in few of a hundred nights at
most (tests say how few).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from bandolero.inference.families import Facts, Family
from bandolero.inference.sample_ratio import P_VALUE_MIN
from bandolero.lake.stages import MOMENTS, Stages
from bandolero.policies import Policy
from bandolero.policies.base import Floats, Ints, take
from bandolero.policies.greedy import highest

MIN_EXPERIMENTS = 5
"""Fewer experiments say nothing of how priors score on others."""
ONE_SIDED = 1.645
TWO_SIDED = 1.96
OPTIMISM_NATS = 2.0
"""Log score, in all, that a prior gains a parameter by being judged on what it was fitted
to: half in expectation on either side, and as much again for its spread."""
VALUE_LOSS_MAX = 0.01
FIRST_TRIALS = 1000
"""Trials a variant that are taken for an experiment's first."""
NEWEST_DAYS = 2
"""Days that drift is looked for in: the last whole one and what there is of the next."""
MIN_DAYS = 5
MIN_DAY_HITS = 20
DRIFT_P_MIN = 0.001


LOG_SCORE, FIRST_VALUE = "log score", "first value"
SAMPLE_RATIO, DRIFT = "sample ratio", "drift"


class Finding(NamedTuple):
    """What a gate found: whether it blocks, and why, or why not, in words."""

    gate: str
    blocks: bool
    message: str


class Replay(NamedTuple):
    """An experiment as logged, and its policy with the refreshed prior and the old one."""

    stages: Stages
    new: Policy[Any]
    old: Policy[Any]


def log_score(
    family: Family,
    facts: Facts,
    experiments: Sequence[str],
    old: tuple[float, ...],
    new: Mapping[str, tuple[float, ...]],
) -> Finding:
    """Whether the refreshed prior foretells variants worse than the one in force.

    Score: log likelihood of a variant's facts under the prior alone, averaged by
    experiment, so that one of many variants does not outvote the others. Blocks where
    the mean difference is below zero by more than its 95 % noise and `OPTIMISM_NATS`.

    Parameters
    ----------
    facts, experiments
        (n_variants,), and whose they are.
    new
        By experiment, the refreshed prior as fitted without it; others are left out.
    """
    whose = np.array(experiments, dtype=object)
    inside = [whose == name for name in new]
    differences = [
        _log_likelihood(family, prior, facts.of(mine))
        - _log_likelihood(family, old, facts.of(mine))
        for prior, mine in zip(new.values(), inside, strict=True)
        if mine.any()
    ]
    if len(differences) < MIN_EXPERIMENTS:
        return Finding(LOG_SCORE, False, f"{len(differences)} experiments are too few.")
    means = np.array([d.mean() for d in differences])
    noise = ONE_SIDED * means.std(ddof=1) / np.sqrt(len(means))
    slack = OPTIMISM_NATS * len(family.parameters) / sum(map(len, differences))
    message = (
        f"held-out log score {means.mean():+.4f} a variant (noise {noise:.4f},"
        f" slack {slack:.4f}), over {len(means)} experiments."
    )
    return Finding(LOG_SCORE, bool(means.mean() + noise + slack < 0.0), message)


def first_value(replays: Sequence[Replay]) -> Finding:
    """Whether the refreshed prior would have named worse variants than the old one at first.

    At each stage both have learned what was logged before it, and show the variant of the
    highest posterior mean: what exploring is worth cannot be seen in a log, for what is
    logged is learned whatever would have been shown. What they differ by is judged on what
    the stage's decisions earned: from sums, the mean of (w_new - w_old) (r - mean r), doubly
    robust with the mean reward for a model. Blocks where the upper bound of its 95 %
    interval is a loss of more than 1 %.

    References
    ----------
    Dudík, Langford & Li (2011), Doubly Robust Policy Evaluation and Learning.
    """
    found = np.sum([_gains(replay) for replay in replays], axis=0)
    if not replays or found[0] <= 0.0:
        return Finding(FIRST_VALUE, False, "no experiment to judge it by.")
    n, gain, squares, old = found
    mean, value = gain / n, old / n
    high = mean + TWO_SIDED * np.sqrt(max(squares / n - mean**2, 0.0) / n)
    message = (
        f"first decisions earn {mean:+.3g} each, {high:+.3g} at most, to {value:.3g},"
        f" over {len(replays)} experiments."
    )
    return Finding(FIRST_VALUE, bool(high < -VALUE_LOSS_MAX * abs(value)), message)


def sample_ratios(p_values: Mapping[str, float]) -> Finding:
    """Whether decisions of an experiment split otherwise than they were drawn.

    From the p-value of each experiment's check (`inference.sample_ratio`). Blocks where
    the smallest, times their number, is below 0.001.
    """
    if not p_values:
        return Finding(SAMPLE_RATIO, False, "no experiment could be tested.")
    worst = min(p_values, key=lambda name: p_values[name])
    p_value = min(1.0, p_values[worst] * len(p_values))
    message = f"p = {p_value:.2g} over {len(p_values)} experiments, least of {worst}."
    return Finding(SAMPLE_RATIO, p_value < P_VALUE_MIN, message)


def drift(days: Ints, variants: Ints, facts: Facts, last_day: int) -> Finding:
    """Whether variants earned otherwise in the last days than in those before.

    Day by day, what was earned over what the variants' rates in the days before
    `NEWEST_DAYS` foretell, so that it does not matter which were shown. Blocks where
    the newest days lie outside what the earlier ones vary by (a t-quantile at 0.001).
    A change that lasts is told once, and is history some nights later.

    Parameters
    ----------
    days, variants, facts
        (n_rows,), one of each variant and day; variants as numbers from 0.
    """
    newest = days > last_day - NEWEST_DAYS
    n, earned = (
        np.bincount(variants, np.where(newest, 0.0, column))
        for column in (facts.trials, facts.rewards)
    )
    rate = np.divide(earned, n, out=np.zeros(len(n)), where=n > 0.0)
    foretold = rate[variants] * facts.trials
    known = foretold > 0.0
    total = facts.rewards[known].sum()
    if total <= 0.0:
        return _judge_drift(np.empty((0, 2)), np.empty((0, 2)))
    hit = np.array(
        [total / facts.hits[known].sum(), facts.squares[known].sum() / total]
    )
    before, after = (
        _daily_ratios(days[rows], facts.rewards[rows], foretold[rows], hit)
        for rows in (known & ~newest, known & newest)
    )
    return _judge_drift(before, after)


def _judge_drift(before: Floats, after: Floats) -> Finding:
    """Both (n_days, 2): log ratio of earned to foretold, and its sampling variance."""
    if len(before) < MIN_DAYS or not len(after):
        return Finding(DRIFT, False, f"{len(before)} days are too few.")
    centre, n = before[:, 0].mean(), len(before)
    between = max(before[:, 0].var(ddof=1) - before[:, 1].mean(), 0.0)
    spread = np.sqrt(between * (1.0 + 1.0 / n) + after[:, 1] + before[:, 1].mean() / n)
    z = (after[:, 0] - centre) / spread
    p_value = min(1.0, float(2.0 * student.sf(np.abs(z).max(), n - 1)) * len(z))
    changed = np.exp(after[np.abs(z).argmax(), 0] - centre) - 1.0
    message = (
        f"the newest days earn {changed:+.1%} of what was foretold, p = {p_value:.2g}."
    )
    return Finding(DRIFT, p_value < DRIFT_P_MIN, message)


def _daily_ratios(days: Ints, earned: Floats, foretold: Floats, hit: Floats) -> Floats:
    """By day: log of earned over foretold, and its variance if that is true, (n_days, 2).

    Of the days on which enough hits are foretold, however many came: a day without any is
    what must show. hit: mean of a hit's reward, and mean square over mean.
    """
    shown, day = np.unique(days, return_inverse=True)
    came, expected = (np.bincount(day, x, len(shown)) for x in (earned, foretold))
    enough = expected >= MIN_DAY_HITS * hit[0]
    came, expected = np.maximum(came[enough], 0.0), expected[enough]
    half = 0.5 * hit[0]
    ratios = np.log((came + half) / (expected + half))
    return np.stack([ratios, hit[1] / expected], axis=1)


def _log_likelihood(family: Family, prior: tuple[float, ...], facts: Facts) -> Floats:
    return family.log_likelihood(family.coordinates(prior), facts)


def _gains(replay: Replay) -> Floats:
    """Sums over an experiment's first decisions: their number, gains, squares, old values."""
    stages = replay.stages
    n_arms = stages.trials.shape[1]
    before = np.cumsum(stages.trials.sum(axis=1)) - stages.trials.sum(axis=1)
    first = int(np.searchsorted(before, FIRST_TRIALS * n_arms))
    mean = stages.rewards_micros[:first].sum() / 1e6 / stages.trials[:first].sum()
    total = np.zeros(4)
    for i in range(first):
        new, old = (_shares(policy, stages, i) for policy in (replay.new, replay.old))
        apart = new - old
        w, w2, wr, w2r, w2r2 = (getattr(stages, name)[i] for name in MOMENTS)
        total += (
            stages.trials[i].sum(),
            apart @ (wr - mean * w),
            apart**2 @ (w2r2 - 2.0 * mean * w2r + mean**2 * w2),
            old @ (wr - mean * w) + mean * stages.trials[i].sum(),
        )
    return total


def _shares(policy: Policy[Any], stages: Stages, i: int) -> Floats:
    """What a policy thinks best at a stage of the variants shown there, (n_arms,)."""
    past = Stages(*(column[:i].sum(axis=0) for column in stages))
    data = policy.correction(
        len(past.trials),
        past.trials.astype(np.int64),
        past.hits.astype(np.int64),
        past.rewards_micros.astype(np.int64),
        past.rewards_squared,
    )
    shown = np.flatnonzero(stages.decisions[i])
    shares = np.zeros(len(past.trials))
    shares[shown] = highest(take(data, shown).mean)
    return shares
