"""Erasing units: what the lake holds becomes what it would without their consent.

A row loses its unit, and its draw, which a sticky unit fixes; it keeps everything that
is counted, folded or reported, so every sum stays what it was, to the bit. Files are
written anew and listed in the old ones' place; the old ones are deleted, and so is what
a writer that was killed left beside them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandolero.lake.catalog import Lake, LakeFile

ERASURE = "erasure"
"""The kind of control fact that asks for one, or says how far it has come."""
TABLE = "decisions"
LOST = ("unit", "draw")
"""The columns that a row loses."""


class Erasure(NamedTuple):
    """Whom to erase: a tenant's unit, by pseudonym, in decisions made until a time."""

    tenant_id: str
    unit: str
    until_ms: int


Unit = tuple[str, str]
"""Tenant and pseudonym."""


class Erased(NamedTuple):
    """Rows and files that were written anew, by unit, and files that cannot be read."""

    rows: Counter[Unit]
    files: Counter[Unit]
    unreadable: tuple[str, ...]


def without_units(
    decisions: pa.Table, erasures: Iterable[Erasure]
) -> tuple[pa.Table, Counter[Unit]]:
    """The rows with what erased units lose set to null, and how many rows each lost."""
    until = {(one.tenant_id, one.unit): one.until_ms for one in erasures}
    lost: Counter[Unit] = Counter()
    units = pa.array({unit for _, unit in until}, pa.string())
    erased = np.array(pc.is_in(decisions["unit"], units).to_numpy())
    for i in np.flatnonzero(erased).tolist():
        tenant, unit, at_ms = (
            decisions[name][i].as_py()
            for name in ("tenant_id", "unit", "decided_at_ms")
        )
        erased[i] = (at_ms or 0) <= until.get((tenant, unit), -1)
        lost[tenant, unit] += int(erased[i])
    if not erased.any():
        return decisions, +lost
    for name in LOST:
        at = decisions.column_names.index(name)
        kept = pc.if_else(pa.array(erased), None, decisions[name])
        decisions = decisions.set_column(at, decisions.field(at), kept)
    return decisions, +lost


def erase(
    lake: Lake,
    is_mine: Callable[[str], bool],
    erasures: Sequence[Erasure],
    still: Callable[[], None] = lambda: None,
) -> Erased:
    """Write anew what the commits of some shards hold of units; may be repeated at will.

    Parameters
    ----------
    is_mine
        Which shards (or ingested files) to look at; nobody else may write these.
    still
        Called before each commit is written; raises where the caller must stop.
    """
    rows: Counter[Unit] = Counter()
    files: Counter[Unit] = Counter()
    unreadable: list[str] = []
    commits = [commit for commit in lake.commits() if is_mine(commit.shard)]
    for commit in commits:
        anew: dict[LakeFile, pa.Table] = {}
        for file in commit.files:
            if file.table != TABLE:
                continue
            try:
                if not _names_any(lake, file.path, erasures):
                    continue
                without, lost = without_units(lake.read_file(file), erasures)
            except (OSError, ValueError, pa.ArrowException):
                unreadable.append(file.path)
                continue
            if lost:
                anew[file] = without
                rows += lost
                files += Counter(set(lost))
        still()
        lake.rewrite(commit, anew)
    lake.sweep(TABLE, is_mine)
    unreadable += _erase_quarantine(lake, erasures)
    return Erased(rows, files, tuple(unreadable))


def _names_any(lake: Lake, path: str, erasures: Sequence[Erasure]) -> bool:
    """Whether a file holds one of the units; only that column is read."""
    wanted = pa.array({one.unit for one in erasures}, pa.string())
    with lake.filesystem.open_input_file(f"{lake.root}/{path}") as source:
        units = pq.read_table(
            source, columns=["unit"], partitioning=None, page_checksum_verification=True
        )["unit"]
    return bool(pc.any(pc.is_in(units, wanted)).as_py())


def _erase_quarantine(lake: Lake, erasures: Sequence[Erasure]) -> list[str]:
    """Write refused rows anew; the paths that cannot be read.

    Among these are the log's blocks that could not be, which may hold anyone.
    """
    unreadable = list(lake.paths(f"quarantine/log/{TABLE}", ".json"))
    for path in lake.paths(f"quarantine/{TABLE}", ".parquet"):
        try:
            rows = pq.read_table(pa.BufferReader(lake.read_bytes(path)))
            if "unit" not in rows.column_names:  # a note on a file refused whole
                continue
            rows, lost = without_units(rows, erasures)
            if lost:
                sink = pa.BufferOutputStream()
                pq.write_table(rows, sink, compression="zstd")
                lake.write_bytes(path, bytes(sink.getvalue()))
        except (OSError, ValueError, pa.ArrowException):
            unreadable.append(path)
    return unreadable
