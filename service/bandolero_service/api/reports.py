"""Routes an analyst uses: reports, and the explanation of a decision."""

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from bandolero_service.api.access import Access, admin, report
from bandolero_service.api.answers import ExplainedDecision, ShownReport, answers
from bandolero_service.api.gate import Caller
from bandolero_service.errors import ApiError
from bandolero_service.report_process import (
    AskedDecision,
    AskedReport,
    ReportFormat,
    ReportProcess,
)

JSON = "application/json"
MEDIA: dict[ReportFormat, str] = {
    "json": JSON,
    "html": "text/html; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
_OTHER_FORMATS = {
    media.partition(";")[0]: {"schema": {"type": "string"}}
    for media in MEDIA.values()
    if media != JSON
}
_BY = (
    "A categorical context field: the report also level by level, as the newest refresh "
    "counted them. CSV and Parquet then have a row a level and variant."
)
_EPOCH = date(1970, 1, 1)


def _iso(given: object) -> date:
    """A date as ISO writes it, and no other way: a number is none."""
    try:
        return date.fromisoformat(str(given))
    except ValueError:
        rule = "Date should be written as 2026-11-22"
        raise PydanticCustomError("date", rule) from None


IsoDate = Annotated[date, BeforeValidator(_iso)]


class ReportQuery(BaseModel):
    """What a report is asked for; what it cannot be asked for is refused by name."""

    model_config = ConfigDict(extra="forbid")

    format: ReportFormat = "json"
    segment: Annotated[str | None, Field(description=_BY)] = None
    from_: Annotated[IsoDate | None, Field(alias="from")] = None
    to: IsoDate | None = None

    @property
    def days(self) -> tuple[int | None, int | None]:
        """The first day and the last, as rollups count them.

        Raises
        ------
        ApiError
            422 where the last is before the first.
        """
        if self.from_ is not None and self.to is not None and self.to < self.from_:
            message = f"to == '{self.to}', must not be before from == '{self.from_}'."
            raise ApiError(422, "invalid_request", message, "to")
        return _day(self.from_), _day(self.to)


def report_routes(reports: ReportProcess, access: Access) -> APIRouter:
    """Routes over reports and decisions."""
    router = APIRouter(prefix="/v1", tags=["reports"])
    Reader = Annotated[Caller, Depends(access.require(report, admin))]

    @router.get(
        "/experiments/{experiment_id}/report",
        summary="Report of an experiment",
        response_model=None,
        responses={200: {"model": ShownReport, "content": _OTHER_FORMATS}},
    )
    async def get_report(
        experiment_id: str, caller: Reader, query: Annotated[ReportQuery, Query()]
    ) -> Response:
        asked = AskedReport(
            caller.tenant, experiment_id, query.format, *query.days, query.segment
        )
        return Response(await reports.ask(asked), media_type=MEDIA[query.format])

    @router.get(
        "/decisions/{decision_id}",
        summary="Explain a decision",
        response_model=None,
        responses=answers(ExplainedDecision, 200),
    )
    async def get_decision(decision_id: str, caller: Reader) -> Response:
        asked = AskedDecision(caller.tenant, decision_id)
        return Response(await reports.ask(asked), media_type=JSON)

    return router


def _day(given: date | None) -> int | None:
    """Days since 1970, as rollups count them."""
    return None if given is None else (given - _EPOCH).days
