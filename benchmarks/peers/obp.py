"""obp: Bernoulli Thompson, LinTS, LinUCB and logistic Thompson.

Importing the package asks for torch, which these policies do not use; so its two `__init__`
modules are left out, and an empty module stands for torch.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from benchmarks.peers._timing import N_FEATURES, Bandit, Method, run


def _policies(name: str) -> Any:
    """A module of obp.policy."""
    if "obp" not in sys.modules:
        found = find_spec("obp")
        assert found is not None
        assert found.submodule_search_locations is not None
        (folder,) = found.submodule_search_locations
        for package, path in (("obp", folder), ("obp.policy", f"{folder}/policy")):
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = [path]
        torch = ModuleType("torch")
        torch.tensor = torch.Tensor = type(None)  # type: ignore[attr-defined]
        sys.modules["torch"] = torch
    return importlib.import_module(f"obp.policy.{name}")


def thompson(n_arms: int) -> Bandit:
    """Beta posteriors."""
    policy = _policies("contextfree").BernoulliTS(n_actions=n_arms, random_state=1)
    return Bandit(
        decide=lambda _: policy.select_action()[0],
        update=lambda _, arm, reward: policy.update_params(arm, reward),
    )


def lin_ts(n_arms: int) -> Bandit:
    """Draws coefficients."""
    linear = _policies("linear")
    return _contextual(linear.LinTS(dim=N_FEATURES, n_actions=n_arms, random_state=1))


def lin_ucb(n_arms: int) -> Bandit:
    """Upper bounds."""
    linear = _policies("linear")
    return _contextual(
        linear.LinUCB(dim=N_FEATURES, n_actions=n_arms, epsilon=0.5, random_state=1)
    )


def logistic_ts(n_arms: int) -> Bandit:
    """A diagonal posterior."""
    logistic = _policies("logistic")
    return _contextual(
        logistic.LogisticTS(dim=N_FEATURES, n_actions=n_arms, random_state=1)
    )


def _contextual(policy: Any) -> Bandit:
    return Bandit(
        decide=lambda x: policy.select_action(x)[0],
        update=lambda x, arm, reward: policy.update_params(arm, reward, x),
        context=lambda row: np.array([row]),
    )


if __name__ == "__main__":
    run(
        [Method("obp Bernoulli Thompson", thompson)],
        [
            Method("obp LinTS", lin_ts, full_covariance=True),
            Method("obp LinUCB", lin_ucb, full_covariance=True),
            Method("obp LogisticTS", logistic_ts),
        ],
    )
