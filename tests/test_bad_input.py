"""What a client can do wrong over HTTP: the right status, one error object, a field named."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bandolero_service.ids import Signer
from service_helpers import Answer, Running, click, experiment, needs_server

pytestmark = needs_server
DECIDE, BATCH, EVENTS = "/v1/decide", "/v1/decide/batch", "/v1/events"
DAY_MS = 86_400_000
DEEP = b"[" * 200_000 + b"]" * 200_000
TOO_LARGE = b'{"experiment":"' + b"x" * 1_100_000 + b'"}'


@pytest.fixture(scope="module")
def caps(running: Running) -> Running:
    """The server with a running experiment `caps`, and a draft `sketch`."""
    running.begin(experiment("caps"))
    running.ok("PUT", "/v1/experiments/sketch", experiment("sketch"))
    return running


@pytest.fixture(autouse=True)
def still_serving(caps: Running) -> Iterator[None]:
    """Whatever was sent, the server decides afterwards, and logged no fault of its own."""
    faults = _faults(caps)
    yield
    assert caps.decide("caps", consent="none")["fallback"] is True
    assert _faults(caps) == faults, caps.last_words()


def _faults(server: Running) -> int:
    return server.log.read_text(errors="replace").count("Traceback")


def refused(answer: Answer, status: int, field: str | None = None) -> dict[str, Any]:
    """The error object of an answer that must have it, alone but for a list of all."""
    assert answer.status == status, answer
    assert isinstance(answer.body, dict), answer
    assert answer.body.keys() <= {"error", "errors"}, answer
    error: dict[str, Any] = answer.body["error"]
    assert error.keys() <= {"code", "message", "field"}
    assert error["code"]
    assert error["message"]
    assert field is None or error.get("field") == field, error
    return error


# --- bodies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [DECIDE, BATCH, EVENTS])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"experiment":',
        b"\xff\xfe",
        b'{"experiment":"\xff"}',
        b'{"experiment":"caps"} x',
        b'{"experiment":NaN}',
        b"nonsense",
        DEEP,
        b'{"experiment":"caps","context":{"a":' + DEEP + b"}}",
        b'{"events":[' + DEEP + b"]}",
    ],
    ids=lambda raw: f"{raw[:16]!r} of {len(raw)}",
)
def test_what_is_not_json_is_a_400(caps: Running, path: str, raw: bytes) -> None:
    """Broken, cut, badly encoded and endlessly nested bodies are refused as malformed."""
    answer = caps.call("POST", path, key=caps.key(), raw=raw)
    if answer.status != 422:  # the first fault may be that the shape is wrong
        assert refused(answer, 400)["code"] == "malformed_json"
    else:
        refused(answer, 422)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (DECIDE, [], None),
        (DECIDE, "x", None),
        (DECIDE, {}, "experiment"),
        (DECIDE, {"experiment": 1}, "experiment"),
        (DECIDE, {"experiment": None}, "experiment"),
        (DECIDE, {"experiment": "caps", "unit": 1}, "unit"),
        (DECIDE, {"experiment": "caps", "unit": "x" * 300}, "unit"),
        (DECIDE, {"experiment": "caps", "context": []}, "context"),
        (DECIDE, {"experiment": "caps", "context": {"a": "x" * 16_384}}, "context"),
        (DECIDE, {"experiment": "caps", "eligible": "v1"}, "eligible"),
        (DECIDE, {"experiment": "caps", "eligible": ["v1", 1]}, "eligible[1]"),
        (DECIDE, {"experiment": "caps", "eligible": []}, "eligible"),
        (DECIDE, {"experiment": "caps", "eligible": ["nobody"]}, "eligible"),
        (DECIDE, {"experiment": "caps", "consent": "maybe"}, "consent"),
        (DECIDE, {"experiment": "caps", "colour": "red"}, "colour"),
        (BATCH, {}, "requests"),
        (BATCH, {"requests": {}}, "requests"),
        (BATCH, {"requests": [{"experiment": "caps"}] * 1001}, "requests"),
        (EVENTS, {}, "events"),
        (EVENTS, {"events": "x"}, "events"),
        (EVENTS, {"events": [{}] * 1001}, "events"),
    ],
)
def test_a_wrong_type_is_a_422_that_names_the_field(
    caps: Running, path: str, body: Any, field: str | None
) -> None:
    """A body of the wrong shape is refused whole, and the first wrong field is named."""
    refused(caps.call("POST", path, body, caps.key()), 422, field)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", DECIDE),
        ("POST", BATCH),
        ("POST", EVENTS),
        ("PUT", "/v1/experiments/large"),
        ("POST", "/v1/experiments/caps/variants"),
    ],
)
@pytest.mark.parametrize("how", ["at once", "in chunks"])
def test_a_body_that_is_too_large_is_a_413(
    caps: Running, method: str, path: str, how: str
) -> None:
    """More than a megabyte is refused, also where its length was not announced."""
    chunks = (TOO_LARGE[at : at + 50_000] for at in range(0, len(TOO_LARGE), 50_000))
    raw = TOO_LARGE if how == "at once" else chunks
    answer = caps.call(method, path, key=caps.key(), raw=raw)
    assert refused(answer, 413)["code"] == "too_large"


# --- keys and names --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer bk_000000000000_nonsense",
        "Bearer bk_\xe9_\xe9",
        "Basic dXNlcjpwYXNz",
        "KEY",
        "KEYx",
    ],
)
@pytest.mark.parametrize("path", [DECIDE, "/v1/experiments/caps/start"])
def test_without_a_valid_key_it_is_a_401(
    caps: Running, path: str, header: str | None
) -> None:
    """No key, half a key, another scheme or a made-up key: 401, and how to do it right."""
    headers = {}
    if header is not None:
        valid = caps.key() if header == "KEY" else f"Bearer {caps.key()}"
        headers["authorization"] = header.replace("KEY", valid)
    answer = caps.call("POST", path, {"experiment": "caps"}, headers=headers)
    assert refused(answer, 401)["code"] == "unauthorised"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("decide", {"POST /v1/decide"}),
        ("events", {"POST /v1/events"}),
        ("report", {"GET /v1/experiments"}),
        ("admin", {"GET /v1/experiments", "PUT /v1/experiments/caps"}),
    ],
)
def test_a_key_opens_what_its_scopes_say(
    caps: Running, scope: str, allowed: set[str]
) -> None:
    """A key of one scope is 403 everywhere else."""
    key = caps.key("acme", scope)
    for route, body in (
        ("POST /v1/decide", {"experiment": "caps", "consent": "none"}),
        ("POST /v1/events", {"events": []}),
        ("GET /v1/experiments", None),
        ("PUT /v1/experiments/caps", experiment("caps")),
    ):
        method, path = route.split(" ")
        answer = caps.call(method, path, body, key)
        if route in allowed:
            assert answer.status < 300, answer
        else:
            assert refused(answer, 403)["code"] == "forbidden"


def test_another_tenant_sees_nothing(caps: Running) -> None:
    """For a rival's key our experiments and decisions do not exist, and cannot be made."""
    rival = caps.key("rival")
    decision = caps.decide("caps")
    for method, path, body in (
        ("POST", DECIDE, {"experiment": "caps"}),
        ("GET", "/v1/experiments/caps", None),
        ("GET", "/v1/experiments/caps/report", None),
        ("POST", "/v1/experiments/caps/stop", {}),
        ("POST", "/v1/experiments/caps/variants", {"id": "theirs"}),
        ("POST", "/v1/experiments/caps/variants/v0/pause", {}),
        ("GET", f"/v1/decisions/{decision['decision_id']}", None),
    ):
        refused(caps.call(method, path, body, rival), 404)
    assert caps.ok("GET", "/v1/experiments", key=rival) == {"experiments": []}
    foreign = {**experiment("theirs"), "tenant": "acme"}
    refused(caps.call("PUT", "/v1/experiments/theirs", foreign, rival), 403, "tenant")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/decide/", 404),
        ("POST", "/v2/decide", 404),
        ("GET", "/v1/decide", 405),
        ("PUT", "/v1/events", 405),
        ("DELETE", "/v1/experiments/caps", 405),
        ("GET", "/v1/experiments/nobody", 404),
        ("POST", "/v1/experiments/nobody/start", 404),
        ("POST", "/v1/experiments/caps/explode", 422),
        ("GET", "/v1/experiments/nobody/report", 404),
        ("GET", "/v1/experiments/caps/report?format=docx", 422),
        ("GET", "/v1/decisions/nonsense", 404),
        ("GET", "/%00%ff/../../etc/passwd", 404),
    ],
)
def test_an_unknown_route_or_thing_gives_the_error_object(
    caps: Running, method: str, path: str, status: int
) -> None:
    """What is not there, and what cannot be done to it, is told like every other error."""
    refused(caps.call(method, path, key=caps.key()), status)


def test_an_unknown_experiment_and_a_draft_cannot_be_decided(caps: Running) -> None:
    """An unknown experiment is a 404, one that never started a 409; both name the field."""
    unknown = caps.call("POST", DECIDE, {"experiment": "nobody"}, caps.key())
    assert refused(unknown, 404, "experiment")["code"] == "unknown_experiment"
    draft = caps.call("POST", DECIDE, {"experiment": "sketch"}, caps.key())
    assert refused(draft, 409, "experiment")["code"] == "experiment_draft"


# --- specifications -------------------------------------------------------------------------


def test_a_bad_specification_is_refused_with_every_fault(caps: Running) -> None:
    """All faults stand in `errors`, each with its field, and nothing is stored."""
    spec = {
        "experiment": "bad",
        "policy": {"kind": "nope"},
        "control": "nobody",
        "allocation": {"min_share": 2.0},
        "variants": [{"id": "a b"}, {"id": "v"}, {"id": "v"}],
        "surprise": 1,
    }
    answer = caps.call("PUT", "/v1/experiments/bad", spec, caps.key())
    assert refused(answer, 422)["code"] == "invalid_experiment"
    fields = {fault["field"] for fault in answer.body["errors"]}
    assert fields == {
        "policy.kind",
        "control",
        "allocation.min_share",
        "variants[0].id",
        "variants",
        "surprise",
    }
    refused(caps.call("GET", "/v1/experiments/bad", key=caps.key()), 404)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[]", 422),
        (b"\xff\xfe", 400),
        (b'{"experiment":"odd","variants":' + DEEP + b"}", 400),
        (b'{"experiment":"odd","variants":[{"id":"v","attributes":{"a":NaN}}]}', 400),
        (
            b'{"experiment":"odd","variants":[{"id":"v","creative":{"a":"\\ud800"}}]}',
            400,
        ),
        (b'{"experiment":"other","variants":[{"id":"v"}]}', 422),
        (b'{"experiment":"odd/../x","variants":[{"id":"v"}]}', 422),
    ],
    ids=lambda given: f"{given[:60]!r}" if isinstance(given, bytes) else None,
)
def test_a_specification_that_cannot_be_read_is_refused(
    caps: Running, raw: bytes, status: int
) -> None:
    """No JSON, no object, not a number, half a character, another's name: nothing stored."""
    answer = caps.call("PUT", "/v1/experiments/odd", key=caps.key(), raw=raw)
    refused(answer, status)
    refused(caps.call("GET", "/v1/experiments/odd", key=caps.key()), 404)


# --- events -----------------------------------------------------------------------------------


def secret(server: Running) -> bytes:
    """What the server signs with."""
    return Path(server.data_dir / "secret").read_bytes()


def aged(server: Running, decision: Any, days: float) -> str:
    """The id the server would have given to a decision some days ago."""
    signer = Signer(secret(server), "acme")
    now = signer.read(decision["decision_id"])
    then = now._replace(decided_at_ms=now.decided_at_ms - int(days * DAY_MS))
    return signer.mint(*then).decode()


def test_each_bad_event_is_rejected_by_its_index(caps: Running) -> None:
    """Forged, foreign, expired, and every broken rule: by index and field; the rest taken."""
    decision = caps.decide("caps")
    decision_id = decision["decision_id"]
    ours = Signer(secret(caps), "acme").read(decision_id)
    foreign = Signer(secret(caps), "rival").mint(*ours).decode()
    bad: list[tuple[str, str | None, Any]] = [
        ("unknown_decision", "decision_id", {"decision_id": decision_id[:-3] + "AAA"}),
        ("unknown_decision", "decision_id", {"decision_id": foreign}),
        ("unknown_decision", "decision_id", {"decision_id": ""}),
        ("unknown_decision", "decision_id", {"decision_id": "é" * 64}),
        (
            "expired_decision",
            "decision_id",
            {"decision_id": aged(caps, decision, 30.1)},
        ),
        ("invalid_event", "value", {"value": "1"}),
        ("invalid_event", "value", {"value": None}),
        ("invalid_event", "value", {"value": True}),
        ("invalid_event", "value", {"value": 1e300}),
        ("invalid_event", "value", {"value": 1e9 + 0.001}),
        ("invalid_event", "value", {"value": -1e-6}),
        ("invalid_event", "value", {"value": 10**400}),
        ("invalid_event", "value", {"type": "refund", "value": 0}),
        ("invalid_event", "value", {"type": "refund", "value": -1.0}),
        ("invalid_event", "retracts", {"type": "retract"}),
        ("invalid_event", "retracts", {"retracts": "e"}),
        ("invalid_event", "retracts", {"type": "retract", "retracts": ""}),
        ("invalid_event", "retracts", {"type": "retract", "retracts": "x" * 129}),
        ("invalid_event", "retracts", {"type": "retract", "retracts": "bad"}),
        ("invalid_event", "at", {"at": "2026-11-21T10:00:00"}),
        ("invalid_event", "at", {"at": "yesterday"}),
        ("invalid_event", "at", {"at": 1}),
        ("invalid_event", "type", {"type": "Click!"}),
        ("invalid_event", "type", {"type": ""}),
        ("invalid_event", "type", {"type": 1}),
        ("invalid_event", "event_id", {"event_id": ""}),
        ("invalid_event", "event_id", {"event_id": "x" * 129}),
        ("invalid_event", "event_id", {"event_id": 1}),
        ("invalid_event", "colour", {"colour": "red"}),
        ("invalid_event", None, "not an object"),
        ("invalid_event", None, None),
    ]
    events: list[Any] = []
    for _, _, change in bad:
        events.append(click(decision, "good"))
        is_object = isinstance(change, dict)
        events.append({**click(decision, "bad"), **change} if is_object else change)
    told = caps.tell(events)
    assert told["accepted"] == len(bad)
    assert [one["index"] for one in told["rejected"]] == list(range(1, 2 * len(bad), 2))
    for (code, field, change), one in zip(bad, told["rejected"], strict=True):
        error = one["error"]
        assert (error["code"], error.get("field")) == (code, field), (change, error)
        assert field is None or field.strip("`") in error["message"]


def test_what_is_too_long_is_told_with_its_length(caps: Running) -> None:
    """An id of 1,000 characters is shown cut, marked as cut, and counted."""
    event = click(caps.decide("caps"), "x" * 1000)
    (rejected,) = caps.tell([event])["rejected"]
    message = rejected["error"]["message"]
    assert "xxx...xxx" in message
    assert message.endswith("must have 1 to 128 characters, not 1000.")
    assert len(message) < 200


@pytest.mark.parametrize("body", [{"consent": "FULL"}, {"consent": 1}])
def test_a_wrong_consent_is_told_the_right_ones(
    caps: Running, body: dict[str, Any]
) -> None:
    """Alone and in a batch the message names what a consent may be."""
    request = {"experiment": "caps", **body}
    alone = refused(caps.call("POST", DECIDE, request, caps.key()), 422, "consent")
    answer = caps.ok("POST", BATCH, {"requests": [request]})
    assert answer["decisions"] == [{"error": alone}]
    assert alone["message"].endswith("must be one of full, contextual, none.")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_never_accepted(caps: Running, number: str) -> None:
    """NaN and infinities are no JSON, so a body with them is; a number too large is rejected."""
    event = json.dumps(click(caps.decide("caps"), value=0)).replace(
        ": 0", f": {number}"
    )
    raw = f'{{"events":[{event}]}}'.encode()
    answer = caps.call("POST", EVENTS, key=caps.key(), raw=raw)
    if answer.status == 202:
        assert answer.body["accepted"] == 0
        assert answer.body["rejected"][0]["error"]["field"] == "value"
    else:
        assert refused(answer, 400)["code"] == "malformed_json"


def test_an_event_in_another_encoding_does_not_spoil_the_batch(caps: Running) -> None:
    """One event that is not UTF-8 is rejected by its index; the other is accepted."""
    good = json.dumps(click(caps.decide("caps"))).encode()
    raw = b'{"events":[' + good.replace(b'"c"', b'"\xff"') + b"," + good + b"]}"
    answer = caps.call("POST", EVENTS, key=caps.key(), raw=raw)
    assert answer.status == 202, answer
    assert answer.body["accepted"] == 1
    (rejected,) = answer.body["rejected"]
    assert (rejected["index"], rejected["error"]["code"]) == (0, "invalid_event")


@pytest.mark.parametrize("value", [-0.5, 1e9 + 1.0])
def test_an_events_value_is_bound_as_in_files(caps: Running, value: float) -> None:
    """Neither negative nor beyond 1e9: the rule of ingested rows, in units."""
    told = caps.tell([click(caps.decide("caps"), value=value)])
    rule = "must lie between 0 and 1e+09: a refund or a retract takes back."
    assert [one["error"] for one in told["rejected"]] == [
        {
            "code": "invalid_event",
            "message": f"value == {value!r}, {rule}",
            "field": "value",
        }
    ]


def test_late_is_not_expired(caps: Running) -> None:
    """An event of a decision that is 29 days old is accepted, whatever its time says."""
    old = aged(caps, caps.decide("caps"), 29.0)
    events = [
        {"event_id": at, "decision_id": old, "type": "click", "at": at}
        for at in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00")
    ]
    assert caps.tell(events) == {"accepted": 2, "rejected": []}


def test_strange_but_valid_events_reach_the_log(caps: Running) -> None:
    """Odd characters, huge and tiny values and unknown types are accepted and explained."""
    decision = caps.decide("caps")
    events = [
        click(decision, "\0\n☃ \U0001f3a9", value=0),
        click(decision, "x" * 128, value=1e9),
        {**click(decision, "w"), "type": "a_word_of_theirs", "value": 1e-9},
        {**click(decision, "r"), "type": "retract", "retracts": "nobody"},
    ]
    assert caps.tell(events) == {"accepted": 4, "rejected": []}
    time.sleep(0.1)
    told = caps.ok("GET", f"/v1/decisions/{decision['decision_id']}")
    assert [event["event_id"] for event in told["events"]] == [
        event["event_id"] for event in events
    ]


def test_no_events_are_no_error(caps: Running) -> None:
    """An empty batch is accepted."""
    assert caps.tell([]) == {"accepted": 0, "rejected": []}
