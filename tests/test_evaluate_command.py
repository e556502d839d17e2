"""`bandolero evaluate`, run as the command line runs it, on a lake and a store of its own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from bandolero_service.cli import main
from evaluate_lakes import DEVICE, WINDOW_S, filled
from service_helpers import needs_server, short_folder

pytestmark = needs_server
SPEC = {
    "experiment": "hats",
    "tenant": "acme",
    "objective": {"attribution_window_s": WINDOW_S},
    "context": [DEVICE],
    "variants": [{"id": "v1"}, {"id": "v2"}, {"id": "v3"}],
}


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data folder with an experiment and a lake of its decisions."""
    with short_folder() as folder:
        path = folder / "d"
        filled(path / "lake", 1, 3000)
        spec = folder / "hats.yaml"
        spec.write_text(yaml.safe_dump(SPEC))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", _words("experiment", "apply", str(spec), at=path))
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == 0
        yield path


def _words(*words: str, at: Path) -> list[str]:
    return ["bandolero", *words, "--data-dir", str(at)]


class Run:
    """Runs `bandolero evaluate hats` and gives exit code, stdout and stderr."""

    def __init__(
        self,
        data_dir: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self._data_dir, self._monkeypatch, self._capsys = data_dir, monkeypatch, capsys

    def __call__(self, *words: str) -> tuple[object, str, str]:
        """Run it with these options."""
        told = _words("evaluate", "hats", *words, at=self._data_dir)
        self._monkeypatch.setattr("sys.argv", told)
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *self._capsys.readouterr())


@pytest.fixture
def run(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command."""
    return Run(data_dir, monkeypatch, capsys)


def test_a_kind_of_policy_is_evaluated(run: Run) -> None:
    """As a table on stdout, with every estimator, and nothing on stderr."""
    code, out, err = run("--policy", "uniform")
    assert (code, err) == (0, "")
    assert all(
        name in out for name in ("inverse propensity", "doubly robust", "switch")
    )


def test_a_policy_of_a_file_as_json(run: Run, tmp_path: Path) -> None:
    """A file holds the policy, or an experiment's part of it; JSON is whole numbers."""
    file = tmp_path / "p.yaml"
    policy = {"kind": "fixed", "weights": {"v1": 0.4, "v2": 0.6}}
    told = []
    for text in (yaml.safe_dump(policy), yaml.safe_dump({"policy": policy})):
        file.write_text(text)
        code, out, _ = run("--policy", str(file), "--format", "json")
        assert code == 0
        told.append(json.loads(out))
    assert told[0]["supported"] is True
    assert told[0]["trials"] == 3000
    assert told[0]["estimates"] == told[1]["estimates"]


def test_probabilities_of_a_file(run: Run, tmp_path: Path) -> None:
    """A table by variant in a CSV file is a target."""
    file = tmp_path / "p.csv"
    file.write_text("variant_id,probability\nv1,0.5\nv3,0.5\n")
    code, out, _ = run("--probabilities", str(file), "--format", "json")
    assert code == 0
    assert json.loads(out)["estimates"]["ips"]["value"] == pytest.approx(0.2, abs=0.05)


def test_too_little_support_is_an_answer(run: Run) -> None:
    """Of three seconds of log no number is told, and that is no failure."""
    start, end = "2026-11-21T00:00:01Z", "2026-11-21T00:00:04"
    code, out, _ = run("--policy", "uniform", "--from", start, "--to", end)
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
    run: Run, words: list[str], code: int, message: str
) -> None:
    """What is wrong is named on stderr: usage ends with 2, all else with 1."""
    ended, out, err = run(*words)
    assert ended == code
    assert message in " ".join(err.replace("│", " ").split())
    assert out == ""


def test_a_turned_time_is_refused(run: Run) -> None:
    """Decisions from a time before another are none."""
    code, _, err = run(
        "--policy", "uniform", "--from", "2026-12-02", "--to", "2026-12-01"
    )
    assert code == 2
    assert "from == '2026-12-02', must be before to == '2026-12-01'." in err
