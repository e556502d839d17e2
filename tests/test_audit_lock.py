"""What the audit of the lock says: found, clean, or that it could not look."""

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "audit.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="no source tree")
CLEAN = {"name": "hats", "version": "1", "vulns": []}
FOUND = {"name": "caps", "version": "2", "vulns": [{"id": "CVE-1"}]}
SKIPPED = {"name": "hats", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("lock", "known", "code", "says"),
    [
        ([CLEAN], [FOUND], 0, "1 packages, no known"),
        ([CLEAN, FOUND], [FOUND], 1, "caps 2: CVE-1"),
        ([FOUND], [], 1, "caps 2: CVE-1"),
        ([CLEAN], [CLEAN], 0, "SKIPPED"),
        ([SKIPPED], [SKIPPED], 0, "SKIPPED"),
        ([CLEAN, SKIPPED], [FOUND], 1, "not audited: hats"),
        ([], [FOUND], 1, "not audited: the lock"),
        ([], [], 0, "SKIPPED"),
    ],
)
def test_a_lock_is_clean_only_where_advisories_were_reached(
    lock: list[Any], known: list[Any], code: int, says: str
) -> None:
    """Findings fail; without data it is skipped with a word, never called clean."""
    found = runpy.run_path(str(SCRIPT))["verdict"](lock, known)
    assert found[0] == code
    assert says in found[1]
