"""The control plane: routes over experiments and their variants."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response

from bandolero.experiment import ExperimentRecord
from bandolero_service import trail
from bandolero_service.api.access import Access, admin, report
from bandolero_service.api.answers import (
    AuditLog,
    ExperimentList,
    ShownExperiment,
    answers,
)
from bandolero_service.api.bodies import JsonObject
from bandolero_service.api.gate import Caller
from bandolero_service.experiments import (
    Action,
    VariantAction,
    acted,
    change,
    checked_spec,
    put_spec,
    records_of,
    required_record,
    variant_acted,
    variant_added,
)
from bandolero_service.store import Store


def control_routes(store: Store, access: Access) -> APIRouter:
    """Routes over experiments."""
    router = APIRouter(prefix="/v1/experiments", tags=["experiments"])
    Admin = Annotated[Caller, Depends(access.require(admin))]
    Reader = Annotated[Caller, Depends(access.require(report, admin))]

    @router.put(
        "/{experiment_id}",
        summary="Create or change an experiment",
        responses=answers(ShownExperiment, 200, 201),
    )
    def put(
        experiment_id: str,
        caller: Admin,
        body: JsonObject,
        response: Response,
        if_match: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        spec = checked_spec(body, caller.tenant, experiment_id)
        old = store.record(caller.tenant, experiment_id)
        record = put_spec(store, access.author(caller), caller.tenant, spec, if_match)
        response.status_code = 201 if old is None else 200
        return _shown(record, response)

    @router.get("", summary="List experiments", responses=answers(ExperimentList, 200))
    def list_experiments(caller: Reader) -> dict[str, Any]:
        records = sorted(
            records_of(store, caller.tenant), key=lambda r: r.experiment_id
        )
        return {"experiments": [_summary(record) for record in records]}

    @router.get(
        "/{experiment_id}",
        summary="Show an experiment",
        responses=answers(ShownExperiment, 200),
    )
    def show(experiment_id: str, caller: Reader, response: Response) -> dict[str, Any]:
        return _shown(required_record(store, caller.tenant, experiment_id), response)

    @router.post(
        "/{experiment_id}/variants",
        status_code=201,
        summary="Add a variant",
        responses=answers(ShownExperiment, 201),
    )
    def add_variant(
        experiment_id: str,
        caller: Admin,
        body: JsonObject,
        response: Response,
    ) -> dict[str, Any]:
        record = change(
            store,
            access.author(caller),
            caller.tenant,
            experiment_id,
            "variant",
            lambda old: variant_added(old, body),
        )
        return _shown(record, response)

    @router.post(
        "/{experiment_id}/{action}",
        summary="Start, pause or stop",
        responses=answers(ShownExperiment, 200),
    )
    def act(
        experiment_id: str, action: Action, caller: Admin, response: Response
    ) -> dict[str, Any]:
        record = change(
            store,
            access.author(caller),
            caller.tenant,
            experiment_id,
            action,
            lambda r: acted(r, action),
        )
        return _shown(record, response)

    @router.post(
        "/{experiment_id}/variants/{variant_id}/{action}",
        summary="Pause, resume or retire a variant",
        responses=answers(ShownExperiment, 200),
    )
    def act_on_variant(
        experiment_id: str,
        variant_id: str,
        action: VariantAction,
        caller: Admin,
        response: Response,
    ) -> dict[str, Any]:
        record = change(
            store,
            access.author(caller),
            caller.tenant,
            experiment_id,
            f"variant_{action}",
            lambda old: variant_acted(old, variant_id, action),
        )
        return _shown(record, response)

    return router


def audit_routes(store: Store, access: Access) -> APIRouter:
    """The audit log of a tenant."""
    router = APIRouter(prefix="/v1", tags=["operations"])
    Admin = Annotated[Caller, Depends(access.require(admin))]

    @router.get(
        "/audit",
        summary="Who did what to what, when",
        responses=answers(AuditLog, 200),
    )
    def audit(
        caller: Admin, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """The newest lines of the audit log, and whether all of it is as it was written."""
        chains = trail.verified(store, access.root, caller.tenant)
        found = [fault for chain in chains for fault in chain.faults]
        newest = trail.lines(store, caller.tenant)[-limit:]
        return {"lines": newest, "whole": not found, "faults": found}

    return router


def _shown(record: ExperimentRecord, response: Response) -> dict[str, Any]:
    response.headers["etag"] = f'"{record.spec_version}"'
    shown = record.model_dump(mode="json")
    return {"experiment": record.experiment_id, **shown}


def _summary(record: ExperimentRecord) -> dict[str, Any]:
    return {
        "experiment": record.experiment_id,
        "status": record.status,
        "spec_version": record.spec_version,
        "policy": record.spec.policy.kind,
        "variants": len(record.spec.variants),
        "started_at_ms": record.started_at_ms,
    }
