"""What a shard of the log had come to, from the lake alone.

The commits of a shard are walked in order, as the learner walks the log: what has closed
by the end of a commit is folded, each decision at its own close; what has not is held.
So memory holds the open windows, and the folds are those of the learner.
"""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandolero.experiment import ExperimentRecord
from bandolero.fold import FALLBACK, Fold, advance, init_fold
from bandolero.lake.catalog import (
    SNAPSHOTS_TABLE,
    BadFile,
    Commit,
    Lake,
    in_log_order,
)
from bandolero.lake.compact import last_numbers
from bandolero.lake.erase import ERASURE
from bandolero.lake.names import entry_of
from bandolero.log import DECISIONS_TABLE, EVENTS_TABLE
from bandolero.policies.base import Floats, Ints
from bandolero.settle import GRACE_MS, LOST_AFTER_MS, closes_ms

log = logging.getLogger(__name__)

CORRECTION = "correction"
PRIOR = "prior"
Name = tuple[str, str]
"""Tenant and experiment."""


class Rebuilt(NamedTuple):
    """A shard as of `until_ms`, the log time up to which the lake holds it.

    records, corrections: the newest of each experiment. priors: the books that were in
    force, JSON, oldest first, by tenant. erasures: how far each had come,
    JSON. decided: decisions by variant, settled or not.
    snapshots: rows of the newest one of each experiment, and of those that open
    decisions may have been made from. decisions: rows not closed. events: rows that may
    belong to them. writers: the number of each writer's last block, by stream.
    bad_files: files that could not be used; what they held is missing.
    """

    shard: int
    until_ms: int
    records: dict[Name, ExperimentRecord]
    corrections: dict[Name, dict[str, Any]]
    priors: dict[str, list[str]]
    erasures: dict[Name, str]
    folds: dict[Name, Fold]
    decided: dict[Name, Counter[str]]
    snapshots: pa.Table
    decisions: pa.Table
    events: pa.Table
    writers: dict[str, dict[str, int]]
    bad_files: list[BadFile]


def rebuild(
    lake: Lake,
    shard: int,
    served_ms: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Rebuilt:
    """Rebuild a shard from all its commits.

    Parameters
    ----------
    served_ms
        How long after it was published a snapshot may have been drawn from.
    progress
        Told how far it is.
    """
    commits = lake.commits(f"s{shard}")
    facts, bad = _facts(lake, commits)
    records = {
        n: ExperimentRecord.model_validate_json(b) for n, b in facts.records.items()
    }
    walk = _Walk(records, served_ms)
    for i, commit in enumerate(commits):
        progress(f"folding shard {shard}: {i} of {len(commits)} commits")
        bad += _gap(commits[i - 1] if i else None, commit)
        bad += walk.take(lake, commit)
    until_ms = commits[-1].until_ms if commits else 0
    return Rebuilt(
        shard,
        until_ms,
        records,
        {name: json.loads(body) for name, body in facts.corrections.items()},
        facts.priors,
        facts.erasures,
        walk.folds,
        walk.decided,
        walk.snapshots,
        in_log_order(walk.open),
        walk.held,
        last_numbers(commits),
        bad,
    )


class _Walk:
    """The learner's fold over the commits of a shard."""

    def __init__(self, records: dict[Name, ExperimentRecord], served_ms: int) -> None:
        self.records = records
        self.folds: dict[Name, Fold] = {}
        self.decided: dict[Name, Counter[str]] = defaultdict(Counter)
        self.snapshots = SNAPSHOTS_TABLE.empty_table()
        self.open = DECISIONS_TABLE.empty_table()
        self.held = EVENTS_TABLE.empty_table()
        windows = (record.spec.objective.window_ms for record in records.values())
        self._longest_ms = max(windows, default=0) + GRACE_MS + LOST_AFTER_MS
        self._served_ms = served_ms

    def take(self, lake: Lake, commit: Commit) -> list[BadFile]:
        """Fold what has closed by the end of the next commit; its unusable files."""
        (decisions, bad), (events, worse), (snapshots, worst) = (
            lake.read_commit(commit, name)
            for name in ("decisions", "events", "snapshots")
        )
        self._count(decisions)
        self.snapshots = pa.concat_tables([self.snapshots, snapshots])
        self.held = pa.concat_tables([self.held, events])
        closed = self._closed(decisions, commit.until_ms)
        told = self._events_of(list(closed.values()))
        shown = dict(by_experiment(self.snapshots))
        for (name, rows), their in zip(closed.items(), told, strict=True):
            if rows.num_rows:
                self._fold(name, rows, their, shown.get(name))
        self._forget(commit.until_ms)
        return bad + worse + worst

    def _count(self, decisions: pa.Table) -> None:
        learned = decisions.filter(pc.not_equal(decisions["mode"], FALLBACK))
        for name, rows in by_experiment(learned):
            self.decided[name].update(rows["variant_id"].to_pylist())

    def _closed(self, fresh: pa.Table, until_ms: int) -> dict[Name, pa.Table]:
        """Decisions that have closed, by experiment; the others stay open."""
        closed, still = {}, [self.open.slice(0, 0)]
        for name, rows in by_experiment(pa.concat_tables([self.open, fresh])):
            if (record := self.records.get(name)) is None:
                continue
            done = pa.array(closes_ms(rows, record.spec.objective) <= until_ms)
            closed[name] = rows.filter(done)
            still.append(rows.filter(pc.invert(done)))
        self.open = pa.concat_tables(still)
        return closed

    def _events_of(self, closed: list[pa.Table]) -> list[pa.Table]:
        """The events of each group of decisions; they are held no longer."""
        ids = [rows["decision_id"] for rows in closed]
        known = pa.chunked_array([c for i in ids for c in i.chunks], pa.string())
        found = pc.fill_null(pc.index_in(self.held["decision_id"], known), -1)
        ends = np.cumsum([rows.num_rows for rows in closed])
        group = np.searchsorted(ends, found.to_numpy(), side="right")
        group[found.to_numpy() < 0] = len(closed)
        *told, self.held = _split(self.held, group, len(closed) + 1)
        return told

    def _fold(
        self, name: Name, rows: pa.Table, events: pa.Table, shown: pa.Table | None
    ) -> None:
        spec = self.records[name].spec
        fold = self.folds.get(name) or init_fold(spec)
        try:
            self.folds[name] = advance(spec, fold, rows, events, _vectors(shown))
        except Exception:  # as in the learner: one's fault must not stop the others
            lost = f"{rows.num_rows} decisions are not learned"
            log.exception("%s cannot be folded, %s", "/".join(name), lost)

    def _forget(self, until_ms: int) -> None:
        """Drop what no open decision, and no later one, can need."""
        oldest = until_ms - self._longest_ms
        recent = pc.min_element_wise(self.held["decided_at_ms"], self.held["log_ms"])
        self.held = self.held.filter(pc.less_equal(oldest, recent))
        rows = self.snapshots
        newest = {name: i for i, name in enumerate(_names(rows).to_pylist())}
        keep = np.asarray(rows["log_ms"].to_numpy()) >= oldest - self._served_ms
        keep[list(newest.values())] = True
        self.snapshots = rows.filter(pa.array(keep))


class _Facts(NamedTuple):
    """The newest record, correction and erasure by name, all books by tenant; JSON."""

    records: dict[Name, str]
    corrections: dict[Name, str]
    erasures: dict[Name, str]
    priors: dict[str, list[str]]


def _facts(lake: Lake, commits: list[Commit]) -> tuple[_Facts, list[BadFile]]:
    """What the control facts come to."""
    facts = _Facts({}, {}, {}, defaultdict(list))
    by_kind = {CORRECTION: facts.corrections, ERASURE: facts.erasures}
    bad: list[BadFile] = []
    for commit in commits:
        rows, worse = lake.read_commit(commit, "control")
        bad += worse
        for row in rows.to_pylist():
            if row["kind"] == PRIOR:
                facts.priors[row["tenant_id"]].append(row["body"])
                continue
            told = by_kind.get(row["kind"], facts.records)
            told[row["tenant_id"], row["experiment_id"]] = row["body"]
    return facts, bad


def _gap(before: Commit | None, commit: Commit) -> list[BadFile]:
    """What lies between two commits that ought to meet."""
    reached = before.until_ms if before is not None else 0
    if commit.after_ms == reached:
        return []
    path = entry_of(commit.shard, reached)
    return [BadFile(path, "is missing, and so is all it listed.")]


def by_experiment(rows: pa.Table) -> Iterator[tuple[Name, pa.Table]]:
    """The rows of each experiment, in their order."""
    names = _names(rows).dictionary_encode()
    parts = _split(rows, names.indices.to_numpy(), len(names.dictionary))
    for name, part in zip(names.dictionary.to_pylist(), parts, strict=True):
        tenant, _, experiment_id = name.partition("/")
        yield (tenant, experiment_id), part


def _names(rows: pa.Table) -> pa.Array:
    """`tenant/experiment` of each row; neither part can hold a slash."""
    joined = pc.binary_join_element_wise(rows["tenant_id"], rows["experiment_id"], "/")
    return joined.combine_chunks()


def _split(rows: pa.Table, group: Ints, n_groups: int) -> list[pa.Table]:
    """The rows of each group, in their order; group: (n_rows,), from 0."""
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(n_groups + 1))
    return [rows.take(pa.array(order[a:b])) for a, b in pairwise(bounds)]


def _vectors(shown: pa.Table | None) -> dict[int, Floats]:
    """Probabilities of all arms by snapshot version."""
    if shown is None:
        return {}
    pairs = zip(
        shown["version"].to_pylist(), shown["probabilities"].to_pylist(), strict=True
    )
    return {version: np.array(vector) for version, vector in pairs}
