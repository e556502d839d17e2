"""The night: the lake settled with hindsight, corrections and priors published.

All is computed first and published then, each tenant's priors at once. Where a gate
blocks a prior, the one in force stays, the rest of the night is published all the same,
and the command's exit code says that somebody should look. Last, the lake is compacted.
"""

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bandolero.experiment import ExperimentRecord
from bandolero.prior_book import PriorBook, PublishedPrior
from bandolero_service import keys, priors
from bandolero_service.audit import Author
from bandolero_service.commands import (
    CommandError,
    Place,
    UsageError,
    _all_records,
    _say,
    _steps,
)
from bandolero_service.lease import Lease, LeaseLostError, leased
from bandolero_service.reporting import epochs_of
from bandolero_service.store import Store, StoreDownError, name_of

if TYPE_CHECKING:
    from bandolero.lake.catalog import Lake
    from bandolero.lake.engines import EngineChoice
    from bandolero.lake.refit import Refit
    from bandolero.lake.refresh import Refreshed
    from bandolero.lake.traffic import TrafficRules

RESULTS = ("rollups", "segments", "audit")
"""What a night leaves in the lake."""
SPLIT_DAYS = 7
"""So many days back the split of decisions is checked: a fault that was mended before is
past."""


CORRECTED = (
    "watermark_ms",
    "changes",
    "faded",
    "by_context",
    "unlearned",
    "split",
)
"""What the store keeps of a correction, beside metrics."""
OUTCOMES = {
    "published": "is version {version}",
    "unchanged": "as it was",
    "blocked": "is kept back: the one in force stays",
    "held": "is left: an earlier one is held by a rollback",
    "stale": "is left: the one in force is of a later night",
}


class Found(NamedTuple):
    """What a night found, and what becomes of each prior."""

    refreshed: "Refreshed"
    refits: "list[Refit]"

    @property
    def is_blocked(self) -> bool:
        """Whether a gate kept a prior in force."""
        return any(refit.outcome == "blocked" for refit in self.refits)


def refresh(
    place: Place,
    tenant: str | None,
    until: str | None,
    dry_run: bool,
    summary: Path | None,
    engine: tuple[str, str, str],
) -> bool:
    """Run the nightly job once; whether all its priors passed the gates."""
    from bandolero.lake.engines import EngineChoice, checked
    from bandolero.lake.traffic import TrafficRules

    rules = TrafficRules(
        *(getattr(place.settings, name) for name in TrafficRules._fields)
    )
    try:
        choice = checked(EngineChoice(*engine))
    except ValueError as error:
        raise UsageError(str(error)) from None
    until_ms = None if until is None else _iso_ms("until", until)
    where = keys.REFRESH_LEASE, keys.WORK_LEASE_MS
    with place.store() as store, leased(store, *where) as lease, _steps() as step:
        if lease is None:
            killed = f"if it was killed, {keys.WORK_LEASE_MS // 1000} s at most"
            raise CommandError(f"another refresh is running: wait for it; {killed}.")
        began = time.monotonic()
        records = [r for r in _all_records(store) if tenant in (None, r.tenant)]
        lake = place.lake()
        found = _computed(store, lake, records, until_ms, choice, rules, step)
        compacted = None
        if not dry_run:
            step("publishing")
            _sure(lease)
            _publish(store, place.author(store), lake, found, tenant)
            compacted = _compacted(store, lake, found.refreshed.watermark_ms, step)
    told = _summary(found, dry_run, time.monotonic() - began)
    told |= {"compacted": compacted, "lake": lake.root}
    if summary is not None:
        summary.write_text(json.dumps(told, indent=2))
    for line in _lines(told):
        _say(line)
    return not found.is_blocked


def _sure(lease: Lease) -> None:
    """Go on if nobody can have begun another night meanwhile."""
    try:
        lease.sure()
    except LeaseLostError:
        message = "another refresh may have begun meanwhile; nothing was published."
        raise CommandError(message) from None


def _computed(
    store: Store,
    lake: "Lake",
    records: Sequence[ExperimentRecord],
    until_ms: int | None,
    choice: "EngineChoice",
    rules: "TrafficRules",
    step: Any,
) -> Found:
    """All of a night but publishing it."""
    from bandolero.lake.engines import open_engine
    from bandolero.lake.refit import Night, refit
    from bandolero.lake.refresh import refresh as run

    with open_engine(choice) as engine:
        found = run(lake, records, until_ms, step, rules, engine)
    step("fitting priors")
    splits = dict(_splits(store, records, found))
    night = Night(found.watermark_ms, found.rollups, found.stages, splits)
    return Found(found, refit(records, night, priors.books(store)))


def _splits(
    store: Store, records: Sequence[ExperimentRecord], found: "Refreshed"
) -> Iterator[tuple[tuple[str, str], float]]:
    """p-values of the newest days' split, of the experiments where it can be checked."""
    from bandolero.epochs import DAY_MS
    from bandolero.lake.splits import split_of, splits_of
    from bandolero.report.counts import COMBINED, INGESTED, check_split, within

    since = found.watermark_ms // DAY_MS - SPLIT_DAYS
    for record in records:
        name = name_of(record.tenant, record.experiment_id)
        shard = store.shard(record.tenant, record.experiment_id)
        ids = record.spec.variant_ids
        epochs = within(epochs_of(store, shard, name), len(ids), since, None)
        ingested = split_of(splits_of(found.splits, record), ids, since)
        strata = check_split(record, epochs, ingested).strata
        whole = [s.p_value for s in strata if s.mode in (COMBINED, INGESTED)]
        p_values = [p for p in whole if p is not None]
        if p_values:
            least = min(1.0, len(p_values) * min(p_values))
            yield (record.tenant, record.experiment_id), least


def _publish(
    store: Store, author: Author, lake: "Lake", found: Found, tenant: str | None
) -> None:
    """Write what a night found, of one tenant or all; what is there already is left."""
    from bandolero.lake.results import write_results

    refreshed = found.refreshed
    tables = {name: getattr(refreshed, name) for name in RESULTS}
    write_results(lake, refreshed.watermark_ms, tables, tenant)
    for correction in found.refreshed.corrections:
        body = {name: getattr(correction, name) for name in CORRECTED}
        tenant, experiment_id = correction.tenant_id, correction.experiment_id
        body["metrics"] = found.refreshed.metrics.get((tenant, experiment_id), {})
        shard = store.shard(tenant, experiment_id)
        if store.correction(shard, name_of(tenant, experiment_id)) != body:
            store.put_correction(tenant, experiment_id, body, author)
    published = [one for one in found.refits if one.outcome == "published"]
    for tenant in sorted({one.tenant for one in published}):
        mine = [one.prior for one in published if one.tenant == tenant]
        priors.publish(store, author, tenant, "refresh", partial(_due, mine))
    store.note(keys.LAYOUT, keys.REFRESHED_MS, time.time_ns() // 1_000_000)


def _due(fresh: Sequence[PublishedPrior], book: PriorBook) -> list[PublishedPrior]:
    """Priors that are still the next versions: nobody rolled back meanwhile."""
    before = {prior.name: prior.version for prior in book.priors}
    return [p for p in fresh if p.version == before.get(p.name, 0) + 1]


def _compacted(
    store: Store, lake: "Lake", watermark_ms: int, step: Any
) -> dict[str, Any]:
    """Make the many small commits of past days few; what hinders it is told, no more."""
    from bandolero.lake.compact import compact

    owner = secrets.token_hex(8)

    def alone(shard: str) -> AbstractContextManager[bool]:
        where = keys.rewriting(int(shard.removeprefix("s")))
        return store.alone(where, owner, keys.REWRITE_LEASE_MS)

    try:
        return compact(lake, watermark_ms, alone, step)._asdict()
    except (OSError, StoreDownError) as error:  # the night itself is published
        return {"fault": str(error)}


def _summary(found: Found, dry_run: bool, seconds: float) -> dict[str, Any]:
    refreshed = found.refreshed
    changed = [c for c in refreshed.corrections if c.changes]
    reasons = Counter(refreshed.audit["reason"].to_pylist())
    at = datetime.fromtimestamp(refreshed.watermark_ms / 1000, UTC)
    return {
        "watermark": at.isoformat(),
        "watermark_ms": refreshed.watermark_ms,
        "published": not dry_run,
        "decisions": refreshed.decisions,
        "events": refreshed.events,
        "settled": refreshed.settled,
        "repeated": refreshed.repeated,
        "late_events": refreshed.late_events,
        "corrected_experiments": {
            f"{c.tenant_id}/{c.experiment_id}": c.changes for c in changed
        },
        "corrected_decisions": dict(reasons),
        "priors": {_name(refit): _told(refit) for refit in found.refits},
        "bad_files": [bad._asdict() for bad in refreshed.bad_files],
        "seconds": round(seconds, 3),
    }


def _name(refit: "Refit") -> str:
    return f"{refit.tenant}/{refit.objective} {refit.group}".rstrip()


def _told(refit: "Refit") -> dict[str, Any]:
    return {
        "outcome": refit.outcome,
        "version": refit.prior.version,
        "n_variants": refit.prior.n_variants,
        "parameters": refit.prior.parameters,
        "gates": [finding._asdict() for finding in refit.findings],
    }


def _lines(told: dict[str, Any]) -> Iterator[str]:
    """A summary for people: what there was, what is out of the ordinary, the priors."""
    if not told["watermark_ms"]:
        nothing = "holds nothing yet that is complete: nothing is settled"
        yield f"the lake {told['lake']} {nothing}"
        return
    at = datetime.fromisoformat(told["watermark"])
    dry = "" if told["published"] else " (dry run: nothing is published)"
    yield (
        f"refresh up to {at:%Y-%m-%d %H:%M:%S} UTC: {told['settled']:,} of"
        f" {told['decisions']:,} decisions settled, with {told['events']:,} events,"
        f" in {told['seconds']:.1f} s{dry}"
    )
    counts = {
        "late events": told["late_events"],
        "repeats of decisions left out": told["repeated"],
        "rewards told otherwise than learned": sum(
            told["corrected_decisions"].values()
        ),
        "experiments corrected": len(told["corrected_experiments"]),
        "bad files left out": len(told["bad_files"]),
    }
    if found := [f"{what}: {n:,}" for what, n in counts.items() if n]:
        yield "  " + "; ".join(found)
    yield from _compaction_lines(told["compacted"] or {})
    for name, prior in told["priors"].items():
        yield from _prior_lines(name, prior)


def _prior_lines(name: str, told: dict[str, Any]) -> Iterator[str]:
    outcome = OUTCOMES[told["outcome"]].format(**told)
    values = ", ".join(f"{k} {v:.4g}" for k, v in told["parameters"].items())
    yield f"prior of {name}: {values}, from {told['n_variants']} variants, {outcome}"
    for gate in told["gates"]:
        if gate["blocks"]:
            yield f"  blocked by the gate of {gate['gate']}: {gate['message']}"


def _compaction_lines(told: dict[str, Any]) -> Iterator[str]:
    if "fault" in told:
        yield f"the lake was not compacted: {told['fault']}"
    elif told.get("commits"):
        yield (
            f"compacted the lake: {told['files']:,} files became {told['merged_files']:,},"
            f" {told['commits']:,} commits {told['merged_commits']:,}"
        )


def _iso_ms(field: str, text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{field} == {text!r}, must be an ISO 8601 time.") from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return int(at.timestamp() * 1000)
