"""Vowpal Wabbit: `--cb_explore_adf` by epsilon-greedy and SquareCB; the caller draws."""

import random
from typing import Any

import vowpalwabbit  # type: ignore[import-not-found]
from benchmarks.peers._timing import Bandit, Method, run


def epsilon_flat(n_arms: int) -> Bandit:
    """The action's id is its only feature."""
    return _bandit(n_arms, "--epsilon 0.05", lambda _: None)


def epsilon(n_arms: int) -> Bandit:
    """Features of the request crossed with the action."""
    return _bandit(n_arms, "--epsilon 0.05 -q sa", lambda x: x)


def square_cb(n_arms: int) -> Bandit:
    """The same, by inverse gaps."""
    return _bandit(n_arms, "--squarecb --gamma_scale 30 -q sa", lambda x: x)


def _bandit(n_arms: int, options: str, shared_of: Any) -> Bandit:
    vw = vowpalwabbit.Workspace(f"--cb_explore_adf {options} --quiet")
    actions = [f"|a {arm}" for arm in range(n_arms)]
    rng = random.Random(1)

    def decide(x: Any) -> tuple[int, float]:
        shared = shared_of(x)
        pmf = vw.predict(actions if shared is None else [shared, *actions])
        left = rng.random()
        for arm, share in enumerate(pmf):
            left -= share
            if left < 0.0:
                return arm, share
        return arm, share

    def update(x: Any, drawn: tuple[int, float], reward: float) -> None:
        shared, (arm, share) = shared_of(x), drawn
        lines = actions if shared is None else [shared, *actions]
        at = arm + len(lines) - n_arms
        label = f"0:{-reward}:{share} {actions[arm]}"
        vw.learn([*lines[:at], label, *lines[at + 1 :]])

    return Bandit(
        decide,
        update,
        context=lambda row: (
            "shared |s " + " ".join(f"{i}:{value:.6f}" for i, value in enumerate(row))
        ),
    )


if __name__ == "__main__":
    run(
        [Method("VW epsilon-greedy", epsilon_flat, has_propensity=True)],
        [
            Method("VW epsilon-greedy", epsilon, has_propensity=True),
            Method("VW SquareCB", square_cb, has_propensity=True),
        ],
    )
