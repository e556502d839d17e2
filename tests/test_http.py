"""The contract over HTTP, on a real server: what each route does when all is well."""

import io
import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow.parquet as pq
import pytest

from service_helpers import RARE, Running, click, experiment, needs_server, wait_for

pytestmark = needs_server
LIVE_WITHIN_S = 5.0
"""A change is served by all workers within a second; a busy machine has some more."""


@pytest.fixture(scope="module")
def hats(running: Running) -> Running:
    """The server with a running experiment `hats` of four variants and some history."""
    shares = {"holdout_share": 0.2, "min_share": 0.05}
    context = [{"name": "device", "kind": "categorical", "levels": ["mobile"]}]
    running.begin(experiment("hats", 4, allocation=shares, context=context))
    return running


@pytest.fixture(scope="module")
def earned(hats: Running) -> list[Any]:
    """Settled decisions of `hats`: v0 was clicked every time, the others never."""
    decisions = hats.decide_many("hats", 200)
    shown_first = [d for d in decisions if d["variant"]["id"] == "v0"]
    told = hats.tell(
        [click(d) for d in shown_first]
        + [{**click(d, "i"), "type": "impression"} for d in shown_first]
    )
    assert told == {"accepted": 2 * len(shown_first), "rejected": []}

    def settled() -> bool:
        rows = hats.report("hats")
        return bool(sum(row["trials"] for row in rows.values()) >= len(decisions))

    wait_for(settled, 20, "all decisions settle")
    return decisions


# --- decide and events --------------------------------------------------------------------


def test_a_decision_has_everything_the_contract_says(hats: Running) -> None:
    """The answer carries id, creative, propensity, version, mode, serving and fallback."""
    answer = hats.decide("hats", unit="u", context={"device": "mobile"})
    assert answer.keys() == {
        "decision_id",
        "experiment",
        "variant",
        "propensity",
        "snapshot_version",
        "mode",
        "serving",
        "fallback",
    }
    number = answer["variant"]["id"][1:]
    assert answer["variant"]["creative"] == {"headline": f"Headline {number}"}
    assert re.fullmatch(r"[A-Za-z0-9_-]+", answer["decision_id"])
    assert 0.0 < answer["propensity"] <= 1.0
    assert (answer["experiment"], answer["serving"]) == ("hats", "live")
    assert answer["snapshot_version"] >= 1
    assert (answer["mode"] in {"explore", "holdout"}, answer["fallback"]) == (
        True,
        False,
    )


def test_a_batch_keeps_its_order_and_isolates_errors(hats: Running) -> None:
    """Answers stand where their requests stood; a bad one gets its error in its place."""
    requests: list[Any] = [
        {"experiment": "hats", "eligible": ["v2"]},
        {"experiment": "nobody"},
        {"experiment": "hats", "eligible": ["v1"]},
        {"experiment": 1},
        "nonsense",
        {"experiment": "hats", "eligible": ["v3"]},
    ]
    body = hats.ok("POST", "/v1/decide/batch", {"requests": requests})
    got = [
        one["variant"]["id"] if "variant" in one else one["error"]["code"]
        for one in body["decisions"]
    ]
    bad = "invalid_request"
    assert got == ["v2", "unknown_experiment", "v1", bad, bad, "v3"]
    assert hats.ok("POST", "/v1/decide/batch", {"requests": []}) == {"decisions": []}


def test_a_thousand_requests_fit_into_a_batch(hats: Running) -> None:
    """A batch of 1,000 is answered whole, each with an id of its own."""
    decisions = hats.decide_many("hats", 1000, consent="none")
    assert len({decision["decision_id"] for decision in decisions}) == 1000


def test_a_click_teaches_and_is_reported(hats: Running, earned: list[Any]) -> None:
    """What was clicked is in the report as rewards, and gets most of the traffic."""
    rows = hats.report("hats")
    n_shown = sum(d["variant"]["id"] == "v0" for d in earned)
    assert rows["v0"]["rewards"] == n_shown
    assert rows["v0"]["impressions"] == n_shown
    assert [rows[v]["rewards"] for v in ("v1", "v2", "v3")] == [0, 0, 0]
    assert rows["v0"]["probability_best"] > 0.99

    def preferred() -> bool:
        drawn = hats.decide_many("hats", 200, consent="contextual")
        explored = [d for d in drawn if d["mode"] == "explore"]
        chosen = sum(d["variant"]["id"] == "v0" for d in explored)
        return bool(chosen > 0.7 * len(explored))

    wait_for(preferred, 20, "the clicked variant is preferred")


def test_requests_share_a_connection(hats: Running) -> None:
    """A client that keeps its connection open is answered on it, also after an error."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", hats.port, timeout=10)
    headers = {"authorization": f"Bearer {hats.key()}"}
    statuses = []
    for body in ('{"experiment":"hats"}', "{", '{"experiment":"hats"}'):
        connection.request("POST", "/v1/decide", body, headers)
        answer = connection.getresponse()
        statuses.append(answer.status)
        answer.read()
        assert connection.sock is not None
    connection.close()
    assert statuses == [200, 400, 200]


# --- the control plane ----------------------------------------------------------------------


def test_an_experiment_lives_through_its_states(running: Running) -> None:
    """Created, shown, listed, started, paused and stopped, each with a new version."""
    key, path = running.key(), "/v1/experiments/life"
    created = running.call("PUT", path, experiment("life"), key)
    assert (created.status, created.headers["etag"]) == (201, '"1"')
    again = running.call("PUT", path, experiment("life"), key)
    assert (again.status, again.headers["etag"]) == (200, '"1"')
    assert created.body["experiment"] == "life"
    states = [
        running.ok("POST", f"{path}/{action}", {}, key)["status"]
        for action in ("start", "start", "pause", "start", "stop", "stop")
    ]
    assert states == ["running", "running", "paused", "running", "stopped", "stopped"]
    assert running.ok("GET", path, key=key)["spec_version"] == 5
    listed = running.ok("GET", "/v1/experiments", key=key)["experiments"]
    assert {"experiment": "life", "status": "stopped"}.items() <= next(
        one for one in listed if one["experiment"] == "life"
    ).items()
    refused = running.call("POST", f"{path}/start", {}, key)
    assert (refused.status, refused.body["error"]["code"]) == (409, "wrong_status")


def test_a_stale_version_is_refused(running: Running) -> None:
    """If-Match with the newest version or * is taken; any other is a 409."""
    key, path = running.key(), "/v1/experiments/match"
    spec = experiment("match")

    def put(n_variants: int, match: str) -> int:
        spec["variants"] = experiment("match", n_variants)["variants"]
        return running.call("PUT", path, spec, key, headers={"if-match": match}).status

    assert put(2, '"1"') == 409
    assert put(2, "*") == 201
    assert put(3, '"7"') == 409
    assert put(3, '"1"') == 200
    assert put(4, '"1"') == 409
    assert put(4, "2") == 200
    assert running.ok("GET", path, key=key)["spec_version"] == 3


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("objective", {"objective": {"event": "click", "attribution_window_s": 9.0}}),
        ("context", {"context": [{"name": "x", "kind": "numeric"}]}),
        ("policy", {"policy": {"kind": "uniform"}}),
        ("variants[0]", {"variants": [{"id": "v0", "creative": {"headline": "new"}}]}),
        ("variants", {"variants": experiment("x", 2)["variants"]}),
    ],
)
def test_what_data_depends_on_is_fixed_after_start(
    running: Running, field: str, change: dict[str, Any]
) -> None:
    """Objective, context, policy and creatives are immutable once an experiment started."""
    key, path = running.key(), "/v1/experiments/fixed-by-start"
    spec = experiment("fixed-by-start")
    running.ok("PUT", path, spec, key)
    running.ok("POST", f"{path}/start", {}, key)
    refused = running.call("PUT", path, {**spec, **change}, key)
    assert refused.status == 409, refused
    assert refused.body["error"]["code"] == "immutable"
    assert refused.body["error"]["field"] == field


def test_changes_of_variants_are_live_within_a_second(running: Running) -> None:
    """Added, paused, resumed and retired: a second later that is what is shown."""
    running.begin(experiment("live", 2, allocation={"min_share": 0.2}))
    path = "/v1/experiments/live/variants"

    def shows(expected: set[str]) -> bool:
        drawn = running.decide_many("live", 100, consent="contextual")
        return {decision["variant"]["id"] for decision in drawn} == expected

    new = {"id": "new", "creative": {"headline": "New"}}
    for change, body, expected in (
        (path, new, {"v0", "v1", "new"}),
        (f"{path}/v0/pause", {}, {"v1", "new"}),
        (f"{path}/v0/resume", {}, {"v0", "v1", "new"}),
        (f"{path}/v1/retire", {}, {"v0", "new"}),
    ):
        running.ok("POST", change, body)
        wait_for(partial(shows, expected), LIVE_WITHIN_S, change)
    retired = running.call("POST", f"{path}/v1/resume", {}, running.key())
    assert (retired.status, retired.body["error"]["code"]) == (409, "variant_retired")
    running.ok("POST", f"{path}/new/pause", {})
    wait_for(partial(shows, {"v0"}), LIVE_WITHIN_S)
    for action in ("pause", "retire"):
        last = running.call("POST", f"{path}/v0/{action}", {}, running.key())
        assert last.status == 409, action
        assert last.body["error"]["code"] == "last_active_variant"
    again = running.call("POST", path, new, running.key())
    assert (again.status, again.body["error"]["code"]) == (409, "variant_exists")
    unknown = running.call("POST", f"{path}/nobody/pause", {}, running.key())
    assert (unknown.status, unknown.body["error"]["code"]) == (404, "unknown_variant")


def test_pausing_and_stopping_are_live_within_a_second(running: Running) -> None:
    """A second after the pause the control is served, a second after the stop nothing."""
    running.begin(experiment("halt", control="v2"))
    running.ok("POST", "/v1/experiments/halt/pause", {})
    wait_for(lambda: running.decide("halt")["fallback"], LIVE_WITHIN_S)
    assert running.decide("halt")["variant"]["id"] == "v2"
    running.ok("POST", "/v1/experiments/halt/stop", {})

    def refused() -> Any:
        ask = {"experiment": "halt"}
        answer = running.call("POST", "/v1/decide", ask, running.key())
        return answer.status == 409 and answer.body["error"]["code"]

    assert wait_for(refused, LIVE_WITHIN_S) == "experiment_stopped"


# --- reports and explanations -----------------------------------------------------------------


def test_a_report_has_the_columns_of_the_contract(
    hats: Running, earned: list[Any]
) -> None:
    """Counts, rate, interval, P(best), P(beats control), expected loss and the split check."""
    body = hats.ok("GET", "/v1/experiments/hats/report?format=json")
    columns = {
        "decisions",
        "trials",
        "rewards",
        "rate",
        "impressions",
        "pending",
        "interval_lower",
        "interval_upper",
        "probability_best",
        "probability_beat_control",
        "expected_loss",
    }
    for row in body["variants"]:
        assert columns <= row.keys()
        assert row["rate"] == pytest.approx(row["rewards"] / row["trials"])
        assert row["decisions"] == row["trials"]  # both are settled; `pending` are not
    chances = [row["probability_best"] for row in body["variants"]]
    assert sum(chances) == pytest.approx(1.0)
    strata = body["sample_ratio"]["strata"]
    known = [one["p_value"] for one in strata if one["p_value"] is not None]
    assert min(known, default=1.0) > RARE
    assert body["totals"]["trials"] >= len(earned)


def test_a_report_comes_in_every_format(hats: Running, earned: list[Any]) -> None:
    """HTML, CSV and Parquet tell the same trials as JSON does."""
    key = hats.key()
    wait_for(
        lambda: not any(row["pending"] for row in hats.report("hats").values()),
        20,
        "everything settles",
    )
    trials = {v: row["trials"] for v, row in hats.report("hats").items()}
    found = {
        kind: hats.call("GET", f"/v1/experiments/hats/report?format={kind}", key=key)
        for kind in ("html", "csv", "parquet")
    }
    types = {kind: answer.headers["content-type"] for kind, answer in found.items()}
    assert types["html"].startswith("text/html")
    assert types["csv"].startswith("text/csv")
    assert b"<html" in found["html"].body
    lines = found["csv"].body.decode().splitlines()
    at = lines[0].split(",").index("trials")
    assert {
        line.split(",")[0]: int(line.split(",")[at]) for line in lines[1:]
    } == trials
    table = pq.read_table(io.BytesIO(found["parquet"].body))
    columns = table.select(["variant_id", "trials"]).to_pydict()
    assert dict(zip(columns["variant_id"], columns["trials"], strict=True)) == trials


def test_a_report_can_be_restricted_to_days(hats: Running, earned: list[Any]) -> None:
    """From today on everything is there, up to yesterday nothing."""
    path = "/v1/experiments/hats/report"
    today = (datetime.now(UTC) - timedelta(minutes=5)).date().isoformat()
    since = hats.ok("GET", f"{path}?from={today}")["totals"]["trials"]
    before = hats.ok("GET", f"{path}?from=2020-01-01&to=2020-01-02")["totals"]["trials"]
    assert since >= len(earned)
    assert before == 0
    wrong = hats.call("GET", f"{path}?from=yesterday", key=hats.key())
    assert (wrong.status, wrong.body["error"]["field"]) == (422, "from")


def test_a_decision_explains_itself(hats: Running, earned: list[Any]) -> None:
    """Explored, held out, narrowed or clicked: version, chances, events, reward, redrawn."""
    narrowed = hats.decide("hats", eligible=["v2", "v3"])
    hit = next(d for d in earned if d["variant"]["id"] == "v0")
    explored = next(d for d in earned if d["mode"] == "explore")
    held = next(d for d in earned if d["mode"] == "holdout")
    key = hats.key()
    for decision in (narrowed, hit, explored, held):
        path = f"/v1/decisions/{decision['decision_id']}"

        def found(path: str = path) -> Any:
            answer = hats.call("GET", path, key=key)
            return answer.body if answer.status == 200 else None

        told = wait_for(found, 5, "the decision is in the log")
        assert told["rederived"]["same"] is True
        assert told["variant"] == decision["variant"]["id"]
        assert told["propensity"] == decision["propensity"]
        assert told["snapshot_version"] == decision["snapshot_version"]
        assert sum(told["probabilities"].values()) == pytest.approx(1.0)
        assert told["outcome"]["settled"] or decision is narrowed
    told = hats.ok("GET", f"/v1/decisions/{hit['decision_id']}")
    assert [event["type"] for event in told["events"]] == ["click", "impression"]
    assert told["outcome"]["reward"] == 1.0


# --- operations ---------------------------------------------------------------------------------


def test_health_needs_no_key(hats: Running) -> None:
    """Health and readiness are open; readiness says how durable the store is."""
    assert hats.call("GET", "/healthz").body == {"status": "ok"}
    ready = hats.call("GET", "/readyz")
    assert ready.status == 200
    assert {"status": "ready", "store": "up", "appendfsync": "always"}.items() <= (
        ready.body.items()
    )


def test_metrics_parse_and_count(hats: Running) -> None:
    """Every line is in Prometheus's format, under its type, and decisions are counted."""

    def metrics() -> dict[str, float]:
        text = hats.call("GET", "/metrics").body.decode()
        assert text.endswith("\n")
        typed, found = set(), {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                assert kind in {"counter", "gauge", "histogram"}
                typed.add(name)
            elif not line.startswith("#"):
                match = re.fullmatch(r'(\w+)(\{(?:\w+="[^"\\]*",?)*\})? (\S+)', line)
                assert match, line
                assert re.sub("_(bucket|sum|count)$", "", match[1]) in typed, line
                found[match[1] + (match[2] or "")] = float(match[3])
        return found

    def total(found: dict[str, float], name: str) -> float:
        return sum(value for key, value in found.items() if key.startswith(name))

    before = metrics()
    hats.decide_many("hats", 7, consent="none")
    hats.decide("hats")
    after = metrics()
    for name, more in (
        ("bandolero_decisions_total", 8),
        ("bandolero_decide_seconds_count", 1),
    ):
        assert total(after, name) - total(before, name) == more
    buckets = [
        v for k, v in after.items() if k.startswith("bandolero_decide_seconds_b")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == total(after, "bandolero_decide_seconds_count")


def test_the_openapi_document_lists_everything(hats: Running) -> None:
    """Every route of the contract is in the document, and every reference resolves."""
    document = hats.call("GET", "/openapi.json").body
    assert document["openapi"].startswith("3.")
    operations = {
        f"{method.upper()} {path}"
        for path, item in document["paths"].items()
        for method in item
    }
    assert operations >= {
        "POST /v1/decide",
        "POST /v1/decide/batch",
        "POST /v1/events",
        "GET /v1/experiments",
        "PUT /v1/experiments/{experiment_id}",
        "GET /v1/experiments/{experiment_id}",
        "POST /v1/experiments/{experiment_id}/{action}",
        "POST /v1/experiments/{experiment_id}/variants",
        "POST /v1/experiments/{experiment_id}/variants/{variant_id}/{action}",
        "GET /v1/experiments/{experiment_id}/report",
        "GET /v1/decisions/{decision_id}",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))
    assert references
    for reference in references:
        at: Any = document
        for part in reference.split("/"):
            at = at[part]
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["responses"]
    assert hats.call("GET", "/docs").status == 200
