"""Bodies of requests: JSON sent as it is, whatever type a client says it has."""

from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from bandolero.documents import shown
from bandolero_service.errors import NOT_JSON, ApiError, cut_off, not_decoded

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def refuse_encoded(encoding: str) -> None:
    """Refuse a body that was encoded on its way: it is read as it comes.

    Raises
    ------
    ApiError
        415, unless the encoding is `identity`, which is none.
    """
    if encoding.strip().lower() not in {"", "identity"}:
        message = f"Content-Encoding == {shown(encoding)}, must be left out."
        raise ApiError(415, "encoded_body", message, "Content-Encoding")


async def _json_object(request: Request) -> dict[str, Any]:
    """The object that a body holds; curl calls what its `-d` sends a form."""
    refuse_encoded(request.headers.get("content-encoding", ""))
    try:
        return _decode(await request.body())
    except NOT_JSON as error:
        raise not_decoded(error) from None
    except ClientDisconnect:
        raise cut_off() from None


JsonObject = Annotated[dict[str, Any], Depends(_json_object)]
"""A parameter of a route: its body. Routes say its schema in `api.openapi`."""
