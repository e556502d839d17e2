"""Log lines and request ids: what a fault leaves behind for who looks into it."""

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from bandolero_service.api.request_ids import REQUEST_ID, Traced
from bandolero_service.settings import SettingsError, read_settings
from service_helpers import Running, needs_server

IDS = {"given": "order-7/a", "spaces": "a b", "long": "x" * 129, "none": None}


def headers_with(request_id: str | None) -> dict[str, str]:
    """Headers of a request with an id, or without one."""
    return {} if request_id is None else {"x-request-id": request_id}


@needs_server
@pytest.mark.parametrize("what", IDS)
@pytest.mark.parametrize("path", ["/v1/decide", "/v1/experiments/nobody", "/nowhere"])
def test_refusals_carry_a_request_id(running: Running, path: str, what: str) -> None:
    """A short, printable id of the client's is echoed; else one of ours takes its place."""
    method = "POST" if path == "/v1/decide" else "GET"
    answer = running.call(method, path, headers=headers_with(IDS[what]))
    assert answer.status >= 400
    echoed = answer.headers["x-request-id"]
    assert (echoed == IDS[what]) is (what == "given")
    assert what == "given" or len(echoed) == 16


@needs_server
def test_a_hot_route_echoes_what_was_sent_and_no_more(running: Running) -> None:
    """A decision's answer has the client's id, and none where there was none."""
    running.begin({"experiment": "echo", "variants": [{"id": "a"}, {"id": "b"}]})
    for given in ("r-1", None):
        answer = running.call(
            "POST",
            "/v1/decide",
            {"experiment": "echo"},
            running.key(),
            headers=headers_with(given),
        )
        assert (answer.status, answer.headers.get("x-request-id")) == (200, given)


@needs_server
def test_every_line_of_a_server_is_an_object(running: Running) -> None:
    """Off a terminal every role writes one JSON object a line, with the same fields."""
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert {line["role"] for line in lines} >= {"serve", "api"}
    for line in lines:
        assert line.keys() >= {"time", "level", "role", "pid", "logger", "message"}


def fault_of(app: Any, path: str, headers: Any) -> list[tuple[bytes, bytes]]:
    """The headers of the answer of an application that fails after its answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
    asyncio.run(Traced(app)(scope, receive, send))
    found: list[tuple[bytes, bytes]] = sent[0]["headers"]
    return found


def test_a_fault_is_logged_by_route_not_by_path(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The line of a fault names the request's id and the route; no unit can be in it."""

    class Route:
        path = "/v1/units/{unit}"

    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = Route
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise ValueError("ours")

    path = "/v1/units/someone@example.org"
    headers = fault_of(failing, path, [(REQUEST_ID, b"r-1")])
    assert headers == [(REQUEST_ID, b"r-1")]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "GET /v1/units/{unit} failed"
    assert "someone" not in caplog.text


def test_the_log_format_is_one_of_three() -> None:
    """Another word is refused with the setting, its value and the rule."""
    rule = "log_format == 'xml', must be one of auto, json, text."
    with pytest.raises(SettingsError, match=rule):
        read_settings({"BANDOLERO_LOG_FORMAT": "xml"})


@pytest.mark.parametrize(("log_format", "is_json"), [("text", False), ("auto", True)])
def test_the_format_is_obeyed(log_format: str, is_json: bool) -> None:
    """With `text` a line is for people; into a file or pipe it is JSON unless told so."""
    code = (
        "import logging; from bandolero_service.logs import log_to_stderr\n"
        f"log_to_stderr('api', {log_format!r}); logging.getLogger('x').info('said')"
    )
    run = [sys.executable, "-c", code]
    line = subprocess.run(run, capture_output=True, text=True, check=True).stderr
    assert line.startswith("{") is is_json
    assert is_json or line.endswith(" api INFO said\n")
