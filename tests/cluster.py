"""A real cluster of three store servers on loopback, formed and ended by the tests."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from bandolero_service import keys
from bandolero_service.embedded import server_binary
from service_helpers import free_port, short_folder, wait_for

N_NODES = 3
N_SLOTS = 16_384
NODE_TIMEOUT_MS = 1_000


class Node:
    """A server of the cluster, started again on the same ports and data."""

    def __init__(self, folder: Path) -> None:
        self.port, self.bus = free_port(), free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How to connect to it alone."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._folder.mkdir(exist_ok=True)
        settings = {
            "port": self.port,
            "cluster-port": self.bus,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "logfile": self._folder / "store.log",
            "cluster-enabled": "yes",
            "cluster-node-timeout": NODE_TIMEOUT_MS,
            # So that a node that is away takes only its own shards with it.
            "cluster-require-full-coverage": "no",
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        flags = [part for k, v in settings.items() for part in (f"--{k}", str(v))]
        self._process = subprocess.Popen([server_binary(), *flags])
        wait_for(lambda: self.says("PING"), 10, "the node answers")

    def says(self, *command: Any) -> Any:
        """Its answer to a command, or None where there is none."""
        client: Any = redis.Redis(port=self.port, socket_timeout=2.0, protocol=2)
        with contextlib.closing(client), contextlib.suppress(redis.ConnectionError):
            return client.execute_command(*command)

    def send(self, signal_number: signal.Signals) -> None:
        """Send its process a signal."""
        assert self._process is not None
        os.kill(self._process.pid, signal_number)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Cluster:
    """Three nodes that share the slots evenly."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder / f"n{i}") for i in range(N_NODES)]

    def form(self) -> None:
        """Start the nodes, have them meet, and wait until all slots are served."""
        for i, node in enumerate(self.nodes):
            node.start()
            first, last = i * N_SLOTS // N_NODES, (i + 1) * N_SLOTS // N_NODES - 1
            node.says("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            node.says("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.says(
                "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].bus
            )
        self.wait_whole()

    def wait_whole(self) -> None:
        """Return when every node says that all is served."""
        wait_for(lambda: all(map(_is_whole, self.nodes)), 20, "the cluster is whole")

    def node_of(self, shard: int) -> Node:
        """The node that serves a shard."""
        slot = key_slot(keys.tag(shard).encode())
        return self.nodes[slot * N_NODES // N_SLOTS]

    def shards_of(self, node: Node, n_shards: int) -> set[int]:
        """The shards that a node serves."""
        return {shard for shard in range(n_shards) if self.node_of(shard) is node}


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster of one's own."""
    with short_folder() as folder:
        cluster = Cluster(folder)
        try:
            cluster.form()
            yield cluster
        finally:
            for node in cluster.nodes:
                node.kill()


def _is_whole(node: Node) -> bool:
    said = node.says("CLUSTER", "INFO") or {}
    whole = {"cluster_state": "ok", "cluster_slots_ok": str(N_SLOTS)}
    return whole.items() <= _text(said).items()


def _text(said: Any) -> dict[str, str]:
    if isinstance(said, bytes):
        lines = said.decode().split()
        return dict(line.split(":", 1) for line in lines)
    return {str(k): str(v) for k, v in dict(said).items()}
