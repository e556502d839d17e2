"""The demo's record, written to `report.html` and `report.json`."""

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from bandolero_service.demo.checks import Check
from bandolero_service.demo.figures import figures
from bandolero_service.demo.play import Play
from bandolero_service.demo.results import Course, Earnings, Outcome, Timings
from bandolero_service.demo.screen import percent
from bandolero_service.demo.source import Source

TEMPLATES = Path(__file__).with_name("templates")


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    try:
        bandolero = version("bandolero")
    except PackageNotFoundError:
        bandolero = "not installed"
    return {
        "bandolero": bandolero,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count() or 1,
    }


class Spoken(NamedTuple):
    """A command as somebody types it, and what it printed."""

    command: str
    output: str


def spoken(done: CompletedProcess[str]) -> Spoken:
    """What was said by a command of the demo, without its folders."""
    words = done.args[done.args.index("bandolero_service") + 1 :]
    words = words[: words.index("--data-dir")]
    named = [Path(word).name if word.startswith("/") else word for word in words]
    folder = str(Path(done.args[-1]))
    text = (done.stdout or done.stderr).replace(f"{folder}/", "")
    return Spoken(f"bandolero {' '.join(named)}", text.rstrip())


@dataclass(frozen=True)
class Record:
    """Everything a run of the demo has to show."""

    options: Any
    source: Source
    play: Play
    outcomes: tuple[Outcome, ...]
    total: Earnings
    course: Course
    timings: Timings
    checks: tuple[Check, ...]
    night: tuple[Spoken, ...]
    machine: Mapping[str, str | int] = field(default_factory=machine)


def write_record(record: Record, folder: Path) -> tuple[Path, Path]:
    """Write the page and the data; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "report.html", folder / "report.json"
    page.write_text(render_page(record), encoding="utf-8")
    text = json.dumps(as_data(record), indent=1, ensure_ascii=False, allow_nan=False)
    data.write_text(text + "\n", encoding="utf-8")
    return page, data


def render_page(record: Record) -> str:
    """The HTML page, self-contained."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template("demo.html").render(
        record=record,
        total=record.total,
        speed=record.timings,
        figures=figures(record.outcomes, record.course),
        earned=_earned_cells,
    )


def _earned_cells(earned: Earnings) -> Markup:
    """The table cells of one row of earnings."""
    cells = (
        f"{earned.decisions:,}",
        f"{earned.uniform:,.1f}",
        f"{earned.bandolero:,.1f}",
        f"{earned.oracle:,.1f}",
        f"{earned.clicks:,}",
        percent(earned.gap_captured),
    )
    return Markup().join(Markup("<td>{}</td>").format(cell) for cell in cells)


def as_data(record: Record) -> dict[str, Any]:
    """The record as plain data, with null for what is not a number."""
    data = {
        "options": {
            name: _plain(value) for name, value in asdict(record.options).items()
        },
        "source": {"name": record.source.name, "citation": record.source.citation},
        "machine": dict(record.machine),
        "total": _earned(record.total),
        "timings": asdict(record.timings) | {"seconds": record.play.seconds},
        "served": dict(record.play.served),
        "tests": [_test(each) for each in record.outcomes],
        "over_time": {
            name: column.tolist() for name, column in vars(record.course).items()
        },
        "night": [said._asdict() for said in record.night],
        "checks": [asdict(check) for check in record.checks],
    }
    return {name: _finite(value) for name, value in data.items()}


def _test(each: Outcome) -> dict[str, Any]:
    return {
        "test": each.test.name,
        "experiment": each.experiment_id,
        **_earned(each.earnings),
        "leader": each.leading["variant_id"],
        "leader_is_best": each.leader_is_best,
        "variants": [dict(row) for row in each.variants],
    }


def _earned(earned: Earnings) -> dict[str, Any]:
    return asdict(earned) | {"gap_captured": earned.gap_captured}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    """The same data with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
