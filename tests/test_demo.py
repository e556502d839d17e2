"""The demo's pure parts; the whole of it is walked in CI by `bandolero demo`."""

import json
import os
import queue
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandolero.experiment import parse_experiment
from bandolero.lake.catalog import Lake
from bandolero.lake.ingest import Terms, ingest
from bandolero.lake.mapping import load_mapping
from bandolero.simulate import Environment, synthetic_tests
from bandolero_service.demo import server as demo_server
from bandolero_service.demo import source as demo_source
from bandolero_service.demo.client import Answer, Client, DemoError, Faults
from bandolero_service.demo.past import export, past_test, rows_of
from bandolero_service.demo.plan import due, make_plan, mix
from bandolero_service.demo.play import Player, send_clicks
from bandolero_service.demo.run import DemoOptions, run_demo
from bandolero_service.demo.source import (
    SAMPLE_CITATION,
    UPWORTHY_CITATION,
    draw_tests,
    environments,
    find_source,
    read_source,
)
from bandolero_service.demo.stages import specification

HATS = Environment("hats", ("Red", "<b>Blue</b>"), ("", ""), (0.01, 0.03), 100)


# --- what another system logged ---------------------------------------------------------


def test_an_export_loads_by_its_mappings(tmp_path: Path) -> None:
    """Every view is a decision drawn evenly, and its clicks are events of it."""
    made = export(HATS, "demo", "demo-past", tmp_path, seed=1)
    rows = rows_of(HATS, seed=1)
    lake = Lake(tmp_path / "lake")
    for table, file in made.mappings.items():
        terms = Terms(load_mapping(file.read_bytes(), table))
        assert ingest(lake, table, [made.log], terms).refused == 0
    decisions, events = (lake.read(table)[0] for table in ("decisions", "events"))
    assert decisions.num_rows == HATS.horizon
    assert set(decisions["propensity"].to_pylist()) == {0.5}
    assert events.num_rows == sum(rows["clicked"].to_pylist())
    assert pc.all(pc.is_in(events["decision_id"], decisions["decision_id"])).as_py()


def test_the_past_is_of_a_test_that_is_not_played() -> None:
    """Always the same one for a seed; of one that is, only where all are."""
    tests = synthetic_tests(seed=1, n_tests=9)
    played = draw_tests(tests, 8, 1.0, seed=7)
    past = past_test(tests, played, seed=7)
    assert past.name not in {test.name for test in played}
    assert past_test(tests, tests, seed=7) == tests[0]


# --- where tests come from ------------------------------------------------------------


def package(test: str, clicks: int, **texts: str) -> dict[str, Any]:
    """A row of the archive with 100 impressions."""
    row = {"clickability_test_id": test, "impressions": 100, "clicks": clicks}
    return row | {"headline": "H", "excerpt": "E"} | texts


def test_a_package_becomes_a_variant() -> None:
    """Headline and excerpt are its texts, clicks / impressions its click rate."""
    rows = [
        package("t", 1, headline="One<br>"),
        package("t", 2, excerpt="", lede="<p>Salt &amp; <i>pep</i>per</p>"),
        package("t", 0, headline="Three  words\n here"),
    ]
    (test,) = environments(rows)
    assert test.headlines == ("One", "H", "Three words here")
    assert test.descriptions == ("E", "Salt & pepper", "E")
    assert test.click_rates == (0.01, 0.02, 0.0)
    assert test.horizon == 300


def test_tests_without_choice_or_clicks_are_not_played() -> None:
    """It takes three packages with impressions and at least one click."""
    rows = [package("two", 5)] * 2 + [package("none", 0)] * 3
    rows += [package("fine", 1)] * 3
    rows += [package("unseen", 0) | {"impressions": 0}] + [package("unseen", 1)] * 2
    assert [test.name for test in environments(rows)] == ["fine"]


def test_draw_depends_on_the_seed_alone() -> None:
    """The same seed draws the same tests, another one others, none of them twice."""
    tests = synthetic_tests(seed=1, n_tests=40)
    drawn = draw_tests(tests, 10, scale=0.5, seed=7)
    assert drawn == draw_tests(tests, 10, scale=0.5, seed=7)
    assert drawn != draw_tests(tests, 10, scale=0.5, seed=8)
    assert len({test.name for test in drawn}) == 10


def test_scale_changes_nothing_but_horizons() -> None:
    """Scaled tests keep name, texts and rates, and last at least one decision."""
    (test,) = synthetic_tests(seed=1, n_tests=1)
    (half,) = draw_tests([test], 1, scale=0.5, seed=0)
    (tiny,) = draw_tests([test], 1, scale=1e-9, seed=0)
    assert half.horizon == round(test.horizon / 2)
    assert tiny.horizon == 1
    assert half.click_rates == tiny.click_rates == test.click_rates


def test_only_the_archive_is_cited_as_the_archive(tmp_path: Path) -> None:
    """A file with the archive's pictures cites it, any other says it is synthetic."""
    real, sample = tmp_path / "real.parquet", tmp_path / "sample.parquet"
    rows = [package("t", 1)] * 3
    pq.write_table(pa.Table.from_pylist(rows), sample)
    pq.write_table(
        pa.Table.from_pylist([row | {"eyecatcher_id": "x"} for row in rows]), real
    )
    assert read_source(real).citation == UPWORTHY_CITATION
    assert read_source(sample).citation == SAMPLE_CITATION
    assert "CC BY 4.0" in UPWORTHY_CITATION
    assert "expanded from aggregates" in UPWORTHY_CITATION


def test_without_any_file_tests_are_made_on_the_spot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a wheel runs far from the repository, the demo still has tests to play."""
    monkeypatch.setattr(demo_source, "REPOSITORY", tmp_path / "lib" / "site")
    monkeypatch.chdir(tmp_path)
    source = find_source()
    assert source.name == "bandolero.simulate with seed 2026"
    assert len(source.tests) == 60


def test_experiment_of_a_test_is_valid() -> None:
    """The specification passes the engine's validation and says what the demo promises."""
    spec = parse_experiment(specification(HATS, "demo-hats"))
    assert [variant.id for variant in spec.variants] == ["p1", "p2"]
    assert spec.objective.attribution_window_s == 1
    assert spec.allocation.holdout_share == 0
    assert spec.policy.kind == "beta_thompson"


# --- playing --------------------------------------------------------------------------

horizons = st.lists(st.integers(1, 10_000), min_size=1, max_size=8).map(np.array)


@given(horizons=horizons, progress=st.floats(0, 1))
def test_all_tests_progress_alike(horizons: Any, progress: float) -> None:
    """What is due brings each test to its share of the horizon, and to all of it at 1."""
    issued = due(horizons, horizons * 0, progress)
    assert (np.abs(issued - horizons * progress) < 1).all()
    assert (issued + due(horizons, issued, 1.0) == horizons).all()
    assert (due(horizons, horizons, progress) == 0).all()


@given(waiting=horizons, size=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_batch_takes_only_what_waits(waiting: Any, size: int, seed: int) -> None:
    """A batch is full if it can be, and holds no test more often than it is due."""
    tests = mix(np.random.default_rng(seed), waiting, size)
    assert len(tests) == min(size, waiting.sum())
    assert (np.bincount(tests, minlength=len(waiting)) <= waiting).all()


class Scripted(Client):
    """A client without a server: always shows p1, and remembers the events."""

    events: list[dict[str, str]]
    status = 200

    def __init__(self, events: list[dict[str, str]], status: int = 200) -> None:
        super().__init__(port=9)
        self.events, self.status = events, status

    def call(self, method: str, path: str, body: Any = None) -> Answer:
        """Answer as the contract says."""
        shown = {"decision_id": "d", "variant": {"id": "p1"}, "serving": "live"}
        if path == "/v1/events":
            self.events += body["events"]
            return Answer(202, b'{"accepted": 1, "rejected": []}')
        batch = {"decisions": [shown] * len((body or {}).get("requests", ()))}
        answer = batch if path.endswith("batch") else shown
        return Answer(self.status, json.dumps(answer).encode())


SURE = Environment("sure", ("Yes", "No", "Maybe"), ("",) * 3, (1.0, 0.0, 0.5), 1234)


def test_player_makes_every_decision_once_and_reports_every_click() -> None:
    """Horizons are played to the last decision; each click is an event of its own."""
    events: list[dict[str, str]] = []
    faults = Faults()
    plan = make_plan([HATS, SURE], ["demo-hats", "demo-sure"], seconds=0.2, seed=3)
    seen: list[int] = []
    play = Player(plan, lambda: Scripted(events), faults).play(
        lambda shown: seen.append(int(shown.sum()))
    )
    assert play.shown.tolist() == [[100, 0, 0], [1234, 0, 0]]
    assert play.clicks[1].tolist() == [1234, 0, 0]
    assert len({event["event_id"] for event in events}) == play.clicks.sum()
    assert faults.total == 0
    assert seen == sorted(seen)
    assert play.served == Counter(live=1334)


def test_refused_requests_are_faults() -> None:
    """Decisions that were not answered with 200 are counted, not shown, not clicked."""
    events: list[dict[str, str]] = []
    faults = Faults()
    plan = make_plan([SURE], ["demo-sure"], seconds=0.1, seed=3)
    play = Player(plan, lambda: Scripted(events, status=503), faults).play(
        lambda _: None
    )
    assert faults.total == 1234
    assert set(faults.counts) == {"decide answered 503", "decide/batch answered 503"}
    assert play.shown.sum() == 0
    assert events == []


def test_trouble_in_a_thread_ends_the_play() -> None:
    """What a watcher or a thread raises comes out, and no thread stays behind."""
    before = threading.active_count()

    def angry(_: object) -> None:
        raise KeyboardInterrupt

    plan = make_plan([SURE], ["demo-sure"], seconds=30.0, seed=3)
    with pytest.raises(KeyboardInterrupt):
        Player(plan, lambda: Scripted([]), Faults()).play(angry)
    assert threading.active_count() <= before


# --- the private server's processes ---------------------------------------------------

RUNAWAY = """
import signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                 start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_process_left_behind_is_found_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a child in a session of its own is seen after a clean end, and then killed."""
    monkeypatch.setattr(demo_server, "COMMAND", (sys.executable, "-c", RUNAWAY))
    server = demo_server.PrivateServer(tmp_path)
    with server:
        deadline = time.monotonic() + 30
        while "up" not in server.last_words() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.stop() == 0
        (runaway,) = server.left_behind(patience_s=0.1)
        assert runaway != os.getpid()
    assert server.left_behind() == []


def test_a_server_that_ends_by_itself_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the exit code and the last lines of the log."""
    words = (sys.executable, "-c", "import sys; sys.exit('no room')")
    monkeypatch.setattr(demo_server, "COMMAND", words)
    with (
        pytest.raises(DemoError, match="ended with exit code 1") as caught,
        demo_server.PrivateServer(tmp_path) as server,
    ):
        server.wait_ready()
    assert caught.value.__notes__ == ["The server's log ends:\n  no room"]


# --- options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tests": 0}, "tests == 0, must be >= 1"),
        ({"scale": 0.0}, "scale == 0.0, must be finite and > 0"),
        ({"seconds": float("nan")}, "seconds == nan, must be finite and > 0"),
        ({"port": -1}, "port == -1, must be >= 0"),
    ],
)
def test_options_are_checked(wrong: dict[str, Any], message: str) -> None:
    """A wrong option is named with its value and its rule."""
    with pytest.raises(ValueError, match=message):
        DemoOptions(**wrong)


def test_what_cannot_be_read_ends_with_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing file, one that is not Parquet, and too many tests: said, and code 2."""
    text, small = tmp_path / "text.parquet", tmp_path / "small.parquet"
    text.write_text("not Parquet")
    pq.write_table(pa.Table.from_pylist([package("t", 1)] * 3), small)
    assert run_demo(DemoOptions(upworthy=tmp_path / "none.parquet")) == 2
    assert run_demo(DemoOptions(upworthy=text)) == 2
    assert run_demo(DemoOptions(upworthy=small, tests=2)) == 2
    assert "tests == 2, must be in 1 … 1" in capsys.readouterr().out


def test_queue_of_clicks_ends_at_none() -> None:
    """None ends the clicking thread even when it comes in one gulp with clicks."""
    events: list[dict[str, str]] = []
    clicks: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for item in ("d1", "d2", None):
        clicks.put(item)
    send_clicks(Scripted(events), clicks, Faults())
    assert [event["decision_id"] for event in events] == ["d1", "d2"]


def test_the_repository_is_where_the_demo_looks_for_tests() -> None:
    """Run from a checkout, the demo finds the repository's own sample."""
    root = demo_source.REPOSITORY
    if not (root / "pyproject.toml").exists():
        pytest.skip("runs against an installed wheel, with no repository around it")
    assert (root / demo_source.SAMPLE).exists()
