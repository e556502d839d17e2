"""The demo's four figures as inline SVG: themed by the page's colours, nothing external.

Matplotlib draws with placeholder colours, which become CSS variables of the page, so that
one figure reads well on a light and on a dark ground.
"""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bandolero_service.demo.results import Course, Outcome

# Placeholders, and what the page calls them; each series has its own dash or mark as well.
INK, GRID = "#010203", "#010204"
UNIFORM, BANDOLERO, ORACLE = "#010205", "#010206", "#010207"
THEME = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    UNIFORM: "var(--uniform)",
    BANDOLERO: "var(--bandolero)",
    ORACLE: "var(--oracle)",
}
N_SMALL_MULTIPLES = 6


def figures(outcomes: Sequence[Outcome], run: Course) -> dict[str, str]:
    """All figures by name, each an `<svg>` with a title and a description."""
    with _style():
        return {
            "extra_clicks": extra_clicks(run),
            "best_share": best_share(run),
            "gap_captured": gap_captured(outcomes),
            "intervals": intervals(outcomes),
        }


def _style() -> AbstractContextManager[None]:
    """Matplotlib's settings for a page that brings its own colours and fonts."""
    return mpl.rc_context(
        {
            "axes.edgecolor": INK,
            "axes.grid": True,
            "axes.labelcolor": INK,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlecolor": INK,
            "axes.titlesize": 10,
            "figure.constrained_layout.use": True,
            "font.family": "sans-serif",
            "font.size": 10,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "legend.labelcolor": INK,
            "svg.fonttype": "none",
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "text.parse_math": False,
        }
    )


def extra_clicks(run: Course) -> str:
    """Expected clicks above uniform serving over the run, with the oracle's."""
    figure, axes = _figure(3.6)
    thousands = np.insert(run.decisions / 1000, 0, 0.0)
    oracle = np.insert(run.oracle - run.uniform, 0, 0.0)
    bandolero = np.insert(run.bandolero - run.uniform, 0, 0.0)
    axes.plot(thousands, oracle, color=ORACLE, dashes=(6, 3), label="oracle")
    axes.plot(thousands, bandolero, color=BANDOLERO, lw=2.2, label="Bandolero")
    axes.plot(thousands, 0 * oracle, color=UNIFORM, dashes=(1, 2), label="uniform")
    axes.set(
        xlabel="decisions, all tests (thousands)",
        ylabel="clicks above uniform (expected)",
    )
    axes.legend(loc="upper left")
    return _svg(
        figure,
        "extra-clicks",
        "Clicks above uniform serving, over the run",
        f"At the end Bandolero is {bandolero[-1]:,.0f} expected clicks "
        f"above uniform serving, the oracle {oracle[-1]:,.0f}.",
    )


def best_share(run: Course) -> str:
    """Share of the traffic that showed the best variant, step by step."""
    figure, axes = _figure(3.2)
    axes.plot(run.seconds, run.best_share, color=BANDOLERO, lw=2.2, label="Bandolero")
    axes.plot(
        run.seconds, run.uniform_share, color=UNIFORM, dashes=(1, 2), label="uniform"
    )
    axes.set(
        xlabel="time played (s)", ylabel="traffic to the best variant (%)", ylim=(0, 1)
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left")
    return _svg(
        figure,
        "best-share",
        "Traffic to the best variant, over the run",
        f"From {run.best_share[0]:.0%} in the first step to {run.best_share[-1]:.0%} in the "
        f"last; uniform serving gives it {run.uniform_share[-1]:.0%}.",
    )


def gap_captured(outcomes: Sequence[Outcome]) -> str:
    """Gap captured per test, sorted; tests whose variants are all alike are left out."""
    known = [
        (gap, each.test.name)
        for each in outcomes
        if (gap := each.earnings.gap_captured) is not None
    ]
    known.sort()
    gaps = np.array([gap for gap, _ in known])
    rows = np.arange(len(known))
    figure, axes = _figure(1.2 + 0.2 * len(known))
    axes.hlines(rows, 0, gaps, color=GRID, lw=1.5)
    axes.plot(gaps, rows, "o", color=BANDOLERO)
    axes.axvline(0, color=UNIFORM, dashes=(1, 2))
    axes.axvline(1, color=ORACLE, dashes=(6, 3))
    axes.set_yticks(rows, [name for _, name in known])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(
        xlabel="gap captured (%): 0 is uniform serving, 100 the oracle", ylabel="test"
    )
    return _svg(
        figure,
        "gap-captured",
        "Share of the uniform-to-oracle gap captured, by test",
        f"{len(known)} tests, from {gaps.min(initial=0):.0%} to {gaps.max(initial=0):.0%}; "
        "the table has every figure.",
    )


def intervals(outcomes: Sequence[Outcome]) -> str:
    """Credible intervals beside the true rates, for the first tests that were drawn."""
    chosen = outcomes[:N_SMALL_MULTIPLES]
    n_rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(8, 2.1 * n_rows + 0.4))
    panels = figure.subplots(n_rows, 2, squeeze=False).ravel()
    for axes, each in zip(panels, chosen, strict=False):
        _draw_intervals(axes, each)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return _svg(
        figure,
        "intervals",
        "Credible intervals and true rates",
        f"The first {len(chosen)} tests in the order of the table: for every variant its 95% "
        "credible interval, its observed rate and the true rate it was clicked with.",
    )


def _draw_intervals(axes: Axes, each: Outcome) -> None:
    """One test: variants downwards, the click rate to the right."""
    rows = np.arange(len(each.variants))
    columns = ("interval_lower", "interval_upper", "rate", "click_rate")
    lower, upper, rate, truth = (
        np.array([row[column] for row in each.variants], dtype=np.float64)
        for column in columns
    )
    axes.hlines(
        rows, lower, upper, color=BANDOLERO, lw=3, label="95% credible interval"
    )
    axes.plot(rate, rows, "|", color=INK, ms=9, mew=1.5, label="observed rate")
    axes.plot(
        truth, rows, "D", color=ORACLE, mfc="none", ms=6, mew=1.5, label="true rate"
    )
    axes.set_yticks(rows, [str(row["variant_id"]) for row in each.variants])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(title=each.test.name, xlabel="click rate (%)", ylabel="variant")


def _figure(height: float) -> tuple[Figure, Axes]:
    """A figure as wide as the page, `height` inches high, with one pair of axes."""
    figure = Figure(figsize=(8, height))
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element that may stand beside others in a page."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    # Ids are unique within a figure only.
    drawing = re.sub(r'\bid="', f'id="{name}-', drawing)
    drawing = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", drawing)
    for placeholder, variable in THEME.items():
        drawing = drawing.replace(placeholder, variable)
    head, _, body = drawing.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    labels = f'role="img" aria-labelledby="{name}-title {name}-description"'
    return (
        f'{head} {labels}><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-description">{escape(description)}</desc>{body}'
    )
