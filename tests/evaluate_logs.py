"""Logs with known truth to evaluate policies on: two kinds of requests, three arms.

And the target of a published figure on a real one.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from bandolero.evaluate import Situations, Trials

Floats = NDArray[np.float64]
OPEN_BANDIT = Path(__file__).parents[2] / "shared/data/open-bandit"
KERNELS_AS_PYTHON = os.environ.get("NUMBA_DISABLE_JIT") == "1"
RATES = np.array([[0.10, 0.20, 0.30], [0.30, 0.20, 0.10]])
"""Chance of a reward by kind of request and arm; kinds are equally frequent."""
LOGGED = np.array([0.5, 0.3, 0.2])
TARGET = np.array([[0.1, 0.2, 0.7], [0.6, 0.2, 0.2]])
TRUTH = float((TARGET * RATES).sum(axis=1).mean())
KINDS = Situations(
    np.array([[1.0, 0.0], [1.0, 1.0]]),
    np.ones((2, 3), np.bool_),
    {"kind": np.arange(2)},
)


def logged(seed: int, n: int, shift: float = 0.0) -> Trials:
    """Trials drawn by `LOGGED`; `shift` is added to every reward."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=n)
    arms = rng.choice(3, p=LOGGED, size=n)
    rewards = (rng.random(n) < RATES[kind, arms]).astype(np.float64)
    most = None if shift else 1.0
    return Trials(arms, rewards + shift, LOGGED[arms], kind, KINDS, reward_max=most)


def rows_of(trials: Trials, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Trials:
    """Some rows of a log, or some of them more than once."""
    names = ("arms", "rewards", "propensities", "situation")
    return replace(trials, **{name: getattr(trials, name)[rows] for name in names})


def without_arm_2_of_kind_1(seed: int, n: int) -> Trials:
    """A log whose third arm only the first kind of request could see."""
    trials = logged(seed, n)
    kept = (trials.situation == 0) | (trials.arms != 2)
    some = rows_of(trials, kept)
    others = np.where(some.situation == 0, 1.0, LOGGED[:2].sum())
    return replace(some, propensities=some.propensities / others)


def open_bandit_shares() -> Floats:
    """How often each item of Open Bandit comes out best, second and third, (3, 80).

    In 100,000 draws from its production prior, with the generator and seed that the
    published figure was computed with.
    """
    prior = yaml.safe_load((OPEN_BANDIT / "prior_bts.yaml").read_text())["all"]
    rng = np.random.RandomState(12345)  # the published generator
    counts = np.zeros((3, 80))
    for _ in range(100):
        drawn = rng.beta(prior["alpha"], prior["beta"], size=(1000, 80))
        best = np.argsort(drawn, axis=1)[:, ::-1]
        for place in range(3):
            counts[place] += np.bincount(best[:, place], minlength=80)
    return counts / 100_000
