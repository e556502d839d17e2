"""Figures of a report as inline SVG: rates, lift over control, traffic.

Text stays text, colours are told apart by people who see few of them (Okabe and Ito
2008), shapes say the same again, and the same report gives the same bytes. Labels are
ids, never creatives: those may be long, or in a script that no font at hand has. Long
ids are cut, for figures have no other room.
"""

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from threading import Lock
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bandolero.policies.base import Ints
from bandolero.report import wording as say
from bandolero.report.model import Report, VariantRow

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
AREAS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
AREAS_MAX = len(AREAS)
OTHERS = "#C8C8C8"
LABEL_MAX = 24
"""Characters of an id in a label."""
ROWS_MAX = 20
"""Rows of a figure; the control is always one of them."""
LIFT_MAX = 3.0
"""Where the axis of lifts ends at the latest; intervals that go on get an arrow."""
HALF_WIDTH, FULL_WIDTH = 5.4, 11.0
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": "#E3E3E3",
    "svg.fonttype": "none",
    "xtick.color": "#555555",
    "ytick.color": "#333333",
}
_style = Lock()
"""Matplotlib's style belongs to the process; one figure is drawn at a time."""


def rates_svg(report: Report) -> str:
    """Every variant's rate with its credible interval; empty if there is none."""
    rows = _shown(report, [r for r in report.variants if r.interval_lower is not None])
    scale = say.scale_for(report)
    unit = "%" if scale.is_percent else scale.unit

    def draw(ax: Axes) -> None:
        control = next((r for r in rows if r.variant_id == report.control), None)
        at = None if control is None else _mark(report, control)
        if at is not None:
            ax.axvline(at * scale.factor, color=GREY, ls=":", lw=1)
        for y, row in enumerate(rows):
            ends = (row.interval_lower or 0.0, row.interval_upper or 0.0)
            at = _mark(report, row)
            _interval(ax, report, row, y, at, ends, scale.factor)
        _name_rows(ax, report, rows)
        ax.set_xlabel(f"rate ({unit})")

    title = f"Rate and {100 * report.credibility:g} % credible interval"
    return _svg(title, draw, _height(rows)) if rows else ""


def _mark(report: Report, row: VariantRow) -> float | None:
    """The rate as counted; where a context decided, that of all requests."""
    return row.mean if report.by_context else row.rate


def lifts_svg(report: Report) -> str:
    """Every variant's lift over control with its interval; empty if there is none."""
    control = report.control
    rows = _shown(
        report,
        [
            r
            for r in report.variants
            if r.lift_lower is not None or r.variant_id == control
        ],
    )

    def draw(ax: Axes) -> None:
        ax.axvline(0.0, color=GREY, ls=":", lw=1)
        for y, row in enumerate(rows):
            upper = _lift_upper(row)
            ends = (min(row.lift_lower or 0.0, LIFT_MAX), min(upper, LIFT_MAX))
            at = 0.0 if row.variant_id == control else row.lift
            inside = at is not None and at < LIFT_MAX
            _interval(ax, report, row, y, at if inside else None, ends, 100.0)
            if upper > LIFT_MAX:
                ax.plot(100 * LIFT_MAX, y, marker=">", color=_colour(report, row))
        _name_rows(ax, report, rows)
        lowest = min(row.lift_lower or 0.0 for row in rows)
        highest = max(_lift_upper(row) for row in rows)
        margin = 0.06 * (min(highest, LIFT_MAX) - lowest)
        ax.set_xlim(100 * (lowest - margin), 100 * (min(highest, LIFT_MAX) + margin))
        ax.xaxis.set_major_formatter(FuncFormatter(_signed))
        ax.set_xlabel("lift over control (%)")

    title = f"Lift and {100 * report.credibility:g} % credible interval"
    return _svg(title, draw, _height(rows)) if len(rows) > 1 else ""


def _lift_upper(row: VariantRow) -> float:
    """Where an interval ends: infinite where it has a lower end alone, 0 for control."""
    if row.lift_lower is None:
        return 0.0
    return math.inf if row.lift_upper is None else row.lift_upper


def traffic_svg(report: Report) -> str:
    """How the policy shared out its decisions over time; empty if it had none to share."""
    stretches = np.array([stretch.decisions for stretch in report.traffic])
    # Where a context decided, a day is one stretch, and one stretch shows no change.
    alone = len(report.variants) == 1 or (report.by_context and len(stretches) < 2)
    if stretches.sum() == 0 or alone:
        return ""
    days = [s.day for s in report.traffic if s.day is not None]
    order = np.argsort(-stretches.sum(axis=0), kind="stable")
    named, rest = order[:AREAS_MAX], order[AREAS_MAX:]
    left = np.array(days) if days else _before(stretches.sum(axis=1))
    width = np.ones(len(left)) if days else stretches.sum(axis=1)
    parts = [stretches[:, arm] for arm in named]
    labels = [_label(report, report.variants[arm]) for arm in named]
    if len(rest):
        parts.append(stretches[:, rest].sum(axis=1))
        labels.append(f"{len(rest)} others")

    def draw(ax: Axes) -> None:
        total = np.maximum(stretches.sum(axis=1), 1)
        x = np.column_stack([left, left + width]).ravel()
        areas = [100.0 * np.repeat(part / total, 2) for part in parts]
        colours = [*_area_colours(report, named), OTHERS]
        ax.stackplot(x, *areas, labels=labels, colors=colours, ec="white", lw=0.6)
        ax.set(xlim=(x[0], x[-1]), ylim=(0, 100), ylabel="share of decisions (%)")
        _time_axis(ax, is_days=bool(days))
        handles = ax.get_legend_handles_labels()
        ax.legend(
            handles[0][::-1],
            handles[1][::-1],
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
        )

    return _svg("Traffic that the policy gave", draw, 2.9, FULL_WIDTH)


def _area_colours(report: Report, arms: Ints) -> list[str]:
    """The colours of the other figures for leader and control, the rest by rank."""
    free = iter(AREAS)
    own = (_colour(report, report.variants[arm]) for arm in arms)
    return [next(free) if colour == BLUE else colour for colour in own]


def _time_axis(ax: Axes, *, is_days: bool) -> None:
    """Days as dates, or decisions so far."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if is_days:
        ax.xaxis.set_major_formatter(
            FuncFormatter(lambda day, _: say.day_name(int(day)))
        )
        ax.set_xlabel("day (UTC)")
    else:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
        ax.set_xlabel("settled decisions so far")


def _before(sizes: Ints) -> Ints:
    """What came before each of some stretches."""
    return np.concatenate([[0], np.cumsum(sizes)[:-1]])


def _interval(
    ax: Axes,
    report: Report,
    row: VariantRow,
    y: int,
    at: float | None,
    ends: tuple[float, float],
    factor: float,
) -> None:
    """One row: a line from end to end, a mark on it."""
    colour = _colour(report, row)
    x = [factor * end for end in ends]
    ax.plot(x, [y, y], color=colour, lw=2.2, solid_capstyle="round")
    if at is not None:
        marker = "s" if row.variant_id == report.control else "o"
        marker = "D" if row is report.leader else marker
        ax.plot(factor * at, y, marker=marker, ms=6.5, mec="white", color=colour)


def _colour(report: Report, row: VariantRow) -> str:
    if row is report.leader:
        return ORANGE
    return GREY if row.variant_id == report.control else BLUE


def _shown(report: Report, rows: Sequence[VariantRow]) -> list[VariantRow]:
    """The first rows for reading, and the control if it is one of those given."""
    given = {row.variant_id for row in rows}
    ranked = [row for row in report.ranked if row.variant_id in given]
    top = ranked[:ROWS_MAX]
    return top + [r for r in ranked[ROWS_MAX:] if r.variant_id == report.control]


def _name_rows(ax: Axes, report: Report, rows: Sequence[VariantRow]) -> None:
    """Ids down the side, the first on top."""
    labels = [_label(report, row) for row in rows]
    ax.set_yticks(range(len(rows)), labels, parse_math=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)


def _label(report: Report, row: VariantRow) -> str:
    short = _short_ids(report)[row.variant_id]
    if row.variant_id == report.control:
        return f"{short} (control)"
    idle = f" ({row.status})" if row.status != "active" else ""
    return f"{short}{idle}"


def _short_ids(report: Report) -> dict[str, str]:
    """Ids cut in the middle to fit a label; those then alike get their place as well."""
    ids = [row.variant_id for row in report.variants]
    alike = Counter(map(_cut, ids))
    return {
        one: _cut(one) if alike[_cut(one)] == 1 else _cut(one, f"…#{place}…")
        for place, one in enumerate(ids, 1)
    }


def _cut(variant_id: str, gap: str = "…") -> str:
    """The start and the end of a long id."""
    if len(variant_id) <= LABEL_MAX:
        return variant_id
    kept = LABEL_MAX - len(gap)
    return f"{variant_id[: kept // 2]}{gap}{variant_id[kept // 2 - kept :]}"


def _height(rows: Sequence[VariantRow]) -> float:
    return 1.15 + 0.3 * max(len(rows), 2)


def _signed(value: float, _: int) -> str:
    return f"{value:+,.0f}".replace("-", "−").replace("+0", "0")


def _svg(
    title: str, draw: Callable[[Axes], None], height: float, width: float = HALF_WIDTH
) -> str:
    """Draw one figure and return it as an element to put into a page."""
    out = io.StringIO()
    with _style, mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height), layout="constrained")
        ax = figure.add_subplot()
        ax.set_title(title)
        draw(ax)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return _inlined(out.getvalue(), title)


def _inlined(document: str, title: str) -> str:
    """The element alone: no prolog, no size of its own, no ids but those referred to."""
    element = document[document.index("<svg") :].rstrip()
    # The file's style sheet would be the whole page's; its strokes are the root's here.
    for part in ("metadata", r"style type=[^>]*"):
        name = part.split()[0]
        element = re.sub(rf"<{part}>.*?</{name}>", "", element, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', element))
    element = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", element)
    element = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", element)
    element = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", element)
    label = escape(title, quote=True)
    root = f'<svg role="img" aria-label="{label}" style="stroke-linejoin: round"'
    return element.replace("<svg", root, 1)
