"""Memory with 1,000 experiments of 20 variants, all published: `python -m benchmarks.memory`.

The real system with one API worker. RSS counts every page that is there, PSS divides
those that are shared by who shares them, USS is what ending the process would free.
"""

import argparse
import http.client
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks._machine import SERVICE_PACKAGES, print_header, print_row
from benchmarks._many import (
    N_EXPERIMENTS,
    N_VARIANTS,
    await_published,
    batch_bodies,
    many_specs,
)
from benchmarks._system import Server, post, prepare, running

BAR = "<= 500 MB"


class Memory(NamedTuple):
    """Of one process, in MB."""

    rss: float
    pss: float
    uss: float

    def text(self) -> str:
        """All three."""
        return f"RSS {self.rss:.0f}, PSS {self.pss:.0f}, USS {self.uss:.0f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiments", type=int, default=N_EXPERIMENTS)
    n = parser.parse_args().experiments
    title = f"Memory with {n:,} experiments of {N_VARIANTS} variants"
    print_header(title, SERVICE_PACKAGES)
    with tempfile.TemporaryDirectory(prefix="bandolero-bench-") as folder:
        data_dir = Path(folder)
        key = prepare(data_dir, *many_specs(n))
        for when in ("first start: priors, then what is published", "started again"):
            with running(data_dir) as server:
                server.wait_ready()
                await_published(data_dir, n)
                print_row(f"\n{when}, MB", "", "bar")
                print_memory(server, "all published")
                connection = http.client.HTTPConnection("127.0.0.1", server.port)
                for body in batch_bodies(n):
                    post(connection, "/v1/decide/batch", key, body)
                connection.close()
                print_memory(server, "each asked once")


def print_memory(server: Server, when: str) -> None:
    """A line for each role."""
    for role in ("api", "learner", "archiver"):
        for pid in server.role_pids(role):
            measured = memory_of(pid).text()
            print_row(f"  {role}, {when}", measured, BAR if role == "api" else "")


def memory_of(pid: int) -> Memory:
    """What a process holds now."""
    kb: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kb[name] = int(rest.split()[0])
    uss = kb["Private_Clean"] + kb["Private_Dirty"]
    return Memory(kb["Rss"] / 1e3, kb["Pss"] / 1e3, uss / 1e3)


if __name__ == "__main__":
    main()
