"""Trials of an experiment from the lake: settled with hindsight, by column.

Files are read one after the other and settled (`bandolero.settle`) in batches; what is
kept of a decision is a row of numbers, and its context where the experiment has one.
Repeats of a decision are left out, as the refresh leaves them out (`lake.repeats`), and
invalid traffic is as the newest refresh found it (`lake.traffic`).
Which variants competed is spelled out by a decision or implied by its snapshot; ingested
ones that spell none had those that such decisions show.
Decisions that the service logged are cut at the lake's watermark, ingested ones at the
time of asking: their files are all there is of them. Fallback decisions have no
propensity and are left out.
"""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bandolero.evaluate.intervals import Ints
from bandolero.evaluate.left_out import as_told, invalid_traffic, repeats_of
from bandolero.evaluate.trials import Bools
from bandolero.experiment import ExperimentRecord
from bandolero.fold import FALLBACK, arms_of
from bandolero.lake.catalog import BadFile, Lake
from bandolero.lake.listing import Listing, checked_files, undisturbed
from bandolero.replay import of_experiment
from bandolero.settle import Settled, closes_ms, settle
from bandolero.snapshot import HOLDOUT, snapshot_from_bytes

BATCH_ROWS = 1_000_000
"""Smaller files are settled together: every batch looks at all events."""
COLUMNS = (
    "tenant_id",
    "experiment_id",
    "decision_id",
    "variant_id",
    "decided_at_ms",
    "log_ms",
    "snapshot_version",
    "eligible",
    "propensity",
    "mode",
    "context",
    "unit",
)
"""What is looked at of a decision."""
TEXTS = ("context", "unit", "decision_id")
_BY_SNAPSHOT = "#"
"""Begins the name of a set that a decision does not spell out, before its snapshot's
version; no variant's id begins so."""
_ANOTHERS = -1
"""Version of ingested decisions' snapshot: none of ours, whatever their file says."""
_HELD = "h"
"""Ends that name for decisions held out: these draw among all that are active."""


class Asked(NamedTuple):
    """Which trials are asked for, and what of them.

    to_ms
        Decisions made before.
    now_ms
        The time of asking.
    texts
        Columns of text that are wanted; the others are null, and cost nothing.
    """

    to_ms: int
    now_ms: int
    texts: Collection[str] = TEXTS


class Sets(NamedTuple):
    """Which arms competed in a decision, (n_sets, n_arms) each.

    eligible
        Whether the arm could be chosen by a policy.
    possible
        Whether the policy that logged would have drawn it at times.
    """

    eligible: Bools
    possible: Bools


class Logged(NamedTuple):
    """Trials of an experiment, in log order.

    rows
        A row a trial: arm (-1 for a variant that is none of the experiment's), reward,
        propensity, decided_at_ms, closes_ms (log time when the reward was final), set_of
        (a row of `sets`), context, unit, decision_id.
    pending
        Decisions that had not closed.
    invalid
        Decisions that the newest refresh took out as invalid traffic.
    bad_files
        Files of the lake that could not be read.
    """

    rows: pa.Table
    sets: Sets
    pending: int
    invalid: int
    bad_files: tuple[BadFile, ...]

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers, (n_trials,)."""
        return np.asarray(self.rows[name].to_numpy())


class NothingLoggedError(LookupError):
    """The lake holds no trial of the experiment."""


def read_logged(
    record: ExperimentRecord,
    lake: Lake,
    asked: Asked,
    progress: Callable[[str], None] = lambda _: None,
) -> Logged:
    """The trials of an experiment that are asked for.

    Raises
    ------
    NothingLoggedError
        When there are none.
    """
    with TemporaryDirectory(prefix="bandolero-lake-") as folder:
        read = partial(_read, record, lake, asked, Path(folder), progress)
        return undisturbed(lake, read, progress)


def _read(
    record: ExperimentRecord,
    lake: Lake,
    asked: Asked,
    copies: Path,
    progress: Callable[[str], None],
) -> Logged:
    """What is listed now; fails where a file is written anew meanwhile."""
    progress("checking files")
    files = checked_files(lake, "decisions", copies)
    again = repeats_of(files)
    progress("reading events")
    events, bad = lake.read("events")
    events = events.filter(pc.equal(events["tenant_id"], record.tenant))
    watermark_ms, set_names = lake.watermark_ms(), _Numbers()
    parts: list[pa.Table] = []
    pending = invalid = 0
    traffic = invalid_traffic(record, lake)
    for is_ingested, rows in _batches(record, files, again, asked.to_ms):
        progress(f"settling decisions, {sum(map(len, parts)):,} so far")
        cut = asked.now_ms if is_ingested else watermark_ms
        settled = settle(rows, events, record.spec.objective, cut)
        pending += len(rows) - len(settled.row)
        settled, n = as_told(rows, settled, traffic)
        invalid += n
        parts.append(_trials(record, rows, settled, set_names, asked.texts))
    if not any(map(len, parts)):
        message = f"{record.experiment_id} has no closed decision in the lake yet."
        raise NothingLoggedError(message)
    rows = _in_log_order(pa.concat_tables(parts))
    sets, number = _sets(record, lake, list(set_names), rows)
    at = rows.column_names.index("set_of")
    numbers = pa.array(number[rows["set_of"].to_numpy()])
    rows = rows.set_column(at, "set_of", numbers)
    return Logged(rows, sets, pending, invalid, (*files.bad, *bad))


def _batches(
    record: ExperimentRecord, files: Listing, again: dict[str, Ints], to_ms: int
) -> Iterator[tuple[bool, pa.Table]]:
    """(whether ingested, decisions of the experiment), many at once."""
    for is_ingested, paths in ((False, files.live), (True, files.ingested)):
        held: list[pa.Table] = []
        for path in paths:
            rows = pq.read_table(path, columns=list(COLUMNS), partitioning=None)
            if path in again:
                counts = np.ones(len(rows), np.bool_)
                counts[again[path]] = False
                rows = rows.filter(pa.array(counts))
            rows = _mine(record, rows, to_ms)
            held.append(_by_another(rows) if is_ingested else rows)
            if sum(map(len, held)) >= BATCH_ROWS:
                yield is_ingested, pa.concat_tables(held)
                held = []
        if any(map(len, held)):
            yield is_ingested, pa.concat_tables(held)


def _mine(record: ExperimentRecord, rows: pa.Table, to_ms: int) -> pa.Table:
    """Decisions of the experiment that were drawn with a propensity, before `to_ms`."""
    keep = pc.and_(
        pc.equal(rows["tenant_id"], record.tenant),
        pc.equal(rows["experiment_id"], record.experiment_id),
    )
    keep = pc.and_(keep, pc.not_equal(rows["mode"], FALLBACK))
    keep = pc.and_(keep, pc.less(rows["decided_at_ms"], to_ms))
    return rows.filter(keep)


def _by_another(rows: pa.Table) -> pa.Table:
    """Ingested decisions, none of which a snapshot of ours drew."""
    at = rows.column_names.index("snapshot_version")
    versions = pa.array(np.full(len(rows), _ANOTHERS))
    return rows.set_column(at, rows.schema.field(at), versions)


class _Numbers(dict[str, int]):
    """Numbers names 0, 1, … as they come."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]

    def of(self, names: pa.ChunkedArray) -> Ints:
        """The number of each name, (n_names,)."""
        encoded = names.combine_chunks().dictionary_encode("encode")
        numbers = np.array([self[name] for name in encoded.dictionary.to_pylist()])
        return np.asarray(numbers[encoded.indices.to_numpy()], np.int64)


def _trials(
    record: ExperimentRecord,
    decisions: pa.Table,
    settled: Settled,
    set_names: _Numbers,
    texts: Collection[str],
) -> pa.Table:
    """Decisions that count, with what they earned."""
    counts = settled.row[settled.trial]
    whole = len(counts) == len(decisions)
    rows = decisions if whole else decisions.take(pa.array(counts))
    spelled = pc.binary_join(rows["eligible"], ",")
    versions = pc.cast(rows["snapshot_version"], pa.string())
    held = pc.if_else(pc.equal(rows["mode"], HOLDOUT), _HELD, "")
    implied = pc.binary_join_element_wise(_BY_SNAPSHOT, versions, held, "")
    return pa.table(
        {
            "arm": arms_of(record.spec, rows["variant_id"]),
            "reward": settled.reward_micros[settled.trial] / 1e6,
            "propensity": rows["propensity"],
            "decided_at_ms": rows["decided_at_ms"],
            "closes_ms": closes_ms(rows, record.spec.objective),
            "set_of": set_names.of(pc.coalesce(spelled, implied, _BY_SNAPSHOT)),
            **{name: _text(rows, name, texts) for name in TEXTS},
        }
    )


def _text(rows: pa.Table, name: str, wanted: Collection[str]) -> pa.ChunkedArray:
    """A column of text of any length, or nulls where it is not wanted."""
    if name in wanted:
        return rows[name].cast(pa.large_string())
    return pa.chunked_array([pa.nulls(len(rows), pa.large_string())])


def _in_log_order(rows: pa.Table) -> pa.Table:
    closes = np.asarray(rows["closes_ms"].to_numpy())
    if (np.diff(closes) >= 0).all():
        return rows
    return rows.take(pa.array(np.argsort(closes, kind="stable")))


def _sets(
    record: ExperimentRecord, lake: Lake, names: list[str], rows: pa.Table
) -> tuple[Sets, Ints]:
    """The distinct sets behind names, and which of them is each name's, (n_names,)."""
    spelled = [not name.startswith(_BY_SNAPSHOT) for name in names]
    implied = {} if all(spelled) else _implied_sets(record, lake)
    implied |= _presumed_sets(rows, names, len(record.spec.variants))
    variant_ids = record.spec.variant_ids
    every = np.ones(len(variant_ids), np.bool_)
    eligible, possible = [], []
    for name, is_spelled in zip(names, spelled, strict=True):
        if is_spelled:
            named = np.isin(variant_ids, name.split(","))
            both = named, named
        else:
            both = implied.get(name, (every, every))
        eligible.append(both[0])
        possible.append(both[1])
    both_of = np.stack((np.stack(eligible), np.stack(possible)), axis=1)
    distinct, number = np.unique(both_of, axis=0, return_inverse=True)
    return Sets(distinct[:, 0], distinct[:, 1]), number.ravel().astype(np.int64)


def _implied_sets(
    record: ExperimentRecord, lake: Lake
) -> dict[str, tuple[Bools, Bools]]:
    """Eligible and possible arms of decisions that say no set, by the set's name."""
    rows, _ = of_experiment(record, lake, "snapshots")
    n_arms = len(record.spec.variants)
    active: dict[tuple[bytes, int], Bools] = {}
    found = {}
    for row, version in enumerate(rows["version"].to_pylist()):
        shares = np.array(rows["probabilities"][row].as_py())
        possible = np.zeros(n_arms, np.bool_)
        possible[: len(shares)] = shares > 0.0
        # What is active moves with the specification: one snapshot says it for many.
        key = possible.tobytes(), rows["spec_version"][row].as_py()
        if key not in active:
            snapshot = snapshot_from_bytes(rows["snapshot"][row].as_py())
            active[key] = np.isin(np.arange(n_arms), snapshot.active)
        name = f"{_BY_SNAPSHOT}{version}"
        found[name] = active[key], possible
        found[f"{name}{_HELD}"] = active[key], active[key]
    return found


def _presumed_sets(
    rows: pa.Table, names: list[str], n_arms: int
) -> dict[str, tuple[Bools, Bools]]:
    """The same of ingested decisions that tell no set: the arms that these show.

    An arm that no trial at all shows is one of them too, so that a target that wants it
    is not supported.
    """
    start = f"{_BY_SNAPSHOT}{_ANOTHERS}"
    mine = [number for number, name in enumerate(names) if name.startswith(start)]
    arms = rows["arm"].to_numpy()
    known = arms >= 0
    untold = known & np.isin(rows["set_of"].to_numpy(), mine)
    shown = np.bincount(arms[untold], minlength=n_arms) > 0
    presumed = shown | (np.bincount(arms[known], minlength=n_arms) == 0)
    return {names[number]: (presumed, presumed) for number in mine}
