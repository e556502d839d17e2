"""Files of other systems for the tests of ingestion, and one process that reads them all."""

import atexit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bandolero.lake.catalog import Lake
from bandolero.lake.ingest import AS_THEY_ARE, Ingested, Intake, Terms
from bandolero.lake.reader import Reader
from bandolero.lake.rules import REQUIRED
from bandolero.lake.sources import sources_of
from strategies import START_MS, Row, decision

NOW_MS = START_MS + 86_400_000
"""When the tests are, whatever the clock says."""
FOREVER_MS = 4_102_444_800_000
_reader = Reader()
atexit.register(_reader.close)


def take_in(
    lake: Lake, table: str, paths: Sequence[str | Path], terms: Terms = AS_THEY_ARE
) -> Ingested:
    """`ingest`, without starting a process each time."""
    terms = terms._replace(now_ms=terms.now_ms or NOW_MS)
    intake = Intake(lake, table, terms, _reader)
    return Ingested([intake.take_in(source) for source in sources_of(paths, lake)])


def export(path: Path, rows: list[Row] | dict[str, Any]) -> Path:
    """A Parquet file of another system."""
    if isinstance(rows, list):
        columns = dict.fromkeys(name for row in rows for name in row)
        rows = {name: [row.get(name) for row in rows] for name in columns}
    pq.write_table(pa.table(rows), path)
    return path


def sale(**fields: Any) -> Row:
    """An event as another system may know it."""
    known = {"tenant_id": "acme", "event_id": "e1", "decision_id": "d1", "type": "sale"}
    return known | {"at_ms": START_MS} | fields


def shown(**fields: Any) -> Row:
    """A decision as another system may know it."""
    row = decision()
    return {name: row[name] for name in REQUIRED["decisions"]} | fields


def quarantined(lake: Lake, table: str, kind: str) -> list[Row]:
    """Rows of the quarantine: refused `rows`, or notes on refused `file`s."""
    files = sorted(Path(lake.root, "quarantine", table).rglob(f"*-{kind}.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def reasons(lake: Lake, table: str) -> list[tuple[int, str | None, str | None, str]]:
    """Of refused rows: which, the column, what it held, the rule."""
    found = quarantined(lake, table, "rows")
    return [(r["row"], r["column"], r["value"], r["reason"]) for r in found]
