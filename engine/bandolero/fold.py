"""The learner's fold: settled decisions into a policy's state and into rollups.

One fold serves the learner (live, over the log) and `replay` (offline, over the lake).
Folding the same decisions in any grouping gives the same bytes where everything counted
is an integer. Sums of real numbers (of values squared, of features, of a policy that
forgets) agree to 1e-9. Logistic states depend on the order of trials: the log's.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bandolero._jit import kernel
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
from bandolero.micros import named, sum_by
from bandolero.policies import ContextualPolicy, Trials, learn, policy_of
from bandolero.policies.base import Floats, Ints, grow
from bandolero.settle import Bools, Settled, closes_ms, live_cuts, settle

FALLBACK = "fallback"
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
    (`lake.context_changes`); empty elsewhere. unlearned: decisions that the live fold
    never learned. split: what the sample-ratio check takes of those from files
    (`lake.splits.split_of`).
    """

    tenant_id: str
    experiment_id: str
    watermark_ms: int
    changes: dict[str, dict[str, float]]
    faded: dict[str, dict[str, float]]
    by_context: dict[str, dict[str, list[float]]]
    unlearned: dict[str, int]
    split: dict[str, list[float]]


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

    Raises
    ------
    OverflowError
        Naming the decision or variant whose rewards an int64 of millionths does not hold.
    """
    policy = policy_of(experiment)
    fold = grown(experiment, fold)
    arms = arms_of(experiment, decisions["variant_id"])
    learned = (arms >= 0) & ~_equal(decisions["mode"], FALLBACK)
    rows, arms = _kept(decisions, learned), arms[learned]
    cuts = live_cuts(rows, experiment.objective)
    settled = settle(rows, events, experiment.objective, cuts)
    final = np.zeros(len(arms), np.bool_)
    final[settled.row] = True
    rows, arms = _kept(rows, final), arms[final]
    rewards = settled.reward_micros[settled.trial] / 1e6
    trials: Trials = (arms[settled.trial], rewards)
    if isinstance(policy, ContextualPolicy):
        trials = (*trials[:2], features_of(experiment, _kept(rows, settled.trial)))
    closes = closes_ms(rows, experiment.objective)[settled.trial]
    epochs = dict(fold.epochs)
    by_context = policy.mode if isinstance(policy, ContextualPolicy) else None
    with _variants_named(experiment):
        state, learned_to_ms = learn(
            policy, fold.state, fold.learned_to_ms, trials, closes
        )
        for part, epoch in _split_epochs(experiment, by_context, rows, vectors):
            counted = _count(epoch, arms, settled, part)
            if epoch.moments is not None:
                moments = _moments(experiment, rows, arms, settled, part)
                counted = counted._replace(moments=moments)
            key = epoch_key(epoch)
            epochs[key] = merge(epochs[key], counted) if key in epochs else counted
    return Fold(state, epochs, learned_to_ms)


def _variants_named(experiment: Experiment) -> AbstractContextManager[None]:
    """Have a sum that is too large say whose it is."""
    return named(lambda arm: f"variant_id == {experiment.variant_ids[arm]!r}")


def _kept(rows: pa.Table, keep: Bools) -> pa.Table:
    """The rows to keep; the very table where that is all."""
    return rows if keep.all() else rows.filter(pa.array(keep))


def _equal(column: pa.ChunkedArray, value: str | None) -> Bools:
    """Whether a row holds this value, (n,); none does where it is None."""
    found = pc.fill_null(pc.equal(column, pa.scalar(value, pa.string())), False)
    return np.asarray(found.to_numpy(), dtype=np.bool_)


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
    with _variants_named(experiment):
        corrected: tuple[Any, ...] = policy.add(state, correction)
    return corrected


def arms_of(experiment: Experiment, variant_ids: pa.ChunkedArray) -> Ints:
    """Arms of a column of variant ids, (n,); -1 for those the experiment lacks."""
    arms = pc.index_in(variant_ids, value_set=pa.array(experiment.variant_ids))
    return np.asarray(pc.fill_null(arms, -1).to_numpy(), dtype=np.int64)


def features_of(experiment: Experiment, rows: pa.Table) -> Floats:
    """Features of the decisions' contexts, (n_rows, n_features)."""
    return FeatureMap(experiment.context).encode_texts(rows["context"])


def _split_epochs(
    experiment: Experiment,
    mode_by_context: str | None,
    rows: pa.Table,
    vectors: Vectors,
) -> Iterator[tuple[Ints, Epoch]]:
    """Rows grouped by (day, mode, probabilities), each with an empty epoch."""
    days = np.asarray(rows["decided_at_ms"].to_numpy()) // DAY_MS
    versions = np.asarray(pc.fill_null(rows["snapshot_version"], -1).to_numpy())
    says_all = _say_all(rows)
    by_context = _equal(rows["mode"], mode_by_context)
    own = says_all & ~by_context
    shares = np.where(says_all, -1, -2) * by_context
    shares[own] = 1 + _codes_of_lists(rows.filter(pa.array(own)))
    modes = rows["mode"].combine_chunks().dictionary_encode()
    mode_codes = np.asarray(modes.indices.to_numpy())
    n_arms = len(experiment.variants)
    for part in _groups(days, mode_codes, versions, shares):
        first = int(part[0])
        mode, version = (
            modes.dictionary[mode_codes[first]].as_py(),
            int(versions[first]),
        )
        empty = empty_epoch(int(days[first]), mode, version, np.full(n_arms, np.nan))
        if by_context[first] and says_all[first]:
            empty = empty._replace(moments=np.zeros((len(MOMENTS), n_arms)))
        elif not by_context[first]:
            told = rows.slice(first, 1) if own[first] else None
            vector = _vector(experiment, vectors.get(version), told)
            empty = empty._replace(probabilities=vector)
        yield part, empty


def _say_all(rows: pa.Table) -> Bools:
    """Whether a decision's record says the probability of each eligible variant."""
    lengths = [
        np.asarray(pc.fill_null(pc.list_value_length(rows[name]), 0).to_numpy())
        for name in ("eligible", "probabilities")
    ]
    return np.asarray((lengths[0] == lengths[1]) & (lengths[0] > 0))


def _codes_of_lists(rows: pa.Table) -> Ints:
    """A number for each (eligible, probabilities), (n_rows,): equal where they are."""
    names = rows["eligible"].combine_chunks()
    shares = rows["probabilities"].combine_chunks()
    codes = pc.fill_null(names.flatten().dictionary_encode().indices, -1)
    among = _codes(_as_bytes(names, codes))
    own = _codes(_as_bytes(shares, pc.fill_null(shares.flatten(), np.nan)))
    return among * (len(rows) + 1) + own


def _as_bytes(lists: pa.ListArray, values: pa.Array) -> pa.Array:
    """Lists, of these numbers one after the other, as binary values."""
    data = np.ascontiguousarray(values.to_numpy())
    starts = np.asarray(lists.offsets.to_numpy())
    offsets = (starts - starts[0]).astype(np.int64) * data.itemsize
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lists), buffers)


def _codes(values: pa.Array) -> Ints:
    codes = values.dictionary_encode().indices
    return np.asarray(codes.to_numpy(), dtype=np.int64)


def _groups(*columns: Ints) -> list[Ints]:
    """Rows that agree in all columns, each ascending, in order of their first rows."""
    if not len(columns[0]):
        return []
    code = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        each = _codes(pa.array(column))
        code = _codes(pa.array(code * (int(each.max()) + 1) + each))
    order = np.argsort(code, kind="stable")
    ends = np.cumsum(np.bincount(code))
    return np.split(order, ends[:-1])


def _vector(
    experiment: Experiment, snapshot: Floats | None, told: pa.Table | None
) -> Floats:
    """Probability of every arm for a decision, (n_arms,); nan where it is not known.

    `told`: the decision, where its record says them; else they are its snapshot's.
    """
    n_arms = len(experiment.variants)
    vector = np.zeros(n_arms)
    if told is not None:
        arms = arms_of(experiment, pc.list_flatten(told["eligible"]))
        own = np.asarray(pc.list_flatten(told["probabilities"]).to_numpy())
        vector[arms[arms >= 0]] = own[arms >= 0]
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
    return epoch._replace(
        decisions=np.bincount(arm, minlength=n_arms),
        trials=np.bincount(arm[trial], minlength=n_arms),
        impressions=np.bincount(arm[settled.impression[part]], minlength=n_arms),
        rewards_micros=sum_by(arm, micros, n_arms),
        rewards_squared=_sum_floats(arm, (micros / 1e6) ** 2, n_arms),
    )


def _moments(
    experiment: Experiment, rows: pa.Table, arms: Ints, settled: Settled, part: Ints
) -> Floats:
    """`MOMENTS` of some of the settled decisions, (len(MOMENTS), n_arms)."""
    n_arms = len(experiment.variants)
    mine = rows.select(["eligible", "probabilities"])
    if len(part) < len(rows):
        mine = mine.take(pa.array(part))
    among = arms_of(experiment, pc.list_flatten(mine["eligible"]))
    p = np.asarray(pc.list_flatten(mine["probabilities"]).to_numpy())
    shares = np.zeros((2, n_arms))
    _add_shares(shares, among, p)
    trial = part[settled.trial[part]]
    rewards = settled.reward_micros[trial] / 1e6
    weights = 1.0 / np.asarray(rows["propensity"].to_numpy())[trial]
    return np.vstack((shares, earned_moments(arms[trial], weights, rewards, n_arms)))


@kernel
def _add_shares(sums: Floats, arms: Ints, p: NDArray[np.float32]) -> None:
    """Add p and p (1 - p) to the sums of each arm, (2, n_arms); arms below 0 are none."""
    for i in range(arms.size):
        if arms[i] >= 0:
            share = np.float64(p[i])
            sums[0, arms[i]] += share
            sums[1, arms[i]] += share * (1.0 - share)


def _sum_floats(arm: Ints, values: Floats, n_arms: int) -> Floats:
    return np.bincount(arm, values, minlength=n_arms).astype(np.float64)
