"""Top-two Thompson sampling: for a test that must end with a winner.

Thompson sampling soon shows little else than the best variant, and so learns slowly that
it is the best. Top-two draws posteriors as Thompson does; with probability `leader_share`
it shows the winner of the draw, else it draws again until another arm wins and shows
that. With p the probability to be best, arm k is shown with probability

    beta p_k + (1 - beta) sum_{j != k} p_j P(k best | j not best)
    = p_k (beta + (1 - beta) sum_{j != k} p_j / (1 - p_j)),

because "k is best" implies "j is not best", so that the condition only divides by
1 - p_j. So one quadrature and O(n) suffice; nothing is drawn.

References
----------
Russo (2020), Simple Bayesian Algorithms for Best-Arm Identification, section 3.3 (the
algorithm) and its display of the sampling probabilities; beta = 1/2 is within a factor
of two of the best fixed rate for any problem (section 5).
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, softmax

from bandolero.policies.base import Floats, Ints
from bandolero.policies.beta_thompson import BetaState, BetaThompson

NEAR_CERTAIN = 1e-10
"""P(leader is not best) below which challengers are told apart by their tails: there the
quadrature's rounding would show in the ratios."""


@dataclass(frozen=True)
class TopTwoThompson(BetaThompson):
    """Top-two sampling on Beta posteriors, for binary rewards.

    Parameters
    ----------
    leader_share
        Russo's beta, in (0, 1].

    Examples
    --------
    >>> policy = TopTwoThompson()
    >>> some = np.array([0, 1, 2])
    >>> state = policy.update(policy.init(3), some[:1], np.array([1.0]))
    >>> BetaThompson().probabilities(state, some).round(4)
    array([0.5 , 0.25, 0.25])
    >>> policy.probabilities(state, some).round(4)
    array([0.4167, 0.2917, 0.2917])
    """

    leader_share: float = 0.5
    kind = "top_two_thompson"

    def probabilities(self, state: BetaState, eligible: Ints) -> Floats:
        """Probability that top-two sampling shows each eligible arm, (n_eligible,)."""
        best = super().probabilities(state, eligible)
        if len(best) == 1:
            return best
        leader = int(best.argmax())
        if best.sum() - best[leader] >= NEAR_CERTAIN:
            return top_two(best, self.leader_share)
        alpha, beta = state.alpha[eligible], state.beta[eligible]
        shares = (1.0 - self.leader_share) * tails(alpha, beta, leader)
        shares[leader] = self.leader_share
        return shares


def top_two(best: Floats, leader_share: float) -> Floats:
    """Probability that each arm is shown, from the probabilities to be best, (n_arms,).

    Where two arms or more are positive.
    """
    odds = best / sums_of_others(best)
    shares = best * (leader_share + (1.0 - leader_share) * sums_of_others(odds))
    return np.asarray(shares / shares.sum(), np.float64)


def sums_of_others(values: Floats) -> Floats:
    """Sum of all values but the own, (n,): what is before it and what is after it.

    Not the sum of all less the own, which has no digits left where the own is nearly all.

    Examples
    --------
    >>> sums_of_others(np.array([1.0, 1e-20, 2e-20]))
    array([3.e-20, 1.e+00, 1.e+00])
    """
    before, after = np.zeros(len(values)), np.zeros(len(values))
    before[1:] = np.cumsum(values[:-1])
    after[:-1] = np.cumsum(values[:0:-1])[::-1]
    return before + after


def tails(alpha: Floats, beta: Floats, leader: int) -> Floats:
    """P(k best | leader not best) where the leader is all but certain, (n_arms,).

    By then it is a matter of far tails, P(k beats the leader) each. To first order that
    is Phi(-r) with r^2 / 2 the least sum of the falls of both log densities, which they
    have at their pooled mean: right in the exponent, and some percent off beside it.
    """
    n, mean = alpha + beta, alpha / (alpha + beta)
    pooled = (alpha + alpha[leader]) / (n + n[leader])
    fall = alpha * np.log(mean / pooled) + beta * np.log((1 - mean) / (1 - pooled))
    ahead = mean[leader], 1 - mean[leader]
    fall += alpha[leader] * np.log(ahead[0] / pooled)
    fall += beta[leader] * np.log(ahead[1] / (1 - pooled))
    behind = np.sign(mean - mean[leader]) * np.sqrt(2.0 * np.maximum(fall, 0.0))
    log_beats = log_ndtr(behind)
    log_beats[leader] = -np.inf
    return np.asarray(softmax(log_beats), np.float64)
