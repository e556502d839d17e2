"""A small HTTP client of the public contract: one keep-alive connection, counted faults."""

import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 20.0


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class ServerGoneError(DemoError):
    """The server does not answer at all."""


@dataclass(frozen=True)
class Answer:
    """Status and body of one HTTP answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass
class Faults:
    """What went wrong between client and server, counted by kind; shared by threads."""

    counts: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, kind: str, n: int = 1) -> None:
        """Count `n` faults of a kind such as "decide/batch answered 503"."""
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + n

    @property
    def total(self) -> int:
        """How many faults there were."""
        return sum(self.counts.values())


class Client:
    """One keep-alive connection to a loopback server; for one thread only."""

    def __init__(self, port: int, key: str = "") -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", port, timeout=TIMEOUT_S
        )
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """Send a request and wait for its answer.

        A server may close an idle connection just as the next request is sent; such a
        request is sent once more on a new connection.
        """
        data = None if body is None else json.dumps(body).encode()
        try:
            try:
                return self._exchange(method, path, data)
            except (ConnectionError, http.client.HTTPException):
                self._connection.close()
                return self._exchange(method, path, data)
        except (OSError, http.client.HTTPException) as gone:
            self._connection.close()
            raise ServerGoneError(f"{method} {path}: {gone!r}") from gone

    def _exchange(self, method: str, path: str, data: bytes | None) -> Answer:
        self._connection.request(method, path, body=data, headers=self._headers)
        response = self._connection.getresponse()
        return Answer(response.status, response.read())

    def expect(self, method: str, path: str, body: object = None) -> Any:
        """The parsed answer to a request that has to succeed."""
        answer = self.call(method, path, body)
        if not 200 <= answer.status < 300:
            text = answer.body.decode(errors="replace")[:500]
            raise DemoError(f"{method} {path} answered {answer.status}: {text}")
        return answer.json() if answer.body else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
