"""Forgetting by wall-clock half-life: old data count less, so the prior counts more.

After t seconds a trial counts 2 ** (-t / half_life_s). t is log time, so that live and
replay forget alike, and every arm forgets whether it is shown or not: an arm that is
rarely shown goes back to its prior instead of keeping a belief from another season.
A trial that counts w is a trial with 1 / w of the noise variance: less is known of now
from what was seen then.

Decaying in two steps is decaying in one, and a trial learned late has the weight it
would have had by now, so the grouping of a fold does not matter: states agree within
1e-12 of their counts (they are sums of real numbers, hence not the same bytes).

References
----------
Raj & Kalyani (2017), Taming Non-stationary Bandits: discounted Thompson sampling, with
the prior outside of the discount. Russac et al. (2019), Weighted Linear Bandits for
Non-Stationary Environments, section 3: the same for regressions.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload, runtime_checkable

import numpy as np

from bandolero.policies.base import ContextualPolicy, Floats, Ints, Policy, State

AnyState = TypeVar("AnyState", bound=tuple[Any, ...])
Trials = tuple[Ints, Floats] | tuple[Ints, Floats, Floats]
"""Arms, rewards (n_trials,); features (n_trials, n_features) where a context decides."""


@runtime_checkable
class Forgetful(Protocol[State]):
    """What a policy has besides whose data may fade."""

    @property
    def half_life_s(self) -> float | None:
        """Age at which data count half; None for ever."""
        ...

    @property
    def update(self) -> Callable[..., State]:
        """That of the policy; last it takes how much each trial counts, (n_trials,)."""
        ...

    def decay(self, state: State, elapsed_ms: int) -> State:
        """State after so much time without trials; itself where nothing is forgotten."""
        ...


@overload
def kept(elapsed_ms: int, half_life_s: float) -> float: ...
@overload
def kept(elapsed_ms: Ints, half_life_s: float) -> Floats: ...
def kept(elapsed_ms: int | Ints, half_life_s: float) -> float | Floats:
    """How much data of that age count, in (0, 1]; ages (n,) give (n,).

    Examples
    --------
    >>> kept(7_200_000, half_life_s=3600.0)
    0.25
    """
    halvings = elapsed_ms / (1000.0 * half_life_s)
    return 2.0**-halvings if isinstance(halvings, float) else np.exp2(-halvings)


def learn(
    policy: Policy[Any] | ContextualPolicy[Any, Any],
    state: AnyState,
    as_of_ms: int,
    trials: Trials,
    at_ms: Ints,
) -> tuple[AnyState, int]:
    """State after trials that settled at given log times, and the log time it is as of.

    Parameters
    ----------
    as_of_ms
        Log time that `state` is as of; any where it has no data.
    trials, at_ms
        What `policy.update` takes, and log times (n_trials,), in any order; times before
        `as_of_ms` are fine.
    """
    now_ms = max(as_of_ms, int(at_ms.max())) if len(at_ms) else as_of_ms
    update: Callable[..., AnyState] = policy.update
    if not isinstance(policy, Forgetful) or policy.half_life_s is None:
        return update(state, *trials), now_ms
    faded = policy.decay(state, now_ms - as_of_ms)
    return update(faded, *trials, kept(now_ms - at_ms, policy.half_life_s)), now_ms


def aged(
    policy: Policy[Any] | ContextualPolicy[Any, Any], state: AnyState, elapsed_ms: int
) -> AnyState:
    """The state so much later; itself with a policy that forgets nothing."""
    return policy.decay(state, elapsed_ms) if isinstance(policy, Forgetful) else state
