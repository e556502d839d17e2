"""Reports and explained decisions, made beside a worker in a process of its own.

Drawing a report's figures leaves tens of thousands of objects in cycles, and reading the
log for a decision computes for long: in the interpreter that decides, either would hold
decisions up. The process is started when first asked, works for one at a time, at a low
priority, and ends with its worker: its end of their socket closes then.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from bandolero.experiment import ExperimentRecord
from bandolero_service.connection import REQUEST_TIMEOUT_S
from bandolero_service.ending import die_with_parent
from bandolero_service.errors import ApiError, lake_down, store_down
from bandolero_service.experiments import required_record
from bandolero_service.settings import Settings, read_settings
from bandolero_service.store import Store, StoreDownError

if TYPE_CHECKING:
    from bandolero.report.segments import SegmentRows

log = logging.getLogger(__name__)

ReportFormat = Literal["json", "html", "csv", "parquet"]
WAIT_S = 10.0
"""How long a request waits for its turn."""
ANSWER_S = 30.0
"""How long an answer may take, the start of the process included."""
LAKE_S = 7.0
"""How long an answer waits for the lake; less than others wait for their turn."""
IDLE_S = 600.0
"""Without a question for so long the process ends: it takes as much memory as a worker."""
NICENESS = 5
_LENGTH_BYTES = 8
_MADE, _REFUSED, _FAILED = b"+", b"-", b"!"


class AskedReport(msgspec.Struct, frozen=True, tag="report"):
    """A report that a tenant asks for, of days since 1970, by levels of a field."""

    tenant: str
    experiment_id: str
    format: ReportFormat
    from_day: int | None = None
    to_day: int | None = None
    segment: str | None = None


class AskedDecision(msgspec.Struct, frozen=True, tag="decision"):
    """A decision that a tenant wants explained."""

    tenant: str
    decision_id: str


class _Refusal(msgspec.Struct):
    """An `ApiError` on its way between the processes."""

    status: int
    code: str
    message: str
    field: str | None


class ReportFaultError(RuntimeError):
    """Something failed in the report process; it has logged what."""


@dataclass(frozen=True)
class _Child:
    """The process, and our end of the socket."""

    process: "subprocess.Popen[bytes]"
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self, question: bytes) -> bytes:
        """What the process says to one question."""
        self.writer.write(_framed(question))
        await self.writer.drain()
        length = int.from_bytes(await self.reader.readexactly(_LENGTH_BYTES), "little")
        return await self.reader.readexactly(length)


class ReportProcess:
    """A worker's report process; its methods are called on the worker's loop.

    The kernel ends the process when the *thread* that started it ends: that is the
    loop's, which lives as long as the worker.

    Parameters
    ----------
    store_is_down
        Tells it at once: a process is not started, which takes seconds, to find it out.
    """

    def __init__(self, settings: Settings, store_is_down: Callable[[], bool]) -> None:
        self._settings = settings
        self._store_is_down = store_is_down
        self._turn = asyncio.Lock()
        self._child: _Child | None = None

    async def ask(self, asked: AskedReport | AskedDecision) -> bytes:
        """The report in its format, or the explanation as JSON.

        Raises
        ------
        ApiError
            404 where the tenant has no such thing; 503 where the store is down, or the
            answer does not come in time.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise _busy() from None
        try:
            return _content(await self._answer(msgspec.json.encode(asked)))
        finally:
            self._turn.release()

    def end(self) -> None:
        """End the process, whatever it is at; the next question starts another."""
        if self._child is not None:
            self._child.writer.close()
            self._child.process.kill()
            self._child.process.wait()
            self._child = None

    async def _answer(self, question: bytes) -> bytes:
        """The answer; asked once more of a new process where one has ended."""
        with suppress(ConnectionError, EOFError):
            return await self._answer_once(question)
        return await self._answer_once(question)

    async def _answer_once(self, question: bytes) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_S):
                if self._child is None:
                    if self._store_is_down():
                        raise store_down()
                    self._child = await _started(self._settings)
                return await self._child.answer(question)
        except TimeoutError:
            self.end()
            raise _busy() from None
        except (
            BaseException
        ):  # a cancelled question, too: its answer would be another's
            self.end()
            raise


async def _started(settings: Settings) -> _Child:
    ours, theirs = socket.socketpair()
    with theirs:
        process = _process(theirs.fileno(), settings)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    return _Child(process, reader, writer)


def _process(descriptor: int, settings: Settings) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(descriptor)],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **settings.environment()},
        pass_fds=[descriptor],
        start_new_session=True,
    )


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def _busy() -> ApiError:
    message = "reports take too long at the moment, try again."
    return ApiError(503, "reports_busy", message)


def _content(answer: bytes) -> bytes:
    """What was asked for, or the error that is in its place."""
    kind, content = answer[:1], answer[1:]
    if kind == _MADE:
        return content
    if kind == _REFUSED:
        told = msgspec.json.decode(content, type=_Refusal)
        raise ApiError(told.status, told.code, told.message, told.field)
    raise ReportFaultError("the report process failed, and has logged why.")


# The other side


class _Answerer:
    """Answers questions in the report process, over a connection of its own."""

    def __init__(self, settings: Settings) -> None:
        from bandolero.lake.catalog import Lake
        from bandolero_service.secret import read_secrets

        self._settings = settings
        self._store = Store(settings.store, REQUEST_TIMEOUT_S)
        self._lake = Lake(settings.lake_url)
        self._secrets = read_secrets(settings)
        self._read = msgspec.json.Decoder(AskedReport | AskedDecision).decode

    def answer(self, question: bytes) -> bytes:
        """The answer as it is sent; nothing is raised."""
        try:
            asked = self._read(question)
            if self._store.shards == 0:
                self._store.open(self._settings.shards)
            made = self._report if isinstance(asked, AskedReport) else self._decision
            return _MADE + made(asked)
        except ApiError as error:
            return _refused(error)
        except StoreDownError:
            return _refused(store_down())
        except Exception:
            log.exception("%s", question.decode(errors="replace"))
            return _FAILED

    def _report(self, asked: AskedReport) -> bytes:
        from bandolero_service.reporting import rendered, report_of

        record = required_record(self._store, asked.tenant, asked.experiment_id)
        segment = None if asked.segment is None else self._rows(record, asked.segment)
        days = asked.from_day, asked.to_day
        return rendered(report_of(self._store, record, *days, segment), asked.format)

    def _rows(self, record: ExperimentRecord, field: str) -> "SegmentRows":
        from bandolero_service.reporting import segment_rows

        pool = ThreadPoolExecutor(1)
        try:
            rows = pool.submit(segment_rows, self._lake, record, field)
            return rows.result(LAKE_S)
        except TimeoutError:
            raise lake_down() from None
        finally:
            pool.shutdown(wait=False)  # a lake that hangs is left to its own time-outs

    def _decision(self, asked: AskedDecision) -> bytes:
        from bandolero_service.explain import explain
        from bandolero_service.ids import Signer

        s = self._secrets
        signer = Signer(s.current, asked.tenant, s.previous, s.root)
        told = explain(self._store, self._lake, signer, asked.tenant, asked.decision_id)
        return msgspec.json.encode(told)


def _refused(error: ApiError) -> bytes:
    told = _Refusal(error.status, error.code, error.message, error.field)
    return _REFUSED + msgspec.json.encode(told)


def _serve(connection: socket.socket, answerer: _Answerer) -> None:
    """Answer until the worker closes its end, or asks nothing more."""
    connection.settimeout(IDLE_S)
    with connection.makefile("rwb") as stream:
        while length := stream.read(_LENGTH_BYTES):
            question = stream.read(int.from_bytes(length, "little"))
            stream.write(_framed(answerer.answer(question)))
            stream.flush()


def main() -> None:
    """Run as the report process, on the socket whose descriptor is the argument."""
    from bandolero_service.logs import log_to_stderr

    die_with_parent()
    os.nice(NICENESS)
    settings = read_settings()
    log_to_stderr("report", settings.log_format)
    connection = socket.socket(fileno=int(sys.argv[1]))
    with connection, suppress(ConnectionError, TimeoutError):
        _serve(connection, _Answerer(settings))


if __name__ == "__main__":
    main()
