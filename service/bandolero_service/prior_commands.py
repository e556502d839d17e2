"""What the commands on priors do: list, compare, go back, let go."""

from datetime import UTC, datetime

from bandolero.prior_book import PriorBook, PublishedPrior
from bandolero_service import priors
from bandolero_service.commands import CommandError, Place, UsageError, _say
from bandolero_service.store import Store

Name = tuple[str, str]
"""Objective and group."""


def list_priors(place: Place, tenant: str | None, every: bool) -> None:
    """A line a prior in force, or a version of one."""
    with place.store() as store:
        books = priors.books(store)
        mine = sorted(owner for owner in books if tenant in (None, owner))
        for owner in mine:
            shown = priors.versions_of(store, owner) if every else books[owner].priors
            for prior in shown:
                _say(f"{owner:20} {_line(prior)}")
    if not mine:
        refresh = "bandolero refresh fits them, and says where there is too little"
        _say(f"no prior is published yet: {refresh}")


def diff(
    place: Place, tenant: str | None, name: Name, old: int | None, new: int | None
) -> None:
    """Two versions of a prior side by side: by default the newest, and the one before."""
    with place.store() as store:
        versions = _versions(store, _owner(store, tenant), name)
    to = _one(versions, max(versions) if new is None else new)
    before = _before(versions, to) if old is None else _one(versions, old)
    for prior in (before, to):
        _say(_line(prior))
    for parameter, value in to.parameters.items():
        was = before.parameters[parameter]
        _say(f"{parameter:10} {was:12.6g} -> {value:12.6g}  ({value - was:+.3g})")


def roll_back(place: Place, tenant: str | None, name: Name, to: int | None) -> None:
    """Put an earlier version in force again, and hold it there.

    By default the one before; of a version that restores one, the one before that. What
    is in force already stays as it is.
    """
    with place.store() as store:
        owner = _owner(store, tenant)
        versions = _versions(store, owner, name)
        current = versions[max(versions)]
        restored = versions.get(current.restores or 0, current)
        earlier = _before(versions, restored) if to is None else _one(versions, to)
        if earlier.parameters == current.parameters:
            shown = f"{_shown(name)} version {earlier.version}"
            if to is None:
                raise CommandError(f"{shown} is what is in force: say which with --to.")
            _say(f"{shown} is in force already")
            return

        def back(book: PriorBook) -> list[PublishedPrior]:
            newest = book.get(*name) or current
            changes = {"cause": "rollback", "restores": earlier.version, "held": True}
            next_version = {"version": newest.version + 1, **changes}
            return [earlier.model_copy(update=next_version)]

        (prior,) = priors.publish(store, place.author(store), owner, "rollback", back)
    _say(_line(prior))


def release(place: Place, tenant: str | None, name: Name) -> None:
    """Let the refresh go on with a prior that a rollback held."""
    with place.store() as store:
        owner = _owner(store, tenant)
        _versions(store, owner, name)

        def let_go(book: PriorBook) -> list[PublishedPrior]:
            held = [p for p in book.priors if p.name == name and p.held]
            changes = {"cause": "release", "held": False, "restores": None}
            return [
                prior.model_copy(update={"version": prior.version + 1, **changes})
                for prior in held
            ]

        found = priors.publish(store, place.author(store), owner, "release", let_go)
    _say(_line(found[0]) if found else f"{_shown(name)} is not held")


def _owner(store: Store, tenant: str | None) -> str:
    """The tenant; may be left out where only one has priors."""
    known = sorted(priors.books(store))
    if tenant is not None:
        return tenant
    if len(known) > 1:
        raise UsageError(f"tenants with priors are {', '.join(known)}: say --tenant.")
    return known[0] if known else "default"


def _versions(store: Store, tenant: str, name: Name) -> dict[int, PublishedPrior]:
    found = priors.versions_of(store, tenant)
    mine = {prior.version: prior for prior in found if prior.name == name}
    if not mine:
        known = ", ".join(sorted({_shown(prior.name) for prior in found})) or "none"
        rule = f"must be one that was published for {tenant}: {known}."
        raise CommandError(f"prior == {_shown(name)!r}, {rule}")
    return mine


def _one(versions: dict[int, PublishedPrior], version: int) -> PublishedPrior:
    if version not in versions:
        rule = f"must be one of {', '.join(map(str, sorted(versions)))}."
        raise CommandError(f"version == {version}, {rule}")
    return versions[version]


def _before(
    versions: dict[int, PublishedPrior], prior: PublishedPrior
) -> PublishedPrior:
    if prior.version == min(versions):
        first = f"{_shown(prior.name)} version {prior.version}"
        raise CommandError(f"{first} is the first: there is none before it.")
    return _one(versions, prior.version - 1)


def _shown(name: Name) -> str:
    objective, group = name
    return f"{objective} {group}".rstrip()


def _line(prior: PublishedPrior) -> str:
    at = datetime.fromtimestamp(prior.watermark_ms / 1000, UTC)
    values = ", ".join(f"{k} {v:.4g}" for k, v in prior.parameters.items())
    back = "" if prior.restores is None else f" to {prior.restores}"
    held = ", held" if prior.held else ""
    return (
        f"{_shown(prior.name):40} version {prior.version:4}  {values}, from"
        f" {prior.n_variants} variants up to {at:%Y-%m-%d %H:%M}, {prior.cause}{back}{held}"
    )
