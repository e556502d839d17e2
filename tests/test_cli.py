"""The command line, as programs of their own: with a server beside them and without."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from typer.testing import CliRunner

from bandolero_service import keys
from bandolero_service.cli import app, main
from service_helpers import (
    Running,
    cli,
    experiment,
    needs_server,
    short_folder,
    wait_for,
)

pytestmark = needs_server


@pytest.fixture(scope="module")
def alone() -> Iterator[Path]:
    """A data folder that no server works on."""
    with short_folder() as folder:
        yield folder / "d"


class Done(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Run:
    """Runs commands in the test's own process: as `main` does, and much sooner."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Done:
        """Run a command."""
        self._monkeypatch.setattr("sys.argv", ["bandolero", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 1, *self._capsys.readouterr())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands."""
    return Run(monkeypatch, capsys)


def write(folder: Path, spec: Any, name: str = "experiment.yaml") -> str:
    """A file with a specification."""
    path = folder / name
    path.write_text(yaml.safe_dump(spec) if name.endswith("yaml") else json.dumps(spec))
    return str(path)


def commands(group: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of every command there is."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield (*names, name)


ALL_COMMANDS = list(commands(typer.main.get_command(app)))


# --- help and usage ---------------------------------------------------------------------------


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    """`--help` ends with exit code 0, says what the command does and shows how."""
    shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert f"Example: bandolero {' '.join(words)}" in " ".join(shown.output.split())


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_every_command_says_where_and_whose(words: tuple[str, ...]) -> None:
    """All but the demo take the same options of a place, and a tenant if they have one.

    Servers and files of the lake serve every tenant.
    """
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    options = {option for parameter in command.params for option in parameter.opts}
    where = {"--store", "--data-dir", "--lake", "--tenant"}
    if words in {("serve",), ("lake", "give-up")}:
        where.remove("--tenant")
    assert where <= options or words == ("demo",)


def test_the_contracts_commands_are_there() -> None:
    """Everything the contract names for this version is a command."""
    named = {"serve", "refresh", "report", "replay", "evaluate", "demo"}
    named |= {f"experiment {verb}" for verb in ("apply", "list", "show")}
    named |= {f"keys {verb}" for verb in ("create", "list", "revoke")}
    named |= {f"ingest {table}" for table in ("decisions", "events")}
    assert named <= {" ".join(words) for words in ALL_COMMANDS}


def test_help_of_the_program_itself() -> None:
    """`bandolero --help` works as a program, and lists the commands."""
    done = cli("--help")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("serve", "report", "refresh", "keys"))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("report",),
        ("report", "x", "--format", "docx"),
        ("report", "x", "--nonsense"),
        ("serve", "--port", "many"),
        ("serve", "--port", "70000"),
        ("serve", "--workers", "0"),
        ("serve", "--role", "king"),
        ("refresh", "--engine", "abacus"),
        ("refresh", "--until", "tomorrow"),
        ("keys", "create"),
        ("keys", "create", "--tenant", "acme", "--scopes", "everything"),
        ("keys", "create", "--tenant", "acme", "--scopes", ""),
        ("keys", "create", "--tenant", "a/b"),
        ("keys", "create", "--tenant", "a b"),
        ("keys", "create", "--tenant", ""),
        ("experiment", "apply"),
        ("experiment", "apply", "/nowhere/at-all.yaml"),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_exit_code_2(
    run: Run, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """A command that cannot be understood says so, without a traceback, and changes nothing."""
    needs_data = arguments and arguments[0] in {"report", "refresh", "keys", "serve"}
    where = ("--data-dir", str(tmp_path / "d")) if needs_data else ()
    done = run(*arguments, *where)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert done.stderr.strip() or done.stdout.strip()
    assert not (tmp_path / "d").exists()


def test_a_setting_that_is_wrong_is_named() -> None:
    """A variable of the environment that breaks its rule is exit code 2, by its name."""
    done = cli("keys", "list", environment={"BANDOLERO_SHARDS": "many"})
    assert done.returncode == 2
    assert done.stderr == "bandolero: BANDOLERO_SHARDS == 'many', must be a int.\n"


# --- experiments ---------------------------------------------------------------------------------


def test_a_file_with_faults_is_refused_with_all_of_them(
    run: Run, alone: Path, tmp_path: Path
) -> None:
    """Every fault stands on a line of its own with the file's name; nothing is stored."""
    good = write(tmp_path, experiment("good"), "good.json")
    bad = write(
        tmp_path,
        {
            "experiment": "bad",
            "policy": {"kind": "nope"},
            "control": "nobody",
            "variants": [{"id": "v"}, {"id": "v"}],
            "surprise": 1,
        },
    )
    done = run("experiment", "apply", good, bad, "--data-dir", str(alone))
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"bandolero: {bad}: ") for line in lines)
    for word in ("policy.kind", "control", "variants.id", "surprise"):
        assert any(word in line for line in lines), word
    assert run("experiment", "list", "--data-dir", str(alone)).stdout == ""


@pytest.mark.parametrize(
    "content", [b"a: [", b"\xff\xfe", b"", b"- 1", b"x" * 2_000_000]
)
def test_a_file_that_is_no_specification_is_refused(
    run: Run, alone: Path, tmp_path: Path, content: bytes
) -> None:
    """Neither YAML nor JSON, empty, a list or far too large: exit code 1 and a line."""
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    done = run("experiment", "apply", str(path), "--data-dir", str(alone))
    assert done.returncode == 1
    assert done.stderr.startswith(f"bandolero: {path}: ")
    assert "Traceback" not in done.stderr


def test_experiments_are_applied_listed_and_shown(
    run: Run, alone: Path, tmp_path: Path
) -> None:
    """YAML and JSON are applied together, idempotently, and come back as they were."""
    where = ("--data-dir", str(alone))
    yaml_file = write(tmp_path, {**experiment("one"), "tenant": "acme"})
    json_file = write(tmp_path, experiment("two"), "two.json")
    for _ in range(2):
        done = run(
            "experiment", "apply", yaml_file, json_file, "--tenant", "acme", *where
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "acme/one: version 1, draft",
            "acme/two: version 1, draft",
        ]
    started = run("experiment", "apply", yaml_file, "--start", *where)
    assert started.stdout == "acme/one: version 2, running\n"
    listed = run("experiment", "list", "--tenant", "acme", *where).stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["acme/one", "running"],
        ["acme/two", "draft"],
    ]
    assert run("experiment", "list", "--tenant", "rival", *where).stdout == ""
    shown = json.loads(run("experiment", "show", "one", *where).stdout)
    assert shown["spec"]["variants"][2]["creative"] == {"headline": "Headline 2"}
    assert (shown["status"], shown["spec_version"]) == ("running", 2)
    foreign = run("experiment", "apply", yaml_file, "--tenant", "rival", *where)
    assert foreign.returncode == 1
    assert "tenant == 'acme'" in foreign.stderr


@pytest.mark.parametrize("command", ["report", "replay", "experiment show"])
def test_an_unknown_experiment_is_exit_code_1(
    run: Run, alone: Path, command: str
) -> None:
    """A command on an experiment nobody knows says which, and fails."""
    done = run(*command.split(), "nobody", "--data-dir", str(alone))
    assert done.returncode == 1
    assert done.stderr == "bandolero: experiment == 'nobody' is not known.\n"


def test_a_tenant_that_could_not_be_read_back_is_refused(
    run: Run, alone: Path, tmp_path: Path
) -> None:
    """A tenant's name that no specification may have is not stored, and spoils nothing."""
    where = ("--data-dir", str(alone))
    file = write(tmp_path, experiment("odd"))
    done = run("experiment", "apply", file, "--tenant", "a b", *where)
    assert done.returncode == 1
    assert "tenant == 'a b'" in done.stderr
    assert run("experiment", "list", *where).returncode == 0


def test_an_experiment_of_two_tenants_needs_a_tenant(
    run: Run, alone: Path, tmp_path: Path
) -> None:
    """The same id under two tenants is a usage error that tells the tenants."""
    where = ("--data-dir", str(alone))
    file = write(tmp_path, experiment("both"))
    for tenant in ("acme", "rival"):
        run("experiment", "apply", file, "--tenant", tenant, *where)
    unclear = run("experiment", "show", "both", *where)
    assert unclear.returncode == 2
    assert "acme, rival" in unclear.stderr
    clear = run("experiment", "show", "both", "--tenant", "rival", *where)
    assert json.loads(clear.stdout)["tenant"] == "rival"


def test_what_was_archived_nothing_of_cannot_be_replayed(
    run: Run, alone: Path, tmp_path: Path
) -> None:
    """Replay of an experiment the lake knows nothing of says what to do, and fails."""
    where = ("--data-dir", str(alone))
    run("experiment", "apply", write(tmp_path, experiment("fresh")), *where)
    done = run("replay", "fresh", *where)
    assert done.returncode == 1
    assert "no snapshot in the lake" in done.stderr


def test_refreshing_nothing_is_no_error(run: Run, tmp_path: Path) -> None:
    """The nightly job on an empty lake ends well, and says that there was nothing."""
    with short_folder() as folder:
        summary = tmp_path / "summary.json"
        arguments = ("--data-dir", str(folder / "d"), "--summary", str(summary))
        done = run("refresh", "--dry-run", *arguments)
        assert done.returncode == 0, done.stderr
        told = json.loads(summary.read_text())
        assert (told["settled"], told["published"], told["bad_files"]) == (0, False, [])
        assert f"the lake {folder}/d/lake holds nothing yet" in done.stdout


@pytest.mark.parametrize(
    "command", [("refresh",), ("corrected",), ("replay", "--restore")]
)
def test_a_lake_that_is_not_there_is_told_and_not_made(
    run: Run, alone: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Where it was named, or where it is only read."""
    nowhere = tmp_path / "nowhere"
    done = run(*command, "--data-dir", str(alone), "--lake", str(nowhere))
    told = f"bandolero: lake == {str(nowhere)!r}, must hold a lake.\n"
    assert (done.returncode, done.stderr) == (1, told)
    if command[0] == "corrected":
        done = run(*command, "--data-dir", str(nowhere))
        told = f"bandolero: the lake {nowhere}/lake has not been refreshed yet:"
        assert (done.returncode, done.stderr.startswith(told)) == (1, True)
    assert not nowhere.exists()


# --- beside a server --------------------------------------------------------------------------------


def beside(running: Running) -> tuple[str, str]:
    """The options that make a command work on the server's data folder."""
    return "--data-dir", str(running.data_dir)


def test_keys_are_made_listed_and_revoked(run: Run, running: Running) -> None:
    """A new key works at once, its secret is not kept, and a second after it is revoked not."""
    running.begin(experiment("keyed"))
    made = run(
        "keys", "create", "--tenant", "acme", "--scopes", "decide", *beside(running)
    )
    assert made.returncode == 0
    (key,) = made.stdout.splitlines()
    body = {"experiment": "keyed", "consent": "none"}
    assert running.call("POST", "/v1/decide", body, key).status == 200
    key_id, secret = key.split("_", 2)[1:]
    listed = run("keys", "list", *beside(running)).stdout
    assert secret not in listed
    (line,) = (line for line in listed.splitlines() if line.startswith(key_id))
    heads = listed.splitlines()[0]
    told = {head: line[heads.index(head) :].split()[0] for head in heads.split()}
    assert len(told.pop("made")) == len("2026-11-22")
    assert told == {
        "key": key_id,
        "tenant": "acme",
        "state": "live",
        "expires": "never",
        "rate": "none",
        "scopes": "decide",
    }
    theirs = run("keys", "list", "--tenant", "rival", *beside(running)).stdout
    assert key_id not in theirs
    foreign = run("keys", "revoke", key_id, "--tenant", "rival", *beside(running))
    assert foreign.returncode == 1
    assert run("keys", "revoke", key_id, *beside(running)).returncode == 0
    wait_for(lambda: running.call("POST", "/v1/decide", body, key).status == 401, 5)
    listed = run("keys", "list", *beside(running)).stdout
    assert next(x for x in listed.splitlines() if x.startswith(key_id)).split()[2] == (
        "revoked"
    )
    unknown = run("keys", "revoke", "nobody", *beside(running))
    assert (unknown.returncode, unknown.stderr) == (
        1,
        "bandolero: key_id == 'nobody', must be a key's id.\n",
    )


def test_a_key_decides_and_tells_unless_more_is_asked_for(
    run: Run, running: Running
) -> None:
    """Whoever forgets `--scopes` has not made an administrator."""
    (key,) = run("keys", "create", "--tenant", "few", *beside(running)).stdout.split()
    assert running.call("POST", "/v1/events", {"events": []}, key).status == 202
    assert running.call("POST", "/v1/decide", {"experiment": "x"}, key).status == 404
    assert running.call("GET", "/v1/experiments", key=key).status == 403


def test_an_applied_experiment_is_served(running: Running, tmp_path: Path) -> None:
    """What the command line starts beside a server is served within a second."""
    file = write(tmp_path, experiment("applied"))
    done = running.cli("experiment", "apply", file, "--tenant", "acme", "--start")
    assert done.returncode == 0, done.stderr
    ask = {"experiment": "applied"}
    wait_for(
        lambda: running.call("POST", "/v1/decide", ask, running.key()).status == 200, 5
    )
    assert running.decide("applied")["variant"]["id"] in {"v0", "v1", "v2"}


def test_a_report_comes_in_every_format(
    run: Run, running: Running, tmp_path: Path
) -> None:
    """Table, JSON, CSV, HTML and Parquet, on stdout or in a file, tell the same variants."""
    running.begin(experiment("shown"))
    running.decide_many("shown", 20)
    ask = ("report", "shown", "--tenant", "acme")
    done = {
        kind: run(*ask, "--format", kind, *beside(running))
        for kind in ("table", "json", "csv")
    }
    assert {kind: one.returncode for kind, one in done.items()} == dict.fromkeys(
        done, 0
    )
    assert all(f"v{i}" in done["table"].stdout for i in range(3))
    rows = json.loads(done["json"].stdout)["variants"]
    lines = csv.DictReader(io.StringIO(done["csv"].stdout))
    assert [row["variant_id"] for row in rows] == ["v0", "v1", "v2"]
    assert [line["variant_id"] for line in lines] == ["v0", "v1", "v2"]
    for kind, start in (("html", b"<!DOCTYPE html>"), ("parquet", b"PAR1")):
        file = tmp_path / f"report.{kind}"
        one = run(*ask, "--format", kind, "--output", str(file), *beside(running))
        assert one.returncode == 0, one.stderr
        assert file.read_bytes()[: len(start)].lower() == start.lower()


def test_two_refreshes_do_not_run_at_once(run: Run, running: Running) -> None:
    """While one refresh holds the lease another one fails, and says why."""
    from bandolero_service.embedded import EmbeddedStore
    from bandolero_service.store import Store

    store = Store(EmbeddedStore(running.data_dir).url)
    with store.alone(keys.REFRESH_LEASE, "somebody", 60_000) as held:
        assert held
        done = run("refresh", *beside(running))
    store.close()
    assert done.returncode == 1
    rule = "wait for it; if it was killed, 60 s at most"
    assert done.stderr == f"bandolero: another refresh is running: {rule}.\n"
