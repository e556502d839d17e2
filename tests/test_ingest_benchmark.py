"""The benchmark of ingestion measures what it says: every row of its file is taken in."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("no benchmarks beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import ingesting  # noqa: E402 - needs the path


@pytest.mark.parametrize("is_hidden", [False, True])
def test_all_rows_are_taken_in(tmp_path: Path, is_hidden: bool) -> None:
    """With their units as they are, and with pseudonyms for them; 30 days, 30 files."""
    path = ingesting.write_file(tmp_path / "a.parquet", 3000)
    found = ingesting.take_in(path, is_hidden)
    assert (found["rows"], found["files"]) == (3000, 30)
    assert found["reader_mb"] > 0


def test_a_file_is_the_same_each_time(tmp_path: Path) -> None:
    """Seeded, with as many rows as asked for, in the order of their time."""
    one, two = (ingesting.write_file(tmp_path / name, 500) for name in ("1", "2"))
    assert one.read_bytes() == two.read_bytes()
    rows = pq.read_table(one)
    times = rows["decided_at_ms"].to_pylist()
    assert (len(rows), times) == (500, sorted(times))
    assert len(set(rows["decision_id"].to_pylist())) == 500
