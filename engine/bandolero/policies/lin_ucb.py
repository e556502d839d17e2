"""LinUCB: the arm with the highest upper confidence bound of a linear regression.

A baseline. The bound moves only when rewards come in, so between two snapshots all traffic
with the same features goes to one arm: where features are few and rewards late it explores
in bursts, and without the floor its propensities of 0 leave nothing to evaluate others on.
Prefer `linear_thompson`.

References
----------
Li et al. (2010), A Contextual-Bandit Approach to Personalized News Article
Recommendation, algorithm 1.
"""

from dataclasses import dataclass

import numpy as np

from bandolero._jit import kernel
from bandolero.policies.base import Floats, Ints
from bandolero.policies.linear_thompson import LinearState, LinearThompson
from bandolero.policies.normal_choice import (
    Drawn,
    Prepared,
    predictions,
    quadratic_terms,
)


@dataclass(frozen=True)
class LinUcb:
    """All probability on the highest mean + alpha standard deviations; ties evenly.

    Parameters
    ----------
    n_features
        As `bandolero.features.n_features` counts them.
    alpha
        Standard deviations of the prediction, the noise's scale in them.
    half_life_s
        Data this old count half; None for ever.

    Examples
    --------
    >>> policy = LinUcb(n_features=1)
    >>> state = policy.update(
    ...     policy.init(2), np.array([0, 1]), np.array([0.0, 1.0]), np.ones((2, 1))
    ... )
    >>> policy.probabilities(policy.prepare(state), np.arange(2), np.ones(1))
    array([0., 1.])
    """

    n_features: int
    alpha: float = 1.0
    half_life_s: float | None = None
    kind = "lin_ucb"
    mode = "explore"

    @property
    def regression(self) -> LinearThompson:
        """The same regression as `linear_thompson`, another rule on top."""
        return LinearThompson(
            self.n_features, prior_precision=1.0, half_life_s=self.half_life_s
        )

    def init(self, n_arms: int) -> LinearState:
        """Prior and no data."""
        return self.regression.init(n_arms)

    def update(
        self,
        state: LinearState,
        arms: Ints,
        rewards: Floats,
        features: Floats,
        weights: Floats | None = None,
    ) -> LinearState:
        """Add trials: arms, rewards (n_trials,), features (n_trials, n_features).

        With `weights` (n_trials,), how much each counts. Raises as
        `LinearThompson.update` does.
        """
        return self.regression.update(state, arms, rewards, features, weights)

    def decay(self, state: LinearState, elapsed_ms: int) -> LinearState:
        """As `LinearThompson.decay`."""
        return self.regression.decay(state, elapsed_ms)

    def add(self, state: LinearState, correction: LinearState) -> LinearState:
        """Sums of both; the prior stays."""
        return self.regression.add(state, correction)

    def prepare(self, state: LinearState) -> Prepared:
        """The posterior as serving needs it, alpha in it."""
        mean, covariance, noise_variance = self.regression.posterior(state)
        scale = self.alpha**2 * noise_variance
        variance = quadratic_terms(scale * covariance)
        return Prepared(mean, variance, np.zeros((len(mean), 0)))

    def probabilities(self, prepared: Prepared, eligible: Ints, x: Floats) -> Floats:
        """1 for the arm with the highest bound at x (n_features,), shared by ties.

        (n_eligible,); raises as `normal_choice.predictions` does.
        """
        return self.draw(prepared, eligible, x, 0.0).probabilities

    def draw(
        self,
        prepared: Prepared,
        eligible: Ints,
        x: Floats,
        u: float,
        min_share: float = 0.0,
    ) -> Drawn:
        """Draw one of `eligible` (n_eligible,) at x (n_features,) with the floor, by `u`.

        `u` is in [0, 1). Raises as `normal_choice.predictions` does.
        """
        mean, sd = predictions(prepared, eligible, x)
        arm, propensity, shares = _draw_highest(mean, sd, eligible, u, min_share)
        return Drawn(arm, propensity, shares)


@kernel
def _draw_highest(
    mean: Floats, sd: Floats, eligible: Ints, u: float, min_share: float
) -> tuple[int, float, Floats]:
    """Arm, propensity, and probabilities: the highest bounds share what the floor leaves."""
    n = eligible.size
    highest, n_highest = -np.inf, 0
    for k in range(n):
        bound = mean[k] + sd[k]
        if bound > highest:
            highest, n_highest = bound, 0
        if bound == highest:
            n_highest += 1
    # Beyond all numbers nothing can be ranked: all are alike.
    ranked = n_highest > 0 and highest < np.inf
    floor, shares = min(min_share, 0.5 / n), np.empty(n)
    drawn, reached = 0, 0.0
    for k in range(n):
        weight = 1.0 / n
        if ranked:
            weight = 1.0 / n_highest if mean[k] + sd[k] == highest else 0.0
        shares[k] = floor + (1.0 - n * floor) * weight
        # The last positive arm's stretch ends at 1, whatever the rounding of the sum.
        if reached <= u and shares[k] > 0.0:
            drawn = k
        reached += shares[k]
    return int(eligible[drawn]), float(shares[drawn]), shares
