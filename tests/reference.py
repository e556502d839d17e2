"""Slow, obvious twins of what the engine computes fast, for tests to compare with.

One section per module of the engine. A twin follows the definition, not the
implementation: no kernels, no shared helpers, no tricks.
"""

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from math import factorial
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import xxhash
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import fixed_quad
from scipy.special import gammaln

from bandolero.experiment import Objective

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# --- quadrature ---------------------------------------------------------------

DIGITS = 40


class Kind(NamedTuple):
    """So many arms with the posterior Beta(alpha, beta)."""

    alpha: float
    beta: float
    n_arms: int = 1


def probability_above(alpha_k: int, beta_k: int, alpha_j: int, beta_j: int) -> Fraction:
    """P(x_k > x_j) of two Beta posteriors with integer parameters, exactly.

    Miller (2015), Formulas for Bayesian A/B Testing, in rational numbers.
    """

    def beta(a: int, b: int) -> Fraction:
        return Fraction(factorial(a - 1) * factorial(b - 1), factorial(a + b - 1))

    return sum(
        (
            beta(alpha_j + i, beta_j + beta_k)
            / ((beta_k + i) * beta(1 + i, beta_k) * beta(alpha_j, beta_j))
            for i in range(alpha_k)
        ),
        Fraction(0),
    )


def best_of(alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """P(best) and expected loss from scipy's densities, on the rate's own scale.

    Right to about 1e-9 for a few arms with alpha and beta >= 1.
    """
    arms = [stats.beta(a, b) for a, b in zip(alpha, beta, strict=True)]
    tails = 10.0 ** np.arange(-16, 0, 0.5)
    quantiles = np.concatenate([tails, np.linspace(0.1, 0.9, 9), 1.0 - tails[6:]])
    cuts = sorted({0.0, 1.0, *(float(x) for arm in arms for x in arm.ppf(quantiles))})

    def others(x: Floats, k: int) -> Floats:
        product = np.ones_like(x)
        for arm in arms[:k] + arms[k + 1 :]:
            product = product * arm.cdf(x)
        return product

    def won(x: Floats, k: int) -> Floats:
        return arms[k].pdf(x) * others(x, k)

    def lost(x: Floats, k: int) -> Floats:
        return arms[k].cdf(x) * (1.0 - others(x, k))

    def integrated(f: Callable[[Floats, int], Floats], k: int) -> float:
        pieces = pairwise(cuts)
        return sum(fixed_quad(f, lo, hi, args=(k,), n=10)[0] for lo, hi in pieces)

    n_arms = range(len(arms))
    return (
        np.array([integrated(won, k) for k in n_arms]),
        np.array([integrated(lost, k) for k in n_arms]),
    )


def best_of_kinds(
    kinds: list[Kind], n_panels: int = 60
) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """P(best) and expected loss of one arm of each kind, with 40-digit arithmetic.

    Gauss-Legendre on the logit scale, every panel of every arm in all of the range;
    distribution functions by integrating again between any two nodes. Checks of itself
    that all distribution functions end at 1 and that P sums to 1.
    """
    with mp.workdps(DIGITS):
        twin = _Twin(kinds, n_panels)
        for left, right in pairwise(twin.cuts):
            twin.add_panel(left, right)
        total = sum(kind.n_arms * p for kind, p in zip(kinds, twin.won, strict=True))
        assert abs(total - 1) < 1e-16, total
        assert all(abs(below - 1) < 1e-16 for below in twin.below), twin.below
        return twin.won, twin.lost


class _Twin:
    """Running integrals of `best_of_kinds`."""

    def __init__(self, kinds: list[Kind], n_panels: int) -> None:
        self.kinds = kinds
        self.log_beta = [
            mp.loggamma(k.alpha)
            + mp.loggamma(k.beta)
            - mp.loggamma(mp.mpf(k.alpha) + k.beta)
            for k in kinds
        ]
        self.ends = [self._ends(k) for k in range(len(kinds))]
        self.cuts = sorted(
            {
                lo + (hi - lo) * i / n_panels
                for lo, hi in self.ends
                for i in range(n_panels + 1)
            }
        )
        self.outer, self.inner = gauss_legendre(16), gauss_legendre(6)
        self.below = [mp.mpf(0) for _ in kinds]
        self.won = [mp.mpf(0) for _ in kinds]
        self.lost = [mp.mpf(0) for _ in kinds]

    def log_density(self, k: int, z: mp.mpf) -> mp.mpf:
        """Log density of the logit z of an arm of kind k."""
        alpha, beta, _ = self.kinds[k]
        return (
            -alpha * mp.log1p(mp.exp(-z))
            - beta * mp.log1p(mp.exp(z))
            - self.log_beta[k]
        )

    def _ends(self, k: int) -> tuple[mp.mpf, mp.mpf]:
        """Where the density has fallen by exp(-80) on either side of the mode."""
        mode = mp.log(mp.mpf(self.kinds[k].alpha) / self.kinds[k].beta)
        floor = self.log_density(k, mode) - 80

        def end(side: int) -> mp.mpf:
            far = mp.mpf(10) ** -8
            while self.log_density(k, mode + side * far) > floor:
                far *= mp.mpf("1.1")
            return mode + side * far

        return end(-1), end(1)

    def grow(self, alive: list[int], left: mp.mpf, right: mp.mpf) -> None:
        """Carry the distribution functions on from one logit to the next."""
        half, mid = (right - left) / 2, (right + left) / 2
        for k in alive:
            self.below[k] += half * sum(
                w * mp.exp(self.log_density(k, mid + half * x)) for x, w in self.inner
            )

    def add_panel(self, left: mp.mpf, right: mp.mpf) -> None:
        """Add int f_k prod F dz and int F_k (1 - prod F) dx over one panel."""
        half, mid, at = (right - left) / 2, (right + left) / 2, left
        alive = [k for k, (lo, hi) in enumerate(self.ends) if lo < right and hi > left]
        for x, w in self.outer:
            z = mid + half * x
            self.grow(alive, at, z)
            at = z
            dx = w * half / ((1 + mp.exp(-z)) * (1 + mp.exp(z)))
            for k in range(len(self.kinds)):
                others = mp.mpf(1)
                for j, other in enumerate(self.kinds):
                    others *= self.below[j] ** (other.n_arms - (j == k))
                self.lost[k] += dx * self.below[k] * (1 - others)
                if k in alive:
                    self.won[k] += w * half * mp.exp(self.log_density(k, z)) * others
        self.grow(alive, at, right)


def gauss_legendre(n: int) -> list[tuple[mp.mpf, mp.mpf]]:
    """Nodes on [-1, 1], ascending, and weights, to the working precision."""
    rule = []
    for start in np.polynomial.legendre.leggauss(n)[0]:
        x = mp.mpf(float(start))
        for _ in range(4):
            slope = n * (x * mp.legendre(n, x) - mp.legendre(n - 1, x)) / (x * x - 1)
            x -= mp.legendre(n, x) / slope
        rule.append((x, 2 / ((1 - x * x) * slope * slope)))
    return rule


# --- inference: lift, sample ratio --------------------------------------------


def ratio_below(r: float, variant: Kind, control: Kind) -> float:
    """P(x / x_c <= r) of two Beta posteriors, by the double integral's definition.

    Slow past counts of 1,000.
    """
    a, b, _ = variant
    c, d, _ = control

    def integrand(x: mp.mpf) -> mp.mpf:
        density = x ** (c - 1) * (1 - x) ** (d - 1) / mp.beta(c, d)
        return density * mp.betainc(a, b, 0, min(r * x, 1), regularized=True)

    quantiles = np.array([1e-9, 0.01, 0.5, 0.99, 1.0 - 1e-9])
    cuts = {0.0, 1.0, *stats.beta(c, d).ppf(quantiles).tolist()}
    if r > 1.0:
        cuts.add(1.0 / r)
    with mp.workdps(20):
        return float(mp.quad(integrand, sorted(cuts)))


def surplus_chi_square(counts: Ints, probabilities: Floats) -> float:
    """Z' Sigma^+ Z by the pseudo-inverse, epoch by epoch."""
    n_arms = counts.shape[1]
    surplus, covariance = np.zeros(n_arms), np.zeros((n_arms, n_arms))
    for n, e in zip(counts, probabilities, strict=True):
        surplus += n - n.sum() * e
        covariance += n.sum() * (np.diag(e) - np.outer(e, e))
    return float(surplus @ np.linalg.pinv(covariance, hermitian=True) @ surplus)


def log_e_value(counts: Ints, probabilities: Floats) -> float:
    """Log e-value of the sample ratio, betting on one decision after the other.

    The order within an epoch does not matter. All probabilities are positive.
    """
    log_e, n_arms = 0.0, counts.shape[1]
    counted, expected = np.zeros(n_arms), np.zeros(n_arms)
    for n, e in zip(counts, probabilities, strict=True):
        share = e * (counted + 100.0 * e) / (expected + 100.0 * e)
        belief = (100.0 + counted.sum()) * share / share.sum()
        for arm in np.repeat(np.arange(n_arms), n):
            log_e += float(np.log(belief[arm] / belief.sum() / e[arm]))
            belief[arm] += 1.0
        counted, expected = counted + n, expected + n.sum() * e
    return log_e


def log_e_value_fixed(counts: Ints, shares: Floats, weight: float) -> float:
    """Lindon and Malek's multinomial log e-value for one fixed split."""
    prior = weight * shares
    return float(
        (gammaln(prior + counts) - gammaln(prior) - counts * np.log(shares)).sum()
        - gammaln(weight + counts.sum())
        + gammaln(weight)
    )


# --- draws, choose, settle, fold ----------------------------------------------

Row = dict[str, Any]
"""A decision or an event as a dictionary: a column name, a value."""


def draw_numbers(tenant: str, experiment_id: str, token: bytes) -> tuple[float, float]:
    """The numbers for the arm and for the holdout, bit by bit from the hash."""
    name = tenant.encode() + bytes(1) + experiment_id.encode()
    key = hashlib.blake2b(name, digest_size=8, person=b"experiment").digest()
    seed = int.from_bytes(key, "little")
    seeds = (seed, seed ^ 0x9E3779B97F4A7C15)
    digests = [xxhash.xxh3_64(token, seed=each).digest() for each in seeds]
    halves = [int.from_bytes(digest, "big") for digest in digests]
    arm, holdout = (float(Fraction(half // 2**11, 2**53)) for half in halves)
    return arm, holdout


def with_floor(weights: list[float], min_share: float) -> list[float]:
    """p = f + (1 - n f) w with f = min(min_share, 0.5 / n)."""
    n = len(weights)
    f = min(min_share, 0.5 / n)
    return [f + (1 - n * f) * w for w in weights]


def choose(probabilities: list[float], draw: float) -> tuple[int, float]:
    """Walk along the unit interval until the draw is passed."""
    walked, last = 0.0, -1
    for arm, probability in enumerate(probabilities):
        if probability > 0.0:
            walked, last = walked + probability, arm
            if draw < walked:
                break
    return last, probabilities[last]


class Outcome(NamedTuple):
    """What became of a settled decision."""

    trial: bool
    reward_micros: int
    impression: bool


def settle(
    decisions: list[Row], events: list[Row], objective: Objective, cuts: list[int]
) -> dict[str, Outcome]:
    """Design 1.1, a decision at a time; by decision id, those that have settled."""
    window_ms = round(objective.attribution_window_s * 1000)
    outcomes = {}
    for decision, cut in zip(decisions, cuts, strict=True):
        if decision["log_ms"] + window_ms + 1000 > cut:
            continue
        told: dict[str, Row] = {}
        for event in events:
            mine = event["decision_id"] == decision["decision_id"]
            if mine and event["log_ms"] < cut:
                told.setdefault(event["event_id"], event)
        withdrawn = {e["retracts"] for e in told.values() if e["type"] == "retract"}
        standing = [e for name, e in told.items() if name not in withdrawn]
        deadline = decision["decided_at_ms"] + window_ms
        timely = [e for e in standing if e["at_ms"] < deadline]
        outcomes[decision["decision_id"]] = _outcome(objective, timely, standing)
    return outcomes


def _outcome(objective: Objective, timely: list[Row], standing: list[Row]) -> Outcome:
    hits = [e["value_micros"] or 0 for e in timely if e["type"] == objective.event]
    refunds = [e["value_micros"] or 0 for e in standing if e["type"] == "refund"]
    impression = any(e["type"] == "impression" for e in timely)
    trial = impression or objective.trial == "decision"
    reward = {
        "binary": 1_000_000 if hits else 0,
        "count": 1_000_000 * len(hits),
        "value": sum(hits) - sum(refunds),
    }[objective.reward]
    return Outcome(trial, reward if trial else 0, impression)


def live_cuts(decisions: list[Row], objective: Objective) -> list[int]:
    """Each decision's own close; -1 where it was logged more than an hour late."""
    window_ms = round(objective.attribution_window_s * 1000)
    return [
        d["log_ms"] + window_ms + 1000
        if d["log_ms"] - d["decided_at_ms"] <= 60 * 60 * 1000
        else -1
        for d in decisions
    ]


def trials(
    decisions: list[Row],
    events: list[Row],
    objective: Objective,
    variant_ids: Sequence[str],
    cut: int | None = None,
) -> list[tuple[int, float, int]]:
    """Arm, reward and close of every trial, as the live fold or one cut for all has it."""
    learned = [d for d in decisions if d["mode"] != "fallback"]
    cuts = live_cuts(learned, objective) if cut is None else [cut] * len(learned)
    outcomes = settle(learned, events, objective, cuts)
    window_ms = round(objective.attribution_window_s * 1000)
    return [
        (
            variant_ids.index(d["variant_id"]),
            outcomes[d["decision_id"]].reward_micros / 1e6,
            d["log_ms"] + window_ms + 1000,
        )
        for d in learned
        if d["decision_id"] in outcomes and outcomes[d["decision_id"]].trial
    ]


class Tally(NamedTuple):
    """Counts of one variant in one epoch."""

    decisions: int
    trials: int
    impressions: int
    reward_micros: int


def tallies(
    decisions: list[Row],
    events: list[Row],
    objective: Objective,
    vectors: dict[int, list[float]],
    variant_ids: list[str],
) -> dict[tuple[Any, ...], Tally]:
    """Live counts by (day, mode, probability of every variant or None, variant)."""
    learned = [d for d in decisions if d["mode"] != "fallback"]
    outcomes = settle(learned, events, objective, live_cuts(learned, objective))
    found: dict[tuple[Any, ...], Tally] = {}
    for d in learned:
        if d["decision_id"] not in outcomes:
            continue
        trial, reward, impression = outcomes[d["decision_id"]]
        shares: tuple[float, ...] | None = None
        if d["probabilities"] is not None:
            own = dict(zip(d["eligible"], d["probabilities"], strict=True))
            shares = tuple(float(np.float32(own.get(v, 0.0))) for v in variant_ids)
        elif d["snapshot_version"] in vectors:
            shares = tuple(vectors[d["snapshot_version"]])
        key = (d["decided_at_ms"] // 86_400_000, d["mode"], shares, d["variant_id"])
        old = found.get(key, Tally(0, 0, 0, 0))
        found[key] = Tally(
            old.decisions + 1,
            old.trials + trial,
            old.impressions + impression,
            old.reward_micros + reward,
        )
    return found
