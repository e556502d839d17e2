"""Greedy, but a share of the traffic is spread evenly: the simplest way to explore.

References
----------
Sutton & Barto (2018), Reinforcement Learning, section 2.2.
"""

from dataclasses import dataclass

from bandolero.policies.base import Floats, Ints
from bandolero.policies.greedy import Greedy, MeanState


@dataclass(frozen=True)
class EpsilonGreedy(Greedy):
    """Greedy with probability 1 - epsilon, else any eligible arm.

    Parameters
    ----------
    epsilon
        In [0, 1].
    """

    epsilon: float = 0.05
    kind = "epsilon_greedy"

    def probabilities(self, state: MeanState, eligible: Ints) -> Floats:
        """Epsilon / n_eligible, and the rest to the highest mean, (n_eligible,)."""
        greedy = super().probabilities(state, eligible)
        return self.epsilon / len(eligible) + (1.0 - self.epsilon) * greedy
