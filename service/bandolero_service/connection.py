"""How the store is reached: one server, or a cluster, found out by asking.

Time-outs are short and nothing is tried again: callers live on threads of their own, and
an ambiguous answer is resolved by asking again with the same number, never by a client
that re-sends behind our back. On a cluster all keys of a shard live on one node, so a
node that is away takes only its own shards with it.
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

import redis
from limits.storage import RedisStorage, Storage
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import NoScriptError, RedisClusterException
from redis.retry import Retry

SCRIPTS = (
    "append",
    "tick",
    "clock",
    "keep",
    "lease",
    "commit",
    "survey",
    "erased",
)
ACTS = ("put", "correct", "put_key", "erasure", "priors")
"""Scripts of acts, which are audited: `audit.lua` goes before each."""
REQUEST_TIMEOUT_S = 1.0
"""How long whoever asks for an answer over HTTP waits for the store."""
_NONSENSE = (ValueError, TypeError, AttributeError, LookupError)
FAULTS = (redis.RedisError, RedisClusterException, OSError, *_NONSENSE)
"""What the client raises; the last where an answer is not of the kind it must be."""
DENIALS = (redis.AuthenticationError, redis.exceptions.NoPermissionError)
"""Those of them that say that we may not."""
REFUSALS = redis.ResponseError
"""Those of them that a server answered."""
_WEAKEST_FIRST = {
    "appendonly": ("no", "yes"),
    "appendfsync": ("no", "everysec", "always"),
}


class Call(NamedTuple):
    """A call of a script; its keys share one hash tag."""

    keys: Sequence[str]
    args: Sequence[Any]


class Rewriting(NamedTuple):
    """How far all servers are with writing their append-only files anew.

    `since` has, by server's run, how many it had begun when it was first asked for this.
    """

    since: dict[str, int]
    is_done: bool
    is_refused: bool


class _Rates(RedisStorage):
    """The storage of `limits` on a client that there is, of a server or a cluster."""

    def __init__(self, client: Any) -> None:
        Storage.__init__(self)
        self.target_server = "redis"
        self.key_prefix = "rates"
        self.storage = client
        self.initialize_storage("")


class _Server(NamedTuple):
    name: str
    client: Any


class _Script(NamedTuple):
    text: str
    sha: str


class Connection:
    """A client of a store, made at first use, safe to use from several threads."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        self._lock = threading.Lock()
        # The client's types cover its asynchronous twin and decoded answers as well.
        self._client: Any = None
        self._rates: _Rates | None = None
        self._scripts = {name: _read_script(name) for name in SCRIPTS}
        self._scripts |= {name: _read_script("audit", name) for name in ACTS}

    @property
    def client(self) -> Any:
        """The client: of a server, or of a cluster if a node of one answers."""
        with self._lock:
            if self._client is None:
                self._client = self._connected()
            return self._client

    @property
    def is_cluster(self) -> bool:
        """Whether a cluster is what answered last."""
        return _is_cluster(self._client)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def failed(self, error: Exception) -> None:
        """Take note of a failure: if no node we know of answers, ask the URL again."""
        if isinstance(error, RedisClusterException):
            self._client = None

    def run(self, script: str, call: Call) -> Any:
        """Run a script."""
        return _evaluated(self.client, self._scripts[script], call)

    def run_all(self, script: str, calls: Sequence[Call]) -> list[Exception | None]:
        """Run a script for several calls, one pipeline a server; each one's failure.

        Whether a call that failed was carried out is not known.
        """
        try:
            client = self.client
        except FAULTS as error:  # once, not for every call
            return [error] * len(calls)
        failures: list[Exception | None] = [None] * len(calls)
        by_server: dict[_Server, list[int]] = defaultdict(list)
        for i, call in enumerate(calls):
            try:
                by_server[_server_of(client, call.keys[0])].append(i)
            except FAULTS as error:
                failures[i] = error
        for server, indices in by_server.items():
            mine = [calls[i] for i in indices]
            found = _pipelined(server.client, self._scripts[script], mine)
            for i, failure in zip(indices, found, strict=True):
                failures[i] = failure
            if any(found):
                self._look_again(server)
        return failures

    def server_of(self, key: str) -> str:
        """Name of the server that holds a key; empty where there is one only."""
        return _server_of(self.client, key).name

    def rates(self) -> Storage:
        """Where `limits` counts: in this store, over these connections."""
        client = self.client
        if self._rates is None or self._rates.storage is not client:
            self._rates = _Rates(client)
        return self._rates

    def durability(self) -> dict[str, str]:
        """The weakest that any server promises, of those that answer."""
        promised: dict[str, str] = {}
        failure: Exception | None = None
        for server in self.servers():
            try:
                found = server.config_get("appendonly", "appendfsync")
                found |= server.config_get("maxmemory-policy")
            except FAULTS as error:
                failure = error
                continue
            for name, value in found.items():
                promised[name] = _weaker(name, value, promised.get(name, value))
        if failure is not None and not promised:
            raise failure
        return promised

    def rewrite_files(self, since: Mapping[str, int]) -> Rewriting:
        """Ask servers for a rewrite unless one has begun since then, and ended well."""
        before: dict[str, int] = {}
        refused = []
        is_done = True
        for server in self.servers():
            run, begun, is_whole = _rewrites(server)
            before[run] = since.get(run, begun)
            if begun <= before[run] or not is_whole:
                is_done = False
                refused.append(_refuses_rewrite(server))
        return Rewriting(before, is_done, any(refused))

    def _connected(self) -> Any:
        client: Any = redis.Redis.from_url(self._url, **self._options)
        if not client.info("cluster").get("cluster_enabled"):
            return client
        client.close()
        try:
            return RedisCluster.from_url(
                self._url, require_full_coverage=False, **self._options
            )
        except IndexError:  # what the client makes of it
            raise RedisClusterException("the cluster serves no slots.") from None

    def servers(self) -> list[Any]:
        """A client of every server that holds keys."""
        client = self.client
        if not _is_cluster(client):
            return [client]
        return [client.get_redis_connection(node) for node in client.get_primaries()]

    def _look_again(self, failed: _Server) -> None:
        """Ask the other nodes of a cluster who serves what now."""
        client = self._client
        if _is_cluster(client):
            try:
                client.nodes_manager.initialize(last_failed_node_name=failed.name)
            except FAULTS as error:
                self.failed(error)


def _rewrites(server: Any) -> tuple[str, int, bool]:
    """A server's run, how many rewrites it has begun, whether the last has ended well."""
    told = server.info("persistence")
    on_its_way = told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"]
    ended_well = told["aof_last_bgrewrite_status"] == "ok"
    run = str(server.info("server")["run_id"])
    begun = int(told.get("aof_rewrites", 0))  # counted from Redis 7 on
    return run, begun, ended_well and not on_its_way


def _refuses_rewrite(server: Any) -> bool:
    try:
        server.bgrewriteaof()
    except REFUSALS as error:
        return not ("in progress" in str(error) or "scheduled" in str(error))
    return False


def _is_cluster(client: Any) -> bool:
    return isinstance(client, RedisCluster)


def _server_of(client: Any, key: str) -> _Server:
    if not _is_cluster(client):
        return _Server("", client)
    node = client.get_node_from_key(key)
    return _Server(node.name, client.get_redis_connection(node))


def _read_script(*names: str) -> _Script:
    folder = files("bandolero_service") / "scripts"
    text = "".join((folder / f"{name}.lua").read_text() for name in names)
    return _Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _evaluated(client: Any, script: _Script, call: Call) -> Any:
    """Run a script by its hash; by its text where this server has not seen it yet."""
    try:
        return client.evalsha(script.sha, len(call.keys), *call.keys, *call.args)
    except NoScriptError:
        return client.eval(script.text, len(call.keys), *call.keys, *call.args)


def _pipelined(
    server: Any, script: _Script, calls: Sequence[Call]
) -> list[Exception | None]:
    """Run calls on one server; each one's failure."""
    pipe = server.pipeline(transaction=False)
    for call in calls:
        pipe.evalsha(script.sha, len(call.keys), *call.keys, *call.args)
    try:
        answers = pipe.execute(raise_on_error=False)
        for i, answer in enumerate(answers):
            if isinstance(answer, NoScriptError):
                answers[i] = _evaluated(server, script, calls[i])
    except FAULTS as error:
        return [error] * len(calls)
    return [_failure(answer) for answer in answers]


def _failure(answer: Any) -> Exception | None:
    """Why a call cannot be relied on, whose script answers with a number."""
    if isinstance(answer, Exception | int):
        return answer if isinstance(answer, Exception) else None
    return redis.InvalidResponse(f"{answer!r} is no answer to a script of ours.")


def _weaker(name: str, one: str, other: str) -> str:
    """Of two values of a setting the one that promises less."""
    if name in _WEAKEST_FIRST:
        return min(one, other, key=_WEAKEST_FIRST[name].index)
    return one if one.startswith("allkeys") else other
