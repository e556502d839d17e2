"""Priors as the store keeps them: a tenant's book in force, and every version there was.

A tenant's priors live on one shard, so that all that a night publishes for it is one act:
one control fact in the log, one line in the audit log, or nothing.
"""

import json
from collections.abc import Callable, Iterable

from bandolero.prior_book import PriorBook, PublishedPrior
from bandolero_service import keys
from bandolero_service.audit import Act, Author
from bandolero_service.store import Store, StoreDownError, name_of

BOOK = "priors"
"""The name of a tenant's book, where an experiment's id stands with others."""
TRIES = 5
Change = Callable[[PriorBook], list[PublishedPrior]]


def book_of(store: Store, tenant: str) -> PriorBook:
    """The priors of a tenant that are in force."""
    return _read(store, tenant)[0]


def books(store: Store) -> dict[str, PriorBook]:
    """The priors in force, by tenant."""
    return {
        name.partition("/")[0]: PriorBook.model_validate_json(data)
        for shard in range(store.shards)
        for name, data in store.fields(keys.priors(shard)).items()
    }


def versions_of(store: Store, tenant: str) -> list[PublishedPrior]:
    """Every version of every prior of a tenant, by name, oldest first."""
    where = keys.prior_versions(store.shard(tenant, BOOK), tenant)
    found = map(PublishedPrior.model_validate_json, store.fields(where).values())
    return sorted(found, key=lambda prior: (*prior.name, prior.version))


def publish(
    store: Store, author: Author, tenant: str, kind: str, change: Change
) -> list[PublishedPrior]:
    """Publish what a change makes of the book in force, at once; what that was.

    Nothing is written where it makes nothing. It is asked again where somebody was faster.
    """
    for _ in range(TRIES):
        book, expected = _read(store, tenant)
        newer = change(book)
        if not newer or _put(store, author, tenant, kind, book, newer, expected):
            return newer
    raise StoreDownError(f"priors of {tenant}: overtaken {TRIES} times.")


def rebuild(store: Store, author: Author, tenant: str, bodies: Iterable[str]) -> None:
    """Put a book back as the log told it, with the versions that were in force before."""
    known = [PriorBook.model_validate_json(body) for body in bodies]
    versions = [prior for book in known for prior in book.priors]
    _put(store, author, tenant, "restored", known[-1], versions, "")


def _read(store: Store, tenant: str) -> tuple[PriorBook, str]:
    """A tenant's book, and as it is kept."""
    where = keys.priors(store.shard(tenant, BOOK))
    data = store.field(where, name_of(tenant, BOOK))
    if data is None:
        return PriorBook(), ""
    return PriorBook.model_validate_json(data), data.decode()


def _put(
    store: Store,
    author: Author,
    tenant: str,
    kind: str,
    book: PriorBook,
    newer: list[PublishedPrior],
    expected: str,
) -> bool:
    shard = store.shard(tenant, BOOK)
    body = book.with_priors(newer).model_dump_json()
    act = Act(tenant, kind, f"book of {BOOK}", name_of(tenant, BOOK), body)
    where = [
        keys.priors(shard),
        keys.control(shard),
        keys.prior_versions(shard, tenant),
    ]
    more = [expected]
    for prior in newer:
        more += [json.dumps([*prior.name, prior.version]), prior.model_dump_json()]
    return store.acted("priors", keys.tag(shard), where, act, author, more) == 1
