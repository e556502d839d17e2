"""The demo on screen: progress with or without a terminal, and the two tables."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from bandolero_service.demo.results import Earnings, Outcome

Report = Callable[[float, str], None]
# Wide enough for the tables where there is no terminal to ask.
PLAIN_WIDTH = 120


def make_console() -> Console:
    """Standard output; of a fixed width when it is a file or a pipe."""
    console = Console(highlight=False)
    return (
        console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
    )


class Narrator:
    """Tells how far each stage is: a live bar on a terminal, else a line per tenth."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def say(self, text: str) -> None:
        """Print a line, with nothing in it taken for markup."""
        self.console.print(Text(text), soft_wrap=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the bars while inside."""
        with self._progress:
            yield

    @contextmanager
    def stage(self, title: str) -> Iterator[Report]:
        """A stage that is told its share done, in [0, 1], and a note."""
        if self.console.is_terminal:
            with self._bar(title) as report:
                yield report
        else:
            with self._lines(title) as report:
                yield report

    @contextmanager
    def _bar(self, title: str) -> Iterator[Report]:
        task = self._progress.add_task(title, total=None, note="")

        def report(done: float, note: str) -> None:
            self._progress.update(task, total=1.0, completed=done, note=note)

        yield report
        self._progress.update(task, total=1.0, completed=1.0)

    @contextmanager
    def _lines(self, title: str) -> Iterator[Report]:
        started, tenths, last_note = time.monotonic(), 0, ""
        self.say(f"{title} …")

        def report(done: float, note: str) -> None:
            nonlocal tenths, last_note
            last_note = f", {note}" if note else ""
            if note and tenths < int(done * 10) < 10:
                tenths = int(done * 10)
                self.say(f"  {tenths * 10}%{last_note}")

        yield report
        self.say(f"  done in {time.monotonic() - started:.1f} s{last_note}")


def percent(share: float | None, digits: int = 0) -> str:
    """A share in per cent; a dash where there is none."""
    return "-" if share is None else f"{share:.{digits}%}"


def earnings_table(outcomes: Sequence[Outcome], total: Earnings) -> Table:
    """Per test and in total: what three ways of serving earn, and the gap captured."""
    table = Table(
        title="Clicks earned",
        caption="uniform, Bandolero, oracle: expected clicks of the impressions. clicks: those that came.",
    )
    table.add_column("test", no_wrap=True)
    for heading in (
        "variants", "impressions", "uniform", "Bandolero", "oracle", "clicks", "gap captured",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for each in outcomes:
        cells = _earnings_cells(each.earnings)
        table.add_row(Text(each.test.name), str(each.test.n_arms), *cells)
    table.add_section()
    n_variants = sum(each.test.n_arms for each in outcomes)
    table.add_row("total", str(n_variants), *_earnings_cells(total), style="bold")
    return table


def _earnings_cells(earned: Earnings) -> list[str]:
    return [
        f"{earned.decisions:,}",
        f"{earned.uniform:,.1f}",
        f"{earned.bandolero:,.1f}",
        f"{earned.oracle:,.1f}",
        f"{earned.clicks:,}",
        percent(earned.gap_captured),
    ]


def leaders_table(outcomes: Sequence[Outcome]) -> Table:
    """Per test: the leading variant and how sure the report is of it."""
    table = Table(
        title="Leading variants",
        caption="P(best): probability to be best. loss: expected, in clicks per 1,000 "
        "impressions. true rate, best: what the server could not know.",
    )
    table.add_column("test", no_wrap=True)
    table.add_column("leader", max_width=40)
    for heading in ("P(best)", "loss", "95% interval", "true rate", "best"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in outcomes:
        row = each.leading
        table.add_row(
            Text(each.test.name),
            Text(
                f"{row['variant_id']} {row['headline']}",
                overflow="ellipsis",
                no_wrap=True,
            ),
            percent(row["probability_best"], 1),
            f"{row['expected_loss'] * 1000:.2f}",
            f"{percent(row['interval_lower'], 2)} … {percent(row['interval_upper'], 2)}",
            percent(row["click_rate"], 2),
            "yes" if each.leader_is_best else "no",
        )
    return table
