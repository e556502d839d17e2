"""A report as one page: no script, nothing fetched, creatives never taken for markup."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bandolero.report import wording as say
from bandolero.report.figures import ROWS_MAX, lifts_svg, rates_svg, traffic_svg
from bandolero.report.model import Report
from bandolero.report.verdict import split_sentence

TEMPLATE = "report.html"


def to_html(report: Report) -> str:
    """Write the report as a self-contained page, best variant first."""
    return (
        _pages()
        .get_template(TEMPLATE)
        .render(
            report=report,
            scale=say.scale_for(report),
            percent=f"{100 * report.credibility:g} %",
            split=split_sentence(report.sample_ratio),
            figures=_figures(report) if report.totals.trials else {},
        )
    )


def _figures(report: Report) -> dict[str, Markup]:
    """Our own drawings, of numbers and ids: the only text that is not escaped."""
    drawn = {
        "rates": rates_svg(report),
        "lifts": lifts_svg(report),
        "traffic": traffic_svg(report),
    }
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704


@cache
def _pages() -> Environment:
    pages = Environment(
        loader=PackageLoader("bandolero.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals.update(say=say, rows_max=ROWS_MAX)
    return pages
