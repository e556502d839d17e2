"""The bare route: reads the body, answers a constant; on the worker's own uvicorn settings."""

import argparse
import gc

import uvicorn
from starlette.types import Receive, Scope, Send

from bandolero_service.roles import DRAIN_S, KEEP_ALIVE_S, listen


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
    # As bandolero_service.roles sets up the worker's server.
    config = uvicorn.Config(
        Bare(options.bytes),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        date_header=False,
    )
    gc.collect()
    gc.freeze()
    uvicorn.Server(config).run(sockets=[listen("127.0.0.1", options.port)])


if __name__ == "__main__":
    main()
