"""The routes of privacy: erase a unit, and see how far that has come.

The unit stands in the path, so a path is never logged; the answer does not repeat it.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path

from bandolero.log import MAX_UNIT_CHARACTERS
from bandolero_service.api.access import Access, admin
from bandolero_service.api.answers import ErasureState, Receipt, answers
from bandolero_service.api.gate import Caller
from bandolero_service.erasures import ask, state_of
from bandolero_service.settings import Settings
from bandolero_service.store import Store
from bandolero_service.views import Views


def privacy_routes(
    store: Store, views: Views, settings: Settings, access: Access
) -> APIRouter:
    """Routes over units and their erasures."""
    router = APIRouter(prefix="/v1", tags=["privacy"])
    Admin = Annotated[Caller, Depends(access.require(admin))]

    @router.delete(
        "/units/{unit:path}",
        status_code=202,
        summary="Erase a unit; a receipt",
        responses=answers(Receipt, 202),
    )
    def erase_unit(
        unit: Annotated[str, Path(min_length=1, max_length=MAX_UNIT_CHARACTERS)],
        caller: Admin,
    ) -> dict[str, Any]:
        pseudonym = views.signer(caller.tenant).pseudonym(unit)
        author = access.author(caller)
        return ask(store, settings, caller.tenant, pseudonym, author)

    @router.get(
        "/erasures/{erasure_id}",
        summary="How far an erasure has come",
        responses=answers(ErasureState, 200),
    )
    def show_erasure(erasure_id: str, caller: Admin) -> dict[str, Any]:
        return state_of(store, caller.tenant, erasure_id)

    return router
