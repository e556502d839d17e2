"""Base prior plus the data of a report: what is believed of each variant's rate."""

from collections.abc import Iterator
from math import isfinite
from typing import Any

import numpy as np

from bandolero.experiment import ExperimentRecord
from bandolero.inference.compare import Comparison, compare_means, compare_rates
from bandolero.policies import BetaState, policy_of
from bandolero.policies.base import Floats, Ints
from bandolero.policies.gaussian_thompson import ROUNDING, mean_and_sd
from bandolero.report.counts import Counts, rate_of

CREDIBILITY = 0.95
AGAINST_CONTROL = ("probability_beat_control", "lift", "lift_lower", "lift_upper")


def compared(record: ExperimentRecord, counts: Counts) -> Comparison:
    """Every variant that is active or has trials against the others, (n_arms,) each.

    nan for a variant that is not compared, and in the columns about control where
    control is not. A retired variant with data is compared: it may have been the best.
    """
    arms = _competing(record, counts)
    if len(arms) == 0:
        return _spread(None, arms, len(counts.trials), has_control=False)
    control = record.spec.control_arm
    has_control = control in arms
    at = int(np.searchsorted(arms, control)) if has_control else 0
    if record.spec.objective.reward == "binary":
        alpha, beta = beta_posterior(record, counts)
        result = compare_rates(alpha[arms], beta[arms], at, CREDIBILITY)
    else:
        mean, sd = mean_posterior(counts)
        result = compare_means(mean[arms], sd[arms], at, CREDIBILITY)
    return _spread(result, arms, len(counts.trials), has_control=has_control)


def told_of(record: ExperimentRecord, counts: Counts) -> Iterator[dict[str, Any]]:
    """What is counted and believed of each variant, by the names of a report's columns.

    None where a number is not known.
    """
    table = compared(record, counts)
    for arm, variant in enumerate(record.spec.variants):
        trials, rewards = int(counts.trials[arm]), float(counts.rewards[arm])
        believed = {name: float(getattr(table, name)[arm]) for name in table._fields}
        yield {
            "variant_id": variant.id,
            "headline": next(iter(variant.creative.values()), ""),
            "status": record.variant_states.get(variant.id, "active"),
            "decisions": int(counts.decisions[arm]),
            "trials": trials,
            "impressions": int(counts.impressions[arm]),
            "rewards": rewards,
            "rate": rate_of(rewards, trials),
            **{name: x if isfinite(x) else None for name, x in believed.items()},
        }


def beta_posterior(record: ExperimentRecord, counts: Counts) -> tuple[Floats, Floats]:
    """Parameters of each rate's posterior, (n_arms,) each.

    The prior is the policy's own; Beta(1, 1) where the policy has none, or a context
    decided the probabilities.
    """
    hits, misses = hits_and_misses(counts)
    if counts.moments is not None:
        return 1.0 + hits, 1.0 + misses
    state = policy_of(record.spec).init(len(hits))
    if isinstance(state, BetaState):
        return state.prior_alpha + hits, state.prior_beta + misses
    return 1.0 + hits, 1.0 + misses


def hits_and_misses(counts: Counts) -> tuple[Floats, Floats]:
    """What trials say of each rate, as hits and misses that count alike, (n_arms,) each.

    Where a context decided the probabilities, data is the weighted mean, worth as many
    trials as its standard error says, and no more than Kish's effective number of trials.
    """
    if counts.moments is None:
        hits = np.clip(counts.rewards, 0.0, counts.trials)
        return hits, counts.trials - hits
    mean, error, trials = _weighted(counts.moments)
    mean = np.clip(mean, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        trials = np.fmin(trials, mean * (1.0 - mean) / error**2)
    hits = np.where(trials > 0.0, trials * np.nan_to_num(mean), 0.0)
    return hits, np.nan_to_num(trials) - hits


def means_and_trials(counts: Counts) -> tuple[Floats, Floats]:
    """Mean rewards, and how many trials they rest on, (n_arms,); nan without trials.

    Where a context decided the probabilities both are weighted: see `hits_and_misses`.
    """
    if counts.moments is not None:
        mean, _, trials = _weighted(counts.moments)
        return mean, trials
    trials = counts.trials.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts.rewards / trials, trials


def mean_posterior(counts: Counts) -> tuple[Floats, Floats]:
    """Mean reward and its standard error, (n_arms,); nan with fewer than 2 trials.

    Where all trials earned the same, the spread is that of all variants together, as it
    is to `gaussian_thompson`: few equal rewards do not make an arm certain, nor do they
    take it out of the comparison. 0 where no two rewards differ.
    """
    mean, error, worth = _estimated(counts)
    sums = counts.trials, counts.rewards, counts.rewards_squared
    _, pooled = mean_and_sd(*(float(of_arms.sum()) for of_arms in sums))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(error > 0.0, error, pooled / np.sqrt(worth))
    few = counts.trials < 2
    return np.where(few, np.nan, mean), np.where(few, np.nan, error)


def without_spread(record: ExperimentRecord, counts: Counts) -> tuple[str, ...]:
    """Variants whose rewards, of two trials or more, are all the same; none of rates."""
    if record.spec.objective.reward == "binary":
        return ()
    _, error, _ = _estimated(counts)
    alike = (counts.trials >= 2) & ~(error > 0.0)
    return tuple(record.spec.variant_ids[arm] for arm in np.flatnonzero(alike))


def _estimated(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """Of each arm from its own trials: mean reward, its error, and their worth."""
    if counts.moments is not None:
        return _weighted(counts.moments)
    n = counts.trials.astype(float)
    sums = zip(n, counts.rewards, counts.rewards_squared, strict=True)
    mean, sd = np.array([mean_and_sd(*of_arm) for of_arm in sums]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean, sd / np.sqrt(n - 1.0), n


def _weighted(moments: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean reward if all requests saw the variant, its standard error, its trials' worth.

    Trials are weighted by w = 1 / propensity (Hajek's ratio estimator): sum w r / sum w,
    its error linearised, and Kish's number of trials (sum w)^2 / sum w^2; (n_arms,) each,
    nan without trials.

    References
    ----------
    Owen (2013), Monte Carlo Theory, Methods and Examples, section 9.2: self-normalised
    importance sampling.
    """
    w, w2, wr, w2r, w2r2 = moments[2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = wr / w
        spread = w2r2 - 2.0 * mean * w2r + mean**2 * w2
        spread = np.where(spread > ROUNDING * mean**2 * w2, spread, 0.0)
        return mean, np.sqrt(spread) / w, np.asarray(w**2 / w2, np.float64)


def _competing(record: ExperimentRecord, counts: Counts) -> Ints:
    """Arms to compare, ascending.

    A rate has a prior, so an active variant without data has a posterior too. A mean
    has none: there it takes two trials, and some spread in the rewards of all.
    """
    if record.spec.objective.reward != "binary":
        _, error = mean_posterior(counts)
        return np.flatnonzero(error > 0.0)
    competes = (counts.trials > 0) | (counts.decisions > 0)
    competes[list(record.active_arms)] = True
    return np.flatnonzero(competes)


def _spread(
    result: Comparison | None, arms: Ints, n_arms: int, *, has_control: bool
) -> Comparison:
    """A comparison of `arms` laid out over all arms, nan elsewhere."""
    columns = {name: np.full(n_arms, np.nan) for name in Comparison._fields}
    for name, column in columns.items():
        if result is not None and (has_control or name not in AGAINST_CONTROL):
            column[arms] = getattr(result, name)
    return Comparison(**columns)
