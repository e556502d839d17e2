"""The audit log as it is kept: read, and verified chain by chain."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from bandolero_service import keys
from bandolero_service.audit import START, faults
from bandolero_service.store import Store


class Chain(NamedTuple):
    """A chain as found: its length, its head, and where it is broken."""

    tenant: str
    name: str
    n_lines: int
    head: str
    faults: list[str]


def lines(store: Store, tenant: str | None) -> list[dict[str, Any]]:
    """All lines, or a tenant's, in the order of time; those that are none left out."""
    found = [
        line.fields
        for hash_tag in _hash_tags(store)
        for owner in store.audit_heads(hash_tag)
        if tenant in (None, owner)
        for line in store.audit_lines(hash_tag, owner)
    ]
    return sorted(filter(None, found), key=lambda line: int(line["at_ms"]))


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
    bodies = store.audited(hash_tag)
    heads = store.audit_heads(hash_tag)
    for owner in sorted(bodies.keys() | heads.keys()):
        if tenant in (None, owner):
            head, chain = heads.get(owner, START), store.audit_lines(hash_tag, owner)
            found = faults(root, hash_tag, owner, chain, head, bodies.get(owner, {}))
            yield Chain(owner, hash_tag.strip("{}"), len(chain), head, found)


def _hash_tags(store: Store) -> list[str]:
    return [*map(keys.tag, range(store.shards)), keys.KEYS_TAG]
