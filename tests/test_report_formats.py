"""How a report is shown: machine formats without NaN, safe pages, figures as text."""

import csv
import io
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow.parquet as pq
import pytest

from bandolero.report.figures import lifts_svg, rates_svg, traffic_svg
from bandolero.report.html import to_html
from bandolero.report.tabular import METADATA_KEY, to_csv, to_json, to_parquet
from bandolero.report.text import to_text
from report_cases import (
    busy_report,
    epoch,
    long_report,
    record_of,
    report_of,
)


def test_nothing_settled_is_nulls_and_no_figure() -> None:
    """Whatever is not known is null in JSON, and a report without data has a page."""
    for report in (report_of(record_of("One")), busy_report()):
        told = json.loads(json.dumps(to_json(report), allow_nan=False))
        assert told["experiment"] == "hero"
        assert len(told["variants"]) == len(report.variants)
    empty = to_json(report_of(record_of("One")))
    assert empty["variants"][0]["rate"] is None
    assert empty["totals"]["rate"] is None
    assert empty["correction"] is None
    page = to_html(report_of(record_of("One", "Two"), decided={"v1": 3}))
    assert "Nothing to compare yet" in page
    assert "<svg" not in page


@pytest.mark.parametrize("prior", [0.004, 0.001, 1e-9])
def test_lift_over_a_control_that_may_be_zero(prior: float) -> None:
    """Where an end of a lift is infinite it is null, and the lower one is told alone."""
    policy = {"kind": "beta_thompson", "prior_alpha": prior}
    record = record_of("One", "Two", policy=policy)
    for report in (
        report_of(record),
        report_of(record, epoch([1000, 1000], [0.0, 0.0])),
        report_of(record, epoch([1000, 1000], [0.0, 20.0])),
    ):
        told = json.loads(json.dumps(to_json(report), allow_nan=False))
        row = told["variants"][1]
        assert row["lift"] is row["lift_upper"] is None
        assert row["lift_lower"] is None or row["lift_lower"] >= -1.0
        assert list(csv.DictReader(io.StringIO(to_csv(report))))[1]["lift_upper"] == ""
        assert to_parquet(report)
        assert "inf" not in re.sub("inform", "", to_text(report) + to_html(report))
    open_above = report_of(record, epoch([1000, 1000], [0.0, 0.0]))
    assert "above −100.0 %" in to_text(open_above)
    assert "<svg" in lifts_svg(open_above)


def test_csv_round_trip() -> None:
    """CSV gives every column back, and no headline runs as a formula."""
    report = busy_report('=HYPERLINK("x")', 'Comma, "quote"\nand line')
    first, second = csv.DictReader(io.StringIO(to_csv(report)))
    assert list(first) == list(to_json(report)["variants"][0])
    assert first["headline"] == '\'=HYPERLINK("x")'
    assert second["headline"] == 'Comma, "quote"\nand line'
    assert float(second["rate"]) == report.variants[1].rate
    assert first["lift"] == first["share_now"] == ""


def test_parquet_round_trip() -> None:
    """Parquet gives the same rows as JSON, and the rest in its metadata."""
    report = busy_report()
    table = pq.read_table(io.BytesIO(to_parquet(report)))
    told = to_json(report)
    assert table.to_pylist() == told.pop("variants")
    assert json.loads(table.schema.metadata[METADATA_KEY]) == told


def test_text_fits_its_width() -> None:
    """The table keeps to its width with numbers whole, and has no escape codes."""
    report = busy_report(
        "A long headline, " * 20, "\x1b[31mred\x1b[0m", "短い見出し" * 20
    )
    for width in (100, 120):
        text = to_text(report, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text
        assert "6.00 %" in text
        assert "> 99.9 %" in text
    assert "\x1b[" in to_text(report, colour=True)


def test_text_keeps_numbers_beside_long_ids() -> None:
    """Ids of 64 characters take more lines; heads and numbers are whole, in any width."""
    report = long_report(["-a", "-b"])
    for width in (100, 120):
        text = to_text(report, width=width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for whole in (
            "decisions",
            "impressions",
            "20,000",
            "5.55 to 6.48 %",
            "share now",
        ):
            assert whole in text
    first = text.partition("──\n")[2].splitlines()
    assert f"{first[0].split()[0]}{first[1].strip()}" == report.ranked[0].variant_id
    narrow = to_text(report, width=60)
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60


def test_no_creative_turns_its_neighbours_around() -> None:
    """What overrides the direction of text is shown, not obeyed; Hebrew is isolated."""
    report = busy_report("\u202eevil", "חדש 2026")
    page, text = to_html(report), to_text(report)
    for shown in (page, text):
        assert "\u202e" not in shown
        assert "\N{REPLACEMENT CHARACTER}evil" in shown
    assert "\u2068חדש 2026\u2069" in text
    assert '<span class="creative" dir="auto">חדש 2026</span>' in page


def test_html_escapes_creatives() -> None:
    """A creative's markup is shown as text; the page has no script and fetches nothing."""
    page = to_html(
        busy_report("<script>alert('x')</script>", '"><img src=x onerror=y>')
    )
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    fetched = re.findall(r'(?:\ssrc|\shref)="(?!#)[^"]*"|url\((?!#)[^)]*\)', page)
    assert fetched == []


def test_figures_are_svg_with_text() -> None:
    """Figures are well-formed, small, and their labels are text."""
    report = busy_report("One $x^$ two", "Two")
    for draw in (rates_svg, lifts_svg, traffic_svg):
        svg = draw(report)
        assert len(svg) < 50_000
        texts = _texts(svg)
        assert "v1 (control)" in texts
        assert any("(%)" in text for text in texts)


def _texts(svg: str) -> list[str]:
    """What a drawing says."""
    elements = ET.fromstring(svg).iter()
    return [one.text or "" for one in elements if one.tag.endswith("text")]


def test_figures_have_room_beside_long_ids() -> None:
    """Labels are cut in the middle, and still tell one id from another."""
    texts = _texts(rates_svg(long_report(["-a", "-b"])))
    assert "Rate and 95 % credible interval" in texts
    labels = [text for text in texts if "…" in text]
    assert labels == ["spring-hero…xxxxxxxxxx-b", "spring-hero…xxxxxxxxxx-a (control)"]
    alike = long_report(["-a" + "x" * 20, "-b" + "x" * 20])
    labels = [text for text in _texts(rates_svg(alike)) if "…" in text]
    assert labels == ["spring-her…#2…xxxxxxxxxx", "spring-her…#1…xxxxxxxxxx (control)"]


def test_figures_are_the_same_from_many_threads() -> None:
    """The same report gives the same bytes, also when threads draw at once."""
    reports = [busy_report(), busy_report("One", "Two", "Three")] * 4
    once = [to_html(report) for report in reports[:2]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(to_html, reports)) == once * 4


def test_page_repeats_no_id() -> None:
    """No two elements of a page share an id, so figures do not borrow each other's."""
    ids = re.findall(r'\sid="([^"]*)"', to_html(busy_report("One", "Two", "Three")))
    assert len(ids) == len(set(ids))


def test_figures_keep_to_their_rows() -> None:
    """Of many variants the first by rank are drawn, and the control whatever its rank."""
    report = busy_report(*(f"Headline {n}" for n in range(60)), control="v7")
    svg = rates_svg(report)
    assert "v60" in svg
    assert "v7 (control)" in svg
    assert svg.count("text-anchor: end") <= 21
    assert "54 others" in traffic_svg(report)


def test_import_is_light() -> None:
    """Building a report needs no plotting, no templates, no terminal, no lake."""
    heavy = ["matplotlib", "jinja2", "rich", "ibis"]
    script = (
        "import sys, bandolero.report\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.browser
def test_page_in_a_browser(chromium: str, tmp_path: Path) -> None:
    """A browser shows a row for each variant and the three figures, and runs nothing."""
    page = tmp_path / "report.html"
    hostile = "<script>document.title='taken'</script>"
    page.write_text(to_html(busy_report(hostile, "Two", "Three")), encoding="utf-8")
    options = ["headless", "no-sandbox", "disable-gpu", "no-first-run", "dump-dom"]
    options += ["disable-background-networking", "virtual-time-budget=2000"]
    options += [f"user-data-dir={tmp_path / 'profile'}"]
    command = [chromium, *(f"--{option}" for option in options), page.as_uri()]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=True
    )
    body = ran.stdout.partition('<table id="variants">')[2].partition("</table>")[0]
    rows = body.partition("<tbody>")[2].partition("</tbody>")[0]
    assert re.findall(r'<th scope="row">(v\d)', rows) == ["v3", "v1", "v2"]
    assert ran.stdout.count("<svg") == 3
    assert "<title>hero – Bandolero report</title>" in ran.stdout
