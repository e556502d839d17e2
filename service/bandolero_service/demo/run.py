"""The main job, end to end, on a private server: play, learn, archive, a night, report.

The demo is a client of the product: everything it does goes through the command line and
the HTTP contract, as it would for anyone.
"""

import contextlib
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandolero.simulate import Environment
from bandolero_service.demo import stages
from bandolero_service.demo.checks import Check, night_checks, traffic_checks
from bandolero_service.demo.client import Client, DemoError, Faults
from bandolero_service.demo.page import Record, Spoken, spoken, write_record
from bandolero_service.demo.past import past_test
from bandolero_service.demo.plan import make_plan
from bandolero_service.demo.play import Play, Player
from bandolero_service.demo.results import (
    course,
    earnings,
    outcome,
    timings,
    total_earnings,
)
from bandolero_service.demo.screen import (
    Narrator,
    earnings_table,
    leaders_table,
    make_console,
)
from bandolero_service.demo.server import PrivateServer
from bandolero_service.demo.source import Source, draw_tests, find_source


@dataclass(frozen=True)
class DemoOptions:
    """What to play, how fast, and where to.

    Parameters
    ----------
    tests
        How many tests are drawn.
    scale
        Horizons are the real numbers of impressions times this.
    seed
        Of the draw of tests and of the clicks.
    upworthy
        Tests to draw from, Parquet in the archive's columns; by default the archive beside
        the repository, else the repository's own sample.
    out
        Folder for `report.html` and `report.json`.
    seconds
        How long the play is to last; longer if the server is slower.
    data_dir
        Of the private server; by default a fresh one, removed at the end.
    port, workers
        Of the private server; port 0 takes a free one.
    """

    tests: int = 24
    scale: float = 1.0
    seed: int = 7
    upworthy: Path | None = None
    out: Path = Path("out")
    seconds: float = 100.0
    data_dir: Path | None = None
    port: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("tests", 1), ("seed", 0), ("port", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} == {getattr(self, name)}, must be >= {least}."
                )
        for name in ("scale", "seconds"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} == {getattr(self, name)}, must be finite and > 0."
                )


def run_demo(options: DemoOptions) -> int:
    """Run the demo; the exit code: 0 all went well, 1 something failed, 2 bad options."""
    narrator = Narrator(make_console())
    try:
        source = find_source(options.upworthy)
        tests = draw_tests(source.tests, options.tests, options.scale, options.seed)
    except (OSError, ValueError) as fault:
        narrator.say(f"demo: {fault}")
        return 2
    try:
        with _sigterm_interrupts(), _data_dir(options) as data_dir:
            record = _run(options, source, tests, data_dir, narrator)
    except DemoError as fault:
        narrator.say("\n".join([f"demo: {fault}", *getattr(fault, "__notes__", ())]))
        return 1
    except KeyboardInterrupt:
        narrator.say("demo: interrupted; the server is stopped")
        return 130
    return _show(record, options.out, narrator)


def _run(
    options: DemoOptions,
    source: Source,
    tests: Sequence[Environment],
    data_dir: Path,
    narrator: Narrator,
) -> Record:
    """Play the tests on a server that lives no longer than this call."""
    _announce(options, source, tests, narrator)
    experiment_ids = [f"demo-{test.name}" for test in tests]
    plan = make_plan(tests, experiment_ids, options.seconds, options.seed)
    faults = Faults()
    with (
        narrator.live(),
        PrivateServer(data_dir, options.port, options.workers) as server,
    ):
        key = stages.start(server, narrator)
        with contextlib.closing(Client(server.port, key)) as client:
            stages.create(client, tests, experiment_ids, narrator)
            player = Player(plan, lambda: Client(server.port, key), faults)
            play = stages.play(player, server, tests, narrator)
            decisions = play.shown.sum(axis=1)
            reports = stages.settle(client, experiment_ids, decisions, narrator)
            past = past_test(source.tests, tests, options.seed)
            ingests = stages.ingest(server, client, past, options.seed, narrator)
        checks = traffic_checks(faults, play, reports)
        night, done = stages.refresh_and_replay(server, experiment_ids[0], narrator)
        checks += night_checks(ingests, *done)
        with contextlib.closing(Client(server.port, key)) as client:
            checks += stages.start_warm(client, tests[0], night, narrator)
        checks += stages.stop(server, narrator)
    said = tuple(map(spoken, (*ingests, *done)))
    return _record(options, source, tests, play, reports, checks, said)


def _announce(
    options: DemoOptions,
    source: Source,
    tests: Sequence[Environment],
    narrator: Narrator,
) -> None:
    """Say what will be played and where it comes from."""
    horizon = sum(test.horizon for test in tests)
    narrator.say(f"Tests from {source.name}")
    narrator.say(source.citation)
    narrator.say(
        f"{len(tests)} of {len(source.tests):,} tests with at least 3 variants and a click, drawn at "
        f"random with seed {options.seed}: {horizon:,} impressions at scale {options.scale:g}, "
        f"about {options.seconds:.0f} s"
    )


def _record(
    options: DemoOptions,
    source: Source,
    tests: Sequence[Environment],
    play: Play,
    reports: Sequence[dict[str, Any]],
    checks: tuple[Check, ...],
    night: tuple[Spoken, ...],
) -> Record:
    """Join truth, play and reports."""
    played = [
        earnings(*each) for each in zip(tests, play.shown, play.clicks, strict=True)
    ]
    outcomes = tuple(
        outcome(test, report["experiment"], earned, report)
        for test, earned, report in zip(tests, played, reports, strict=True)
    )
    return Record(
        options=options,
        source=source,
        play=play,
        outcomes=outcomes,
        total=total_earnings(tests, play.shown, play.clicks),
        course=course(tests, play),
        timings=timings(play),
        checks=checks,
        night=night,
    )


def _show(record: Record, out: Path, narrator: Narrator) -> int:
    """Print the tables, write the report; the exit code."""
    narrator.console.print(earnings_table(record.outcomes, record.total))
    narrator.console.print(leaders_table(record.outcomes))
    speed = record.timings
    narrator.say(
        f"{speed.decisions_per_s:,.0f} decisions/s at the demo's pace, "
        f"{speed.batch_decisions_per_s:,.0f}/s while a batch is answered; latency p50/p99: single "
        f"{speed.single_ms_p50:.1f}/{speed.single_ms_p99:.1f} ms, batch of 100 "
        f"{speed.batch_ms_p50:.1f}/{speed.batch_ms_p99:.1f} ms"
    )
    for said in record.night:
        narrator.say(f"$ {said.command}\n{said.output}")
    for check in record.checks:
        narrator.say(
            f"{'ok    ' if check.passed else 'FAILED'} {check.name}: {check.seen}"
        )
    page, data = write_record(record, out)
    narrator.say(f"Report with plots: {page}\nThe same as data:  {data}")
    return 0 if all(check.passed for check in record.checks) else 1


@contextlib.contextmanager
def _data_dir(options: DemoOptions) -> Iterator[Path]:
    """The given data directory, or a fresh one that is removed at the end."""
    if options.data_dir is not None:
        yield options.data_dir
        return
    with tempfile.TemporaryDirectory(prefix="bandolero-demo-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C while inside, so that the server is stopped first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
