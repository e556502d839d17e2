"""What a prior of variants can be, and how well it foretells what variants earned.

A family is a prior over what a variant earns a trial and the model of a trial given it:
Beta and Bernoulli, Gamma and Poisson, Normal-inverse-gamma and Normal. These are the
models of the policies that take such a prior. Integrating over the prior gives the
likelihood of a variant's facts, in closed form, as a function of the prior alone.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

Floats = NDArray[np.float64]
LARGEST = 20.0
"""Coordinates stay within e ** -20 … e ** 20."""


class Facts(NamedTuple):
    """What variants have earned, (n_variants,) each.

    hits: trials that earned something. rewards, squares: sums of rewards and of their
    squares, in units.
    """

    trials: Floats
    hits: Floats
    rewards: Floats
    squares: Floats

    def of(self, which: NDArray[np.bool_]) -> "Facts":
        """The facts of some variants, (n_variants,) true or false."""
        return Facts(*(column[which] for column in self))


def rates(hits: NDArray[Any], trials: NDArray[Any]) -> Facts:
    """Facts of a binary reward: trials that earned something, and trials, (n_variants,)."""
    earned = hits.astype(np.float64)
    return Facts(trials.astype(np.float64), earned, earned, earned)


class Family(Protocol):
    """A family of priors, in coordinates that are free of bounds and units.

    Coordinates (n_coordinates,): the mean first, then logs of how many trials the prior
    counts as; what else there is between them.
    """

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, as a specification has them."""
        ...

    @property
    def strengths(self) -> tuple[int, ...]:
        """Which coordinates are logs of numbers of trials."""
        ...

    def start(self, facts: Facts) -> Floats:
        """Coordinates to begin a fit at."""
        ...

    def prior(self, at: Floats) -> tuple[float, ...]:
        """The parameters at some coordinates."""
        ...

    def coordinates(self, parameters: tuple[float, ...]) -> Floats:
        """The coordinates of some parameters."""
        ...

    def log_likelihood(self, at: Floats, facts: Facts) -> Floats:
        """Of each variant's facts, (n_variants,), up to what does not depend on `at`."""
        ...


@dataclass(frozen=True)
class BetaFamily:
    """Beta(alpha, beta) rates of a binary reward: log odds of the mean, log strength."""

    parameters = ("alpha", "beta")
    strengths = (1,)

    def start(self, facts: Facts) -> Floats:
        """Half a standard deviation of the rates about their mean."""
        mean = facts.hits.sum() / facts.trials.sum()
        return np.array([np.log(mean / (1.0 - mean)), np.log(2.0 / mean)])

    def prior(self, at: Floats) -> tuple[float, ...]:
        """Alpha and beta."""
        rate, strength = 1.0 / (1.0 + np.exp(-at[0])), np.exp(at[1])
        return float(rate * strength), float((1.0 - rate) * strength)

    def coordinates(self, parameters: tuple[float, ...]) -> Floats:
        """Of alpha and beta."""
        alpha, beta = parameters
        return np.array([np.log(alpha / beta), np.log(alpha + beta)])

    def log_likelihood(self, at: Floats, facts: Facts) -> Floats:
        """Beta-binomial."""
        a, b = self.prior(at)
        hits, misses = facts.hits, facts.trials - facts.hits
        likelihood: Floats = betaln(a + hits, b + misses) - betaln(a, b)
        return likelihood


@dataclass(frozen=True)
class GammaFamily:
    """Gamma(shape, rate) means of counts: log mean, log rate (in trials)."""

    parameters = ("shape", "rate")
    strengths = (1,)

    def start(self, facts: Facts) -> Floats:
        """The pooled mean, counting as a few hits."""
        mean = facts.rewards.sum() / facts.trials.sum()
        return np.array([np.log(mean), np.log(2.0 / mean)])

    def prior(self, at: Floats) -> tuple[float, ...]:
        """Shape and rate."""
        return float(np.exp(at[0] + at[1])), float(np.exp(at[1]))

    def coordinates(self, parameters: tuple[float, ...]) -> Floats:
        """Of shape and rate."""
        shape, rate = parameters
        return np.array([np.log(shape / rate), np.log(rate)])

    def log_likelihood(self, at: Floats, facts: Facts) -> Floats:
        """Negative binomial."""
        shape, rate = self.prior(at)
        after = shape + facts.rewards
        likelihood: Floats = (
            gammaln(after)
            - gammaln(shape)
            + shape * np.log(rate)
            - after * np.log(rate + facts.trials)
        )
        return likelihood


@dataclass(frozen=True)
class GaussianFamily:
    """Means and deviations of values: mean, log trials, log sd, log degrees of freedom.

    `unit` is what the mean is measured in, so that its coordinate has none.

    References
    ----------
    Gelman et al. (2013), Bayesian Data Analysis, section 3.3.
    """

    unit: float
    parameters = ("mean", "sd", "trials", "dof")
    strengths = (1, 3)

    def start(self, facts: Facts) -> Floats:
        """The pooled mean and deviation, weakly held."""
        n = facts.trials.sum()
        mean = facts.rewards.sum() / n
        variance = max(facts.squares.sum() / n - mean**2, 1e-12 * self.unit**2)
        return np.array([mean / self.unit, 2.0, 0.5 * np.log(variance), 2.0])

    def prior(self, at: Floats) -> tuple[float, ...]:
        """Mean, sd, trials and dof (1 at least, as policies ask)."""
        trials, sd, dof = np.exp(at[1:])
        return float(at[0] * self.unit), float(sd), float(trials), max(1.0, float(dof))

    def coordinates(self, parameters: tuple[float, ...]) -> Floats:
        """Of mean, sd, trials and dof."""
        mean, sd, trials, dof = parameters
        return np.array([mean / self.unit, *np.log((trials, sd, dof))])

    def log_likelihood(self, at: Floats, facts: Facts) -> Floats:
        """That of the Normal with unknown mean and variance, by what they sum to."""
        mean, sd, trials, dof = self.prior(at)
        n = facts.trials
        own = facts.rewards / n
        within = np.maximum(facts.squares - n * own**2, 0.0)
        between = trials * n / (trials + n) * (own - mean) ** 2
        before = dof * sd**2
        likelihood: Floats = (
            0.5 * np.log(trials / (trials + n))
            + gammaln(0.5 * (dof + n))
            - gammaln(0.5 * dof)
            + 0.5 * dof * np.log(before)
            - 0.5 * (dof + n) * np.log(before + within + between)
        )
        return likelihood


def family_of(reward: str, facts: Facts) -> Family:
    """The family of priors for a kind of reward, in units of its history."""
    if reward == "binary":
        return BetaFamily()
    if reward == "count":
        return GammaFamily()
    mean = abs(facts.rewards.sum() / max(facts.trials.sum(), 1.0))
    return GaussianFamily(float(mean) or 1.0)
