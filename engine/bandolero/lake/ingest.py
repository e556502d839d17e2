"""Other systems' Parquet files into the lake: checked row by row, nothing lost.

A file is committed once, named by the hash of its bytes: handing it in again, under any
name, adds nothing. Rows that break a rule go to `quarantine/` with the reason, and so do
files that cannot be read; the rest goes on. Equal-looking rows are all kept: `settle`
decides by event id. What is written, in quarantine too, has been concealed before.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bandolero.lake.catalog import INGESTED, TABLES, Lake, OverlapError
from bandolero.log import MAX_UNIT_CHARACTERS

REQUIRED = {
    "decisions": (
        "tenant_id",
        "decision_id",
        "experiment_id",
        "variant_id",
        "decided_at_ms",
        "propensity",
        "mode",
    ),
    "events": ("tenant_id", "event_id", "decision_id", "type", "at_ms"),
}
TIME = {"decisions": "decided_at_ms", "events": "received_at_ms"}
MAX_MS = 4_102_444_800_000  # the year 2100


Conceal = Callable[[pa.Table], pa.Table]
"""From decisions to what may be stored of them: pseudonyms for units, or nothing."""


class IngestedFile(NamedTuple):
    """What became of one file; `reason` is why a whole file was refused."""

    path: str
    accepted: int
    refused: int
    reason: str | None


class Ingested(NamedTuple):
    """What became of all files."""

    files: list[IngestedFile]

    @property
    def accepted(self) -> int:
        """Rows that are in the lake now."""
        return sum(file.accepted for file in self.files)

    @property
    def refused(self) -> int:
        """Rows in quarantine."""
        return sum(file.refused for file in self.files)

    @property
    def bad_files(self) -> int:
        """Files refused whole."""
        return sum(file.reason is not None for file in self.files)


def ingest(
    lake: Lake,
    table: str,
    paths: Sequence[Path],
    progress: Callable[[str], None] = lambda _: None,
    conceal: Conceal = lambda decisions: decisions,
) -> Ingested:
    """Load files, or the Parquet files of folders, into a table of the lake.

    Parameters
    ----------
    table
        `decisions` or `events`.
    conceal
        What is stored of decisions, refused ones too; all, where the files hold
        pseudonyms already.
    """
    files = []
    for path in files_of(lake, paths):
        progress(f"ingesting {path.name}")
        try:
            files.append(_ingest_file(lake, table, path, conceal))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            _quarantine_file(lake, table, path, reason)
            files.append(IngestedFile(str(path), 0, 0, reason))
    return Ingested(files)


def _ingest_file(lake: Lake, table: str, path: Path, conceal: Conceal) -> IngestedFile:
    data = path.read_bytes()
    name = blake2b(data, digest_size=12).hexdigest()
    shard = f"{INGESTED}{table}-{name}"
    if lake.commits(shard):
        return IngestedFile(str(path), 0, 0, None)
    rows = _shaped(table, pq.read_table(pa.BufferReader(data), partitioning=None))
    reasons = _reasons(table, rows)
    if table == "decisions":
        rows = conceal(_without_odd_units(rows))
    good = np.array([reason is None for reason in reasons], dtype=np.bool_)
    refused = rows.filter(pa.array(~good))
    if refused.num_rows:
        why = pa.array(
            [reason for reason in reasons if reason is not None], pa.string()
        )
        source = pa.array([str(path)] * refused.num_rows)
        told = refused.append_column("reason", why).append_column("source", source)
        _write_quarantine(lake, f"{table}/{name}-rows.parquet", told)
    accepted = _placed(rows.filter(pa.array(good)), table)
    try:
        lake.commit(shard, *_span(accepted), {table: accepted})
    except OverlapError:
        return IngestedFile(str(path), 0, refused.num_rows, None)
    return IngestedFile(str(path), accepted.num_rows, refused.num_rows, None)


def _shaped(table: str, rows: pa.Table) -> pa.Table:
    """The rows in the table's columns; absent ones null, wrong types refused."""
    missing = [name for name in REQUIRED[table] if name not in rows.column_names]
    if missing:
        raise ValueError(f"columns are missing: {', '.join(missing)}.")
    columns = []
    for field in TABLES[table]:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        column = rows[field.name]
        if not _may_cast(column.type, field.type):
            raise ValueError(f"{field.name} is {column.type}, must be {field.type}.")
        columns.append(column.cast(field.type))
    shaped = pa.table(columns, schema=TABLES[table])
    shaped.validate(full=True)  # text that is no UTF-8 would stop every later reader
    return shaped


def _without_odd_units(rows: pa.Table) -> pa.Table:
    """The rows without units that are refused: no erasure could ever name them."""
    lengths = pc.utf8_length(rows["unit"])
    fits = pc.and_(
        pc.greater_equal(lengths, 1), pc.less_equal(lengths, MAX_UNIT_CHARACTERS)
    )
    return _set(rows, "unit", pc.if_else(fits, rows["unit"], None))


def _may_cast(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast keeps the meaning: text to text, number to number, never across."""
    if given.equals(wanted) or pa.types.is_null(given):
        return True
    if pa.types.is_string(wanted):
        if pa.types.is_dictionary(given):
            return _may_cast(given.value_type, wanted)
        return bool(pa.types.is_large_string(given))
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(given))
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_floating(given) or pa.types.is_integer(given))
    if pa.types.is_list(wanted) and pa.types.is_list(given):
        return _may_cast(given.value_type, wanted.value_type)
    return False


def _reasons(table: str, rows: pa.Table) -> list[str | None]:
    """Why each row is refused, or None; (n_rows,)."""
    reasons: list[str | None] = [None] * rows.num_rows
    for rule, broken in _rules(table, rows):
        for i in np.flatnonzero(broken):
            reasons[i] = reasons[i] or rule
    return reasons


def _rules(table: str, rows: pa.Table) -> Iterator[tuple[str, Any]]:
    """Each rule with where it is broken, (n_rows,)."""
    for name in REQUIRED[table]:
        yield f"{name} is null.", rows[name].is_null().to_numpy()
    times = ["decided_at_ms"] if table == "decisions" else ["at_ms", "received_at_ms"]
    for name in times:
        ms = pc.fill_null(rows[name], 0).to_numpy()
        yield f"{name} must lie between 1970 and 2100.", (ms < 0) | (ms > MAX_MS)
    if table == "decisions":
        propensity = pc.fill_null(rows["propensity"], 1.0).to_numpy()
        inside = (propensity > 0.0) & (propensity <= 1.0)
        yield "propensity must be > 0 and <= 1.", ~inside
        contexts = rows["context"].to_pylist()
        broken = [not _is_context(text) for text in contexts]
        yield "context must be a JSON object.", np.array(broken, np.bool_)
        pairs = zip(
            rows["eligible"].to_pylist(), rows["probabilities"].to_pylist(), strict=True
        )
        broken = [p is not None and len(p) != len(e or ()) for e, p in pairs]
        rule = "probabilities must be given for eligible, one each."
        yield rule, np.array(broken, np.bool_)
        lengths = pc.utf8_length(rows["unit"])
        for n in pc.unique(lengths.drop_null()).to_pylist():
            if not 1 <= n <= MAX_UNIT_CHARACTERS:
                rule = f"unit has {n} characters, must have 1 to {MAX_UNIT_CHARACTERS}."
                yield rule, pc.fill_null(pc.equal(lengths, n), False).to_numpy()


def _is_context(text: str | None) -> bool:
    try:
        return text is None or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _placed(rows: pa.Table, table: str) -> pa.Table:
    """The rows with a position in log time: their own."""
    times = rows[TIME[table]]
    if table == "events":
        times = pc.coalesce(times, rows["at_ms"])
        rows = _set(rows, "received_at_ms", times)
        rows = _set(rows, "value_micros", pc.fill_null(rows["value_micros"], 1_000_000))
    ids = [f"{ms}-0" for ms in times.to_pylist()]
    rows = _set(rows, "log_id", pa.array(ids, pa.string()))
    return _set(rows, "log_ms", times)


def _span(rows: pa.Table) -> tuple[int, int]:
    """Log times that hold all rows: after the one, until the other."""
    if not rows.num_rows:
        return 0, 0
    found = pc.min_max(rows["log_ms"]).as_py()
    return max(0, found["min"] - 1), found["max"]


def _set(rows: pa.Table, name: str, column: Any) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, column)


def files_of(lake: Lake, paths: Sequence[Path]) -> Iterator[Path]:
    """The files named, and those in the folders named, save for the lake's own."""
    for path in paths:
        if path.is_dir():
            yield from sorted(
                p
                for p in path.rglob("*.parquet")
                if not p.is_symlink() and not p.absolute().is_relative_to(lake.root)
            )
        else:
            yield path


def _quarantine_file(lake: Lake, table: str, path: Path, reason: str) -> None:
    note = pa.table({"source": [str(path)], "reason": [reason]})
    name = blake2b(str(path).encode(), digest_size=12).hexdigest()
    _write_quarantine(lake, f"{table}/{name}-file.parquet", note)


def _write_quarantine(lake: Lake, name: str, rows: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    lake.write_bytes(f"quarantine/{name}", bytes(sink.getvalue()))
