"""Acts on experiments, whoever asks: every one is a new version of the record.

Every act reads the record, makes the next version and writes it only if nobody was
faster; what is written is also a control fact in the log.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bandolero.experiment import (
    Experiment,
    ExperimentRecord,
    Fault,
    Identifier,
    InvalidExperimentError,
    Status,
    VariantStatus,
    parse_experiment,
)
from bandolero.prior_book import with_priors, with_taken
from bandolero_service.audit import Author
from bandolero_service.errors import ApiError, invalid_experiment, unknown_experiment
from bandolero_service.priors import book_of
from bandolero_service.store import Store

TRIES = 5
Action = Literal["start", "pause", "stop"]
NEXT_STATUS: dict[Action, tuple[Status, tuple[Status, ...]]] = {
    "start": ("running", ("draft", "paused", "running")),
    "pause": ("paused", ("running", "paused")),
    "stop": ("stopped", ("draft", "running", "paused", "stopped")),
}
VariantAction = Literal["pause", "resume", "retire"]
NEXT_STATE: dict[VariantAction, VariantStatus] = {
    "pause": "paused",
    "resume": "active",
    "retire": "retired",
}
_TENANT: TypeAdapter[str] = TypeAdapter(Identifier)
Change = Callable[[ExperimentRecord], ExperimentRecord]


def checked_tenant(tenant: str) -> str:
    """A name that a tenant may have.

    Raises
    ------
    ApiError
        422, where it could not be read back from the store.
    """
    try:
        return _TENANT.validate_python(tenant)
    except ValidationError:
        rule = "must be 1 to 64 letters, digits, '.', '_' or '-', not beginning with one of these three."
        message = f"tenant == {tenant[:80]!r}, {rule}"
        raise ApiError(422, "invalid_tenant", message, "tenant") from None


def checked_spec(raw: object, tenant: str, experiment_id: str | None) -> Experiment:
    """A specification that may be stored for a tenant.

    Raises
    ------
    ApiError
        422 with every fault; 403 for another tenant's.
    """
    checked_tenant(tenant)
    try:
        spec = parse_experiment(raw)
    except InvalidExperimentError as error:
        raise invalid_experiment(error.faults) from None
    if spec.tenant not in (None, tenant):
        message = f"tenant == {spec.tenant!r}, must be the key's tenant."
        raise ApiError(403, "foreign_tenant", message, "tenant")
    if experiment_id is not None and spec.experiment != experiment_id:
        message = f"experiment == {spec.experiment!r}, must be {experiment_id!r}."
        raise ApiError(422, "invalid_experiment", message, "experiment")
    return spec.model_copy(update={"tenant": tenant})


def put_spec(
    store: Store,
    author: Author,
    tenant: str,
    spec: Experiment,
    if_match: str | None = None,
) -> ExperimentRecord:
    """Store a specification; the same one again changes nothing."""
    old = store.record(tenant, spec.experiment)
    if old is None:
        if if_match not in (None, "*"):
            raise _stale(if_match, None)
        record = ExperimentRecord(tenant=tenant, spec=spec, created_at_ms=_now_ms())
        if store.put_record(record, None, "created", author):
            return record
        raise _stale(if_match, None)
    version = old.spec_version
    if if_match not in (None, "*") and if_match.strip('"') != str(version):
        raise _stale(if_match, version)
    spec = with_taken(spec, old)
    if old.spec == spec:
        return old
    _check_change(old, spec)
    record = old.model_copy(update={"spec": spec, "spec_version": version + 1})
    record = with_priors(record, old, book_of(store, tenant))
    if not store.put_record(record, version, "changed", author):
        raise _stale(if_match, version)
    return record


def change(
    store: Store,
    author: Author,
    tenant: str,
    experiment_id: str,
    kind: str,
    make: Change,
) -> ExperimentRecord:
    """Make the next version of a record; tried again when somebody was faster."""
    for _ in range(TRIES):
        old = required_record(store, tenant, experiment_id)
        new = make(old)
        if new == old:
            return old
        new = new.model_copy(update={"spec_version": old.spec_version + 1})
        new = with_priors(new, old, book_of(store, tenant))
        if store.put_record(new, old.spec_version, kind, author):
            return new
    raise _stale(None, None)


def required_record(store: Store, tenant: str, experiment_id: str) -> ExperimentRecord:
    """The record, or a 404."""
    record = store.record(tenant, experiment_id)
    if record is None:
        raise unknown_experiment(experiment_id)
    return record


def acted(record: ExperimentRecord, action: Action) -> ExperimentRecord:
    """The record after start, pause or stop."""
    status, allowed = NEXT_STATUS[action]
    if record.status not in allowed:
        message = f"status == {record.status!r}, must be one of {list(allowed)}."
        raise ApiError(409, "wrong_status", message, "status")
    started = record.started_at_ms
    if action == "start" and started is None:
        started = _now_ms()
    return record.model_copy(update={"status": status, "started_at_ms": started})


def variant_added(record: ExperimentRecord, raw: dict[str, Any]) -> ExperimentRecord:
    """The record with one more variant, as its author wrote it.

    Raises
    ------
    ApiError
        409 where its id is taken, or the experiment stopped; 422 with every fault, each by
        the variant's own field.
    """
    if raw.get("id") in record.spec.variant_ids:
        message = f"id == {raw['id']!r}, must be new: there is a variant of this id."
        raise ApiError(409, "variant_exists", message, "id")
    whole = record.spec.model_dump(mode="json")
    place = f"variants[{len(whole['variants'])}]."
    whole["variants"].append(raw)
    try:
        spec = parse_experiment(whole)
    except InvalidExperimentError as error:
        own = [Fault(*(text.removeprefix(place) for text in f)) for f in error.faults]
        raise invalid_experiment(own) from None
    _check_change(record, spec)
    return record.model_copy(update={"spec": spec})


def variant_acted(
    record: ExperimentRecord, variant_id: str, action: VariantAction
) -> ExperimentRecord:
    """The record after a variant is paused, resumed or retired."""
    if variant_id not in record.spec.variant_ids:
        message = f"variant == {variant_id!r}, must be one of the experiment's."
        raise ApiError(404, "unknown_variant", message, "variant")
    states = dict(record.variant_states)
    if states.get(variant_id) == "retired" and action != "retire":
        message = f"variant == {variant_id!r} is retired, which is final."
        raise ApiError(409, "variant_retired", message, "variant")
    states[variant_id] = NEXT_STATE[action]
    if action == "resume":
        del states[variant_id]
    new = record.model_copy(update={"variant_states": states})
    if not new.active_arms:
        message = f"variant == {variant_id!r} is the last active one, must stay active."
        raise ApiError(409, "last_active_variant", message, "variant")
    return new


def _check_change(old: ExperimentRecord, spec: Experiment) -> None:
    """What may not change once data are being collected, and once they are not any more."""
    if old.status == "stopped" and len(spec.variants) > len(old.spec.variants):
        message = (
            f"experiment == {old.experiment_id!r} is stopped, gets no new variants."
        )
        raise ApiError(409, "experiment_stopped", message, "experiment")
    if old.started_at_ms is None:
        return
    for field in ("objective", "context", "policy"):
        if getattr(old.spec, field) != getattr(spec, field):
            message = f"{field} is fixed once the experiment has started."
            raise ApiError(409, "immutable", message, field)
    kept = spec.variants[: len(old.spec.variants)]
    for i, (before, after) in enumerate(zip(old.spec.variants, kept, strict=False)):
        if before != after:
            field = f"variants[{i}]"
            message = (
                f"{field} ({before.id!r}) is fixed once started: add a new variant."
            )
            raise ApiError(409, "immutable", message, field)
    if len(kept) < len(old.spec.variants):
        message = "variants may not be removed once started: retire them instead."
        raise ApiError(409, "immutable", message, "variants")


def records_of(store: Store, tenant: str) -> list[ExperimentRecord]:
    """A tenant's records."""
    return [
        record
        for shard in range(store.shards)
        for record in store.records(shard).values()
        if record.tenant == tenant
    ]


def _stale(if_match: str | None, version: int | None) -> ApiError:
    message = f"If-Match == {if_match!r}, must be the newest version ({version})."
    return ApiError(409, "stale_version", message, "If-Match")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
