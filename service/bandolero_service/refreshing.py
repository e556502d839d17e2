"""The night: the lake settled with hindsight, corrections and priors published.

All is computed first and published then, each tenant's priors at once. Where a gate
blocks a prior, the one in force stays, the rest of the night is published all the same,
and the command's exit code says that somebody should look. Last, the lake is compacted.
"""

import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from bandolero_service.night_summary import Found, lines_of, summary_of
from bandolero_service.reporting import epochs_of
from bandolero_service.store import Store, StoreDownError, name_of

if TYPE_CHECKING:
    from bandolero.fold import Correction
    from bandolero.lake.catalog import Lake
    from bandolero.lake.engines import EngineChoice
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
    if summary is not None:
        _writable(summary)
    where = keys.REFRESH_LEASE, keys.WORK_LEASE_MS
    with place.store() as store, leased(store, *where) as lease, _steps() as step:
        if lease is None:
            killed = f"if it was killed, {keys.WORK_LEASE_MS // 1000} s at most"
            raise CommandError(f"another refresh is running: wait for it; {killed}.")
        began = time.monotonic()
        records = _records(store, tenant)
        lake = place.lake()
        found = _computed(store, lake, records, until_ms, choice, rules, step)
        compacted = None
        if not dry_run and not found.refusal:
            step("publishing")
            _sure(lease)
            _publish(store, place.author(store), lake, found, tenant)
            compacted = _compacted(store, lake, found.refreshed.watermark_ms, step)
    told = summary_of(found, dry_run, time.monotonic() - began)
    told |= {"compacted": compacted, "lake": lake.root}
    if summary is not None:
        summary.write_text(json.dumps(told, indent=2))
    for line in lines_of(told):
        _say(line)
    if found.refusal and not dry_run:
        raise CommandError(f"nothing is published: {found.refusal}")
    return not found.is_blocked


def _writable(summary: Path) -> None:
    """Refuse, before a night's work, a file that cannot be written after it."""
    there = summary if summary.exists() else summary.parent
    if summary.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"summary == {str(summary)!r}, must be a file to write.")


def _records(store: Store, tenant: str | None) -> list[ExperimentRecord]:
    """The experiments of a tenant, or of all."""
    records = _all_records(store)
    known = sorted({record.tenant for record in records})
    if tenant is not None and tenant not in known:
        rule = f"must be one with experiments: {', '.join(known) or 'there is none'}."
        raise UsageError(f"tenant == {tenant!r}, {rule}")
    return [record for record in records if tenant in (None, record.tenant)]


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
    from bandolero.lake.refit import Night, lacking, refit
    from bandolero.lake.refresh import refresh as run

    with open_engine(choice) as engine:
        found = run(lake, records, until_ms, step, rules, engine)
    step("fitting priors")
    splits = dict(_splits(store, records, found))
    night = Night(found.watermark_ms, found.rollups, found.stages, splits)
    refits = refit(records, night, priors.books(store))
    in_force = [_in_force(store, one) for one in found.corrections]
    return Found(
        found,
        refits,
        lacking(records, night),
        _corrected(found.corrections, in_force),
        _refusal(found, in_force),
    )


def _in_force(store: Store, correction: "Correction") -> dict[str, Any]:
    """The correction of the same experiment that is in force; empty where there is none."""
    tenant, experiment_id = correction.tenant_id, correction.experiment_id
    shard = store.shard(tenant, experiment_id)
    return store.correction(shard, name_of(tenant, experiment_id)) or {}


def _corrected(
    corrections: "Sequence[Correction]", in_force: Sequence[dict[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Variants that are corrected otherwise than before, by experiment."""
    found = {}
    for correction, old in zip(corrections, in_force, strict=True):
        before, now = old.get("changes", {}), correction.changes
        variants = {
            variant: now.get(variant, {})
            for variant in sorted(before.keys() | now.keys())
            if _differs(before.get(variant, {}), now.get(variant, {}))
        }
        if variants:
            found[f"{correction.tenant_id}/{correction.experiment_id}"] = variants
    return found


def _differs(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether a measure does; sums of squares are as exact as the order of adding."""
    pairs = ((one.get(name, 0), other.get(name, 0)) for name in {*one, *other})
    return not all(math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-9) for x, y in pairs)


def _refusal(found: "Refreshed", in_force: Sequence[dict[str, Any]]) -> str:
    """Why nothing of a night is to be published; empty where it is."""
    if bad := found.bad_files:
        lost = f"{len(bad)} of its files cannot be read (see above)"
        ways = "Put them back, or go on without them: bandolero lake give-up PATH"
        return f"the lake is not whole, {lost}; what is in force stays. {ways}"
    newest_ms = max((old.get("watermark_ms", 0) for old in in_force), default=0)
    if found.watermark_ms < newest_ms:
        later = f"a refresh up to {_utc(newest_ms)} is in force"
        return f"{later}, and this one is up to {_utc(found.watermark_ms)} only."
    return ""


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


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
        if _in_force(store, correction) != body:
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


def _iso_ms(field: str, text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{field} == {text!r}, must be an ISO 8601 time.") from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return int(at.timestamp() * 1000)
