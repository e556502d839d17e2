"""Learning quality without context: `python -m benchmarks.learning_flat`.

P0: ten variants with rates from U(0.02, 0.05), 100,000 decisions, each learned at once.
`beta_thompson` against textbook Thompson sampling (a draw of every posterior a decision),
paired: the same rates, and the m-th showing of a variant earns the same in both. Then
with a prior fitted on fifty past experiments.

Table 1 of Chapelle & Li (2011), An Empirical Evaluation of Thompson Sampling, section 3:
ten items with rates from Beta(4, 4); with probability 1e-3 a step one of them retires and
another comes; feedback is learned every delta steps; 10^6 steps, prior Beta(4, 4).
Feedback of items that have retired is dropped.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import print_header, print_row

from bandolero.inference.families import BetaFamily, rates
from bandolero.inference.priors import fit
from bandolero.policies import BetaThompson, choose, cumulative

Floats = NDArray[np.float64]
Play = Callable[[int], float]

N_ARMS = 10
P0_HORIZON = 100_000
N_PAST, PAST_TRIALS = 50, 2_000
PAST_SEED, P0_SEED, PAPER_SEED = 7_000, 2_000, 9_000

PAPER_HORIZON = 1_000_000
RETIRES = 1e-3
# delta: (regret of Thompson sampling in the paper, runs here)
PAPER = {
    1: (9_105, 4),
    3: (9_199, 6),
    10: (9_049, 10),
    32: (9_451, 10),
    100: (11_550, 10),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_flat")
    parser.add_argument(
        "--seeds", type=int, default=60, help="of P0; default %(default)s"
    )
    parser.add_argument("--workers", type=int, default=2, help="default %(default)s")
    parser.add_argument("--only", choices=("p0", "paper"), help="default: both")
    options = parser.parse_args(arguments)
    print_header("Learning quality without context")
    kept = True
    with ProcessPoolExecutor(options.workers) as pool:
        if options.only != "paper":
            kept &= print_p0(pool, options.seeds)
        if options.only != "p0":
            kept &= print_paper(pool)
    return 0 if kept else 1


def print_p0(pool: ProcessPoolExecutor, n_seeds: int) -> bool:
    """Print the table of P0; whether the bars are kept."""
    began = time.perf_counter()
    seeds = range(10, 10 + n_seeds)
    alpha, beta = past_prior()
    plays: dict[str, Play] = {
        "textbook Thompson, Beta(1, 1)": textbook,
        "beta_thompson, Beta(1, 1)": partial(ours, 1.0, 1.0),
        f"beta_thompson, Beta({alpha:.1f}, {beta:.0f})": partial(ours, alpha, beta),
    }
    bars = [np.inf, 1.05, 0.85]
    print_row(
        f"P0, {n_seeds} seeds", "regret, mean ± s.e.", "ratio, 95 % of seeds' bootstrap"
    )
    base: Floats | None = None
    kept = True
    for (name, play), bar in zip(plays.items(), bars, strict=True):
        regret = np.array(list(pool.map(play, seeds)))
        base = regret if base is None else base
        ratio, low, high = paired_ratio(regret, base)
        error = regret.std(ddof=1) / len(regret) ** 0.5
        told = f"{ratio:.3f} ({low:.3f} … {high:.3f})"
        asked = "" if bar == np.inf else f"  <= {bar}"
        print_row(f"  {name}", f"{regret.mean():,.0f} ± {error:.0f}", told + asked)
        kept &= ratio <= bar
    print(f"  uniform: 1,384 (peers.md); {time.perf_counter() - began:.0f} s\n")
    return bool(kept)


def print_paper(pool: ProcessPoolExecutor) -> bool:
    """Print Table 1; whether every regret is within a tenth of the paper's."""
    print_row(
        "Chapelle & Li (2011), Table 1", "regret, mean ± s.e.", "paper  (ratio, <= 1.1)"
    )
    kept = True
    for delta, (paper, runs) in PAPER.items():
        began = time.perf_counter()
        regret = np.array(list(pool.map(partial(dynamic, delta), range(runs))))
        error = regret.std(ddof=1) / len(regret) ** 0.5
        took = f"{runs} runs, {time.perf_counter() - began:.0f} s"
        ratio = regret.mean() / paper
        measured = f"{regret.mean():,.0f} ± {error:.0f} ({took})"
        print_row(f"  delta {delta}", measured, f"{paper:,}  ({ratio:.3f})")
        kept &= ratio <= 1.1
    return bool(kept)


def p0(seed: int) -> tuple[Floats, np.random.Generator]:
    """Rates of P0, and the generator that goes on from them."""
    rng = np.random.default_rng(P0_SEED + seed)
    return rng.uniform(0.02, 0.05, N_ARMS), rng


def tapes(rates: Floats, seed: int) -> Callable[[int], float]:
    """What each next showing of an arm earns, the same for every policy."""
    streams = [
        np.random.default_rng([P0_SEED + seed, arm]) for arm in range(len(rates))
    ]
    blocks = [np.empty(0)] * len(rates)
    at = [0] * len(rates)

    def reward(arm: int) -> float:
        if at[arm] == len(blocks[arm]):
            blocks[arm], at[arm] = streams[arm].random(4096), 0
        at[arm] += 1
        return float(blocks[arm][at[arm] - 1] < rates[arm])

    return reward


def textbook(seed: int) -> float:
    """Regret of Thompson sampling as written: draw all posteriors, take the highest."""
    rates, rng = p0(seed)
    reward, lost = tapes(rates, seed), rates.max() - rates
    alpha, beta, regret = np.ones(N_ARMS), np.ones(N_ARMS), 0.0
    for _ in range(P0_HORIZON):
        arm = int(rng.beta(alpha, beta).argmax())
        earned = reward(arm)
        alpha[arm] += earned
        beta[arm] += 1.0 - earned
        regret += float(lost[arm])
    return regret


def ours(prior_alpha: float, prior_beta: float, seed: int) -> float:
    """Regret of the engine's policy, its state updated by one trial at a time."""
    rates, rng = p0(seed)
    reward, lost = tapes(rates, seed), rates.max() - rates
    policy = BetaThompson(prior_alpha, prior_beta)
    state, every, regret = policy.init(N_ARMS), np.arange(N_ARMS), 0.0
    for draw in rng.random(P0_HORIZON):
        shares = policy.probabilities(state, every)
        arm = choose(cumulative(shares), float(draw))
        state = policy.update(state, np.array([arm]), np.array([reward(arm)]))
        regret += float(lost[arm])
    return regret


def past_prior() -> tuple[float, ...]:
    """The prior that a refresh fits on past experiments of the same kind."""
    rng = np.random.default_rng(PAST_SEED)
    past = rng.uniform(0.02, 0.05, N_PAST * N_ARMS)
    trials = np.full(len(past), PAST_TRIALS)
    prior = fit(BetaFamily(), rates(rng.binomial(trials, past), trials))
    if prior is None:
        raise SystemExit("the past experiments give no prior")
    return prior


def dynamic(delta: int, run: int) -> float:
    """Regret where items come and go and feedback comes in blocks of `delta`."""
    rng = np.random.default_rng([PAPER_SEED, run])
    policy = BetaThompson(4.0, 4.0)
    fresh = policy.init(N_ARMS)
    state, every = fresh, np.arange(N_ARMS)
    rates = rng.beta(4.0, 4.0, N_ARMS)
    pending: list[tuple[int, float]] = []
    sums: list[float] = []
    regret = 0.0
    for step in range(PAPER_HORIZON):
        if rng.random() < RETIRES:
            gone = int(rng.integers(N_ARMS))
            rates[gone] = rng.beta(4.0, 4.0)
            pending = [(arm, earned) for arm, earned in pending if arm != gone]
            stays = every != gone
            state = state._replace(
                successes=state.successes * stays, trials=state.trials * stays
            )
            sums = []
        if not sums:
            sums = cumulative(policy.probabilities(state, every))
        arm = choose(sums, rng.random())
        pending.append((arm, float(rng.random() < rates[arm])))
        regret += float(rates.max() - rates[arm])
        if (step + 1) % delta == 0:
            arms, rewards = zip(*pending, strict=True) if pending else ((), ())
            state = policy.update(
                state, np.array(arms, np.int64), np.array(rewards, np.float64)
            )
            pending, sums = [], []
    return regret


def paired_ratio(regret: Floats, base: Floats) -> tuple[float, float, float]:
    """Ratio of mean regrets, and its 95 % interval by resampling the seeds."""
    rng = np.random.default_rng(1)
    picks = rng.integers(len(base), size=(10_000, len(base)))
    ratios = regret[picks].mean(axis=1) / base[picks].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(regret.mean() / base.mean()), float(low), float(high)


if __name__ == "__main__":
    raise SystemExit(main())
