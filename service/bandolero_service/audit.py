"""The audit log: who did what to what, and when; each line is chained to the one before.

A tenant has a chain on every shard, for its experiments, and one for its API keys. A
line holds the MAC of the line before it, and its own MAC is keyed with the service's
root secret: a line that is missing, changed, moved or made up shows.
"""

import json
import time
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any, NamedTuple

import msgspec
from typing_extensions import TypedDict

from bandolero_service.ids import derive

MAC_BYTES = 24
START = ""
"""The head of a chain that has no line yet."""
YEAR_10000_MS = 253_402_300_800_000
"""The first time that has no date."""
ASKED = ("unit", "asked_at_ms", "lake_by_ms", "log_by_ms", "receipt_hash")
"""What of an erasure stands from when it is asked for."""


class Act(NamedTuple):
    """An act of the control plane.

    Parameters
    ----------
    tenant
        Whose object.
    kind
        What was done, in a word.
    object
        To what, for people to read.
    field
        Where the store keeps the object.
    body
        What it is from now on.
    """

    tenant: str
    kind: str
    object: str
    field: str
    body: str


class Line(NamedTuple):
    """A line of a chain: its JSON, and the MAC of it."""

    text: str
    mac: str

    @property
    def head(self) -> str:
        """What a chain that ends with this line has as its head."""
        return f"{self.fields['n']}:{self.mac}"

    @property
    def is_readable(self) -> bool:
        """Whether it says all that a line says, be it true or not."""
        try:
            msgspec.convert(self.fields, AuditLine)
        except msgspec.ValidationError:
            return False
        return True

    @property
    def fields(self) -> dict[str, Any]:
        """The line as an object; empty where it is none."""
        try:
            fields = json.loads(self.text)
        except (ValueError, RecursionError):
            return {}
        return fields if isinstance(fields, dict) else {}


class AuditLine(TypedDict):
    """A line of the audit log; `before` and `after` are hashes of the object."""

    chain: str
    n: int
    at_ms: Annotated[int, msgspec.Meta(ge=0, lt=YEAR_10000_MS)]
    tenant: str
    actor: str
    act: str
    object: str
    before: str | None
    after: str
    previous: str


class Author:
    """Writes the lines of one actor.

    Parameters
    ----------
    actor
        Who acts: `key:ID`, `jwt:SUBJECT`, or `cli`.
    root
        The root secret.
    """

    def __init__(self, actor: str, root: bytes) -> None:
        self.actor = actor
        self._root = root

    def line(self, chain: str, head: str, act: Act, before: bytes | None) -> Line:
        """The line of an act, to follow the head of a chain; bodies are only hashed."""
        n, _, previous = head.partition(":")
        fields = {
            "chain": chain,
            "n": int(n or 0) + 1,
            "at_ms": time.time_ns() // 1_000_000,
            "tenant": act.tenant,
            "actor": self.actor,
            "act": act.kind,
            "object": act.object,
            "before": None if before is None else fingerprint(act.object, before),
            "after": fingerprint(act.object, act.body.encode()),
            "previous": previous,
        }
        text = json.dumps(fields, ensure_ascii=False)
        return Line(text, _mac(self._root, act.tenant, text))


def fingerprint(thing: str, body: bytes) -> str:
    """The hash by which a line names an object's body; an erasure's without its progress."""
    if thing.startswith("erasure "):
        body = _asked(body)
    return blake2b(body, digest_size=16).hexdigest()


def _asked(erasure: bytes) -> bytes:
    """What of an erasure is an act; how far it has come is noted without a line."""
    try:
        fields = json.loads(erasure)
        return json.dumps([fields[name] for name in ASKED]).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        return erasure  # written past the service: like nothing that a line led to


def faults(
    root: bytes,
    chain: str,
    tenant: str,
    lines: Iterable[Line],
    head: str,
    bodies: Mapping[str, bytes],
) -> list[str]:
    """Where a chain is broken; nothing where it is whole.

    Parameters
    ----------
    head
        As the store keeps it: the last line must be this one.
    bodies
        What the objects are now: the last line about each must have led there. None is
        ever removed.
    """
    found: list[str] = []
    expected, led_to = START, dict[str, str]()
    for number, line in enumerate(lines, 1):
        n, _, previous = expected.partition(":")
        told = line.fields
        mac = _mac(root, tenant, line.text)
        is_ours = compare_digest(line.mac.encode(), mac.encode())
        if not is_ours:
            found.append(f"line {number} was changed")
        elif told["chain"] != chain or told["n"] != int(n or 0) + 1:
            found.append(
                f"line {number} is not in its place, or one before it is missing"
            )
        elif told["previous"] != previous:
            found.append(f"line {number} does not follow the line before it")
        expected = f"{told.get('n', number)}:{line.mac}"
        if is_ours:
            led_to[told["object"]] = told["after"]
    if expected != head:
        found.append("the last lines are missing, or the head was changed")
    found += _strayed(led_to, bodies)
    return [f"{tenant}, chain {chain.strip('{}')}: {fault}" for fault in found]


def _strayed(led_to: Mapping[str, str], bodies: Mapping[str, bytes]) -> list[str]:
    """Which objects are not what their last lines led to, or are gone."""
    gone = [f"{name} is gone" for name in led_to if name not in bodies]
    return gone + [
        f"{name} is not what the last line about it led to"
        for name, body in bodies.items()
        if led_to.get(name) != fingerprint(name, body)
    ]


def _mac(root: bytes, tenant: str, text: str) -> str:
    key = derive(root, b"audit", tenant)
    return blake2b(text.encode(), digest_size=MAC_BYTES, key=key).hexdigest()
