"""Empirical-Bayes priors: what other experiments say before the first trial.

The prior of a tenant's objective is fitted to all its variants by maximum likelihood; the
prior of a group (an attribute's value, such as tone=urgent) is fitted to the group's and
shrunk to the objective's, the more the less the group's data say. Every prior is also
fitted without each of the experiments, because none may learn its prior from itself.
"""

from collections import ChainMap, Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from bandolero.inference.families import (
    LARGEST,
    BetaFamily,
    Facts,
    Family,
    Floats,
    family_of,
)
from bandolero.prior_book import ALL

MIN_VARIANTS = 20
MIN_HITS = 20
MIN_GROUP = 5
"""A group of fewer variants has the objective's prior."""
MAX_GROUPS = 100
"""So many groups have a prior of their own, those of the most variants first."""
FOLDS = 20
"""Experiments are left out one by one, or in so many parts where there are more."""
STEP = 1e-3
"""Of differences in coordinates: the likelihood's rounding is 1e-9 of it."""

Masks = NDArray[np.bool_]


class History(NamedTuple):
    """Variants of a tenant that were shown, by one objective.

    reward: the kind. experiments: (n_variants,) whose they are. groups: of each variant,
    `attribute=value`. facts: what they earned; trials > 0.
    """

    reward: str
    experiments: Sequence[str]
    groups: Sequence[frozenset[str]]
    facts: Facts


class FittedPrior(NamedTuple):
    """A prior, by the parameters that its policies name.

    without: the same by experiment, for all of the history, as fitted without theirs;
    None where that is too little.
    """

    parameters: dict[str, float]
    n_variants: int
    without: dict[str, dict[str, float] | None]


class _Estimate(NamedTuple):
    """Coordinates (n_coordinates,) and how unsure they are: variances, each alone."""

    at: Floats
    variance: Floats


def fit_priors(history: History) -> dict[str, FittedPrior]:
    """The prior of all variants (`ALL`) and of each group; none where there is too little.

    Too little: fewer than 20 variants that were shown, or than 20 trials that earned
    something; rates of which all are 1. A group needs 5 variants.
    """
    family = family_of(history.reward, history.facts)
    members = _members(history)
    fitted = _tree(family, history.facts, members, {})
    starts = {group: found.at for group, found in fitted.items()}
    priors = {
        group: FittedPrior(_named(family, found.at), int(members[group].sum()), {})
        for group, found in fitted.items()
    }
    for names, rest in _folds(history.experiments):
        others = {group: inside & rest for group, inside in members.items()}
        left = _tree(family, history.facts, others, starts)
        for group, prior in priors.items():
            one = left.get(group, left.get(ALL))
            told = None if one is None else _named(family, one.at)
            prior.without.update(dict.fromkeys(names, told))
    return priors


def fit(family: Family, facts: Facts) -> tuple[float, ...] | None:
    """Parameters of the prior that makes the facts likeliest; None where they are too few.

    Maximum likelihood in the family's coordinates, with the hyperprior that is even in
    (mean, strength ** -0.5). The prior counts as at most as many trials as half of
    the variants had: where they differ no more than chance, nothing else bounds it.

    References
    ----------
    Gelman et al. (2013), Bayesian Data Analysis, section 5.3: model and hyperprior.
    """
    shown = facts.of(facts.trials > 0.0)
    found = _fit(family, shown) if _is_enough(family, shown) else None
    return None if found is None else family.prior(found.at)


def _tree(
    family: Family,
    facts: Facts,
    members: Mapping[str, Masks],
    starts: Mapping[str, Floats],
) -> dict[str, _Estimate]:
    """Estimates of all, and of the groups that are large enough, shrunk to it."""
    everything = facts.of(members[ALL])
    if not _is_enough(family, everything):
        return {}
    parent = _fit(family, everything, starts.get(ALL))
    own: dict[str, dict[str, _Estimate]] = defaultdict(dict)
    for group, inside in members.items():
        if group != ALL and inside.sum() >= MIN_GROUP:
            start = starts.get(group, parent.at)
            attribute = group.partition("=")[0]
            own[attribute][group] = _fit(family, facts.of(inside), start)
    groups = [shrunk(parent, of_attribute) for of_attribute in own.values()]
    return dict(ChainMap({ALL: parent}, *groups))


def shrunk(parent: _Estimate, own: Mapping[str, _Estimate]) -> dict[str, _Estimate]:
    """The groups of an attribute, each coordinate drawn to the parent's.

    By how little its own data say of it (v), against how far the groups differ
    (tau ** 2): (own tau ** 2 + parent v) / (tau ** 2 + v).

    References
    ----------
    DerSimonian and Laird (1986), Meta-analysis in clinical trials: tau, here about a
    centre that is known.
    """
    at = np.array([one.at for one in own.values()])
    variance = np.array([one.variance for one in own.values()])
    weight = 1.0 / variance
    spread = (weight * (at - parent.at) ** 2).sum(axis=0) - len(own)
    tau2 = np.maximum(spread, 0.0) / np.maximum(weight.sum(axis=0), 1e-300)
    share = tau2 * weight / (tau2 * weight + 1.0)
    drawn = parent.at + share * (at - parent.at)
    return {
        group: _Estimate(drawn[i], variance[i] * share[i])
        for i, group in enumerate(own)
    }


def _is_enough(family: Family, facts: Facts) -> bool:
    return not lack(family, facts)


def lack(family: Family, facts: Facts) -> str:
    """What facts of variants that were shown lack for a prior; empty where it is enough."""
    n_variants, hits = len(facts.trials), int(facts.hits.sum())
    if n_variants < MIN_VARIANTS:
        return f"{n_variants} variants with trials, must be >= {MIN_VARIANTS}"
    if hits < MIN_HITS:
        return f"{hits} trials that earned something, must be >= {MIN_HITS}"
    if isinstance(family, BetaFamily) and hits >= facts.trials.sum():
        return "every trial earned, some must not"
    return ""


def _fit(family: Family, facts: Facts, start: Floats | None = None) -> _Estimate:
    begin = family.start(facts) if start is None else start
    most = float(np.log(np.median(facts.trials)))
    bounds = [
        (0.0, max(most, 0.0)) if i in family.strengths else (-LARGEST, LARGEST)
        for i in range(len(begin))
    ]
    low, high = np.array(bounds).T

    def loss(at: Floats) -> float:
        weak = 0.5 * at[list(family.strengths)].sum()
        return float(weak - family.log_likelihood(at, facts).sum())

    found = minimize(
        loss,
        np.clip(begin, low, high),
        method="L-BFGS-B",
        jac="3-point",
        bounds=bounds,
        options={"finite_diff_rel_step": STEP, "ftol": 1e-13, "gtol": 1e-6},
    )
    return _Estimate(found.x, _variances(family, facts, found.x))


def _variances(family: Family, facts: Facts, at: Floats) -> Floats:
    """Inverse curvature of the likelihood along each coordinate; inf where there is none."""
    steps = STEP * np.eye(len(at)) * 10.0
    here = family.log_likelihood(at, facts).sum()
    around = [
        family.log_likelihood(at + step, facts).sum()
        + family.log_likelihood(at - step, facts).sum()
        for step in steps
    ]
    curvature = (2.0 * here - np.array(around)) / (10.0 * STEP) ** 2
    variances: Floats = 1.0 / np.maximum(curvature, 1e-12)
    return variances


def _members(history: History) -> dict[str, Masks]:
    """Which variants are in each group that may have a prior of its own, (n_variants,)."""
    sizes = Counter(group for groups in history.groups for group in groups)
    largest = sorted(sizes, key=lambda group: (-sizes[group], group))[:MAX_GROUPS]
    members = {ALL: np.full(len(history.groups), True)}
    for group in sorted(largest):
        if sizes[group] >= MIN_GROUP:
            members[group] = np.array([group in groups for groups in history.groups])
    return members


def _folds(experiments: Sequence[str]) -> Iterator[tuple[list[str], Masks]]:
    """Parts of the experiments, and the variants of all others, (n_variants,)."""
    names = np.array(sorted(set(experiments)), dtype=object)
    whose = np.array(experiments, dtype=object)
    for part in np.array_split(names, min(FOLDS, len(names))):
        yield part.tolist(), ~np.isin(whose, part)


def _named(family: Family, at: Floats) -> dict[str, float]:
    return dict(zip(family.parameters, family.prior(at), strict=True))
