"""Metrics: what is counted, by which process, and that totals never go back."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bandolero_service import keys, metrics
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.metric_files import ENDED, MetricFiles
from bandolero_service.metrics import (
    DECIDE_SECONDS,
    DECISIONS,
    FAMILIES,
    FAULTS,
    PROCESSES,
    SPOOL_BLOCKS,
    STORE_UP,
    SUM,
    Figures,
    exposition,
    merged,
)
from bandolero_service.store import NO_POSITION, Commit, Store
from bandolero_service.store_watch import StoreWatch
from bandolero_service.survey import SurveyedStore
from service_helpers import Running, needs_server, wait_for

FORBIDDEN = {"tenant", "experiment", "variant", "key", "unit", "address"}


def parsed(text: str) -> dict[str, float]:
    """Samples by name and labels."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_have_units_and_labels_name_nobody() -> None:
    """Counters end in `_total`, times in `_seconds`; no label tells of a tenant's things."""
    assert len(FAMILIES) > 25
    for family in FAMILIES:
        assert family.name.startswith("bandolero_")
        assert family.name.endswith("_total") is (family.kind == "counter"), family
        assert family.help.endswith(".")
        assert not FORBIDDEN & set(family.labels), family
        for values in family.known:
            assert len(values) == len(family.labels) or family.kind != "counter"
    timed = [f.name for f in FAMILIES if "time" in f.name or "age" in f.name]
    assert [name for name in timed if not name.endswith("_seconds")] == []


def test_figures_of_processes_become_one() -> None:
    """Counters and buckets add up; a gauge is the sum, the largest or the smallest."""
    one: Figures = {
        DECISIONS.name: {("explore", "live"): 2.0},
        SPOOL_BLOCKS.name: {(): 1.0},
        STORE_UP.name: {(): 1.0},
        DECIDE_SECONDS.name: {("0.001",): 2.0, ("+Inf",): 1.0, (SUM,): 0.5},
        "bandolero_of_another_release": {(): 1.0},
    }
    other: Figures = {**one, STORE_UP.name: {(): 0.0}}
    text, content_type = exposition(merged([one, other]))
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    found = parsed(text.decode())
    labels = [("mode", "explore"), ("serving", "live")]
    assert found.pop(f"bandolero_decisions_total{labels}") == 4.0
    assert found == {
        "bandolero_spool_blocks[]": 2.0,
        "bandolero_store_up[]": 0.0,
        "bandolero_decide_seconds_bucket[('le', '0.001')]": 4.0,
        "bandolero_decide_seconds_bucket[('le', '+Inf')]": 6.0,
        "bandolero_decide_seconds_count[]": 6.0,
        "bandolero_decide_seconds_sum[]": 1.0,
    }


class Counting:
    """A process's files of figures, and what it has counted."""

    def __init__(self, folder: Path) -> None:
        self.n = 0.0
        self.files = MetricFiles(folder, "learner", self.read)

    def read(self) -> Figures:
        """One counter, one gauge."""
        return {FAULTS.name: {(): self.n}, SPOOL_BLOCKS.name: {(): self.n}}


def test_totals_never_go_back(tmp_path: Path) -> None:
    """Processes come, count and go in any order: the total is what all have counted."""
    rng, total = random.Random(4), 0.0
    watcher = Counting(tmp_path)
    watcher.files.start()
    living: list[Counting] = []
    for _ in range(60):
        if living and rng.random() < 0.4:
            living.pop(rng.randrange(len(living))).files.stop()
        else:
            living.append(Counting(tmp_path))
            living[-1].files.start()
            living[-1].n = rng.randrange(10)
            total += living[-1].n
            living[-1].files._write()
        machine = watcher.files.machine()
        assert machine[FAULTS.name][()] == total
        assert machine[SPOOL_BLOCKS.name][()] == sum(one.n for one in living)
        assert machine[PROCESSES.name][("learner",)] == len(living) + 1
    assert len(list(tmp_path.glob("*.figures"))) < 60
    for one in [watcher, *living]:
        one.files.stop()


def test_a_killed_process_has_counted(tmp_path: Path) -> None:
    """What a process counted until its last second outlives `kill -9`; its gauges do not."""
    code = (
        "import sys, time; from pathlib import Path; from test_metrics import Counting\n"
        "one = Counting(Path(sys.argv[1])); one.n = 3.0; one.files.start()\n"
        "print('counted', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        watcher = Counting(tmp_path)
        assert watcher.files.machine()[SPOOL_BLOCKS.name][()] == 3.0
        process.send_signal(signal.SIGKILL)
        process.wait()
    for _ in range(2):  # as it was left, and gathered
        machine = watcher.files.machine()
        assert machine[FAULTS.name][()] == 3.0
        assert machine[SPOOL_BLOCKS.name][()] == 0.0
        watcher.files.start()
        assert (tmp_path / ENDED).exists()
        watcher.files.stop()
        watcher = Counting(tmp_path)


def test_a_folder_that_cannot_be_written_is_no_reason_to_end(tmp_path: Path) -> None:
    """Without a folder to share, a process goes on and tells of itself."""
    (tmp_path / "file").touch()
    alone = Counting(tmp_path / "file")
    alone.n = 2.0
    alone.files.start()
    assert alone.files.machine()[FAULTS.name][()] == 2.0
    alone.files.stop()


@pytest.fixture
def surveyed(store: Store, embedded: EmbeddedStore) -> Iterator[SurveyedStore]:
    """A connection that looks at the empty store."""
    connection = SurveyedStore(embedded.url)
    yield connection
    connection.close()


def test_lags_are_told_without_a_learner(store: Store, surveyed: SurveyedStore) -> None:
    """Where nobody reads the log, the oldest open decision is the more overdue the longer."""
    store._redis.xadd(keys.decisions(0), {"block": b""}, id="1000-0")
    survey = surveyed.survey(0)
    now_ms = survey.settle_lag_ms + 1000
    assert now_ms > 1_700_000_000_000
    assert (survey.log_lag_ms, survey.archive_lag_ms, len(survey.roles)) == (0, None, 0)
    fence = store.take_lease(0, "learner", "me")
    assert fence is not None
    cursors = (
        f'{{"events":"{NO_POSITION}","read":"{now_ms - 500}-0",'
        f'"decisions":{{"60000":"{NO_POSITION}"}}}}'
    )
    store.commit(0, fence, "", Commit(cursors, {}, {}, {}))
    store.note(keys.meta(0), keys.ARCHIVED_MS, now_ms - 7000)
    survey = surveyed.survey(0)
    assert survey.roles == {"learner"}
    assert 500 <= survey.log_lag_ms < 60_000
    assert survey.archive_lag_ms is not None
    assert 7000 <= survey.archive_lag_ms < 67_000
    assert 0 <= survey.settle_lag_ms - (now_ms - 1000 - 60_000) < 60_000
    store._redis.xadd(keys.decisions(1), {"block": b""})
    assert surveyed.survey(1).settle_lag_ms < 60_000


def test_the_watch_sees_the_store(store: Store, surveyed: SurveyedStore) -> None:
    """A look finds what the store promises, every shard, and when the nightly job ran."""
    store.note(keys.LAYOUT, keys.REFRESHED_MS, 5)
    watch = StoreWatch(surveyed)
    assert watch.sight is None
    watch.look()
    assert watch.sight is not None
    assert watch.sight.is_whole
    assert watch.sight.is_durable
    assert sorted(watch.sight.surveys) == list(range(store.shards))
    assert watch.sight.refreshed_ms == 5


def test_a_store_that_is_gone_is_not_seen() -> None:
    """Where the store does not answer, nothing is known of it, and nobody waits."""
    watch = StoreWatch(SurveyedStore("redis://127.0.0.1:1", 0.2))
    watch.look()
    assert watch.sight is None


@needs_server
def test_every_metric_is_there(running: Running) -> None:
    """A server that has an experiment shows all metrics but those of rare labels."""
    running.begin({"experiment": "metered", "variants": [{"id": "a"}, {"id": "b"}]})

    def names() -> set[str]:
        text = running.call("GET", "/metrics").body.decode()
        typed = [line.split() for line in text.splitlines() if line[:6] == "# TYPE"]
        assert all(line in text for line in (f"# HELP {t[2]} " for t in typed))
        return {t[2] for t in typed}

    wait_for(lambda: names() == {f.name for f in FAMILIES}, 20, "all are there")


@needs_server
def test_refusals_are_counted_by_their_code(running: Running) -> None:
    """A request without a key is counted as unauthorised, on every kind of route."""

    def refused() -> float:
        text = running.call("GET", "/metrics").body.decode()
        name = "bandolero_requests_refused_total[('code', 'unauthorised')]"
        return parsed(text)[name]

    before = refused()
    assert running.call("POST", "/v1/decide", {}).status == 401
    assert running.call("GET", "/v1/experiments").status == 401
    assert refused() - before == 2.0


def test_counters_begin_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a kind is an increase: known labels are there before it happens."""
    monkeypatch.setattr(metrics, "_counted", {FAULTS.name: {(): 0.0}})
    assert metrics.counted() == {FAULTS.name: {(): 0.0}}
    metrics.count(FAULTS)
    assert metrics.counted() == {FAULTS.name: {(): 1.0}}
