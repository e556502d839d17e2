"""A night that something is wrong with: what is told, and what is not published."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bandolero.lake.catalog import INGESTED, Lake
from bandolero_service import keys, priors
from bandolero_service.backup import give_up
from bandolero_service.commands import CommandError, Place, UsageError
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.refreshing import refresh
from bandolero_service.reporting import report_of
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from strategies import START_MS, Row, decision, decisions_table, event, events_table
from test_prior_publishing import begin

N_EXPERIMENTS, N_VARIANTS, N_DECISIONS = 6, 4, 100


def history() -> tuple[list[Row], list[Row]]:
    """Decisions of an even split, and clicks on a tenth of them."""
    made, told = [], []
    for x, v, i in product(range(N_EXPERIMENTS), range(N_VARIANTS), range(N_DECISIONS)):
        names = {"decision_id": f"{x}-{v}-{i}", "experiment_id": f"past{x}"}
        made.append(decision(variant_id=f"v{v}", **names, propensity=0.25))
        if i % 10 == 0:
            told.append(event(**names))
    return made, told


class Night:
    """A store with experiments, a lake of files, and the nightly job."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.lake = Lake(place.settings.lake_url)
        self._summary = folder / "summary.json"

    def ingest(self, table: str, rows: list[Row], name: str = "0123456789ab") -> None:
        """List rows as those of a file of strangers."""
        tables = {"decisions": decisions_table, "events": events_table}
        shard = f"{INGESTED}{table}-{name}"
        self.lake.commit(shard, 0, START_MS, {table: tables[table](rows)})

    def __call__(
        self, until: str | None = None, dry_run: bool = False, tenant: str | None = None
    ) -> tuple[bool, Any]:
        """Whether all passed the gates, and the summary."""
        engine = "duckdb", "1GB", "local[*]"
        passed = refresh(self.place, tenant, until, dry_run, self._summary, engine)
        return passed, self.summary

    @property
    def summary(self) -> Any:
        """The last night's."""
        return json.loads(self._summary.read_text())


@pytest.fixture
def night(store: Store, embedded: EmbeddedStore, tmp_path: Path) -> Night:
    """With experiments that have begun."""
    for x in range(N_EXPERIMENTS):
        begin(store, f"past{x}", n=N_VARIANTS)
    settings = Settings(store=embedded.url, data_dir=tmp_path / "d", shards=4)
    return Night(Place(settings), tmp_path)


# --- the split of ingested decisions ----------------------------------------------------------


def report(store: Store, name: str = "past0") -> Any:
    """An experiment's report."""
    record = store.record("acme", name)
    assert record is not None
    return report_of(store, record)


@pytest.mark.slow
def test_lost_rows_of_a_file_keep_the_prior_back(night: Night, store: Store) -> None:
    """Half of a variant's rows are gone, the logged propensity is as it was: the gate of
    the sample ratio blocks, and the report says what is wrong."""
    made, told = history()
    kept = [row for i, row in enumerate(made) if row["variant_id"] != "v0" or i % 2]
    night.ingest("decisions", kept)
    night.ingest("events", told)
    passed, summary = night()
    assert not passed
    for prior in summary["priors"].values():
        assert [g["gate"] for g in prior["gates"] if g["blocks"]] == ["sample ratio"]
    assert priors.books(store) == {}
    found = report(store)
    assert (found.verdict, found.sample_ratio.verdict) == ("mismatch", "mismatch")
    assert [s.mode for s in found.sample_ratio.strata] == ["ingested"]


@pytest.mark.slow
def test_a_whole_file_is_counted_and_checked(night: Night, store: Store) -> None:
    """Decisions of files are decisions, their split is checked, and no word says that our
    policy moved their traffic or that late events brought them."""
    made, told = history()
    night.ingest("decisions", made)
    night.ingest("events", told)
    passed, summary = night()
    assert passed
    for prior in summary["priors"].values():
        assert prior["gates"][0]["message"].startswith("p = 1 over 6 experiments")
    found = report(store)
    assert found.totals.decisions == found.totals.trials == N_VARIANTS * N_DECISIONS
    assert [row.decisions for row in found.variants] == [N_DECISIONS] * N_VARIANTS
    assert found.sample_ratio.verdict == "ok"
    assert found.sample_ratio.unknown == 0
    notes = " ".join(found.notes)
    assert "400 decisions were not learned live" in notes
    assert "Traffic followed" not in notes


# --- what keeps a night from being published ----------------------------------------------------


def correction(store: Store, name: str = "past0") -> Any:
    """What is in force of an experiment."""
    return store.correction(store.shard("acme", name), f"acme/{name}")


@pytest.fixture
def published(night: Night) -> Night:
    """A night of one file of each, published."""
    made, told = history()
    night.ingest("decisions", made)
    night.ingest("events", told)
    assert night()[0]
    return night


@pytest.mark.slow
@pytest.mark.parametrize("fault", [b"PAR1", None])
def test_a_bad_file_is_named_and_nothing_is_published(
    published: Night, store: Store, capsys: pytest.CaptureFixture[str], fault: Any
) -> None:
    """Damaged or gone: what is in force stays, the file is told with its rows, and these
    are among the decisions that are not settled."""
    before = correction(store), priors.books(store)
    (file,) = published.lake.files("decisions")
    path = Path(published.lake.root, file.path)
    path.unlink() if fault is None else path.write_bytes(fault)
    with pytest.raises(CommandError, match="1 of its files cannot be read"):
        published()
    told = capsys.readouterr().out
    assert f"bad file left out: {file.path} (2,400 rows)" in told
    assert "0 of 2,400 decisions settled" in told
    assert (correction(store), priors.books(store)) == before
    assert published.summary["published"] is False


@pytest.mark.slow
@pytest.mark.parametrize("fault", [b"PAR1", None])
def test_a_night_goes_on_without_a_file_that_is_given_up(
    published: Night, capsys: pytest.CaptureFixture[str], fault: Any
) -> None:
    """Of two files one is lost: given up, the other is settled as if it were alone; what is
    left of the lost one, and why, is in quarantine."""
    extra = [decision(decision_id=f"x{i}", experiment_id="past0") for i in range(30)]
    published.ingest("decisions", extra, "ba9876543210")
    file = next(f for f in published.lake.files("decisions") if f.rows == 30)
    path = Path(published.lake.root, file.path)
    path.unlink() if fault is None else path.write_bytes(fault)
    with pytest.raises(CommandError, match="bandolero lake give-up PATH"):
        published()
    give_up(published.place, [file.path])
    assert f"given up: {file.path} with 30 rows: " in capsys.readouterr().out
    passed, told = published()
    assert (passed, told["bad_files"], told["settled"]) == (True, [], 2_400)
    note = json.loads(published.lake.read_bytes(f"quarantine/{file.path}.json"))
    assert note["reason"].startswith("given up: ")
    assert published.lake.exists(f"quarantine/{file.path}") == (fault is not None)


@pytest.mark.slow
def test_only_listed_files_that_are_lost_are_given_up(
    published: Night, store: Store
) -> None:
    """A file that is whole, one that nobody lists, and one that others rewrite stay."""
    (file,) = published.lake.files("decisions")
    with pytest.raises(CommandError, match="must be lost: it is as it was written"):
        give_up(published.place, [file.path])
    with pytest.raises(LookupError, match=r"'other\.parquet', must be a file that"):
        give_up(published.place, ["other.parquet"])
    Path(published.lake.root, file.path).unlink()
    with (
        store.alone(keys.INGEST_LEASE, "another", 60_000),
        pytest.raises(CommandError, match="try again in a minute"),
    ):
        give_up(published.place, [file.path])
    assert published.lake.files("decisions") == [file]


@pytest.mark.slow
def test_an_earlier_night_publishes_nothing(published: Night, store: Store) -> None:
    """Over one of a later watermark nothing is published; a dry run tells all the same."""
    before = correction(store)
    until = "2026-11-21T00:00:00Z"
    with pytest.raises(CommandError, match=r"a refresh up to .* is in force, and this"):
        published(until)
    assert correction(store) == before
    told = published(until, dry_run=True)[1]
    assert (told["published"], told["settled"]) == (False, 0)


@pytest.mark.slow
def test_the_same_night_again_corrects_nothing(published: Night) -> None:
    """A second night names no experiment, and the version of the prior in force."""
    first = published.summary
    assert len(first["corrected_experiments"]) == N_EXPERIMENTS
    again = published()[1]
    assert again["corrected_experiments"] == {}
    assert {(p["outcome"], p["version"]) for p in again["priors"].values()} == {
        ("unchanged", 1)
    }


@pytest.mark.slow
def test_only_variants_that_changed_are_told(published: Night) -> None:
    """A click more is a line for its variant, and for none of the others."""
    published.ingest("events", [event(decision_id="0-1-1", experiment_id="past0")], "b")
    told = published()[1]
    assert told["corrected_experiments"].keys() == {"acme/past0"}
    (variant,) = told["corrected_experiments"]["acme/past0"]
    assert variant == "v1"


# --- what is told ---------------------------------------------------------------------------------


def test_events_without_their_decision_are_told(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    """And so is what an objective lacks for a prior."""
    night.ingest("decisions", [decision(experiment_id="past0")])
    told = [event(decision_id=name, event_id=name) for name in ("d1", "d2", "d3")]
    night.ingest("events", told)
    summary = night()[1]
    assert (summary["unmatched_events"], summary["priors"]) == (2, {})
    shown = capsys.readouterr().out
    assert "events without their decision: 2" in shown
    lack = (
        "no prior for acme/click.binary.decision: 1 variants with trials, must be >= 20"
    )
    assert lack in shown


def test_what_cannot_be_done_is_said_before_the_work(
    night: Night, tmp_path: Path
) -> None:
    """A tenant without experiments, a summary into no folder: refused, nothing written."""
    with pytest.raises(UsageError, match=r"tenant == 'nobody', must be one .*: acme"):
        night(tenant="nobody")
    nowhere = tmp_path / "no" / "such.json"
    engine = "duckdb", "1GB", "local[*]"
    with pytest.raises(UsageError, match="must be a file to write"):
        refresh(night.place, None, None, False, nowhere, engine)
    assert not [*night.lake.paths("nights", ".json")]
