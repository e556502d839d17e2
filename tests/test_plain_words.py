"""What a stranger does at the edge of the API: it is taken, or refused in plain words."""

import gzip
import json
import re
import socket
from typing import Any

import pytest

from service_helpers import Answer, Running, experiment, needs_server, wait_for

pytestmark = needs_server
REPORT = "/v1/experiments/plain/report"
VARIANTS = "/v1/experiments/plain/variants"


@pytest.fixture(scope="module")
def server(running: Running) -> Running:
    """The shared server with a running experiment `plain`."""
    running.begin(experiment("plain"))
    return running


def told(answer: Answer, status: int, field: str | None = None) -> str:
    """The message of a refusal, which names the field or none."""
    assert answer.status == status, answer
    error = answer.body["error"]
    assert error.get("field") == field, error
    return str(error["message"])


# --- bodies ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain"])
def test_json_is_json_whatever_its_type(server: Running, kind: str) -> None:
    """curl calls a body a form: routes of the framework take it as the hot ones do."""
    raw, headers = json.dumps(experiment("curled")).encode(), {"content-type": kind}
    path, key = "/v1/experiments/curled", server.key()
    answer = server.call("PUT", path, key=key, raw=raw, headers=headers)
    assert answer.status in {200, 201}, answer


def test_broken_json_names_no_field(server: Running) -> None:
    """Where a body breaks off is no field of it."""
    for raw in (b'{"id":[1', b""):
        answer = server.call("POST", VARIANTS, key=server.key(), raw=raw)
        assert told(answer, 400).startswith("the body is not JSON: ")
        assert answer.body["error"]["code"] == "malformed_json"


def test_a_client_that_hangs_up_is_no_fault_of_ours(server: Running) -> None:
    """A body that is cut off is dropped without a word in the log."""

    def refused() -> int:
        text = server.call("GET", "/metrics").body.decode()
        found = re.search(r'refused_total\{code="disconnected"\} (\d+)', text)
        return int(found[1]) if found else 0

    before, began = refused(), server.log.stat().st_size
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        head = f"POST {VARIANTS} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n"
        client.sendall(f"{head}authorization: Bearer {server.key()}\r\n\r\n{{".encode())
    wait_for(lambda: refused() > before, 5, "the end of the connection is seen")
    assert "Traceback" not in server.log.read_text()[began:]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/decide"), ("POST", "/v1/events"), ("POST", VARIANTS)],
)
def test_an_encoded_body_is_a_415(server: Running, method: str, path: str) -> None:
    """A body in gzip is told to be that, not to be no JSON; `identity` is as it is."""
    raw = gzip.compress(b"{}")
    for name in ("gzip", "GZIP", "br, gzip"):
        headers = {"content-encoding": name}
        answer = server.call(method, path, key=server.key(), raw=raw, headers=headers)
        assert name in told(answer, 415, "Content-Encoding")
    headers = {"content-encoding": "identity"}
    answer = server.call(method, path, {}, server.key(), headers=headers)
    assert answer.status == 422


# --- variants ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "status", "field", "message"),
    [
        ({}, 422, "id", "id is missing."),
        ({"id": "new", "colour": 1}, 422, "colour", "colour is not a known field."),
        (
            {"id": "new", "creative": {"landing_url": "ftp://shop.example"}},
            422,
            "creative.landing_url",
            "creative.landing_url == 'ftp://shop.example', must be an http",
        ),
        ({"id": "v1"}, 409, "id", "id == 'v1', must be new"),
    ],
)
def test_a_new_variant_is_told_its_own_faults(
    server: Running, variant: dict[str, Any], status: int, field: str, message: str
) -> None:
    """By its own fields, not by its place among the others; one that is there is a 409."""
    answer = server.call("POST", VARIANTS, variant, server.key())
    assert told(answer, status, field).startswith(message)
    assert "variants[" not in json.dumps(answer.body)


def test_a_stopped_experiment_gets_no_new_variants(server: Running) -> None:
    """Neither by the route nor by a new specification; the same one again changes nothing."""
    path, spec = "/v1/experiments/over", experiment("over", 2)
    server.ok("PUT", path, spec)
    server.ok("POST", f"{path}/stop")
    more = experiment("over", 3)
    for method, where, body in (
        ("POST", f"{path}/variants", more["variants"][2]),
        ("PUT", path, more),
    ):
        answer = server.call(method, where, body, server.key())
        assert "is stopped" in told(answer, 409, "experiment")
        assert answer.body["error"]["code"] == "experiment_stopped"
    assert server.ok("PUT", path, spec)["spec_version"] == 2


# --- reports ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("from=x", "from", "from == 'x', must be written as 2026-11-22."),
        ("to=1700000000", "to", "to == '1700000000', must be written as 2026-11-22."),
        (
            "from=2026-11-22&to=2026-11-21",
            "to",
            "to == '2026-11-21', must not be before from == '2026-11-22'.",
        ),
        ("segments=device", "segments", "segments is not a known field."),
        ("format=docx", "format", "format == 'docx', must be 'json', 'html', 'csv' or"),
    ],
)
def test_a_report_is_asked_for_rightly(
    server: Running, query: str, field: str, message: str
) -> None:
    """A wrong day, days the wrong way round and a name nobody knows are refused."""
    answer = server.call("GET", f"{REPORT}?{query}", key=server.key())
    assert told(answer, 422, field).startswith(message)


def test_several_faults_are_listed(server: Running) -> None:
    """Two faults are told at once, the first in the message too; one has no list."""
    answer = server.call("GET", f"{REPORT}?from=x&to=y", key=server.key())
    assert [fault["field"] for fault in answer.body["errors"]] == ["from", "to"]
    message = told(answer, 422, "from")
    assert message == f"2 faults, the first: {answer.body['errors'][0]['message']}"
    single = server.call("GET", "/v1/audit?limit=x", key=server.key())
    assert told(single, 422, "limit") == "limit == 'x', must be a valid integer."
    assert "errors" not in single.body


def test_one_day_may_be_asked_for(server: Running) -> None:
    """From a day to the same day is that day."""
    day = "2026-11-22"
    assert server.ok("GET", f"{REPORT}?from={day}&to={day}")["from"] == day


# --- paths ------------------------------------------------------------------------------


def test_nobody_is_sent_to_another_host(server: Running) -> None:
    """A slash too many is a 404: a redirect would name the host that the client named."""
    headers = {"host": "evil.example"}
    path, key = "/v1/experiments/", server.key()
    answer = server.call("GET", path, key=key, headers=headers)
    assert answer.status == 404
    assert "location" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/v2"])
def test_a_path_that_is_none_points_to_the_documents(
    server: Running, path: str
) -> None:
    """Who looks around is told where all routes are listed."""
    assert "/docs" in told(server.call("GET", path), 404)


def test_what_is_in_a_path_is_not_repeated(server: Running) -> None:
    """A unit too long is refused without saying it again."""
    path = f"/v1/units/{'secret' * 100}"
    message = told(server.call("DELETE", path, key=server.key()), 422, "unit")
    assert message == "unit == '…', must have at most 256 characters."


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes_may_ask_for_the_head_alone(server: Running, path: str) -> None:
    """HEAD is answered as GET is, without the body."""
    head, whole = server.call("HEAD", path), server.call("GET", path)
    assert (head.status, whole.status) == (200, 200)
    assert head.headers["content-type"] == whole.headers["content-type"]
    wrong: Any = server.call("POST", path)
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
