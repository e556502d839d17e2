"""Routes an analyst uses: reports, and the explanation of a decision."""

from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BeforeValidator

from bandolero.lake.catalog import Lake
from bandolero_service.api.access import Access, admin, report
from bandolero_service.api.answers import ExplainedDecision, ShownReport, answers
from bandolero_service.api.gate import Caller
from bandolero_service.errors import ApiError
from bandolero_service.experiments import required_record
from bandolero_service.explain import explain
from bandolero_service.store import Store
from bandolero_service.views import Views

Format = Literal["json", "html", "csv", "parquet"]
MEDIA = {
    "html": "text/html; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
_OTHER_FORMATS = {
    media.partition(";")[0]: {"schema": {"type": "string"}} for media in MEDIA.values()
}
_EPOCH = date(1970, 1, 1)


def _iso(given: object) -> date:
    """A date as ISO writes it, and no other way: a number is none."""
    return date.fromisoformat(str(given))


IsoDate = Annotated[date, BeforeValidator(_iso)]


def report_routes(store: Store, lake: Lake, views: Views, access: Access) -> APIRouter:
    """Routes over reports and decisions."""
    router = APIRouter(prefix="/v1", tags=["reports"])
    Reader = Annotated[Caller, Depends(access.require(report, admin))]

    @router.get(
        "/experiments/{experiment_id}/report",
        summary="Report of an experiment",
        response_model=None,
        responses={200: {"model": ShownReport, "content": _OTHER_FORMATS}},
    )
    def get_report(
        experiment_id: str,
        caller: Reader,
        format: Format = "json",  # noqa: A002  # the contract's name
        segment: Annotated[str | None, Query(include_in_schema=False)] = None,
        from_: Annotated[IsoDate | None, Query(alias="from")] = None,
        to: IsoDate | None = None,
    ) -> Response | dict[str, Any]:
        if segment is not None:
            message = f"segment == {segment!r}: reports by segment are not kept yet."
            raise ApiError(422, "no_segments", message, "segment")
        from bandolero_service.reporting import report_of  # not before it is asked for

        record = required_record(store, caller.tenant, experiment_id)
        built = report_of(store, record, _day(from_), _day(to))
        return rendered(built, format)

    @router.get(
        "/decisions/{decision_id}",
        summary="Explain a decision",
        responses=answers(ExplainedDecision, 200),
    )
    def get_decision(decision_id: str, caller: Reader) -> dict[str, Any]:
        signer = views.signer(caller.tenant)
        return explain(store, lake, signer, caller.tenant, decision_id)

    return router


def rendered(built: Any, kind: Format) -> Response | dict[str, Any]:
    """A `bandolero.report.Report` in the format asked for."""
    from bandolero.report.html import to_html
    from bandolero.report.tabular import to_csv, to_json, to_parquet

    if kind == "json":
        return to_json(built)
    content: str | bytes
    if kind == "html":
        content = to_html(built)
    elif kind == "csv":
        content = to_csv(built)
    else:
        content = to_parquet(built)
    return Response(content, media_type=MEDIA[kind])


def _day(given: date | None) -> int | None:
    """Days since 1970, as rollups count them."""
    return None if given is None else (given - _EPOCH).days
