"""Errors a client sees: one object everywhere, naming field, value and rule."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bandolero.experiment import Fault
from bandolero_service.rates import Quota

_FIELD = re.compile(r"`\$\.([^`]+)`$|\bfield `([^`]+)`")

NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What a JSON decoder raises."""
_HEADERS = {
    401: [(b"www-authenticate", b"Bearer")],
    405: [(b"allow", b"POST")],
    503: [(b"retry-after", b"1")],
}


class ApiError(Exception):
    """A request that is refused: status, code, message, field, all faults."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        faults: Sequence[Fault] = (),
        quota: Quota | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.faults = tuple(faults)
        self.quota = quota

    def body(self) -> dict[str, Any]:
        """The error object, with a list of all faults where there are several."""
        body: dict[str, Any] = {"error": self.detail()}
        if len(self.faults) > 1:
            body["errors"] = [
                {"code": self.code, "message": fault.message, "field": fault.field}
                for fault in self.faults
            ]
        return body

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer says beside it: how to get in, when to come again."""
        if self.quota is not None:
            return self.quota.headers()
        return list(_HEADERS.get(self.status, ()))

    def detail(self) -> dict[str, Any]:
        """The inner object, as a batch puts it in a bad item's place."""
        detail = {"code": self.code, "message": self.message}
        return detail if self.field is None else {**detail, "field": self.field}


def field_named_in(message: str) -> str | None:
    """The field that a decoder's message is about, where it names one.

    >>> field_named_in("Expected `str`, got `int` - at `$.eligible[1]`")
    'eligible[1]'
    >>> field_named_in("Object missing required field `experiment`")
    'experiment'
    """
    found = _FIELD.search(message)
    return found and (found[1] or found[2])


def not_decoded(error: Exception, field: str | None = None) -> ApiError:
    """What is wrong with a body, or with the part of it that is `field`."""
    told = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return ApiError(400, "malformed_json", f"the body is not JSON: {told}.")
    if field is not None:
        told = told.partition(" - at ")[0] + f" - at `$.{field}`"
    return ApiError(422, "invalid_request", f"{told}.", field or field_named_in(told))


def cut_off() -> ApiError:
    """The client hung up before its body was complete."""
    return ApiError(400, "disconnected", "the request was cut off.")


def unknown_experiment(experiment_id: str) -> ApiError:
    """No such experiment, or another tenant's: the answer must not tell which."""
    message = f"experiment == {experiment_id!r}, must be one of your experiments."
    return ApiError(404, "unknown_experiment", message, "experiment")


def too_many(what: str, quota: Quota) -> ApiError:
    """A caller past a rate."""
    message = f"{what}: at most {quota.rate}, try again in {quota.retry_after_s} s."
    return ApiError(429, "rate_limited", message, quota=quota)


def store_down() -> ApiError:
    """The store is needed for this request and does not answer."""
    message = "the store does not answer; nothing was changed, try again."
    return ApiError(503, "store_down", message)


def lake_down() -> ApiError:
    """The lake is needed for this request and cannot be read in time."""
    message = "what the newest refresh counted cannot be read from the lake, try again."
    return ApiError(503, "lake_down", message)


def unknown_segment(field: str, fields: Iterable[str]) -> ApiError:
    """A field that an experiment cannot be told by, and those that it can."""
    known = ", ".join(fields)
    rule = f"must be one of its categorical context fields: {known}"
    if not known:
        rule = "but the experiment has no categorical context field"
    return ApiError(422, "unknown_segment", f"segment == {field!r}, {rule}.", "segment")


def invalid_experiment(faults: Sequence[Fault]) -> ApiError:
    """A specification with faults, all of them listed."""
    return _invalid("invalid_experiment", faults)


def invalid_request(faults: Sequence[Fault]) -> ApiError:
    """A path or a query with faults, all of them listed."""
    return _invalid("invalid_request", faults)


def _invalid(code: str, faults: Sequence[Fault]) -> ApiError:
    first, n = faults[0], len(faults)
    message = first.message if n == 1 else f"{n} faults, the first: {first.message}"
    return ApiError(422, code, message, first.field, faults)
