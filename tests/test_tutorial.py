"""The tutorial tells the truth: every block of it runs and prints what the page says."""

import contextlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

TUTORIAL = Path(__file__).parents[1] / "engine" / "TUTORIAL.md"
BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)

pytestmark = pytest.mark.skipif(
    not TUTORIAL.is_file(), reason="no source tree beside the tests"
)


@pytest.fixture
def tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page, with files it makes going to the test's own folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return TUTORIAL.read_text(encoding="utf-8")


@pytest.mark.timeout(300)  # the kernels of three policies may have to be compiled
def test_every_block_prints_what_the_page_says(tutorial: str, tmp_path: Path) -> None:
    """The blocks run in order, in one namespace, and the plot is an SVG document."""
    names: dict[str, Any] = {}
    for source, expected in BLOCK.findall(tutorial):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(source, "TUTORIAL.md", "exec"), names)
        assert out.getvalue() == expected, source
    (svg,) = tmp_path.rglob("*.svg")
    assert ET.parse(svg).getroot().tag.endswith("svg")


def test_no_block_is_left_out(tutorial: str) -> None:
    """Every block of Python is one that the test finds, and every one prints something."""
    blocks = BLOCK.findall(tutorial)
    assert len(blocks) == tutorial.count("```python") == tutorial.count("```text")
    assert all(expected for _, expected in blocks)


def test_only_public_names_are_used(tutorial: str) -> None:
    """A reader who has never seen the project needs nothing that begins with _."""
    for source, _ in BLOCK.findall(tutorial):
        assert re.findall(r"(?:\.|import )_[a-z]\w*", source) == []
