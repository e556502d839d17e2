"""A report for a terminal: the sentence first, two tables, the checks, the notes."""

import io
from collections.abc import Sequence
from itertools import zip_longest

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
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
GAP, NAME_MIN, HEADLINE_MIN = 3, 12, 8
STYLES = {"best": "bold green", "safe": "bold green", "mismatch": "bold red"}


def to_text(report: Report, *, width: int = WIDTH, colour: bool = False) -> str:
    """Write the report as text, best variant first.

    Parameters
    ----------
    width
        Columns to fill. Only headlines are shortened; ids take more lines, and numbers
        where the columns are too few for them.
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
    console.print(_counts(report, width))
    console.print()
    console.print(_comparison(report, width))
    console.print(Text(_units(report), style="dim"))
    console.print()
    if report.segment is not None:
        _print_segment(console, report, report.segment, width)
    for table in report.metrics:
        console.print(Text(say.metric_title(report, table), style="bold"))
        console.print(_metric(report, table, width))
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


def _counts(report: Report, width: int) -> Table:
    """What was counted: a line a variant, and their sums."""
    scale = say.scale_for(report)
    heads = ["status", "decisions", "trials", "rewards", "rate", "pending"]
    heads += ["share now", "impressions"]
    shown = len(heads) - (report.totals.impressions == 0)
    lines = [
        [row.status, *_count_cells(row, scale, say.share(row.share_now))][:shown]
        for row in report.ranked
    ]
    sums = ["", *_count_cells(report.totals, scale, "")][:shown]
    room = _room([heads[:shown], *lines, sums], width)
    table = _table("variant", heads[:shown], room)
    table.columns[1].justify = "left"
    for row, line in zip(report.ranked, lines, strict=True):
        table.add_row(_name(report, row), *line)
    table.add_section()
    table.add_row("all", *sums)
    return table


def _count_cells(row: VariantRow | Totals, scale: Scale, share_now: str) -> list[str]:
    """Cells of one line, in the order of the heads."""
    counts = [say.count(n) for n in (row.decisions, row.trials, row.rewards)]
    rest = [say.count(row.pending), share_now, say.count(row.impressions)]
    return [*counts, scale.cell(row.rate), *rest]


def _comparison(report: Report, width: int) -> Table:
    """What is believed: a line a variant, its headline cut to the room beside its id."""
    scale = say.scale_for(report)
    what, lift = _interval_heads(report)
    heads = [what, "P(best)", "P(> control)", "expected loss", lift]
    lines = [_belief_cells(report, scale, row) for row in report.ranked]
    room = _room([heads, *lines], width)
    table = _table("variant", heads, room)
    for row, line in zip(report.ranked, lines, strict=True):
        name = _name(report, row)
        name.append(_headline(row, room - len(name) - 2), style="dim")
        table.add_row(name, *line)
    return table


def _headline(row: VariantRow, room: int) -> str:
    """What stands beside an id of its headline, which may be nothing."""
    if room < HEADLINE_MIN:
        return ""
    cut = Text(say.printable(row.headline))
    cut.truncate(room, overflow="ellipsis")
    return f"  {say.isolated(cut.plain)}"


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
            console.print(_note(f"{say.level_name(level)}: {level.headline}"))
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
    sums = [_level_sums(report, scale, level) for level in levels]
    lines = [line for block in blocks for _, *line in block]
    table = _table(segment.field, heads, _room([heads, *sums, *lines], width))
    for level, sum_cells, block in zip(levels, sums, blocks, strict=True):
        table.add_section()
        table.add_row(Text(say.level_name(level), style="bold"), *sum_cells)
        for variant_id, *cells in block:
            table.add_row(Padding(Text(variant_id), (0, 0, 0, 2)), *cells)
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


def _metric(report: Report, metric: MetricTable, width: int) -> Table:
    """A metric: a line a variant."""
    scale = say.scale_for_metric(report, metric)
    what, lift = _interval_heads(report)
    heads = ["trials", "rewards", "rate", what, "P(> control)", lift]
    lines = [_metric_cells(report, scale, row) for row in metric.variants]
    table = _table("variant", heads, _room([heads, *lines], width))
    for row, line in zip(metric.variants, lines, strict=True):
        table.add_row(Text(row.variant_id), *line)
    return table


def _metric_cells(report: Report, scale: Scale, row: MetricRow) -> list[str]:
    """Cells of one line, in the order of the heads."""
    is_control = row.variant_id == report.control
    return [
        say.count(row.trials),
        say.count(row.rewards),
        scale.cell(row.rate),
        _interval_cell(report, scale, row),
        "control" if is_control else say.probability(row.probability_beat_control),
        "control" if is_control else _lift_cell(row),
    ]


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
    return [
        _interval_cell(report, scale, row),
        say.probability(row.probability_best),
        "control" if is_control else say.probability(row.probability_beat_control),
        scale.loss_cell(row.expected_loss),
        "control" if is_control else _lift_cell(row),
    ]


def _interval_heads(report: Report) -> tuple[str, str]:
    """Heads of a rate's interval and of a lift with its own."""
    interval = f"{100 * report.credibility:g} % interval"
    what = f"all requests ({interval})" if report.by_context else interval
    return what, f"lift ({interval})"


def _interval_cell(
    report: Report, scale: Scale, row: VariantRow | LevelRow | MetricRow
) -> str:
    """A rate's interval; where a context decided, with the rate that it is of."""
    interval = scale.interval(row.interval_lower, row.interval_upper)
    return f"{scale.cell(row.mean)} ({interval})" if report.by_context else interval


def _lift_cell(row: VariantRow | LevelRow | MetricRow) -> str:
    if row.lift_lower is None:
        return say.NONE
    between = say.lift_interval(row.lift_lower, row.lift_upper)
    return f"{say.lift(row.lift)} ({between})"


def _room(lines: Sequence[Sequence[str]], width: int) -> int:
    """Columns that are left for names beside some lines of cells."""
    columns = zip_longest(*lines, fillvalue="")
    return max(width - sum(GAP + max(map(cell_len, c)) for c in columns), NAME_MIN)


def _table(name: str, heads: Sequence[str], room: int) -> Table:
    """An empty table whose names, of any length, fold to their room."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    table.add_column(name, max_width=room, overflow="fold")
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    return table


def _name(report: Report, row: VariantRow) -> Text:
    style = "bold" if report.leader is row else ""
    return Text(row.variant_id, style=style)


def _note(note: str) -> Table:
    """A note with a hanging indent."""
    table = Table.grid(padding=(0, 1))
    table.add_row("·", Text(note))
    return table
