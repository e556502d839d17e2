"""Answers of the hot routes go out in one write, and look as if uvicorn had made them."""

import socket

import pytest

from bandolero_service.api.one_write import OneWrite
from service_helpers import Running, experiment, needs_server

pytestmark = needs_server
BODY = b'{"experiment":"one-write"}'


@pytest.fixture(scope="module")
def served(running: Running) -> Running:
    """The server with a running experiment."""
    running.begin(experiment("one-write", 1))
    return running


def request(served: Running, *more: str) -> bytes:
    """A decide request as it goes over the wire."""
    lines = [
        "POST /v1/decide HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {served.key()}",
        f"Content-Length: {len(BODY)}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + BODY


def exchanged(served: Running, sent: bytes, n_answers: int = 1) -> list[bytes]:
    """Send bytes; heads of the answers, and at last what comes when nothing more does."""
    heads = []
    with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as file:
            for _ in range(n_answers):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += file.readline()
                heads.append(head)
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                assert file.read(length).startswith(b'{"decision_id":"')
            connection.settimeout(10.0 if b"Connection: close" in sent else 0.2)
            try:
                heads.append(file.read(1))
            except TimeoutError:
                heads.append(b"still open")
    return heads


def lines(head: bytes) -> set[bytes]:
    """Lines of a head, but for the request's id."""
    return {x for x in head.split(b"\r\n") if not x.startswith(b"x-request-id")}


def test_one_write_gives_the_head_that_uvicorn_gives(served: Running) -> None:
    """With an id to echo an answer goes the usual way; its head is the same but for that."""
    once, last = exchanged(served, request(served))
    usual, _ = exchanged(served, request(served, "X-Request-Id: a-1"))
    assert b"x-request-id: a-1" in usual
    assert b"x-request-id" not in once
    assert lines(once) == lines(usual)
    assert last == b"still open"


def test_requests_sent_ahead_are_answered_in_turn(served: Running) -> None:
    """Three requests in one packet get three answers, and the connection stays."""
    sent = request(served) + request(served, "X-Request-Id: b") + request(served)
    *heads, last = exchanged(served, sent, 3)
    assert [b"x-request-id: b" in head for head in heads] == [False, True, False]
    assert last == b"still open"


def test_a_client_that_wants_the_connection_closed_gets_it(served: Running) -> None:
    """`Connection: close` is answered in kind, and nothing comes after."""
    head, last = exchanged(served, request(served, "Connection: close"))
    assert b"connection: close" in head
    assert last == b""


def test_a_server_that_ends_its_connections_does_not_write_at_once() -> None:
    """Where every answer says `Connection: close`, uvicorn must be the one to close."""
    assert OneWrite()._head(200, [(b"connection", b"close")]) == b""
    assert OneWrite()._head(200, [(b"a", b"b")]) == (
        b"HTTP/1.1 200 OK\r\na: b\r\ncontent-type: application/json\r\ncontent-length: "
    )
