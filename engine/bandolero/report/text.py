"""A report for a terminal: the sentence first, two tables, the checks, the notes."""

import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bandolero.report import wording as say
from bandolero.report.model import (
    Level,
    LevelRow,
    MetricRow,
    MetricTable,
    Report,
    Segment,
    Totals,
    VariantRow,
)
from bandolero.report.verdict import split_sentence
from bandolero.report.wording import Scale

WIDTH = 120
GAP, NAME_MIN, LEVEL_WIDTH = 3, 12, 20
STYLES = {"best": "bold green", "safe": "bold green", "mismatch": "bold red"}


def to_text(report: Report, *, width: int = WIDTH, colour: bool = False) -> str:
    """Write the report as text, best variant first.

    Parameters
    ----------
    width
        Columns to fill; from 100 on nothing but headlines is shortened.
    colour
        Whether to use escape codes; only for a terminal.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        legacy_windows=False,
    )
    console.print(Text(_title(report), style="bold"))
    console.print(Text(_subtitle(report), style="dim"))
    console.print()
    console.print(Text(report.headline, style=STYLES.get(report.verdict, "bold")))
    console.print()
    console.print(_counts(report))
    console.print()
    console.print(_comparison(report, width))
    console.print(Text(_units(report), style="dim"))
    console.print()
    if report.segment is not None:
        _print_segment(console, report, report.segment, width)
    for table in report.metrics:
        console.print(Text(say.metric_title(report, table), style="bold"))
        console.print(_metric(report, table))
        console.print()
    console.print(Text(f"Sample ratio: {split_sentence(report.sample_ratio)}"))
    for note in report.notes:
        console.print(_note(note))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _title(report: Report) -> str:
    return f"{report.experiment_id} · {report.tenant} · {report.status}"


def _subtitle(report: Report) -> str:
    version = report.snapshot_version
    parts = (
        f"policy {report.policy}",
        f"control {report.control}",
        f"{report.event} per {report.trial}",
        say.period(report),
        f"as of {say.moment(report.generated_at_ms)}",
        "no snapshot yet" if version is None else f"snapshot {version}",
    )
    return " · ".join(parts)


def _counts(report: Report) -> Table:
    """What was counted: a line a variant, and their sums."""
    scale = say.scale_for(report)
    heads = ["decisions", "trials", "rewards", "rate", "pending"]
    heads += ["share now", "impressions"]
    shown = len(heads) - (report.totals.impressions == 0)
    table = _table(["variant", "status"], heads[:shown])
    for row in report.ranked:
        cells = _count_cells(row, scale, say.share(row.share_now))
        table.add_row(_name(report, row), row.status, *cells[:shown])
    table.add_section()
    table.add_row("all", "", *_count_cells(report.totals, scale, "")[:shown])
    return table


def _count_cells(row: VariantRow | Totals, scale: Scale, share_now: str) -> list[str]:
    """Cells of one line, in the order of the heads."""
    counts = [say.count(n) for n in (row.decisions, row.trials, row.rewards)]
    rest = [say.count(row.pending), share_now, say.count(row.impressions)]
    return [*counts, scale.cell(row.rate), *rest]


def _comparison(report: Report, width: int) -> Table:
    """What is believed: a line a variant, its headline cut to what room there is."""
    scale = say.scale_for(report)
    percent = f"{100 * report.credibility:g} %"
    what = f"{percent} interval"
    if report.by_context:
        what = f"all requests ({what})"
    heads = [what, "P(best)", "P(> control)", "expected loss"]
    heads += [f"lift ({percent} interval)"]
    lines = [_belief_cells(report, scale, row) for row in report.ranked]
    table = _table(["variant"], heads)
    columns = zip(heads, *lines, strict=True)
    taken = sum(max(map(cell_len, column)) + GAP for column in columns)
    for row, line in zip(report.ranked, lines, strict=True):
        name = _name(report, row)
        name.append(f"  {printable(row.headline)}", style="dim")
        name.truncate(max(width - taken - GAP, NAME_MIN), overflow="ellipsis")
        table.add_row(name, *line)
    return table


def _print_segment(
    console: Console, report: Report, segment: Segment, width: int
) -> None:
    """The levels of a field: whether they differ, a table, and who is named where."""
    console.print(Text(say.segment_title(segment), style="bold"))
    console.print(Text(segment.headline))
    console.print()
    if segment.whole is not None:
        console.print(_levels(report, segment, segment.whole, width))
        console.print()
    for level in segment.shown:
        if level.verdict == "best":
            name = _cut(say.level_name(level), LEVEL_WIDTH)
            console.print(_note(f"{name}: {level.headline}"))
    for note in segment.notes:
        console.print(_note(note))
    console.print()


def _levels(report: Report, segment: Segment, whole: Level, width: int) -> Table:
    """A line a level, and below it a line a variant; the sum of all levels last."""
    scale = say.scale_for(report)
    percent = f"{100 * report.credibility:g} %"
    heads = ["trials", "rate", f"{percent} interval", "P(best)"]
    if report.by_context:
        heads[1:3] = [f"weighted ({percent} interval)"]
    heads += [f"lift ({percent} interval)"]
    levels = (*segment.shown, whole)
    blocks = [_level_lines(report, scale, level) for level in levels]
    columns = zip(heads, *(line[1:] for block in blocks for line in block), strict=True)
    taken = sum(max(map(cell_len, column)) + GAP for column in columns)
    table = _table([segment.field], heads)
    for level, block in zip(levels, blocks, strict=True):
        table.add_section()
        name = _cut(say.level_name(level), max(width - taken, NAME_MIN))
        table.add_row(Text(name, style="bold"), *_level_sums(report, scale, level))
        for variant_id, *cells in block:
            table.add_row(Text(f"  {variant_id}"), *cells)
    return table


def _level_sums(report: Report, scale: Scale, level: Level) -> list[str]:
    """The first cells of a level's line; what is weighted has no sum."""
    rate = [] if report.by_context else [scale.cell(level.rate)]
    return [say.count(level.trials), *rate]


def _level_lines(report: Report, scale: Scale, level: Level) -> list[list[str]]:
    """A line a variant: its id, and cells in the order of the heads."""
    lines = []
    for row in level.shown(report.control):
        interval, chance, _, _, lift = _belief_cells(report, scale, row)
        rate = [] if report.by_context else [scale.cell(row.rate)]
        counted = [say.count(row.trials), *rate]
        lines.append([row.variant_id, *counted, interval, chance, lift])
    return lines


def _cut(name: str, room: int) -> str:
    """A level's name without what could drive a terminal, cut to its room."""
    text = Text(printable(name))
    text.truncate(room, overflow="ellipsis")
    return text.plain


def _metric(report: Report, metric: MetricTable) -> Table:
    """A metric: a line a variant."""
    scale = say.scale_for_metric(report, metric)
    percent = f"{100 * report.credibility:g} %"
    heads = ["trials", "rewards", f"rate ({percent} interval)", "P(> control)"]
    table = _table(["variant"], [*heads, f"lift ({percent} interval)"])
    for row in metric.variants:
        is_control = row.variant_id == report.control
        interval = scale.interval(row.interval_lower, row.interval_upper)
        table.add_row(
            Text(row.variant_id),
            say.count(row.trials),
            say.count(row.rewards),
            f"{scale.cell(row.mean)} ({interval})",
            "control" if is_control else say.probability(row.probability_beat_control),
            "control" if is_control else _lift_cell(row),
        )
    return table


def _units(report: Report) -> str:
    """What the numbers of the tables are measured in."""
    scale = say.scale_for(report)
    what = "Expected loss" if scale.is_percent else "Rates and expected loss"
    return f"{what} in {scale.difference}; lift relative to {report.control}."


def _belief_cells(
    report: Report, scale: Scale, row: VariantRow | LevelRow
) -> list[str]:
    """Cells of one line, in the order of the heads."""
    is_control = row.variant_id == report.control
    interval = scale.interval(row.interval_lower, row.interval_upper)
    return [
        f"{scale.cell(row.mean)} ({interval})" if report.by_context else interval,
        say.probability(row.probability_best),
        "control" if is_control else say.probability(row.probability_beat_control),
        scale.loss_cell(row.expected_loss),
        "control" if is_control else _lift_cell(row),
    ]


def _lift_cell(row: VariantRow | LevelRow | MetricRow) -> str:
    if row.lift_lower is None:
        return say.NONE
    between = say.lift_interval(row.lift_lower, row.lift_upper)
    return f"{say.lift(row.lift)} ({between})"


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for head in left:
        table.add_column(head, no_wrap=True)
    for head in right:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _name(report: Report, row: VariantRow) -> Text:
    style = "bold" if report.leader is row else ""
    return Text(row.variant_id, style=style)


def _note(note: str) -> Table:
    """A note with a hanging indent."""
    table = Table.grid(padding=(0, 1))
    table.add_row("·", Text(printable(note)))
    return table


def printable(text: str) -> str:
    """A text of somebody else's without what could drive a terminal, on one line."""
    return "".join(c if c.isprintable() else " " for c in text)
