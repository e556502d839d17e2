"""Targets: policies to evaluate, as the probability of every arm in every situation.

A policy is evaluated as it would be served, by a snapshot of it: with the experiment's
floor and cap, among the variants that were eligible at the time. The snapshot is one that
was served, or it is built from trials before those that are evaluated. Other systems'
policies come as a table of probabilities.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from bandolero.evaluate.intervals import Floats, Ints
from bandolero.evaluate.reading import Logged
from bandolero.evaluate.trials import SUM_ROUNDING, Bools
from bandolero.experiment import Experiment, ExperimentRecord, parse_experiment
from bandolero.features import FeatureMap
from bandolero.fold import arms_of
from bandolero.lake.catalog import Lake
from bandolero.policies import (
    ContextualPolicy,
    Trials,
    aged,
    learn,
    policy_of,
    with_limits,
)
from bandolero.policies.linear_thompson import LinearThompson
from bandolero.policies.logistic_thompson import LogisticThompson
from bandolero.policies.normal_choice import draw_batch
from bandolero.replay import of_experiment
from bandolero.snapshot import Snapshot, build_snapshot, snapshot_from_bytes

COLUMNS = ("variant_id", "probability")
"""What a table of probabilities has, and a decision_id where they differ by decision."""
LEARNED_AT_ONCE = 100_000
"""Trials whose features are made together."""


class TargetError(ValueError):
    """A target cannot be evaluated; the message names field, value and rule."""


def with_policy(experiment: Experiment, policy: dict[str, Any]) -> Experiment:
    """The experiment as it would be with another policy.

    Raises
    ------
    bandolero.experiment.InvalidExperimentError
        With every fault of the policy.
    """
    raw = experiment.model_dump(mode="json", exclude_none=True)
    if policy.get("kind") != experiment.policy.kind:
        for variant in raw["variants"]:  # its prior is the other policy's
            variant.pop("prior", None)
    return parse_experiment(raw | {"policy": policy})


def learned_snapshot(
    record: ExperimentRecord, experiment: Experiment, logged: Logged, until_ms: int
) -> Snapshot:
    """A snapshot of the experiment's policy after some trials, as of a log time.

    Those of variants that are none of the experiment's teach nothing.
    """
    policy = policy_of(experiment)
    arms, known = logged.numbers("arm"), logged.numbers("arm") >= 0
    rewards = logged.numbers("reward")
    closes = logged.numbers("closes_ms")
    state, as_of_ms = policy.init(len(experiment.variants)), 0
    features = FeatureMap(experiment.context)
    for start in range(0, len(arms), LEARNED_AT_ONCE):
        part = slice(start, start + LEARNED_AT_ONCE)
        kept = known[part]
        trials: Trials = (arms[part][kept], rewards[part][kept])
        if isinstance(policy, ContextualPolicy):
            texts = logged.rows["context"].slice(start, LEARNED_AT_ONCE)
            trials = (*trials[:2], features.encode_texts(texts.cast(pa.string()))[kept])
        at_ms = closes[part][kept]
        state, as_of_ms = learn(policy, state, as_of_ms, trials, at_ms)
    state = aged(policy, state, max(until_ms - as_of_ms, 0))
    asked = record.model_copy(update={"spec": experiment})
    return build_snapshot(asked, state, version=0, created_at_ms=until_ms)


def served_snapshot(record: ExperimentRecord, lake: Lake, version: int) -> Snapshot:
    """The snapshot of that version, from the lake.

    Raises
    ------
    TargetError
        When the lake has none of it.
    """
    rows, _ = of_experiment(record, lake, "snapshots")
    found = rows.filter(pc.equal(rows["version"], version))
    if not len(found):
        raise TargetError(f"snapshot == {version}, must be a version in the lake.")
    return snapshot_from_bytes(found["snapshot"][0].as_py())


def probabilities_of(
    snapshot: Snapshot, features: Floats, set_of: Ints, eligible: Bools
) -> Floats:
    """What a snapshot would give each arm, (n_situations, n_arms).

    Parameters
    ----------
    features
        (n_situations, n_features), of the experiment's context.
    set_of
        (n_situations,), rows of `eligible`.
    eligible
        (n_sets, n_arms): who competes.

    Raises
    ------
    TargetError
        When a set has no variant that the snapshot knows.
    """
    known = eligible[:, : len(snapshot.experiment.variants)]
    if not known.any(axis=1).all():
        raise TargetError("a decision has no eligible variant that the target knows.")
    target = np.zeros((len(set_of), eligible.shape[1]))
    order = np.argsort(set_of, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(set_of, minlength=len(known)))[:-1])
    for row, at in zip(known, parts, strict=True):
        arms = np.flatnonzero(row)
        if snapshot.prepared is None:
            exact = snapshot.warm(tuple(arms.tolist())).probabilities
            target[at, : known.shape[1]] = exact
        elif len(at):
            target[np.ix_(at, arms)] = _by_context(snapshot, arms, features[at])
    return target


def _by_context(snapshot: Snapshot, arms: Ints, x: Floats) -> Floats:
    """Probabilities of eligible arms as they would be served, (n, n_eligible).

    For features (n, n_features).
    """
    policy: Any = snapshot.policy
    prepared: Any = snapshot.prepared
    limits = snapshot.experiment.allocation
    low, high = limits.min_share, limits.max_share
    if isinstance(policy, LinearThompson | LogisticThompson) and high >= 1.0:
        return draw_batch(prepared, arms, x, np.zeros(len(x)), low).probabilities
    if high >= 1.0:
        drawn = [policy.draw(prepared, arms, row, 0.0, low)[2] for row in x]
    else:
        weights = [policy.probabilities(prepared, arms, row) for row in x]
        drawn = [with_limits(each, low, high) for each in weights]
    return np.stack(drawn)


def read_probabilities(path: Path) -> pa.Table:
    """A table of target probabilities from a Parquet or CSV file.

    Raises
    ------
    TargetError
        When it cannot be read, or a column is missing or there twice.
    """
    try:
        if path.suffix.lower() == ".csv":
            text = {name: pa.string() for name in ("decision_id", "variant_id")}
            options = pyarrow.csv.ConvertOptions(column_types=text)
            table = pyarrow.csv.read_csv(path, convert_options=options)
        else:
            table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise TargetError(f"{path} cannot be read: {reason}") from None
    _check_names(table, str(path))
    return table


def _check_names(table: pa.Table, of: str) -> None:
    """That the columns are there, once each."""
    for name in (*COLUMNS, "decision_id"):
        n = table.column_names.count(name)
        if n > 1:
            raise TargetError(f"{of} has {n} columns {name}, must have one.")
        if n == 0 and name in COLUMNS:
            raise TargetError(f"{of} has no column {name}, must have it.")


def tabled(experiment: Experiment, table: pa.Table, decision_ids: pa.Array) -> Floats:
    """Probabilities of a table, (n_decisions, n_arms), or (1, n_arms) without decisions.

    Raises
    ------
    TargetError
        When a column is missing or there twice, a variant unknown, a probability none, a
        decision missing, or what a decision has does not add up to 1.
    """
    _check_names(table, "the table")
    arms = _checked_arms(experiment, table)
    shares = _checked_shares(table)
    if "decision_id" not in table.column_names:
        rows, names = np.zeros(len(arms), np.int64), ["the table"]
        return _filled(rows, arms, shares, names, len(experiment.variants))
    ids = decision_ids.cast(pa.large_string())
    given = table["decision_id"].cast(pa.large_string()).combine_chunks()
    found = pc.index_in(given, value_set=ids)
    wanted = pc.is_valid(found).to_numpy(zero_copy_only=False)
    rows = np.asarray(found.drop_null().to_numpy(), np.int64)
    missing = np.flatnonzero(np.bincount(rows, minlength=len(ids)) == 0)
    if len(missing):
        what = (
            f"decision_id == {ids[int(missing[0])].as_py()!r} and {len(missing) - 1:,}"
        )
        raise TargetError(f"{what} others have no probabilities, must have.")
    n_arms = len(experiment.variants)
    return _filled(rows, arms[wanted], shares[wanted], ids, n_arms)


def _checked_arms(experiment: Experiment, table: pa.Table) -> Ints:
    names = table["variant_id"].cast(pa.string())
    arms = arms_of(experiment, names)
    if (arms < 0).any():
        unknown = names[int(np.argmin(arms))].as_py()
        rule = f"must be a variant of {experiment.experiment}"
        raise TargetError(f"variant_id == {unknown!r}, {rule}.")
    return arms


def _checked_shares(table: pa.Table) -> Floats:
    try:
        shares = pc.fill_null(table["probability"].cast(pa.float64()), np.nan)
    except pa.ArrowException:
        kind = table["probability"].type
        raise TargetError(f"probability is {kind}, must be a number.") from None
    values = np.asarray(shares.to_numpy(), np.float64)
    inside = (values >= 0.0) & (values <= 1.0)
    if not inside.all():
        bad = values[int(np.argmin(inside))]
        raise TargetError(f"probability == {bad:g}, must be in [0, 1].")
    return values


def _filled(rows: Ints, arms: Ints, shares: Floats, names: Any, n_arms: int) -> Floats:
    """Probabilities in their places, each row adding up to 1."""
    at = rows * n_arms + arms
    n = len(names)
    if len(at) and np.bincount(at, minlength=n * n_arms).max() > 1:
        raise TargetError("a variant stands twice in the table, must once a decision.")
    target = np.bincount(at, shares, minlength=n * n_arms).reshape(n, n_arms)
    sums = target.sum(axis=1)
    off = int(np.argmax(np.abs(sums - 1.0)))
    if abs(sums[off] - 1.0) > SUM_ROUNDING:
        what = f"probabilities of {names[off]} add up to {sums[off]:g}"
        raise TargetError(f"{what}, must add up to 1.")
    return np.asarray(target / sums[:, None], np.float64)
