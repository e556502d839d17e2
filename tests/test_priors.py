"""Priors from history: what is fitted, what groups take from their parent, what is left out."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.special import gammaln
from scipy.stats import beta as beta_law
from scipy.stats import gamma as gamma_law

from bandolero.inference.families import (
    BetaFamily,
    Facts,
    Family,
    GammaFamily,
    GaussianFamily,
    family_of,
    rates,
)
from bandolero.inference.priors import (
    FOLDS,
    MIN_GROUP,
    MIN_VARIANTS,
    History,
    fit,
    fit_priors,
)
from bandolero.prior_book import ALL

NORMAL = GaussianFamily(unit=2.0)
PRIORS: list[tuple[Family, tuple[float, ...]]] = [
    (BetaFamily(), (2.0, 98.0)),
    (GammaFamily(), (3.0, 20.0)),
    (NORMAL, (5.0, 2.0, 30.0, 20.0)),
]


def history(
    hits: Any, trials: Any, tones: list[str], per_experiment: int = 5
) -> History:
    """Clicks of variants, each of a tone, so many an experiment."""
    names = [f"x{i // per_experiment:03d}" for i in range(len(tones))]
    groups = [frozenset({f"tone={tone}"}) for tone in tones]
    return History("binary", names, groups, rates(np.array(hits), np.array(trials)))


def drawn(seed: int, tones: list[str], n: int = 2000) -> History:
    """Of rates about 3 % for calm variants and 5 % for urgent ones."""
    rng = np.random.default_rng(seed)
    mean = np.array([0.05 if tone == "urgent" else 0.03 for tone in tones])
    hits = rng.binomial(n, rng.beta(400 * mean, 400 * (1 - mean)))
    return history(hits, np.full(len(tones), n), tones)


# --- families ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "parameters"), PRIORS)
def test_coordinates_lead_back(family: Family, parameters: tuple[float, ...]) -> None:
    """A prior's coordinates are those of its parameters."""
    again = family.prior(family.coordinates(parameters))
    assert_allclose(again, parameters, rtol=1e-12)
    assert len(family.parameters) == len(parameters)


def test_beta_likelihood_is_the_integral_over_rates() -> None:
    """Of 3 hits in 10 trials under Beta(2, 8): the prior's mean of p^3 (1 - p)^7."""
    got = BetaFamily().log_likelihood(
        BetaFamily().coordinates((2.0, 8.0)), rates(np.array([3]), np.array([10]))
    )
    law = beta_law(2.0, 8.0)
    exact, _ = quad(lambda p: law.pdf(p) * p**3 * (1 - p) ** 7, 0.0, 1.0)
    assert got[0] == pytest.approx(np.log(exact), rel=1e-9)


def test_gamma_likelihood_is_the_integral_over_means() -> None:
    """Of 7 counted in 10 trials under Gamma(3, 5): the prior's mean of m^7 exp(-10 m)."""
    facts = Facts(*(np.array([x]) for x in (10.0, 5.0, 7.0, 9.0)))
    got = GammaFamily().log_likelihood(GammaFamily().coordinates((3.0, 5.0)), facts)
    law = gamma_law(3.0, scale=0.2)
    exact, _ = quad(lambda m: law.pdf(m) * m**7 * np.exp(-10 * m), 0.0, 20.0)
    assert got[0] == pytest.approx(np.log(exact), rel=1e-9)


def test_gaussian_likelihood_is_that_of_one_value_after_another() -> None:
    """Of values 4 and 7: Student-t of the first, then of the second given the first."""
    prior = (5.0, 2.0, 3.0, 6.0)
    facts = Facts(*(np.array([x]) for x in (2.0, 2.0, 11.0, 65.0)))
    got = NORMAL.log_likelihood(NORMAL.coordinates(prior), facts)
    total, (mean, sd, trials, dof) = 0.0, prior
    for value in (4.0, 7.0):
        scale = sd * np.sqrt(1.0 + 1.0 / trials)
        z = (value - mean) / scale
        total += float(
            gammaln((dof + 1) / 2)
            - gammaln(dof / 2)
            - 0.5 * np.log(dof)
            - np.log(scale)
            - (dof + 1) / 2 * np.log1p(z**2 / dof)
        )
        spread = dof * sd**2 + trials / (trials + 1) * (value - mean) ** 2
        mean, dof = (trials * mean + value) / (trials + 1), dof + 1
        trials, sd = trials + 1, np.sqrt(spread / dof)
    assert got[0] == pytest.approx(total, rel=1e-9)


# --- one prior --------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 98.0), (20.0, 380.0), (5.0, 5.0)])
def test_prior_of_rates_is_recovered(alpha: float, beta: float) -> None:
    """From 2,000 variants of 2,000 trials comes the prior their rates were drawn from.

    Within 15 %, about five standard errors of the strength; no false alarm with this seed.
    """
    rng = np.random.default_rng(11)
    trials = np.full(2000, 2000)
    hits = rng.binomial(trials, rng.beta(alpha, beta, 2000))
    found = fit(BetaFamily(), rates(hits, trials))
    assert found == pytest.approx((alpha, beta), rel=0.15)


def test_prior_of_counts_is_recovered() -> None:
    """The same of counts; within 15 %, about five standard errors, with this seed."""
    rng = np.random.default_rng(12)
    trials = np.full(2000, 500.0)
    counted = rng.poisson(trials * rng.gamma(3.0, 1 / 20, 2000)).astype(float)
    found = fit(GammaFamily(), Facts(trials, counted, counted, counted))
    assert found == pytest.approx((3.0, 20.0), rel=0.15)


def test_prior_of_values_is_recovered() -> None:
    """The same of values: mean and deviation within 2 %, their weights within a third."""
    mean, sd, trials, dof = 5.0, 2.0, 30.0, 20.0
    rng = np.random.default_rng(13)
    scale = sd * np.sqrt(dof / rng.chisquare(dof, 400))
    middle = mean + scale / np.sqrt(trials) * rng.standard_normal(400)
    values = middle[:, None] + scale[:, None] * rng.standard_normal((400, 200))
    n = np.full(400, 200.0)
    facts = Facts(n, n, values.sum(axis=1), (values**2).sum(axis=1))
    found = fit(family_of("value", facts), facts)
    assert found is not None
    assert found[:2] == pytest.approx((mean, sd), rel=0.02)
    assert found[2:] == pytest.approx((trials, dof), rel=0.33)


@pytest.mark.parametrize(
    ("hits", "trials"),
    [
        ([], []),
        ([30] * (MIN_VARIANTS - 1), [1000] * (MIN_VARIANTS - 1)),
        ([0] * 20, [1000] * 20),
        ([0] * 19 + [19], [1000] * 20),
        ([50] * MIN_VARIANTS, [50] * MIN_VARIANTS),
        ([30, 60] * 9 + [30, 0, 0], [1000] * (MIN_VARIANTS - 1) + [0, 0]),
    ],
    ids=["none", "few variants", "no hits", "few hits", "all hits", "one never shown"],
)
def test_too_little_history_says_nothing(hits: list[int], trials: list[int]) -> None:
    """Without twenty variants shown, twenty hits and a miss there is no prior."""
    facts = rates(np.array(hits, np.int64), np.array(trials, np.int64))
    assert fit(BetaFamily(), facts) is None


def test_equal_rates_count_as_one_variant_at_most() -> None:
    """Where variants differ no more than chance, the prior weighs as much as one of them."""
    found = fit(BetaFamily(), rates(np.full(40, 100), np.full(40, 1000)))
    assert found == pytest.approx((100.0, 900.0), rel=0.01)


# --- groups -----------------------------------------------------------------------------------


def test_large_groups_speak_for_themselves() -> None:
    """Of 200 variants each, calm and urgent ones have their own means, within 6 %."""
    priors = fit_priors(drawn(3, ["calm", "urgent"] * 200))
    assert priors.keys() == {ALL, "tone=calm", "tone=urgent"}
    for group, mean in {"tone=calm": 0.03, "tone=urgent": 0.05, ALL: 0.04}.items():
        alpha, beta = priors[group].parameters.values()
        assert alpha / (alpha + beta) == pytest.approx(mean, rel=0.06)
    assert priors["tone=calm"].n_variants == 200


def test_groups_that_do_not_differ_are_their_parent() -> None:
    """With names that mean nothing no group goes its own way: no spread, no share of it."""
    calm = ["calm"] * 60
    plain = fit_priors(drawn(4, calm))[ALL].parameters
    tones = [f"t{i % 3}" for i in range(60)]
    facts = drawn(4, calm)
    named = history(facts.facts.hits, facts.facts.trials, tones)
    priors = fit_priors(named)
    assert len(priors) == 4
    for prior in priors.values():
        assert list(prior.parameters.values()) == pytest.approx(
            list(plain.values()), rel=0.25
        )


def test_a_small_group_is_drawn_to_its_parent() -> None:
    """Six urgent variants of few trials say less than two hundred: they end between."""
    tones = ["calm", "bold"] * 100 + ["urgent"] * 6
    large = drawn(5, tones)
    trials, hits = large.facts.trials.copy(), large.facts.hits.copy()
    trials[-6:], hits[-6:] = 100.0, 10.0
    priors = fit_priors(history(hits, trials, tones))
    mean = {g: _mean(p.parameters) for g, p in priors.items()}
    assert mean[ALL] < mean["tone=urgent"] < 0.1


def test_few_variants_are_no_group() -> None:
    """A group of four has no prior of its own."""
    tones = ["calm"] * 60 + ["urgent"] * (MIN_GROUP - 1)
    assert fit_priors(drawn(6, tones)).keys() == {ALL, "tone=calm"}


# --- none learns from itself ------------------------------------------------------------------


def test_no_experiment_learns_its_prior_from_itself() -> None:
    """Whatever an experiment's own variants earned, the prior without it is the same."""
    tones = ["calm", "urgent"] * 50
    one = drawn(7, tones)
    mine = np.array(one.experiments) == "x004"
    other = one._replace(
        facts=rates(np.where(mine, 900.0, one.facts.hits), one.facts.trials)
    )
    first, second = fit_priors(one), fit_priors(other)
    assert first[ALL].parameters != second[ALL].parameters
    for group, prior in first.items():
        assert prior.without.keys() == set(one.experiments)
        assert _close(prior.without["x004"], second[group].without["x004"])
        assert not _close(prior.without["x005"], second[group].without["x005"])


def test_many_experiments_are_left_out_in_parts() -> None:
    """Of more than twenty each is left out with some others; still never in its own."""
    tones = ["calm"] * 250
    one = drawn(8, tones)
    assert len(set(one.experiments)) > FOLDS
    mine = np.array(one.experiments) == "x049"
    hits = np.where(mine, 900.0, one.facts.hits)
    other = one._replace(facts=rates(hits, one.facts.trials))
    first, second = (fit_priors(h)[ALL].without["x049"] for h in (one, other))
    assert _close(first, second)


def test_without_the_only_experiment_nothing_is_known() -> None:
    """An experiment that is all there is of history takes no prior from it."""
    tones = ["calm"] * 40
    alone = drawn(9, tones)._replace(experiments=["x"] * 40)
    assert fit_priors(alone)[ALL].without == {"x": None}


def _mean(parameters: dict[str, float]) -> float:
    return parameters["alpha"] / (parameters["alpha"] + parameters["beta"])


def _close(one: dict[str, float] | None, other: dict[str, float] | None) -> bool:
    """Whether two fits are the same, but for where they began."""
    assert one is not None
    assert other is not None
    a, b = (np.array(list(prior.values())) for prior in (one, other))
    return bool(np.allclose(a, b, rtol=1e-3))
