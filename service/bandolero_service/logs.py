"""Log lines of a process: one JSON object each, or plain text for a person.

What a request is about travels with it, so that every line written on its behalf names
it: its id, its route's template, the id of its key. Never the key, a unit or an address.
"""

import logging
import sys
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.msgspec import MsgspecFormatter

from bandolero_service.settings import LOG_FORMATS

_, JSON, TEXT = LOG_FORMATS
NEWS_S = 60.0
"""What goes on being wrong is told this often."""


@dataclass
class Trace:
    """What a log line says of the request it was written for."""

    request_id: str
    route: str | None = None
    key_id: str | None = None


tracing: ContextVar[Trace | None] = ContextVar("tracing", default=None)
"""The trace of the request at hand; a thread of the pool sees that of its request."""


def log_to_stderr(role: str, log_format: str) -> None:
    """Write this process's log lines, of level INFO and above, to stderr.

    Parameters
    ----------
    role
        What the process does; in every line.
    log_format
        `json`, `text`, or `auto`: text on a terminal, else JSON.
    """
    is_text = log_format == TEXT or (log_format != JSON and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(_text(role) if is_text else _json(role))
    handler.addFilter(_traced)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _json(role: str) -> logging.Formatter:
    return MsgspecFormatter(
        ["levelname", "process", "name", "message"],
        rename_fields={"levelname": "level", "process": "pid", "name": "logger"},
        static_fields={"role": role},
        timestamp="time",
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
    )


def _text(role: str) -> logging.Formatter:
    return logging.Formatter(f"%(asctime)s {role} %(levelname)s %(message)s")


def _traced(record: logging.LogRecord) -> bool:
    """Add what is known of the request to a line; every line passes."""
    trace = tracing.get()
    if trace is not None:
        for name, value in asdict(trace).items():
            if value is not None and not hasattr(record, name):
                setattr(record, name, value)
    return True


class Told:
    """Keeps what is wrong at every step from being told at every step."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def is_news(self, what: str) -> bool:
        """Whether this has not been told for `NEWS_S`; from now on it has."""
        now = time.monotonic()
        if now - self._at.get(what, -NEWS_S) < NEWS_S:
            return False
        self._at[what] = now
        return True
