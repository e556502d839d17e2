"""Slow, obvious twins of the policies without context; see `reference`."""

from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import mpmath as mp
import numpy as np

from reference import DIGITS, Floats, Kind, _Twin


class _GammaTwin(_Twin):
    """`_Twin` for Gamma posteriors, Kind(shape, rate), on the log scale."""

    def log_density(self, k: int, z: mp.mpf) -> mp.mpf:
        """Log density of log x of an arm of kind k."""
        shape, rate = mp.mpf(self.kinds[k].alpha), mp.mpf(self.kinds[k].beta)
        return shape * (mp.log(rate) + z) - rate * mp.exp(z) - mp.loggamma(shape)


def best_of_gammas(kinds: list[Kind], n_panels: int = 60) -> list[float]:
    """P(best) of one arm of each kind (shape, rate), with 40-digit arithmetic."""
    with mp.workdps(DIGITS):
        twin = _GammaTwin(kinds, n_panels)
        for left, right in pairwise(twin.cuts):
            twin.add_panel(left, right)
        total = sum(kind.n_arms * p for kind, p in zip(kinds, twin.won, strict=True))
        assert abs(total - 1) < 1e-16, total
        return [float(p) for p in twin.won]


class StudentKind(NamedTuple):
    """An arm with a Student-t posterior."""

    mean: float
    scale: float
    dof: float

    def density(self, x: mp.mpf) -> mp.mpf:
        """Density of x."""
        v, t = mp.mpf(self.dof), (x - self.mean) / mp.mpf(self.scale)
        top, bottom = mp.gamma((v + 1) / 2), mp.gamma(v / 2) * mp.sqrt(v * mp.pi)
        return top / bottom / self.scale * (1 + t * t / v) ** (-(v + 1) / 2)

    def below(self, x: mp.mpf) -> mp.mpf:
        """Distribution function."""
        v, t = mp.mpf(self.dof), (x - self.mean) / mp.mpf(self.scale)
        tail = mp.betainc(v / 2, 0.5, 0, v / (v + t * t), regularized=True) / 2
        return tail if t < 0 else 1 - tail


def best_of_students(kinds: list[StudentKind]) -> list[float]:
    """P(best) of few arms with moderate dof by the definition, on 25 digits.

    Double-exponential quadrature between points spread by powers about every arm.
    """
    with mp.workdps(25):
        steps = [mp.mpf(2) ** i for i in range(-1, 8)]
        steps += [mp.mpf(10) ** i for i in range(3, 22)]
        cuts = {
            mp.mpf(k.mean) + side * d * mp.mpf(k.scale)
            for k in kinds
            for d in steps
            for side in (-1, 1)
        }

        def won(k: int) -> mp.mpf:
            def integrand(x: mp.mpf) -> mp.mpf:
                others = [one for j, one in enumerate(kinds) if j != k]
                return kinds[k].density(x) * mp.fprod(one.below(x) for one in others)

            return mp.quad(integrand, sorted(cuts), maxdegree=5)

        shares = [won(k) for k in range(len(kinds))]
        assert abs(sum(shares) - 1) < 1e-13, sum(shares)
        return [float(p) for p in shares]


def student_posterior(
    prior: tuple[float, float, float, float], rewards: list[float]
) -> tuple[float, float, float]:
    """Mean, scale and dof of a mean's posterior, one reward after the other.

    Gelman et al. (2013), section 3.3, applied to one observation at a time; the prior is
    (mean, sd, trials, dof).
    """
    m, sd, n, dof = map(Fraction, prior)
    squares = dof * sd * sd
    for reward in map(Fraction, rewards):
        squares += n / (n + 1) * (reward - m) ** 2
        m = (n * m + reward) / (n + 1)
        n, dof = n + 1, dof + 1
    return float(m), float(squares / dof / n) ** 0.5, float(dof)


def top_two(best: list[float], leader_share: float, depth: int) -> list[float]:
    """Probability that each arm is shown, by the story told in Russo (2020).

    First winner j; then, if it is not shown, draws until another arm k wins, at most
    `depth` of them.
    """
    shown = [leader_share * p for p in best]
    for j, first in enumerate(best):
        for k, second in enumerate(best):
            if k != j:
                again = sum(first**m for m in range(depth))
                shown[k] += (1 - leader_share) * first * again * second
    return shown


def with_cap(shares: Floats, max_share: float) -> Floats:
    """min(cap, level * share), with the level that makes it sum to 1, by bisection."""
    cap = max(max_share, 1.0 / len(shares))
    low, high = 0.0, 1e18
    for _ in range(300):
        level = (low * high) ** 0.5 if low > 1e-9 else (low + high) / 2.0
        if np.minimum(cap, level * shares).sum() < 1.0:
            low = level
        else:
            high = level
    return np.asarray(np.minimum(cap, high * shares), np.float64)


def faded(
    trials: list[tuple[int, float, int]], n_arms: int, now_ms: int, half_life_s: float
) -> list[tuple[float, float]]:
    """Number and sum of rewards of every arm, each trial fading since its own time."""
    sums = [(0.0, 0.0)] * n_arms
    for arm, reward, at_ms in trials:
        weight = 0.5 ** ((now_ms - at_ms) / 1000.0 / half_life_s)
        sums[arm] = (sums[arm][0] + weight, sums[arm][1] + weight * reward)
    return sums
