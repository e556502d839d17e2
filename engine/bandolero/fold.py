"""The learner's fold: settled decisions into a policy's state and into rollups.

One fold serves the learner (live, over the log) and `replay` (offline, over the lake).
Folding the same decisions in any grouping gives the same bytes where everything counted
is an integer. Sums of real numbers (of values squared, of features, of a policy that
forgets) agree to 1e-9. Logistic states depend on the order of trials: the log's.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.epochs import (
    DAY_MS,
    MOMENTS,
    Epoch,
    Epochs,
    Vectors,
    earned_moments,
    empty_epoch,
    epoch_key,
    merge,
)
from bandolero.experiment import Experiment
from bandolero.features import FeatureMap
from bandolero.policies import ContextualPolicy, learn, policy_of
from bandolero.policies.base import Floats, Ints, grow
from bandolero.settle import Settled, closes_ms, live_cuts, settle

FALLBACK = "fallback"
CONTEXT, UNKNOWN = "context", "unknown"
"""Probabilities that a context decided: as recorded, or not recorded."""
MEASURES = ("trials", "hits", "impressions", "rewards_micros", "rewards_squared")
"""What a correction corrects; hits are trials with a positive reward."""


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
    empty where they do not. by_context: what else changed where a context decided
    (`lake.context_changes`); empty elsewhere.
    """

    tenant_id: str
    experiment_id: str
    watermark_ms: int
    changes: dict[str, dict[str, float]]
    faded: dict[str, dict[str, float]]
    by_context: dict[str, dict[str, list[float]]]


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
    policy = policy_of(experiment)
    if isinstance(policy, ContextualPolicy):
        features = features_of(experiment, rows.filter(pa.array(settled.trial)))
        state = policy.update(fold.state, arms[settled.trial], rewards, features)
        learned_to_ms = fold.learned_to_ms
    else:
        closes = closes_ms(learned, experiment.objective)[settled.row]
        state, learned_to_ms = learn(
            policy,
            fold.state,
            fold.learned_to_ms,
            arms[settled.trial],
            rewards,
            closes[settled.trial],
        )
    epochs = dict(fold.epochs)
    for part, epoch in _split_epochs(experiment, rows, vectors):
        counted = _count(epoch, arms, settled, part)
        if epoch.moments is not None:
            moments = _moments(experiment, rows, arms, settled, part)
            counted = counted._replace(moments=moments)
        key = epoch_key(epoch)
        epochs[key] = merge(epochs[key], counted) if key in epochs else counted
    return Fold(state, epochs, learned_to_ms)


def grown(experiment: Experiment, fold: Fold) -> Fold:
    """The fold with a row for every variant the experiment has by now."""
    fresh = policy_of(experiment).init(len(experiment.variants))
    if len(fold.state[0]) == len(fresh[0]):
        return fold
    return fold._replace(state=grow(fold.state, fresh))


def with_correction(
    experiment: Experiment, state: tuple[Any, ...], correction: tuple[Any, ...] | None
) -> tuple[Any, ...]:
    """The state with what a refresh found added, if it found anything."""
    if correction is None:
        return state
    policy: Any = policy_of(experiment)
    corrected: tuple[Any, ...] = policy.add(state, correction)
    return corrected


def arms_of(experiment: Experiment, variant_ids: pa.ChunkedArray) -> Ints:
    """Arms of a column of variant ids, (n,); -1 for those the experiment lacks."""
    arms = pc.index_in(variant_ids, value_set=pa.array(experiment.variant_ids))
    return np.asarray(pc.fill_null(arms, -1).to_numpy(), dtype=np.int64)


def features_of(experiment: Experiment, rows: pa.Table) -> Floats:
    """Features of the decisions' contexts, (n_rows, n_features)."""
    contexts = [_context(text) for text in rows["context"].to_pylist()]
    return FeatureMap(experiment.context).encode_batch(contexts)


def _context(text: str | None) -> dict[str, Any]:
    """A recorded context; empty where there is none, or ingested text that is none."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _split_epochs(
    experiment: Experiment, rows: pa.Table, vectors: Vectors
) -> Iterator[tuple[Ints, Epoch]]:
    """Rows grouped by (day, mode, probabilities), each with an empty epoch."""
    days = np.asarray(rows["decided_at_ms"].to_numpy()) // DAY_MS
    versions = pc.fill_null(rows["snapshot_version"], -1).to_numpy()
    modes = rows["mode"].to_pylist()
    given = rows["probabilities"].to_pylist()
    eligible = rows["eligible"].to_pylist()
    policy = policy_of(experiment)
    by_context = policy.mode if isinstance(policy, ContextualPolicy) else None
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, mode in enumerate(modes):
        own, among = tuple(given[i] or ()), tuple(eligible[i] or ())
        says_all = len(own) == len(among) > 0
        shares: Any = (among, own) if says_all else (None, None)
        if mode == by_context:
            shares = CONTEXT if says_all else UNKNOWN
        groups.setdefault((int(days[i]), mode, int(versions[i]), shares), []).append(i)
    n_arms = len(experiment.variants)
    for (day, mode, version, shares), members in groups.items():
        part = np.array(members, dtype=np.int64)
        empty = empty_epoch(day, mode, version, np.full(n_arms, np.nan))
        if shares == CONTEXT:
            empty = empty._replace(moments=np.zeros((len(MOMENTS), n_arms)))
        elif shares != UNKNOWN:
            vector = _vector(experiment, vectors.get(version), *shares)
            empty = empty._replace(probabilities=vector)
        yield part, empty


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


def _moments(
    experiment: Experiment, rows: pa.Table, arms: Ints, settled: Settled, part: Ints
) -> Floats:
    """`MOMENTS` of some of the settled decisions, (len(MOMENTS), n_arms)."""
    n_arms = len(experiment.variants)
    mine = rows.take(pa.array(part))
    among = arms_of(experiment, pc.list_flatten(mine["eligible"]))
    p = np.asarray(pc.list_flatten(mine["probabilities"]).to_numpy(), np.float64)
    among, p = among[among >= 0], p[among >= 0]
    trial = part[settled.trial[part]]
    rewards = settled.reward_micros[trial] / 1e6
    weights = 1.0 / np.asarray(rows["propensity"].to_numpy())[trial]
    shares = [_sum_floats(among, v, n_arms) for v in (p, p * (1.0 - p))]
    return np.vstack((shares, earned_moments(arms[trial], weights, rewards, n_arms)))


def _sum_floats(arm: Ints, values: Floats, n_arms: int) -> Floats:
    return np.bincount(arm, values, minlength=n_arms).astype(np.float64)
