"""Files of strangers, read in a process apart: bounded in memory, and theirs to crash.

A few hundred bytes of Parquet can ask for gigabytes, and a damaged page can end the process
that decodes it. So a child with a limit on its memory opens the files, makes our columns
of theirs and checks every row; what comes back are rows in our types, bounded in size, each
with the rule it breaks if it does. The child serves one file after another; if it dies,
its file is refused and the next one has a new child.

A file to read is a line of JSON on the child's stdin, the answer an Arrow stream on its
stdout.
"""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

import pyarrow as pa

from bandolero.lake.checking import REFUSAL, SCHEMAS, Part, Request, checked
from bandolero.lake.mapping import Mapping
from bandolero.lake.rules import Checks
from bandolero.lake.sources import Source

MEMORY_BYTES = 640 << 20
"""What the child may take for a file, beside what it had when it began."""
PATIENCE_S = 5.0
"""So long the child may take to end by itself."""


class UnreadableFileError(ValueError):
    """A file that cannot be taken in, whole; the message says why."""


class Reader:
    """Reads files in a child of its own; to be closed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._complaints: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, source: Source, request: Request) -> Iterator[Part]:
        """Rows of a file, checked, in parts that fit into memory.

        Raises
        ------
        UnreadableFileError
            When the file cannot be read to its end.
        """
        child = self._running()
        is_done = False
        try:
            _send(child, source, request)
            yield from _parts(child)
            is_done = True
        except (OSError, EOFError, pa.ArrowException) as error:
            raise UnreadableFileError(self._last_words(error)) from None
        except UnreadableFileError:
            is_done = True
            raise
        finally:
            if not is_done:  # what it still would say is not asked for
                self.close()

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            try:
                child.wait(PATIENCE_S)  # nobody asks any more, so it ends
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._complaints is not None:
            self._complaints.close()
            self._complaints = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - until `close`
            self._child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(Path(__file__).parents[1])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env={**os.environ, **_FRUGAL},
            )
            _widen(self._child.stdout)
        return self._child

    def _last_words(self, error: BaseException) -> str:
        """Why the child is no more."""
        child = self._child
        if child is None or self._complaints is None:
            return str(error)
        with suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_S)
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        code = child.returncode or 0
        how = (
            f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        )
        return f"reading it ended a process by {how}. {said[-1][:200] if said else ''}"


_CHILD = """
import sys, types
package = types.ModuleType("bandolero")
package.__path__ = [sys.argv[1]]
sys.modules["bandolero"] = package
from bandolero.lake.reader import main
main()
"""
"""Without the package's own imports, which are for deciding: a second, and 150 MB."""
_FRUGAL = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
}
"""So that the limit on memory is spent on rows."""


def _widen(pipe: IO[bytes] | None) -> None:
    """Let more than 64 kB wait in a pipe, where that can be asked for."""
    if pipe is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 1 << 20)


def _send(child: subprocess.Popen[bytes], source: Source, request: Request) -> None:
    if child.stdin is None:
        raise BrokenPipeError
    known = request.checks.known
    variants = None if known is None else {n: sorted(known[n]) for n in known}
    asked = {
        "source": source,
        "table": request.table,
        "mapping": request.mapping.model_dump(exclude_none=True),
        "now_ms": request.checks.now_ms,
        "known": variants,
    }
    child.stdin.write(json.dumps(asked).encode() + b"\n")
    child.stdin.flush()


def _parts(child: subprocess.Popen[bytes]) -> Iterator[Part]:
    with pa.ipc.open_stream(child.stdout) as stream:
        while True:
            batch, told = stream.read_next_batch_with_custom_metadata()
            said = json.loads(told[b"said"])
            if "fault" in said:
                _drain(stream)
                raise UnreadableFileError(said["fault"])
            if said["is_last"]:
                _drain(stream)
                return
            yield Part(batch, said["left_out"], said["share"])


def _drain(stream: pa.ipc.RecordBatchStreamReader) -> None:
    """Read the mark of the stream's end, so that the next one begins where it must."""
    with suppress(StopIteration):
        stream.read_next_batch()


# --- the child ------------------------------------------------------------------------------


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Read files as asked for, until nobody asks any more."""
    for line in asked:
        wanted = json.loads(line)
        request = _request(wanted)
        schema = pa.schema([*SCHEMAS[request.table], *REFUSAL])
        with pa.ipc.new_stream(answers, schema) as stream:
            nothing = pa.record_batch([[]] * len(schema), schema=schema)
            last: dict[str, Any] = {"is_last": True}
            try:
                for part in checked(Source(*wanted["source"]), request):
                    said = {"left_out": part.left_out, "share": part.share}
                    _say(stream, part.rows, said | {"is_last": False})
            except MemoryError:
                room = f"{MEMORY_BYTES >> 20} MB"
                last = {"fault": f"rows do not fit into {room}, must be smaller."}
            except (OSError, ValueError, LookupError, pa.ArrowException) as error:
                last = {"fault": " ".join(str(error).split())[:300] or repr(error)}
            _say(stream, nothing, last)
        answers.flush()


def _say(
    stream: pa.ipc.RecordBatchStreamWriter, batch: pa.RecordBatch, said: dict[str, Any]
) -> None:
    stream.write_batch(batch, custom_metadata={"said": json.dumps(said)})


def _request(wanted: dict[str, Any]) -> Request:
    known = wanted["known"]
    sets = None if known is None else {n: frozenset(known[n]) for n in known}
    mapping = Mapping.model_validate(wanted["mapping"])
    return Request(wanted["table"], mapping, Checks(wanted["now_ms"], sets))


def _limit_memory() -> None:
    """Let this process have `MEMORY_BYTES` more than it has."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # no Linux: no limit of the kernel's, then
        return
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Be the child."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no part of an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    _limit_memory()
    with suppress(BrokenPipeError):
        serve(sys.stdin.buffer, answers)
