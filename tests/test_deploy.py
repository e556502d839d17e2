"""What `service/deploy` ships is valid: read as files, and run as processes, without Docker."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bandolero_service.cli import app
from bandolero_service.embedded import server_binary
from bandolero_service.metrics import FAMILIES
from bandolero_service.settings import PREFIX, Settings, read_settings
from service_helpers import (
    COMMAND,
    CREATE_KEY,
    SLOWER,
    Running,
    cli,
    experiment,
    free_port,
    linux,
    needs_server,
    short_folder,
    wait_for,
)

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "service" / "deploy"
ROLES = ("api", "learner", "archiver")
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="no source tree here")


@pytest.fixture(scope="module")
def compose() -> Any:
    """The compose file, with its anchors resolved."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile in order, each as (word, rest)."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_the_image_is_built_from_what_is_there() -> None:
    """Every file that is copied exists, and is not kept out of the build."""
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY"]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [
        name for names in copied if "--from=build" not in names for name in names
    ]
    assert sources == ["requirements.lock", "pyproject.toml", "README.md", "LICENSE", "engine", "service"]  # fmt: skip
    for name in sources:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_image_is_pinned_small_and_not_root() -> None:
    """Two stages, wheels with hashes, no package manager but pip, a plain account."""
    found = instructions()
    stages = [i for i, (word, _) in enumerate(found) if word == "FROM"]
    assert len(stages) == 2
    runs = " ".join(rest for word, rest in found if word == "RUN")
    assert (
        "--require-hashes --only-binary :all: --requirement requirements.lock" in runs
    )
    assert not re.search(r"\b(apt|apt-get|gcc|curl)\b", runs)
    final = dict(found[stages[1] :])
    assert "pip" not in final["RUN"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final["USER"])
    assert final["ENTRYPOINT"] == '["bandolero"]'
    set_here = {pair.partition("=")[0] for pair in final["ENV"].split()}
    assert unknown_settings(set_here) == set()


def unknown_settings(names: set[str]) -> set[str]:
    """Names that look like settings of ours and are none."""
    known = {PREFIX + field.upper() for field in Settings.__dataclass_fields__}
    return {name for name in names if name.startswith(PREFIX)} - known


def test_every_service_is_closed_up(compose: Any) -> None:
    """Read-only, without capabilities, named volumes and networks, time to end."""
    services = compose["services"]
    assert services.keys() == {"store", "api", "learner", "archiver", "nightly"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "privileged" not in service, name
        assert set(service["networks"]) <= compose["networks"].keys()
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in compose["volumes"]
        context = DEPLOY / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()
        assert name == "nightly" or service["healthcheck"]["test"][0] == "CMD"
    assert services["store"]["networks"] == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True
    assert "data:/data" in services["api"]["volumes"], "the spool must outlive a worker"


def test_every_setting_is_one_of_ours(compose: Any) -> None:
    """Variables are settings, their values are taken, and the spool is on a volume."""
    for name in (*ROLES, "nightly"):
        variables = compose["services"][name]["environment"]
        assert unknown_settings(set(variables)) == set()
        settings = read_settings(variables)
        assert settings.spool_dir.is_relative_to("/data")
        assert settings.secret_file == "/run/secrets/bandolero"
    grace_s = int(compose["services"]["api"]["stop_grace_period"].rstrip("s"))
    assert grace_s > settings.drain_delay_s + 30


def test_every_command_is_one_of_ours(compose: Any) -> None:
    """The command line takes the command of every service but the store's."""
    group: Any = typer.main.get_command(app)
    for name in (*ROLES, "nightly"):
        command = list(compose["services"][name]["command"])
        context = group.make_context("bandolero", command)
        word, found, rest = group.resolve_command(context, command)
        found.make_context(word, list(rest), parent=context)
        assert rest == command[1:]
    assert compose["services"]["nightly"]["command"][0] == "refresh"


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker on the path")
def test_compose_itself_takes_the_file() -> None:
    """Where `docker compose` is, it finds no fault in the file."""
    compose = ["docker", "compose"]
    if subprocess.run(
        [*compose, "version"], capture_output=True, check=False
    ).returncode:
        pytest.skip("docker without compose")
    checked = [*compose, "--file", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Machine:
    """The services of the compose file as plain processes, on loopback and in a folder."""

    def __init__(self, compose: Any, folder: Path) -> None:
        self.services = compose["services"]
        self.folder = folder
        self.ports = {name: free_port() for name in ("store", *ROLES)}
        for name in ("data", "lake", "store"):
            (folder / name).mkdir()
        (folder / "secret").write_text("0123456789abcdef" * 4)

    def here(self, service: str, text: str) -> str:
        """A word of a service's command or environment, as it is on this machine."""
        text = text.replace("store:6379", f"127.0.0.1:{self.ports['store']}")
        text = re.sub(r"^(6379|8080|9464)$", str(self.ports.get(service, 0)), text)
        own = rf"127.0.0.1\g<1>{self.ports.get(service, 0)}"
        text = re.sub(r"127\.0\.0\.1(:|', )(?:6379|8080|9464)\b", own, text)
        text = text.replace("/run/secrets/bandolero", str(self.folder / "secret"))
        if text.startswith(("/data", "/lake", "/store")):
            text = str(self.folder) + text
        return "127.0.0.1" if text == "0.0.0.0" else text

    def environment(self, service: str) -> dict[str, str]:
        """Variables of a service."""
        given = self.services[service].get("environment", {})
        fast = {"BANDOLERO_ARCHIVE_INTERVAL_S": "1"}
        return fast | {name: self.here(service, text) for name, text in given.items()}

    def words(self, service: str, *key: str) -> list[str]:
        """A list of words of a service."""
        found = self.services[service]
        for part in key:
            found = found[part]
        return [self.here(service, word) for word in found]

    @contextmanager
    def running(self, service: str) -> "Iterator[subprocess.Popen[bytes]]":
        """A service's process; it must end cleanly, and within its grace period."""
        start = [server_binary()] if service == "store" else list(COMMAND)
        log = (self.folder / "log").open("ab")
        process = subprocess.Popen(
            [*start, *self.words(service, "command")],
            env=os.environ | self.environment(service),
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )
        try:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            grace_s = int(self.services[service]["stop_grace_period"].rstrip("s"))
            assert process.wait(grace_s * SLOWER) == 0, service
        finally:
            log.close()
            process.kill()
            process.wait()

    def is_healthy(self, service: str) -> bool:
        """Whether the service's own health check finds it well."""
        _, python, *rest = self.words(service, "healthcheck", "test")
        assert python == "python"
        run = [sys.executable, *rest]
        return subprocess.run(run, capture_output=True, check=False).returncode == 0


@linux
@needs_server
@pytest.mark.slow
@pytest.mark.timeout(240 * SLOWER)
def test_the_services_work_together(compose: Any) -> None:
    """The very commands and variables: decide, learn, refresh, be seen, drain, end."""
    with short_folder() as folder, ExitStack() as stack:
        machine = Machine(compose, folder)
        started = {
            name: stack.enter_context(machine.running(name))
            for name in ("store", *reversed(ROLES))
        }
        for name in started:
            wait_for(lambda n=name: machine.is_healthy(n), 90, f"{name} is healthy")  # type: ignore[misc]
        server = Running(folder)
        server.port = machine.ports["api"]
        told = machine.environment("nightly")
        made = cli(*CREATE_KEY, environment=told)
        server.use_key(made.stdout.strip())
        assert server.call("GET", "/readyz").body["appendfsync"] == "always"
        server.begin(experiment("hats"))
        server.decide_many("hats", 20)
        settled = lambda: sum(r["trials"] for r in server.report("hats").values()) == 20  # noqa: E731
        wait_for(settled, 30, "everything settles")
        done = cli(*machine.words("nightly", "command"), environment=told)
        assert done.returncode == 0, done.stderr
        text = server.call("GET", "/metrics").body.decode()
        for role in ROLES:
            assert f'bandolero_processes{{role="{role}"}} 1.0' in text
        started["api"].send_signal(signal.SIGTERM)
        wait_for(lambda: server.call("GET", "/readyz").status == 503, 5, "it says so")
        assert server.decide("hats")["mode"] == "explore"


# --- alarms -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alarms() -> dict[str, str]:
    """Expressions of the rules file by alarm."""
    (group,) = yaml.safe_load((DEPLOY / "alarms.yaml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def test_alarms_are_over_metrics_that_exist(alarms: dict[str, str]) -> None:
    """Every name in an expression is a metric, every label one that it has."""
    families = {family.name: family for family in FAMILIES}
    for expression in alarms.values():
        assert expression.count("(") == expression.count(")"), expression
        found = re.findall(r"(bandolero_\w+)(?:\{(\w+)[^}]*\})?", expression)
        assert found, expression
        for name, label in found:
            family = families[re.sub("_bucket$", "", name)]
            assert not label or label in family.labels, expression
            in_rate = re.search(rf"(rate|increase)\({name}", expression)
            assert (family.kind == "gauge") is (in_rate is None), expression


def test_the_readme_tells_what_each_alarm_means(alarms: dict[str, str]) -> None:
    """The table has every alarm with its expression, in order, a meaning and a remedy."""
    table = (ROOT / "README.md").read_text().partition("\n## Alarms\n")[2]
    rows = re.findall(r"^\| (\w+) \| `(.*)` \| (.+) \| (.+) \|$", table, re.MULTILINE)
    assert [(f"Bandolero{row[0]}", row[1]) for row in rows] == list(alarms.items())
    assert all(min(len(row[2]), len(row[3])) > 15 for row in rows)
