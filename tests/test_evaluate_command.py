"""`bandolero evaluate`, run as the command line runs it, on a lake and a store of its own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from bandolero.lake.catalog import Lake
from bandolero_service.commands import Place, apply_experiments
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.settings import Settings
from evaluate_lakes import DEVICE, WINDOW_S, filled
from evaluate_logs import OPEN_BANDIT, open_bandit_shares
from service_helpers import needs_server, short_folder
from test_cli import Done, Run

pytestmark = needs_server
MAPPINGS = Path(__file__).parents[1] / "data" / "open-bandit"
SPEC = {
    "experiment": "hats",
    "tenant": "acme",
    "objective": {"attribution_window_s": WINDOW_S},
    "context": [DEVICE],
    "variants": [{"id": "v1"}, {"id": "v2"}, {"id": "v3"}],
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands in this process."""
    return Run(monkeypatch, capsys)


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data folder with an experiment, a lake of its decisions, and a store."""
    with short_folder() as folder:
        filled(folder / "lake", 1, 3000)
        spec = folder / "hats.yaml"
        spec.write_text(yaml.safe_dump(SPEC))
        server = EmbeddedStore(folder)  # or each command would start one
        server.start()
        place = Place(Settings(data_dir=folder))
        apply_experiments(place, [spec], "acme", start=False)
        yield folder
        server.stop()


class Evaluated(Protocol):
    """Runs `bandolero evaluate hats` with some options."""

    def __call__(self, *words: str) -> Done:
        """Run it."""
        ...


@pytest.fixture
def evaluated(run: Run, data_dir: Path) -> Evaluated:
    """Runs it on the data folder."""
    return lambda *words: run("evaluate", "hats", *words, "--data-dir", str(data_dir))


def test_a_kind_of_policy_is_evaluated(evaluated: Evaluated) -> None:
    """As a table on stdout, with every estimator, and nothing on stderr."""
    code, out, err = evaluated("--policy", "uniform")
    assert (code, err) == (0, "")
    assert all(
        name in out for name in ("inverse propensity", "doubly robust", "switch")
    )


def test_a_policy_of_a_file_as_json(evaluated: Evaluated, tmp_path: Path) -> None:
    """A file holds the policy, or an experiment's part of it; JSON is whole numbers."""
    file = tmp_path / "p.yaml"
    policy = {"kind": "fixed", "weights": {"v1": 0.4, "v2": 0.6}}
    told = []
    for text in (yaml.safe_dump(policy), yaml.safe_dump({"policy": policy})):
        file.write_text(text)
        code, out, _ = evaluated("--policy", str(file), "--format", "json")
        assert code == 0
        told.append(json.loads(out))
    assert told[0]["supported"] is True
    assert told[0]["trials"] == 3000
    assert told[0]["estimates"] == told[1]["estimates"]


def test_probabilities_of_a_file(evaluated: Evaluated, tmp_path: Path) -> None:
    """A table by variant in a CSV file is a target."""
    file = tmp_path / "p.csv"
    file.write_text("variant_id,probability\nv1,0.5\nv3,0.5\n")
    code, out, _ = evaluated("--probabilities", str(file), "--format", "json")
    assert code == 0
    assert json.loads(out)["estimates"]["ips"]["value"] == pytest.approx(0.2, abs=0.05)


def test_too_little_support_is_an_answer(evaluated: Evaluated) -> None:
    """Of three seconds of log no number is told, and that is no failure."""
    start, end = "2026-11-21T00:00:01Z", "2026-11-21T00:00:04"
    code, out, _ = evaluated("--policy", "uniform", "--from", start, "--to", end)
    assert code == 0
    assert "not enough support:" in out
    assert "effective trials of the target == " in out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "0 targets are given: give exactly one of --policy, --snapshot"),
        (["--policy", "greedy", "--snapshot", "3"], 2, "2 targets are given"),
        (
            ["--policy", "gready"],
            2,
            "policy == 'gready', must be a file (.yaml, .json)",
        ),
        (["--policy", "uniform", "--from", "now"], 2, "from == 'now', must be an ISO"),
        (
            ["--policy", "uniform", "--to", "2020-01-01"],
            1,
            "hats has no closed decision",
        ),
        (["--policy", "fixed"], 1, "policy.weights is missing."),
        (["--snapshot", "3"], 1, "snapshot == 3, must be a version in the lake."),
        (["--policy", "none.yaml"], 1, "No such file"),
        (["--policy", "uniform", "--format", "xml"], 2, "'xml', must be one of table"),
    ],
)
def test_errors_are_a_line_and_a_code(
    evaluated: Evaluated, words: list[str], code: int, message: str
) -> None:
    """What is wrong is named on stderr: usage ends with 2, all else with 1."""
    ended, out, err = evaluated(*words)
    assert ended == code
    assert message in " ".join(err.replace("│", " ").split())
    assert out == ""


def test_a_turned_time_is_refused(evaluated: Evaluated) -> None:
    """Decisions from a time before another are none."""
    code, _, err = evaluated(
        "--policy", "uniform", "--from", "2026-12-02", "--to", "2026-12-01"
    )
    assert code == 2
    assert "from == '2026-12-02', must be before to == '2026-12-01'." in err


@pytest.mark.slow
@pytest.mark.skipif(not OPEN_BANDIT.is_dir(), reason="no Open Bandit beside the tests")
@pytest.mark.skipif(not MAPPINGS.is_dir(), reason="no mappings beside the tests")
def test_ingested_open_bandit_gives_the_published_figure(
    run: Run, tmp_path: Path
) -> None:
    """From the log's file by a mapping to 0.004553 and 1.198126, as published."""
    position = {"name": "position", "kind": "categorical", "levels": ["1", "2", "3"]}
    spec = {"experiment": "open-bandit", "tenant": "zozo", "context": [position]}
    spec["variants"] = [{"id": str(item)} for item in range(80)]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    with short_folder() as folder:
        where = ("--data-dir", str(folder / "d"))
        assert run("experiment", "apply", str(tmp_path / "spec.yaml"), *where)[0] == 0
        for table in ("decisions", "events"):
            log, mapping = (
                OPEN_BANDIT / "random_all.parquet",
                MAPPINGS / f"{table}.yaml",
            )
            done = run("ingest", table, str(log), "--mapping", str(mapping), *where)
            assert done.returncode == 0, done.stdout
        decisions, _ = Lake(folder / "d" / "lake").read("decisions")
        write_shares(decisions, tmp_path / "shares.parquet")
        shares = ("--probabilities", str(tmp_path / "shares.parquet"))
        done = run("evaluate", "open-bandit", *shares, "--format", "json", *where)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["trials"], told["supported"]) == (10_000, True)
    assert f"{told['estimates']['ips']['value']:.6f}" == "0.004553"
    assert f"{told['estimates']['ips']['relative']:.6f}" == "1.198126"
    assert told["support"]["unseen_by_field"] == {"position": 0.0}


def write_shares(decisions: pa.Table, path: Path) -> None:
    """A table of what the published policy shows at each decision's position."""
    contexts = map(json.loads, decisions["context"].to_pylist())
    place = np.array([int(context["position"]) - 1 for context in contexts])
    table = pa.table(
        {
            "decision_id": pa.array(decisions["decision_id"]).take(
                pa.array(np.repeat(np.arange(len(place)), 80))
            ),
            "variant_id": [str(item) for item in range(80)] * len(place),
            "probability": open_bandit_shares()[place].ravel(),
        }
    )
    pq.write_table(table, path)
