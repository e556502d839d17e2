"""The bare route: reads the body, answers a constant; on the worker's own uvicorn settings."""

import argparse
import gc

import uvicorn
from starlette.types import Receive, Scope, Send

from bandolero_service.roles import listen, server_config


class Bare:
    """An ASGI application with one answer."""

    def __init__(self, n_bytes: int) -> None:
        self._body = b'{"decision_id":"%b"}' % (b"0" * max(0, n_bytes - 18))
        self._headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self._body)),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read all of the request, then answer."""
        while (await receive()).get("more_body", False):
            pass
        start = {"type": "http.response.start", "status": 200, "headers": self._headers}
        await send(start)
        await send({"type": "http.response.body", "body": self._body})


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    options = parser.parse_args()
    config = server_config(Bare(options.bytes))
    gc.collect()
    gc.freeze()
    uvicorn.Server(config).run(sockets=[listen("127.0.0.1", options.port)])


if __name__ == "__main__":
    main()
