"""Connections that say too much, too slowly, or nothing; and the headers of every answer."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bandolero_service import guard
from bandolero_service.drain import Server
from bandolero_service.roles import listen, server_config
from service_helpers import Running, experiment, needs_server, wait_for

KB = 1024
START = b"POST / HTTP/1.1\r\nhost: x\r\n"
STEP_S = 0.1
"""So far apart are bytes that trickle in: the first line takes longer than a head may."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body; `/early` does without the body."""
    n, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        n += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(n).encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server as workers run it, over `echo`, with times of a second or so."""
    patch = pytest.MonkeyPatch()
    patch.setattr(guard, "HEAD_S", 1.5)
    patch.setattr(guard, "BODY_S", 1.6)
    patch.setattr("bandolero_service.roles.KEEP_ALIVE_S", 4)
    patch.setattr(guard, "LOOK_EVERY_TICKS", 1)
    patch.setattr("bandolero_service.drain.LOOK_EVERY_TICKS", 1)
    ready = threading.Event()
    server = Server(server_config(echo), ready.set)
    listening = listen("127.0.0.1", 0)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listening]))
    )
    thread.start()
    assert ready.wait(20)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    listening.close()
    patch.undo()


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    """A connection, closed at the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        yield client


def said(client: socket.socket) -> bytes:
    """All that the server says until it closes the connection, however it does."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(64 * KB):
            found += data
    return found


def sent(client: socket.socket, data: bytes) -> bytes:
    """What the server says to some bytes, all of them sent if it lets us."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(data)
    return said(client)


def answered(client: socket.socket) -> bytes:
    """The body of the next answer."""
    answer = http.client.HTTPResponse(client)
    answer.begin()
    return answer.read()


def error_of(answer: bytes) -> tuple[int, str]:
    """Status and code of an error answer, which is the same object as everywhere."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"nosniff" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


# --- bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [100 * KB, 3000 * KB], ids=["100 kB", "3 MB"])
@pytest.mark.parametrize("where", ["value", "name", "target", "many"])
def test_a_head_that_is_too_large_is_refused(
    port: int, where: str, n_bytes: int
) -> None:
    """A long header, a long path or many headers: 431, or the connection is cut."""
    big = b"a" * n_bytes
    heads = {
        "value": START + b"x: " + big + b"\r\n\r\n",
        "name": START + big + b": x\r\n\r\n",
        "target": b"GET /" + big + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        "many": START + b"x: y\r\n" * (n_bytes // 6) + b"\r\n",
    }
    with connected(port) as client:
        answer = sent(client, heads[where])
    # The kernel may drop the answer, for the client has not stopped sending.
    assert not answer or error_of(answer) == (431, "head_too_large")
    assert answer or n_bytes > 1000 * KB


def test_a_head_that_comes_in_pieces_is_refused_too(port: int) -> None:
    """What counts is the whole head, not a piece of it."""
    with connected(port) as client:
        client.sendall(START)
        with contextlib.suppress(OSError):
            for _ in range(40):
                client.sendall(b"x: " + b"y" * 2000 + b"\r\n")
                time.sleep(0.002)
        assert error_of(said(client)) == (431, "head_too_large")


def test_a_large_head_and_a_large_body_are_taken(port: int) -> None:
    """60 kB of headers, then a body of 8 MB, twice over one connection."""
    body = b"b" * 8_000_000
    length = b"content-length: %d\r\n" % len(body)
    head = START + b"x: " + b"y" * 60_000 + b"\r\n" + length + b"\r\n"
    with connected(port) as client:
        for _ in range(2):
            client.sendall(head + body)
            assert answered(client) == b"8000000"


def test_endless_trailers_end(port: int) -> None:
    """Trailers of a chunked body are bytes of the request: past the bound it is cut."""
    with connected(port) as client:
        client.sendall(START + b"transfer-encoding: chunked\r\n\r\n0\r\n")
        line = b"x: " + b"y" * 60_000 + b"\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(line * (4 * guard.MAX_MESSAGE_BYTES // len(line)))


def test_requests_in_a_pipeline_are_counted_each(port: int) -> None:
    """Reads that never end with a request: what counts is the head that has begun."""
    request = START + b"x: " + b"y" * 6000 + b"\r\ncontent-length: 2\r\n\r\nhi"
    with connected(port) as client:
        client.sendall(request[:9])
        for _ in range(2 * guard.MAX_HEAD_BYTES // len(request)):
            client.sendall(request[9:] + request[:9])
            assert answered(client) == b"2"


def test_a_head_behind_another_request_is_bounded_too(port: int) -> None:
    """A head that begins in the middle of a read and has no end is refused."""
    with connected(port) as client:
        client.sendall(START + b"content-length: 2\r\n\r\nhi" + START)
        assert answered(client) == b"2"
        assert error_of(sent(client, b"x: " + b"y" * 80 * KB)) == (
            431,
            "head_too_large",
        )


# --- time -----------------------------------------------------------------------------------


def test_a_client_that_says_nothing_is_cut(port: int) -> None:
    """A connection without a byte is closed without one."""
    with connected(port) as client:
        assert said(client) == b""


@pytest.mark.parametrize(
    "start",
    [b"P", START, START + b"x: y\r\n", START + b"content-length: 9\r\n\r\nhalf"],
    ids=["letter", "line", "head", "body"],
)
def test_a_request_that_stands_still_is_refused(port: int, start: bytes) -> None:
    """Half a head or half a body: 408 when its time is over, and the end."""
    with connected(port) as client:
        client.sendall(start)
        assert error_of(said(client)) == (408, "too_slow")


def test_a_head_that_trickles_in_is_refused(port: int) -> None:
    """A byte now and then does not buy more time."""
    with connected(port) as client:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in START * 10:
                client.sendall(bytes([byte]))
                time.sleep(STEP_S)
        assert time.monotonic() - began < len(START) * 10 * STEP_S
        assert error_of(said(client) or b"") == (408, "too_slow")


def test_a_body_that_nobody_waits_for_is_cut(port: int) -> None:
    """Who was answered before the body came, and then holds it back, is cut off."""
    with connected(port) as client:
        client.sendall(b"POST /early HTTP/1.1\r\ncontent-length: 9\r\n\r\n")
        assert said(client).endswith(b"\r\n\r\n0")


def test_a_client_may_think_between_requests(port: int) -> None:
    """A kept connection outlives the times that a request has."""
    request = START + b"content-length: 2\r\n\r\nhi"
    with connected(port) as client:
        for _ in range(2):
            client.sendall(request)
            assert answered(client) == b"2"
            time.sleep(guard.BODY_S + 0.5)


def test_an_empty_line_does_not_keep_a_connection_open(port: int) -> None:
    """After an answer a lone line end stops uvicorn's timer; ours goes on."""
    with connected(port) as client:
        client.sendall(START + b"content-length: 2\r\n\r\nhi")
        assert answered(client) == b"2"
        assert sent(client, b"\r\n") == b""


# --- proxies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "address"), [("", "127.0.0.1"), ("127.0.0.0/8", "203.0.113.9")]
)
def test_only_a_proxy_that_was_named_says_who_calls(trusted: str, address: str) -> None:
    """By default nobody is believed, from this machine neither."""
    seen: list[Any] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    config = server_config(look, trusted)
    config.load()
    scope = {
        "type": "http",
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "headers": [(b"x-forwarded-for", b"203.0.113.9")],
    }
    app: Any = config.loaded_app
    asyncio.run(app(scope, None, None))
    assert seen == [address]


# --- headers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/decide"),
        ("GET", "/v1/decide"),
        ("GET", "/v1/experiments"),
        ("PUT", "/v1/experiments/x"),
        ("GET", "/nowhere"),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
def test_every_answer_has_the_headers(running: Running, method: str, path: str) -> None:
    """Good or bad, hot or not: no sniffing, no referrer, nobody may frame it or store it."""
    answer = running.call(method, path, {}, running.key())
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    if not path.startswith("/v1/decide"):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
    assert {"server", "x-powered-by"} & answer.headers.keys() == set()


def test_a_report_page_may_run_nothing(running: Running) -> None:
    """The policy of an HTML report allows its own style, and neither scripts nor loads."""
    running.ok("PUT", "/v1/experiments/sealed-page", experiment("sealed-page"))
    path = "/v1/experiments/sealed-page/report?format=html"
    answer = running.call("GET", path, key=running.key(), timeout=60)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script-src" not in policy
    docs = running.call("GET", "/docs").headers["content-security-policy"]
    assert "script-src 'self' 'unsafe-inline'" in docs


@needs_server
def test_no_other_origin_is_let_in(running: Running) -> None:
    """A browser's question whether another site may call is not answered with yes."""
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for path in ("/v1/decide", "/v1/experiments", "/v1/experiments/x/report"):
        for method in ("OPTIONS", "GET"):
            answer = running.call(method, path, headers=asked)
            assert [h for h in answer.headers if h.startswith("access-control")] == []


def test_a_bad_request_line_is_no_crash(running: Running) -> None:
    """What is not HTTP gets a 400, with the headers, and the server goes on."""
    with connected(running.port) as client:
        answer = sent(client, b"\x16\x03\x01\x02\x00\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"nosniff" in answer
    wait_for(lambda: running.call("GET", "/healthz").status == 200)


def test_a_worker_with_a_fault_ends_by_itself() -> None:
    """A server serves while its worker is sound; with a fault it leaves and ends."""
    faults: list[str] = []
    ready, left = threading.Event(), threading.Event()
    server = Server(
        server_config(echo), ready.set, left.set, 60.0, lambda: "".join(faults) or None
    )
    with contextlib.closing(listen("127.0.0.1", 0)) as listening:
        thread = threading.Thread(
            target=lambda: asyncio.run(server.serve(sockets=[listening]))
        )
        thread.start()
        assert ready.wait(20)
        assert not left.is_set()
        faults.append("the thread that writes the log has ended")
        thread.join(20)
        assert not thread.is_alive()
        assert left.is_set()
