"""Whether a log can say anything of a target policy: diagnostics, and limits on them.

A weight is the target's probability of the logged variant over its propensity. Where few
trials carry all the weight, or the target shows what the log never did, an estimate is a
number all the same, and a wrong one; beyond the limits here the answer is that there is
not enough support.

References
----------
Kong (1992), A Note on Importance Sampling using Standardized Weights: effective size.
Li et al. (2015), Toward Predicting the Outcome of an A/B Experiment for Search Relevance:
arithmetic-mean tests of logged propensities.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.special import ndtri

from bandolero.evaluate.intervals import Floats, Ints, sums_of
from bandolero.evaluate.trials import Situations, Trials

EFFECTIVE_MIN = 100.0
"""Fewer trials of the target's own know a rate of 10 % to 6 points at best, and are too
few for the bootstrap's approximations."""
LARGEST_SHARE_MAX = 0.05
"""One trial with more of all weight than this moves the value by as much."""
REWARDED_MIN = 10
"""Fewer rewarded trials with weight do not tell a rate from twice that rate."""
UNSEEN_MAX = 0.01
"""What is shown in more of the target's decisions and never was in the log can be worth
anything: the value could be off by this share even if rates are alike."""
THIN_MAX = 1 / 3
"""One variant that is shown in more of the target's decisions is most of its value."""
DUE_MIN = 5.0
"""A variant that would have fewer rewarded trials in the log, at the rate of all, may earn
nothing there by chance, and then no interval tells of it."""
MEAN_OFF_MAX = 0.01
"""Mean weights differ from 1 as much as the value does; by less, it is within the rest."""
FALSE_ALARMS = 1e-4
"""How often chance alone refuses a sound log for a mean that is not 1."""
CALIBRATED_MIN = 30
"""Arms drawn less often have means too skewed to test."""
REWARDS_FEW = 10.0
"""Fewer effective rewards leave the intervals rough: said, not refused."""


class Weights(NamedTuple):
    """What the weights of a log say of its use for a target.

    effective
        Trials of the target's own that the weighted ones are worth: (sum w)^2 / sum w^2,
        where w is a trial's weight, or the sum of a cluster's.
    largest
        The largest weight; largest_share: its part of the sum.
    mean, error
        Mean weight, 1 where all is well, and its standard error.
    rewarded
        Rewarded trials with weight; rewards_effective: (sum w r)^2 / sum (w r)^2.
    """

    effective: float
    largest: float
    largest_share: float
    mean: float
    error: float
    rewarded: int
    rewards_effective: float


class Calibration(NamedTuple):
    """Whether 1 / propensity adds up to 1 a trial: of the arm where it does so least.

    arm is -1, ratio 1 and error 0 where no arm was drawn often enough to say. bound: how
    far off chance leaves the worst of all arms, but for `FALSE_ALARMS`.
    """

    arm: int
    ratio: float
    error: float
    bound: float


class Support(NamedTuple):
    """All diagnostics of a log for a target.

    unseen
        Share of the target's probability mass on arms that the log never showed, or
        could not where they were wanted.
    unseen_by_field
        For each categorical field, the share on arms never shown at the level at hand.
    reasons
        Limits that are broken, a sentence each; no number is given then.

    Notes
    -----
        What is no reason, but good to know.
    """

    weights: Weights
    unseen: float
    unseen_by_field: dict[str, float]
    calibration: Calibration
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


def support_of(trials: Trials, target: Floats, weights: Floats) -> Support:
    """Diagnostics of a target, (n_situations, n_arms), and its weights, (n_trials,)."""
    found = weights_of(weights, trials.rewards, trials.clusters)
    unseen = _unseen(trials, target, np.zeros(len(trials.situations), np.int64))
    by_field = {
        name: _unseen(trials, target, levels)
        for name, levels in trials.situations.levels.items()
    }
    calibration = calibration_of(trials)
    reasons = _weight_reasons(found)
    reasons += _unseen_reasons(unseen, by_field) + _thin_reasons(trials, target)
    reasons += _calibration_reasons(calibration, trials.situations)
    reasons += _contradiction_reasons(trials)
    notes = []
    if found.rewards_effective < REWARDS_FEW:
        few = f"{found.rewards_effective:.1f} effective rewards"
        notes.append(f"the value rests on {few}: intervals are rough.")
    return Support(found, unseen, by_field, calibration, reasons, tuple(notes))


def weights_of(weights: Floats, rewards: Floats, clusters: Ints | None) -> Weights:
    """Diagnostics of weights and rewards, (n_trials,); clusters as in `groups_of`."""
    n, total = max(len(weights), 1), float(weights.sum())
    largest = float(weights.max(initial=0.0))
    earned = weights * rewards
    mean = total / n
    return Weights(
        effective=_effective(sums_of(weights, clusters)),
        largest=largest,
        largest_share=largest / total if total > 0.0 else 1.0,
        mean=mean,
        error=float(np.linalg.norm(sums_of(weights - mean, clusters))) / n,
        rewarded=int(np.count_nonzero(earned)),
        rewards_effective=_effective(sums_of(earned, clusters)),
    )


def _weight_reasons(found: Weights) -> tuple[str, ...]:
    """Which limits weights break, a sentence each; none where they support the target."""
    reasons = []
    if found.effective < EFFECTIVE_MIN:
        rule = f"must be >= {EFFECTIVE_MIN:g}"
        reasons.append(
            f"effective trials of the target == {found.effective:.1f}, {rule}."
        )
    if found.largest_share > LARGEST_SHARE_MAX:
        rule = f"must be <= {LARGEST_SHARE_MAX:.0%}"
        share = f"{found.largest_share:.1%}"
        reasons.append(f"one trial has {share} of the weight of the target, {rule}.")
    if found.rewarded < REWARDED_MIN:
        rule = f"must be >= {REWARDED_MIN}"
        reasons.append(f"rewarded trials of the target == {found.rewarded}, {rule}.")
    off = abs(found.mean - 1.0)
    if off > max(MEAN_OFF_MAX, _chance(1) * found.error):
        rule = "must be 1 but for chance: propensities are wrong, or variants missing"
        reasons.append(f"mean weight of the target == {found.mean:.4f}, {rule}.")
    return tuple(reasons)


def calibration_of(trials: Trials) -> Calibration:
    """How far 1 / propensity is from 1 a trial, of the arm where it is most surely off.

    Over an arm's trials, 1 / propensity adds up to the number of those where it could
    have been drawn, but for chance.
    """
    n_arms = trials.situations.n_arms
    known = trials.arms >= 0
    arms, group = trials.arms[known], trials.group[known]
    shape = int(trials.group.max(initial=0)) + 1, n_arms
    earned = np.bincount(
        group * n_arms + arms,
        1.0 / trials.propensities[known],
        minlength=np.prod(shape),
    ).reshape(shape)
    due = _possible_by_group(trials, shape[0])
    total = due.sum(axis=0)
    tested = (np.bincount(arms, minlength=n_arms) >= CALIBRATED_MIN) & (total > 0.0)
    if not tested.any():
        return Calibration(-1, 1.0, 0.0, 0.0)
    at = np.flatnonzero(tested)
    ratios = earned.sum(axis=0)[at] / total[at]
    errors = np.linalg.norm((earned - due)[:, at], axis=0) / total[at]
    worst = int(np.argmax(np.abs(ratios - 1.0) / np.maximum(errors, 1e-300)))
    error = float(errors[worst])
    bound = _chance(len(at)) * error
    return Calibration(int(at[worst]), float(ratios[worst]), error, bound)


def _possible_by_group(trials: Trials, n_groups: int) -> Floats:
    """In how many trials of a group each arm could be drawn, (n_groups, n_arms)."""
    possible = trials.situations.possible
    if possible.all():
        sizes = np.bincount(trials.group, minlength=n_groups)
        return np.repeat(sizes[:, None].astype(np.float64), possible.shape[1], axis=1)
    ones = np.ones(len(trials))
    counts = coo_array(
        (ones, (trials.group, trials.situation)), (n_groups, len(possible))
    )
    return np.asarray(counts.tocsr() @ possible.astype(np.float64))


def _unseen(trials: Trials, target: Floats, level: Ints) -> float:
    """Share of a target's mass on arms never shown at a level, or not to be had there."""
    situations: Situations = trials.situations
    shape = int(level.max(initial=0)) + 1, situations.n_arms
    known = trials.arms >= 0
    at = level[trials.situation[known]] * shape[1] + trials.arms[known]
    shown = np.bincount(at, minlength=shape[0] * shape[1]).reshape(shape) > 0
    missing = target * ~(shown[level] & situations.possible)
    return float(trials.per_situation @ missing.sum(axis=1)) / max(len(trials), 1)


def _unseen_reasons(unseen: float, by_field: dict[str, float]) -> tuple[str, ...]:
    rule = f"must be <= {UNSEEN_MAX:.0%}"
    reasons = []
    if unseen > UNSEEN_MAX:
        what = "on variants that the log did not show"
        reasons.append(f"the target has {unseen:.1%} of its mass {what}, {rule}.")
    for name, share in by_field.items():
        if share > max(UNSEEN_MAX, unseen):
            what = f"on variants not shown at that level of {name}"
            reasons.append(f"the target has {share:.1%} of its mass {what}, {rule}.")
    return tuple(reasons)


def _thin_reasons(trials: Trials, target: Floats) -> tuple[str, ...]:
    """Whether much of the target is on one variant that the log says too little of."""
    n = max(len(trials), 1)
    mass = trials.per_situation @ target / n
    shown = np.bincount(trials.arms[trials.arms >= 0], minlength=len(mass))
    due = shown * np.count_nonzero(trials.rewards) / n
    thin = np.where((due < DUE_MIN) & (shown > 0), mass, 0.0)
    worst = int(np.argmax(thin))
    if thin[worst] <= THIN_MAX:
        return ()
    what = f"on one that was shown {shown[worst]:,} times, {due[worst]:.1f} rewards due"
    rule = f"must be >= {DUE_MIN:g} above {THIN_MAX:.0%} of mass"
    return (f"the target has {thin[worst]:.1%} of its mass {what}, {rule}.",)


def _calibration_reasons(found: Calibration, situations: Situations) -> tuple[str, ...]:
    if abs(found.ratio - 1.0) <= max(MEAN_OFF_MAX, found.bound):
        return ()
    name = situations.name_of(found.arm)
    what = f"1 / propensity of {name} adds up to {found.ratio:.3f} a trial"
    cause = "logged propensities are wrong, or it could not be drawn in all of them"
    return (f"{what}, must be 1 but for chance: {cause}.",)


def _contradiction_reasons(trials: Trials) -> tuple[str, ...]:
    """Whether trials show what they say they could not."""
    situations = trials.situations
    if situations.possible.all():
        return ()
    could = situations.possible[trials.situation, trials.arms] | (trials.arms < 0)
    share = 1.0 - float(could.mean())
    if share <= UNSEEN_MAX:
        return ()
    name = situations.name_of(int(trials.arms[np.argmin(could)]))
    what = f"{share:.1%} of trials show a variant that could not be drawn there"
    return (f"{what}, as {name}, must be <= {UNSEEN_MAX:.0%}.",)


def _chance(n_tests: int) -> float:
    """Standard errors that chance exceeds in one of so many tests at `FALSE_ALARMS`."""
    return -float(ndtri(0.5 * FALSE_ALARMS / max(n_tests, 1)))


def _effective(weights: Floats) -> float:
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0.0 else 0.0
