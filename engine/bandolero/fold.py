"""The learner's fold: settled decisions into a policy's state and into rollups.

One fold serves the learner (live, over the log) and `replay` (offline, over the lake).
Folding the same decisions in any grouping gives the same bytes, because everything
counted here is an integer. Sums of real numbers (of values squared, of a policy that
forgets) agree to 1e-9.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero.experiment import Experiment
from bandolero.policies import learn, policy_of
from bandolero.policies.base import Floats, Ints, grow
from bandolero.settle import Settled, closes_ms, live_cuts, settle

DAY_MS = 86_400_000
FALLBACK = "fallback"
MEASURES = ("trials", "hits", "impressions", "rewards_micros", "rewards_squared")
"""What a correction corrects; hits are trials with a positive reward."""


class Epoch(NamedTuple):
    """Counts of a stretch of constant probabilities: one rollup row per variant.

    day: days since 1970 (UTC) of the decisions. versions: first and last snapshot.
    probabilities: (n_arms,) of every arm given the mode; nan where not known. The rest:
    (n_arms,), int64; rewards in millionths, and squared rewards in units (float64).
    """

    day: int
    mode: str
    versions: tuple[int, int]
    probabilities: Floats
    decisions: Ints
    trials: Ints
    impressions: Ints
    rewards_micros: Ints
    rewards_squared: Floats


Epochs = dict[str, Epoch]
Vectors = Mapping[int, NDArray[np.float64]]


class Fold(NamedTuple):
    """All that is learned of an experiment: the policy's state and the rollups.

    learned_to_ms: log time the state is as of, when its last trial closed; 0 without
    trials. Data fade from there (`policies.forgetting.aged`); rollups never do.
    """

    state: tuple[Any, ...]
    epochs: Epochs
    learned_to_ms: int


class Correction(NamedTuple):
    """What the live fold of an experiment lacks at a watermark, by variant id.

    changes: for each variant that changed, the differences of `MEASURES`. faded: the
    same where data fade, each trial counting as much as it still does at the watermark;
    empty where they do not.
    """

    tenant_id: str
    experiment_id: str
    watermark_ms: int
    changes: dict[str, dict[str, float]]
    faded: dict[str, dict[str, float]]


def init_fold(experiment: Experiment) -> Fold:
    """Nothing learned yet."""
    return Fold(policy_of(experiment).init(len(experiment.variants)), {}, 0)


def advance(
    experiment: Experiment,
    fold: Fold,
    decisions: pa.Table,
    events: pa.Table,
    vectors: Vectors,
) -> Fold:
    """Fold closed decisions of one experiment, each settled at its own close.

    Parameters
    ----------
    decisions
        Rows of `bandolero.log.DECISIONS_TABLE`, all of this experiment, all closed.
        Those of variants that the experiment lacks (ingested ones can be) are left out.
    events
        Every event logged before the last of them closed.
    vectors
        Probabilities of all arms by snapshot version.
    """
    fold = grown(experiment, fold)
    learned = decisions.filter(pc.not_equal(decisions["mode"], FALLBACK))
    learned = learned.filter(pa.array(arms_of(experiment, learned["variant_id"]) >= 0))
    cuts = live_cuts(learned, experiment.objective)
    settled = settle(learned, events, experiment.objective, cuts)
    rows = learned.take(pa.array(settled.row))
    arms = arms_of(experiment, rows["variant_id"])
    rewards = settled.reward_micros[settled.trial] / 1e6
    closed_ms = closes_ms(learned, experiment.objective)[settled.row][settled.trial]
    state, learned_to_ms = learn(
        policy_of(experiment),
        fold.state,
        fold.learned_to_ms,
        arms[settled.trial],
        rewards,
        closed_ms,
    )
    epochs = dict(fold.epochs)
    for key, part, epoch in _split_epochs(experiment, rows, vectors):
        counted = _count(epoch, arms, settled, part)
        epochs[key] = merge(epochs[key], counted) if key in epochs else counted
    return Fold(state, epochs, learned_to_ms)


def grown(experiment: Experiment, fold: Fold) -> Fold:
    """The fold with a row for every variant the experiment has by now."""
    fresh = policy_of(experiment).init(len(experiment.variants))
    if len(fold.state[0]) == len(fresh[0]):
        return fold
    return fold._replace(state=grow(fold.state, fresh))


def arms_of(experiment: Experiment, variant_ids: pa.ChunkedArray) -> Ints:
    """Arms of a column of variant ids, (n,); -1 for those the experiment lacks."""
    arms = pc.index_in(variant_ids, value_set=pa.array(experiment.variant_ids))
    return np.asarray(pc.fill_null(arms, -1).to_numpy(), dtype=np.int64)


def merge(one: Epoch, other: Epoch) -> Epoch:
    """The sum of two stretches of the same probabilities, day and mode."""
    versions = (
        min(one.versions[0], other.versions[0]),
        max(one.versions[1], other.versions[1]),
    )
    n_arms = max(len(one.decisions), len(other.decisions))
    one, other = padded(one, n_arms), padded(other, n_arms)
    return one._replace(
        versions=versions,
        decisions=one.decisions + other.decisions,
        trials=one.trials + other.trials,
        impressions=one.impressions + other.impressions,
        rewards_micros=one.rewards_micros + other.rewards_micros,
        rewards_squared=one.rewards_squared + other.rewards_squared,
    )


def padded(epoch: Epoch, n_arms: int) -> Epoch:
    """The epoch with zeros for variants that came later, arrays (n_arms,).

    Where no probability is known, those of later variants are not either.
    """
    missing = (0, n_arms - len(epoch.decisions))
    unknown = np.isnan(epoch.probabilities).any()
    none = np.nan if unknown else 0.0
    return epoch._replace(
        probabilities=np.pad(epoch.probabilities, missing, constant_values=none),
        decisions=np.pad(epoch.decisions, missing),
        trials=np.pad(epoch.trials, missing),
        impressions=np.pad(epoch.impressions, missing),
        rewards_micros=np.pad(epoch.rewards_micros, missing),
        rewards_squared=np.pad(epoch.rewards_squared, missing),
    )


def _split_epochs(
    experiment: Experiment, rows: pa.Table, vectors: Vectors
) -> Iterator[tuple[str, Ints, Epoch]]:
    """Rows grouped by (day, mode, probability vector), each with an empty epoch."""
    n_arms = len(experiment.variants)
    days = np.asarray(rows["decided_at_ms"].to_numpy()) // DAY_MS
    versions = np.asarray(rows["snapshot_version"].to_numpy())
    modes = rows["mode"].to_pylist()
    given = rows["probabilities"].to_pylist()
    eligible = rows["eligible"].to_pylist()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, mode in enumerate(modes):
        own = given[i] if given[i] is None else tuple(given[i])
        among = None if eligible[i] is None else tuple(eligible[i])
        at = (int(days[i]), mode, int(versions[i]), among, own)
        groups.setdefault(at, []).append(i)
    for (day, mode, version, among, own), members in groups.items():
        vector = _vector(experiment, vectors.get(version), among, own)
        empty = Epoch(day, mode, (version, version), vector, *_zeros(n_arms))
        yield epoch_key(empty), np.array(members, dtype=np.int64), empty


def _vector(
    experiment: Experiment,
    snapshot: Floats | None,
    eligible: tuple[str, ...] | None,
    own: tuple[float, ...] | None,
) -> Floats:
    """Probability of every arm for a decision, (n_arms,); nan where it is not known."""
    n_arms = len(experiment.variants)
    vector = np.zeros(n_arms)
    if eligible is not None and own is not None:
        arms = arms_of(experiment, pa.chunked_array([pa.array(eligible)]))
        vector[arms[arms >= 0]] = np.array(own)[arms >= 0]
        return vector
    if snapshot is None:
        return np.full(n_arms, np.nan)
    vector[: len(snapshot)] = snapshot
    return vector


def epoch_key(epoch: Epoch) -> str:
    """What makes two stretches the same epoch: day, mode, probabilities."""
    vector = epoch.probabilities
    known = not np.isnan(vector).any()
    shares = np.trim_zeros(vector, "b").tobytes() if known else b"unknown"
    name = f"{epoch.day}|{epoch.mode}|".encode() + shares
    return blake2b(name, digest_size=12).hexdigest()


def _count(epoch: Epoch, arms: Ints, settled: Settled, part: Ints) -> Epoch:
    """The epoch with the counts of some of the settled decisions."""
    n_arms = len(epoch.decisions)
    arm, trial = arms[part], settled.trial[part]
    micros = settled.reward_micros[part]
    rewards = np.zeros(n_arms, np.int64)
    np.add.at(rewards, arm, micros)
    return epoch._replace(
        decisions=np.bincount(arm, minlength=n_arms),
        trials=np.bincount(arm[trial], minlength=n_arms),
        impressions=np.bincount(arm[settled.impression[part]], minlength=n_arms),
        rewards_micros=rewards,
        rewards_squared=_sum_floats(arm, (micros / 1e6) ** 2, n_arms),
    )


def _sum_floats(arm: Ints, values: Floats, n_arms: int) -> Floats:
    return np.bincount(arm, values, minlength=n_arms).astype(np.float64)


def _zeros(n_arms: int) -> tuple[Ints, Ints, Ints, Ints, Floats]:
    counts = [np.zeros(n_arms, np.int64) for _ in range(4)]
    return (counts[0], counts[1], counts[2], counts[3], np.zeros(n_arms))
