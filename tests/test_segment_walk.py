"""Reports by segment through the running system: asked, told, refreshed, reported."""

import csv
import io
import time
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from bandolero.lake.catalog import Lake
from bandolero_service import report_process
from bandolero_service.api.answers import ShownReport
from bandolero_service.embedded import EmbeddedStore
from bandolero_service.errors import ApiError
from bandolero_service.report_process import _Answerer
from bandolero_service.reporting import segment_rows
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from report_cases import record_of
from service_helpers import SLOWER, Running, click, experiment, needs_server, wait_for
from traffic import now

pytestmark = needs_server
NAME, PATH = "by-device", "/v1/experiments/by-device/report"
DEVICE = {"name": "device", "kind": "categorical", "levels": ["mobile", "desktop"]}
HOUR = {"name": "hour", "kind": "cyclic", "period": 24.0}
CONTEXTS: dict[str, list[dict[str, Any]]] = {
    "acme": [{"device": "mobile"}] * 40 + [{"device": "desktop", "hour": 3}] * 30,
    "other": [{"device": "toaster"}] * 7 + [{}] * 5,
}
SPEC = experiment(NAME, 2, policy={"kind": "uniform"}, context=[DEVICE, HOUR])


def play(server: Running, tenant: str, contexts: list[dict[str, Any]]) -> None:
    """Decide once for each context, and click on every v1 that a mobile saw."""
    key = server.key(tenant)
    requests = [{"experiment": NAME, "context": context} for context in contexts]
    answer = server.ok("POST", "/v1/decide/batch", {"requests": requests}, key)
    at = now()
    clicks = [
        click(decision, at=at)
        for context, decision in zip(contexts, answer["decisions"], strict=True)
        if context.get("device") == "mobile" and decision["variant"]["id"] == "v1"
    ]
    assert server.tell(clicks, tenant)["accepted"] == len(clicks)


def segment(server: Running, tenant: str) -> Any:
    """The segment of the report over HTTP."""
    path = f"{PATH}?segment=device"
    return server.ok("GET", path, key=server.key(tenant))["segment"]


@pytest.fixture(scope="module")
def refreshed(running: Running) -> Running:
    """Two tenants with an experiment of the same name, after a night that counts all."""
    for tenant, contexts in CONTEXTS.items():
        running.begin(SPEC, tenant)
        play(running, tenant, contexts)

    def counted() -> bool:
        assert running.cli("refresh").returncode == 0
        wholes = {tenant: segment(running, tenant)["whole"] for tenant in CONTEXTS}
        return all(
            wholes[tenant] is not None and wholes[tenant]["decisions"] == len(contexts)
            for tenant, contexts in CONTEXTS.items()
        )

    time.sleep(2.5 * SLOWER)  # windows close, and what they held is archived
    wait_for(counted, 60, "a night that counts all")
    return running


@pytest.mark.slow
def test_levels_of_the_night(refreshed: Running) -> None:
    """Mobile and desktop as they were asked for and clicked; they add up to all requests."""
    report = refreshed.ok("GET", f"{PATH}?segment=device")
    TypeAdapter(ShownReport).validate_python(report)
    told = report["segment"]
    mobile, desktop = told["levels"]
    assert (mobile["level"], mobile["decisions"]) == ("mobile", 40)
    assert (desktop["level"], desktop["decisions"]) == ("desktop", 30)
    clicked = {row["variant_id"]: row for row in mobile["variants"]}["v1"]
    assert clicked["rewards"] == clicked["trials"] > 0
    assert desktop["rewards"] == 0
    assert told["unseen"] == ["other"]
    for whole, live in zip(told["whole"]["variants"], report["variants"], strict=True):
        same = set(whole) - {"status"}
        assert {name: live[name] for name in same} == pytest.approx(
            {name: whole[name] for name in same}
        )


@pytest.mark.slow
def test_nobody_sees_another_tenants_levels(refreshed: Running) -> None:
    """The same experiment of another tenant has its own toasters and silent requests."""
    (level,) = segment(refreshed, "other")["levels"]
    assert (level["level"], level["decisions"], level["rewards"]) == ("other", 12, 0)


@pytest.mark.slow
def test_a_night_of_one_tenant_hides_no_others_levels(refreshed: Running) -> None:
    """After a refresh of one tenant alone all others have the levels that they had."""
    before = segment(refreshed, "acme")
    done = refreshed.cli("refresh", "--tenant", "other")
    assert done.returncode == 0, done.stderr
    assert segment(refreshed, "acme") == before
    assert segment(refreshed, "other")["whole"]["decisions"] == 12


@pytest.mark.slow
def test_every_format_by_segment(refreshed: Running) -> None:
    """CSV and Parquet have a row a level and variant; page and table name the levels."""
    key = refreshed.key()
    answers = {
        kind: refreshed.call(
            "GET", f"{PATH}?segment=device&format={kind}", key=key, timeout=60
        )
        for kind in ("csv", "parquet", "html")
    }
    assert {answer.status for answer in answers.values()} == {200}
    lines = list(csv.DictReader(io.StringIO(answers["csv"].body.decode())))
    assert [line["level"] for line in lines] == ["mobile"] * 2 + ["desktop"] * 2
    table = pq.read_table(io.BytesIO(answers["parquet"].body))
    assert table["decisions"].to_pylist() == [int(x["decisions"]) for x in lines]
    assert "By device · 2 levels" in answers["html"].body.decode()
    shown = refreshed.cli("report", NAME, "--tenant", "acme", "--segment", "device")
    assert shown.returncode == 0, shown.stderr
    assert "by device · 2 levels" in shown.stdout


@pytest.mark.slow
def test_days_by_segment(refreshed: Running) -> None:
    """Days before the first decision have no level, and say so."""
    told = refreshed.ok("GET", f"{PATH}?segment=device&to=2020-01-01")["segment"]
    assert (told["levels"], told["whole"]) == ([], None)
    assert "counted no decision" in told["headline"]


@pytest.mark.slow
@pytest.mark.parametrize("field", ["hour", "colour", "", "device "])
def test_a_field_without_levels_is_refused(refreshed: Running, field: str) -> None:
    """422 names the parameter, its value, and the fields there are; so does the command."""
    path = f"{PATH}?segment={field.replace(' ', '%20')}"
    answer = refreshed.call("GET", path, key=refreshed.key())
    assert answer.status == 422
    assert answer.body["error"] == {
        "code": "unknown_segment",
        "message": f"segment == {field!r}, must be one of its categorical context "
        "fields: device.",
        "field": "segment",
    }
    if field == "hour":
        asked = ("report", NAME, "--tenant", "acme", "--segment", field)
        done = refreshed.cli(*asked)
        assert (done.returncode, done.stdout) == (1, "")
        assert answer.body["error"]["message"] in done.stderr


# --- without a night, and without a lake ---------------------------------------------------


def test_an_experiment_without_levels_says_so(tmp_path: Path) -> None:
    """Where no field is categorical no segment can be asked for."""
    with pytest.raises(ApiError) as refused:
        segment_rows(Lake(tmp_path), record_of("One", context=[HOUR]), "device")
    assert refused.value.status == 422
    assert "has no categorical context field" in refused.value.message


def test_before_the_first_night_there_are_no_rows(tmp_path: Path) -> None:
    """A new lake is no error: there is just nothing yet."""
    record = record_of("One", context=[DEVICE])
    assert segment_rows(Lake(tmp_path), record, "device") == ("device", None, None)


def test_a_damaged_night_is_told(tmp_path: Path) -> None:
    """A file of the night that cannot be read is 503, not a wrong number."""
    lake = Lake(tmp_path)
    lake.write_bytes("nights/0000000000001.json", b"{")
    with pytest.raises(ApiError) as refused:
        segment_rows(lake, record_of("One", context=[DEVICE]), "device")
    assert (refused.value.status, refused.value.code) == (503, "lake_down")


def test_a_lake_that_hangs_is_given_up(
    embedded: EmbeddedStore,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer comes in time and says what is missing."""
    answerer = _Answerer(Settings(store=embedded.url, data_dir=tmp_path))
    hangs = Event()
    monkeypatch.setattr(answerer._lake, "paths", lambda *_: hangs.wait() or [])
    monkeypatch.setattr(report_process, "LAKE_S", 0.05)
    record = record_of("One", context=[DEVICE])
    try:
        with pytest.raises(ApiError) as refused:
            answerer._rows(record, "device")
    finally:
        hangs.set()
    assert (refused.value.status, refused.value.code) == (503, "lake_down")
