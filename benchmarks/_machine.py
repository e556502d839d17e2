"""What a figure was measured on, and how it is told: header, cores, medians."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("bandolero", "numpy", "numba")
SERVICE_PACKAGES = (*PACKAGES, "uvicorn", "uvloop", "httptools", "msgspec", "fastapi")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Spread(NamedTuple):
    """Several runs of one measurement."""

    median: float
    low: float
    high: float
    n_runs: int

    def text(self, digits: int = 2) -> str:
        """`median (low … high, n runs)`."""
        low, high = f"{self.low:,.{digits}f}", f"{self.high:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({low} … {high}, {self.n_runs} runs)"


def spread(values: Sequence[float]) -> Spread:
    """Median and range of several runs."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def print_header(title: str, packages: Sequence[str] = PACKAGES) -> None:
    """Print the machine, how busy it is, and the versions of what is measured."""
    load = " ".join(f"{x:.2f}" for x in os.getloadavg())
    versions = [f"python {platform.python_version()}"]
    versions += [f"{name} {_version(name)}" for name in packages]
    print(f"{title}\n{'-' * len(title)}")
    print(f"machine   {cpu_model()}, {os.cpu_count()} cores, {platform.platform()}")
    print(f"busy      load average {load} before the start")
    print(f"versions  {', '.join(versions)}\n", flush=True)


def print_row(what: str, measured: str, bar: str = "") -> None:
    """Print one line of a table: what, how much, and what was asked for."""
    print(f"{what:46} {measured:44} {bar}".rstrip(), flush=True)


def cpu_model() -> str:
    """The processor by its own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def two_cores() -> tuple[int, int]:
    """Core of the server and core of everything else; the same one if there is one."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


def put_first(pid: int) -> None:
    """Have a process run before all else on its core: the real-time class; needs root."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(1))


def pin(pid: int, core: int) -> None:
    """Keep every thread of a process on one core, and those it starts later."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_s(pid: int) -> tuple[float, float]:
    """CPU seconds a process has used: of its main thread, and of all its threads."""
    whole = _ticks(Path(f"/proc/{pid}/stat"))
    return _ticks(Path(f"/proc/{pid}/task/{pid}/stat")) / _TICKS_PER_S, (
        whole / _TICKS_PER_S
    )


def us_per_call(
    call: Callable[[bytes], object], tokens: Sequence[bytes], n_calls: int = 1000
) -> Spread:
    """CPU microseconds per call over stretches of `n_calls`, each with a fresh token.

    Short stretches, so that what else the machine does spoils few of them.
    """
    for token in tokens[:n_calls]:
        call(token)
    took = []
    for start in range(0, len(tokens), n_calls):
        some = tokens[start : start + n_calls]
        began = time.thread_time_ns()
        for token in some:
            call(token)
        took.append((time.thread_time_ns() - began) / len(some) / 1e3)
    return spread(took)


def _ticks(stat: Path) -> int:
    fields = stat.read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
