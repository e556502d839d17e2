"""A night on real data, as somebody types it: the Open Bandit logs, by a mapping."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bandolero.lake.catalog import Lake
from bandolero.lake.results import read_result
from bandolero_service.refreshing import RESULTS
from evaluate_logs import OPEN_BANDIT
from service_helpers import no_server, short_folder
from test_cli import Done, Run
from test_evaluate_command import MAPPINGS
from test_refresh_night import same_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OPEN_BANDIT.is_dir(), reason="no Open Bandit beside them"),
    pytest.mark.skipif(not MAPPINGS.is_dir(), reason="no mappings beside the tests"),
]
PRIOR = "click.binary.decision"
SPEC = {
    "experiment": "open-bandit",
    "tenant": "zozo",
    "variants": [{"id": str(item)} for item in range(80)],
    "context": [{"name": "position", "kind": "categorical", "levels": ["1", "2", "3"]}],
}


class Night:
    """Commands on a data folder of their own."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self.folder = folder
        self.lake = Lake(folder / "d" / "lake")

    def __call__(self, *words: str, code: int = 0) -> Done:
        """Run a command that ends with a code."""
        done = self._run(*words, "--data-dir", str(self.folder / "d"))
        assert done.returncode == code, done.stderr
        return done

    def ingest(self, log: str) -> None:
        """Load a log's decisions and its clicks."""
        for table in ("decisions", "events"):
            mapping = str(MAPPINGS / f"{table}.yaml")
            self("ingest", table, str(OPEN_BANDIT / log), "--mapping", mapping)

    def refresh(self, *options: str) -> Any:
        """The summary of a night."""
        summary = self.folder / "summary.json"
        self("refresh", *options, "--summary", str(summary))
        return json.loads(summary.read_text())

    def priors(self) -> list[str]:
        """What is in force, a line each."""
        return self("priors", "list").stdout.splitlines()


@pytest.fixture
def night(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Night]:
    """A store with the experiment, and the random log in the lake."""
    if (lack := no_server()) is not None:
        pytest.skip(lack)
    with short_folder() as folder:
        found = Night(Run(monkeypatch, capsys), folder)
        spec = folder / "spec.yaml"
        spec.write_text(yaml.safe_dump(SPEC))
        found("experiment", "apply", str(spec))
        found.ingest("random_all.parquet")
        yield found


def test_logs_become_priors_and_are_taken_back(night: Night) -> None:
    """Ingest, refresh, evaluate; ingest more, refresh, compare, go back; and it holds."""
    first = night.refresh()
    assert (first["decisions"], first["settled"], first["events"]) == (
        10_000,
        10_000,
        38,
    )
    assert first["priors"][f"zozo/{PRIOR}"]["outcome"] == "published"
    (line,) = night.priors()
    assert f"{PRIOR} " in line
    assert "version    1  alpha 0.5826, beta 125.4, from 80 variants" in line

    uniform = ("--policy", "uniform", "--format", "json")
    told = json.loads(night("evaluate", "open-bandit", *uniform).stdout)
    assert told["estimates"]["ips"]["value"] == pytest.approx(0.0038, abs=1e-12)
    assert "is the first" in night("priors", "diff", PRIOR, code=1).stderr

    night.ingest("bts_all.parquet")
    both = night.refresh()
    assert (both["settled"], both["events"], both["repeated"]) == (20_000, 80, 0)
    moved = night("priors", "diff", PRIOR).stdout.splitlines()
    assert [line.split()[0] for line in moved[2:]] == ["alpha", "beta"]

    night("priors", "rollback", PRIOR)
    (held,) = night.priors()
    assert "version    3  alpha 0.5826" in held
    assert held.endswith("rollback to 1, held")
    again = night.refresh()
    assert again["priors"][f"zozo/{PRIOR}"]["outcome"] == "held"
    assert night.priors() == [held]
    assert both["corrected_experiments"].keys() == {"zozo/open-bandit"}
    assert again["corrected_experiments"] == {}
    assert "as they were learned" in night("corrected").stdout


@pytest.mark.jvm
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # py4j's sockets
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_spark_ends_the_night_as_duckdb_does(night: Night) -> None:
    """The same lake by both: equal summaries, equal tables in the lake, nothing moves."""
    found, tables = [], []
    for engine in (
        ["duckdb"],
        ["spark", "--spark-master", "local[2]", "--memory-limit", "1GB"],
    ):
        found.append(night.refresh("--engine", *engine))
        tables.append({name: read_result(night.lake, name)[1] for name in RESULTS})
        gc.collect()
    fitted, corrected = [], []
    for told in found:
        del told["seconds"]
        corrected.append(told.pop("corrected_experiments"))
        (prior,) = told.pop("priors").values()
        fitted.append((prior["outcome"], prior["parameters"]))
    assert found[0] == found[1]
    assert (corrected[0].keys(), corrected[1]) == ({"zozo/open-bandit"}, {})
    assert [outcome for outcome, _ in fitted] == ["published", "unchanged"]
    assert fitted[1][1] == pytest.approx(fitted[0][1], rel=1e-6)
    for name in RESULTS:
        mine, theirs = (by_name[name] for by_name in tables)
        assert mine is not None
        assert theirs is not None
        same_rows(mine, theirs)
