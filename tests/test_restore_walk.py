"""The store is deleted, the lake is not: the whole system comes back from it."""

import shutil
import time
from collections import Counter
from typing import Any

import pytest

from bandolero.lake.catalog import Lake
from service_helpers import (
    SLOWER,
    Running,
    click,
    experiment,
    needs_server,
    running_server,
    wait_for,
)

pytestmark = needs_server
CONTEXT = {
    "context": [{"name": "device", "kind": "categorical", "levels": ["a", "b"]}],
    "policy": {"kind": "linear_thompson"},
}
SPECS: dict[str, dict[str, Any]] = {
    "counts": {},
    "linear": CONTEXT,
    "logistic": CONTEXT | {"policy": {"kind": "logistic_thompson"}},
    "paused": {},
    "stopped": {},
    "open": {"objective": {"event": "click", "attribution_window_s": 20.0}},
}
SELDOM = {"BANDOLERO_ARCHIVE_INTERVAL_S": "3"}
SHORT = sorted(SPECS.keys() - {"open"})


def play(server: Running, name: str, n: int) -> list[Any]:
    """Decide `n` times; v0 is clicked."""
    context = {"device": "a"} if "context" in SPECS[name] else {}
    answers = server.decide_many(name, n, context=context)
    clicks = [click(a) for a in answers if a["variant"]["id"] == "v0"]
    if clicks:
        assert server.tell(clicks)["accepted"] == len(clicks)
    return answers


def trials(server: Running, name: str) -> int:
    """Trials that the report counts."""
    return sum(row["trials"] for row in server.report(name).values())


def await_trials(server: Running, names: list[str], n: int) -> None:
    """Wait until each experiment has `n` trials, and its snapshot shows them."""
    wait_for(lambda: {trials(server, name) for name in names} == {n}, 40, f"{n} trials")
    time.sleep(3.5)  # the pause between two snapshots by context, and a margin


def await_archived(server: Running) -> None:
    """Wait until the lake holds all that is logged by now."""
    now_ms = time.time() * 1000
    lake = Lake(server.data_dir / "lake")
    wait_for(lambda: lake.watermark_ms() > now_ms, 40, "the lake")


def told(server: Running, name: str) -> dict[str, Any]:
    """Record and report of an experiment, but for its time and the newest snapshot."""
    record = server.ok("GET", f"/v1/experiments/{name}")
    report = server.ok("GET", f"/v1/experiments/{name}/report")
    report.pop("generated_at", None)
    report.pop("snapshot_version", None)
    for row in report["variants"]:
        row.pop("share_now")  # of the newest snapshot, which may lag a little
    return {"record": record, "report": report}


def explained(server: Running, answer: Any) -> Any:
    """The explanation of a decision."""
    return server.ok("GET", f"/v1/decisions/{answer['decision_id']}")


def version_of(server: Running, name: str) -> int:
    """The version of the snapshot that is served; nothing is stored."""
    return int(server.decide(name, consent="none")["snapshot_version"])


def shown(answers: list[Any]) -> dict[str, int]:
    """How often each variant was chosen."""
    counts = Counter(answer["variant"]["id"] for answer in answers)
    return {variant_id: counts[variant_id] for variant_id in ("v0", "v1", "v2")}


def command(server: Running, *arguments: str) -> str:
    """What a command that must succeed prints."""
    done = server.cli(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600 * SLOWER)
def test_a_deleted_store_comes_back_from_the_lake() -> None:
    """Records, reports, corrections and explanations are as before; what had settled is
    not learned again, what was open is, once; versions go on above; the audit is whole."""
    with running_server(environment=SELDOM) as server:
        for name, more in SPECS.items():
            server.begin(experiment(name, 3, **more))
        server.ok("PUT", "/v1/experiments/draft", experiment("draft", 2))
        made = {name: play(server, name, 40) for name in SHORT}
        await_trials(server, SHORT, 40)
        server.tell([click(a, "late") for a in made["counts"][:5]])
        server.ok("POST", "/v1/experiments/counts/variants/v2/pause", {})
        server.ok("POST", "/v1/experiments/linear/variants/v2/retire", {})
        server.ok("POST", "/v1/experiments/paused/pause", {})
        server.ok("POST", "/v1/experiments/stopped/stop", {})
        await_archived(server)
        command(server, "refresh")
        live = ["counts", "linear", "logistic"]
        for name in live:
            made[name] += play(server, name, 20)
        await_trials(server, live, 60)
        made["open"] = play(server, "open", 30)
        await_archived(server)
        before = {name: told(server, name) for name in (*SHORT, "draft")}
        why = {name: explained(server, answers[0]) for name, answers in made.items()}
        versions = {name: version_of(server, name) for name in live}
        keys = server.data_dir / "keys.jsonl"
        keys.write_text(command(server, "keys", "export"))
        server.stop()
        shutil.rmtree(server.data_dir / "store")
        assert "7 experiments restored" in command(server, "replay", "--restore")
        command(server, "keys", "import", str(keys))
        server.start()
        for name in (*SHORT, "draft"):
            assert told(server, name) == before[name], name
        for name, answers in made.items():
            if name != "open":
                assert explained(server, answers[0]) == why[name]
        for name, version in versions.items():
            assert version_of(server, name) > version
        assert "fold to the state" in command(server, "replay", "linear")
        command(server, "audit", "verify")
        wait_for(lambda: trials(server, "open") >= 30, 60, "the open ones settle")
        rows = server.report("open")
        assert {v: row["trials"] for v, row in rows.items()} == shown(made["open"])
        assert rows["v0"]["rewards"] == shown(made["open"]).get("v0", 0)
