"""Rows that were refused of a file that is in the lake, judged once more.

An experiment, or a variant, may have been applied since they were refused for not being
known. Nothing else is wrong with such rows, as that is what is looked at last; what they
named stands beside them, and the rest is as it would have been stored.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandolero.lake.catalog import Commit, Lake
from bandolero.lake.drafts import quarantine_of
from bandolero.lake.reader import UnreadableFileError
from bandolero.lake.rules import UNKNOWN, Known, unknown_cells


def commits_of(lake: Lake, shard: str) -> list[Commit]:
    """The commits of an ingested file: the first, and those of rows that came in later."""
    found = lake.commits(shard)
    while found and found[-1].refused:
        later = lake.commits(later_shard(found))
        if not later:
            break
        found += later
    return found


def later_shard(commits: list[Commit]) -> str:
    """What the next commit of a file is called."""
    return f"{commits[0].shard}.{len(commits) + 1}"


def judged_again(
    lake: Lake, table: str, shard: str, known: Known
) -> Iterator[pa.Table]:
    """Rows refused by a commit, part by part, without a refusal where they are fine now.

    Raises
    ------
    UnreadableFileError
        When what stands in quarantine is damaged.
    """
    for path in sorted(lake.paths(quarantine_of(table, shard), ".parquet")):
        try:
            rows = pq.read_table(pa.BufferReader(lake.read_bytes(path)))
        except (ValueError, pa.ArrowException) as error:
            message = f"is in already, but {path} is damaged: {error}"
            raise UnreadableFileError(message) from None
        yield _judged(rows.drop_columns("source"), known)


def _judged(rows: pa.Table, known: Known) -> pa.Table:
    names = [name for name in UNKNOWN if name in rows.column_names]
    whole, is_fine = rows, np.zeros(len(rows), np.bool_)
    for name in names:
        is_of_it = pc.equal(rows["column"], name).fill_null(False)
        told = pc.and_(is_of_it, pc.equal(rows["reason"], UNKNOWN[name]))
        whole = _set(whole, name, pc.if_else(told, rows["value"], rows[name]))
        is_fine |= np.asarray(told)
    (batch,) = whole.combine_chunks().to_batches()
    for one in unknown_cells(batch, known):
        is_fine &= ~one.mask
    mask = pa.array(is_fine)
    for name in names:
        rows = _set(rows, name, pc.if_else(mask, whole[name], rows[name]))
    for name in ("column", "value", "reason"):
        rows = _set(rows, name, pc.if_else(mask, None, rows[name]))
    return rows


def _set(rows: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, column)
