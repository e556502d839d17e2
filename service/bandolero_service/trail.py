"""The audit log as it is kept: read, and verified chain by chain."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from bandolero_service import keys
from bandolero_service.audit import START, Line, faults
from bandolero_service.store import NO_POSITION, Store

_KINDS = {
    "experiment": keys.records_under,
    "correction of": keys.corrections_under,
    "book of": keys.priors_under,
    "erasure": keys.erasures_under,
}
"""Where objects are kept under a hash tag, by what lines call them."""


class Chain(NamedTuple):
    """A chain as found: its length, its head, and where it is broken."""

    tenant: str
    name: str
    n_lines: int
    head: str
    faults: list[str]


def lines(store: Store, tenant: str | None) -> list[dict[str, Any]]:
    """All lines, or a tenant's, in the order of time; those that cannot be read left out."""
    found = [
        line.fields
        for hash_tag in _hash_tags(store)
        for owner in _heads(store, hash_tag)
        if tenant in (None, owner)
        for line in _lines(store, hash_tag, owner)
        if line.is_readable
    ]
    return sorted(found, key=lambda line: int(line["at_ms"]))


def verified(store: Store, root: bytes, tenant: str | None) -> list[Chain]:
    """All chains, or a tenant's, checked."""
    chains: list[Chain] = []
    for hash_tag in _hash_tags(store):
        found = list(_checked(store, root, hash_tag, tenant))
        if any(chain.faults for chain in found):  # or an act came between two reads
            found = list(_checked(store, root, hash_tag, tenant))
        chains += found
    return chains


def _checked(
    store: Store, root: bytes, hash_tag: str, tenant: str | None
) -> Iterator[Chain]:
    """The chains under a hash tag, checked; one that must be there may have no line."""
    bodies = _bodies(store, hash_tag)
    heads = _heads(store, hash_tag)
    for owner in sorted(bodies.keys() | heads.keys()):
        if tenant in (None, owner):
            head, chain = heads.get(owner, START), _lines(store, hash_tag, owner)
            found = faults(root, hash_tag, owner, chain, head, bodies.get(owner, {}))
            yield Chain(owner, hash_tag.strip("{}"), len(chain), head, found)


def _heads(store: Store, hash_tag: str) -> dict[str, str]:
    """The head of each tenant's chain under a hash tag."""
    found = store.fields(keys.audit_heads(hash_tag))
    return {tenant: _text(head) for tenant, head in found.items()}


def _lines(store: Store, hash_tag: str, tenant: str) -> list[Line]:
    """A tenant's lines under a hash tag, in order; what is none is an empty one."""
    return [
        Line(*(_text(entry.fields.get(name, b"")) for name in (b"line", b"mac")))
        for entry in store.read(keys.audit(hash_tag, tenant), NO_POSITION)
    ]


def _bodies(store: Store, hash_tag: str) -> dict[str, dict[str, bytes]]:
    """What the objects under a hash tag are now, as they are kept, by tenant."""
    found: dict[str, dict[str, bytes]] = defaultdict(dict)
    if hash_tag == keys.KEYS_TAG:
        for key_id, data in store.fields(keys.API_KEYS).items():
            found[json.loads(data)["tenant"]][f"key {key_id}"] = data
    else:
        for what, where in _KINDS.items():
            for name, data in store.fields(where(hash_tag)).items():
                tenant, _, thing = name.partition("/")
                found[tenant][f"{what} {thing}"] = data
    return found


def _text(data: bytes) -> str:
    """Text as it is kept; what is none differs from all that was written."""
    return data.decode(errors="replace")


def _hash_tags(store: Store) -> list[str]:
    return [*map(keys.tag, range(store.shards)), keys.KEYS_TAG]
