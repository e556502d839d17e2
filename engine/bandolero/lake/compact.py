"""Compacting: the many small commits of a day that is over become few.

An archiver leaves a file a table every few minutes, and whoever reads the lake reads an
entry for each of them. Once the watermark has passed a day, small commits in a row are
merged, each table sorted by tenant, experiment and log order, up to a size. The merged
one's entry is made last and at once takes the place of theirs; they themselves stay until
the next run, a night later, for whoever has listed them. So a run cut off anywhere leaves
a lake that reads the same, and the next one goes on.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import groupby
from operator import add
from typing import NamedTuple

import pyarrow as pa

from bandolero.epochs import DAY_MS
from bandolero.lake.catalog import TABLES, Commit, Lake, LakeFile, OverlapError

SMALL_BYTES = 4 << 20
"""A commit as large is left as it is: opening its files costs little beside reading."""
MAX_BYTES = 32 << 20
"""So much a merged commit is made of, at most; ten times as much memory is taken."""
FILE_BYTES = 32 << 10
"""So much a file counts at least, so that a merged commit is made of some thousand."""
BY_EXPERIMENT = [("tenant_id", "ascending"), ("experiment_id", "ascending")]

Alone = Callable[[str], AbstractContextManager[bool]]
"""Given a shard: for a while the only one who rewrites or merges its commits; or not."""
Rows = list[tuple[str, pa.Table]]
"""The rows of files, each with its table's name."""


class _Read(NamedTuple):
    """A commit and what it holds; None where it cannot be read."""

    commit: Commit
    rows: Rows | None


class Compacted(NamedTuple):
    """How many commits and files were merged, and into how many."""

    commits: int = 0
    files: int = 0
    merged_commits: int = 0
    merged_files: int = 0


def compact(
    lake: Lake,
    watermark_ms: int,
    alone: Alone,
    progress: Callable[[str], None] = lambda _: None,
) -> Compacted:
    """Merge small commits of the days that a watermark has passed.

    Ingested files, damaged ones, and commits that were merged before are left alone; and
    so are, for the next run, those of a shard that somebody else is rewriting.

    Parameters
    ----------
    progress
        Told how far it is.
    """
    commits = [c for c in lake.commits() if not c.is_ingested]
    for shard in sorted({commit.shard for commit in commits}):
        with alone(shard) as held:
            if held:
                lake.delete_covered(shard)
    groups = [g for g in _groups(commits, watermark_ms // DAY_MS) if len(g) > 1]
    found = Compacted()
    for i, group in enumerate(groups):
        progress(f"compacting the lake: {i} of {len(groups)} parts")
        with alone(group[0].shard) as held:
            if held and lake.is_listed(group):
                for part in _readable(lake, group):
                    found = _counted(found, part, _merge(lake, part))
    return found


def _groups(commits: Sequence[Commit], today: int) -> Iterator[list[Commit]]:
    """Small commits in a row, each group of one shard and one day before today."""
    group: list[Commit] = []
    room = MAX_BYTES
    for commit in commits:
        size = _size(commit)
        is_over = commit.until_ms // DAY_MS < today
        if not is_over or commit.merged or size >= SMALL_BYTES:
            continue
        if group and not (size <= room and _follows(commit, group[-1])):
            yield group
            group, room = [], MAX_BYTES
        group.append(commit)
        room -= size
    yield group


def _follows(commit: Commit, last: Commit) -> bool:
    """Whether nothing lies between two commits, not even midnight."""
    adjacent = (commit.shard, commit.after_ms) == (last.shard, last.until_ms)
    return adjacent and commit.until_ms // DAY_MS == last.until_ms // DAY_MS


def _size(commit: Commit) -> int:
    """What its files take: bytes, and some of memory however small they are."""
    return sum(max(file.bytes, FILE_BYTES) for file in commit.files)


def _readable(lake: Lake, group: Sequence[Commit]) -> Iterator[list[_Read]]:
    """Parts of a group, two commits or more in a row, between those that are damaged."""
    read = (_Read(commit, _rows(lake, commit)) for commit in group)
    for is_damaged, run in groupby(read, lambda one: one.rows is None):
        part = list(run)
        if len(part) > 1 and not is_damaged:
            yield part


def _rows(lake: Lake, commit: Commit) -> Rows | None:
    """The rows of each file of a commit; None where one of them is damaged."""
    try:
        return [(file.table, lake.read_file(file)) for file in commit.files]
    except (OSError, ValueError, pa.ArrowException):
        return None


def _merge(lake: Lake, part: Sequence[_Read]) -> Commit | None:
    """The merged commit, listed; None where those it was made of are so no longer."""
    commits = [one.commit for one in part]
    files: list[LakeFile] = []
    for table in TABLES:
        mine = [rows for one in part for name, rows in one.rows or () if name == table]
        if mine:
            # Stable, and commits are in log order: so is each experiment.
            rows = pa.concat_tables(mine).sort_by(BY_EXPERIMENT)
            files += lake.write_merged(commits, table, rows)
    merged = commits[0]._replace(
        until_ms=commits[-1].until_ms,
        files=tuple(files),
        writers=last_numbers(commits),
        merged=len(commits),
    )
    with suppress(OverlapError):  # made by another, to whom the lease had passed
        if lake.is_listed(commits):
            return lake.enlist(merged)
    return None


def last_numbers(commits: Sequence[Commit]) -> dict[str, dict[str, int]]:
    """By stream and writer, the number of the last block in commits in a row."""
    last: dict[str, dict[str, int]] = defaultdict(dict)
    for commit in commits:
        for stream, numbers in commit.writers.items():
            last[stream] |= numbers
    return dict(last)


def _counted(found: Compacted, part: Sequence[_Read], made: Commit | None) -> Compacted:
    if made is None:
        return found
    n_files = sum(len(one.commit.files) for one in part)
    more = Compacted(len(part), n_files, 1, len(made.files))
    return Compacted(*map(add, found, more))
