"""The data plane in the OpenAPI document: routes the framework does not know of."""

from typing import Any

import msgspec

from bandolero.experiment import Experiment
from bandolero_service.api.data_plane import MAX_BATCH
from bandolero_service.decide import DecideRequest
from bandolero_service.events import MAX_EVENTS, Event

_REF = "#/components/schemas/{}"
_SPEC = "/v1/experiments/{experiment_id}"
_ERRORS = {
    "400": "The body is not JSON",
    "401": "No valid key",
    "403": "The key lacks the scope",
    "413": "The body is too large",
    "415": "The body is encoded",
    "422": "A field breaks its rule",
    "429": "Too often; Retry-After says when",
}


def with_data_plane(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the data-plane routes, their schemas and the error object."""
    if "/v1/decide" in document["paths"]:
        return document
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    (request, event), found = msgspec.json.schema_components(
        [DecideRequest, Event], ref_template="#/components/schemas/{name}"
    )
    schemas |= found | _schemas() | _experiment_schemas()
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"}
    }
    paths = document["paths"]
    paths[_SPEC]["put"]["requestBody"] = _holding(_ref("Experiment"))
    paths[f"{_SPEC}/variants"]["post"]["requestBody"] = _holding(_ref("Variant"))
    for path, operations in paths.items():
        for operation in operations.values() if path.startswith("/v1/") else ():
            if path.startswith("/v1/t/"):
                operation["responses"].pop("422", None)  # any text may be a token
            else:
                _say_key_and_errors(operation)
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    paths["/v1/decide"] = _post(
        "Decide which variant to show", request, "Decision", "200", ("404", "409")
    )
    paths["/v1/decide/batch"] = _post(
        "Decide for up to 1,000 requests, in order",
        _body({"requests": _any_of(request, MAX_BATCH)}),
        "Decisions",
        "200",
    )
    paths["/v1/events"] = _post(
        "Tell what happened; accepted means durable",
        _body({"events": _any_of(event, MAX_EVENTS)}),
        "Accepted",
        "202",
        ("503",),
    )
    return document


def _say_key_and_errors(operation: dict[str, Any]) -> None:
    """A framework route as it is: behind a key, with our error object."""
    named = operation.get("parameters", [])
    operation["parameters"] = [p for p in named if p["name"] != "authorization"]
    operation["security"] = [{"key": []}]
    codes = ["401", "403", "404", "409", "422", "429", "503"]
    if "requestBody" in operation:
        codes += ["400", "413", "415"]
    operation["responses"] |= {
        code: _error(_ERRORS.get(code, "Refused")) for code in codes
    }


def _post(
    summary: str,
    body: dict[str, Any],
    answer: str,
    status: str,
    more: tuple[str, ...] = (),
) -> dict[str, Any]:
    codes = [*_ERRORS, *more]
    errors = {code: _error(_ERRORS.get(code, "Refused")) for code in codes}
    content = {"application/json": {"schema": _ref(answer)}}
    return {
        "post": {
            "tags": ["data plane"],
            "summary": summary,
            "security": [{"key": []}],
            "requestBody": _holding(body),
            "responses": {
                status: {"description": "Done", "content": content},
                **errors,
            },
        }
    }


def _holding(schema: dict[str, Any]) -> dict[str, Any]:
    """A body of JSON."""
    content = {"application/json": {"schema": schema}}
    return {"required": True, "content": content}


def _error(description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ref("Error")}}
    return {"description": description, "content": content}


def _schemas() -> dict[str, Any]:
    text = {"type": "string"}
    detail = _object({"code": text, "message": text, "field": text}, ("field",))
    decision = _object(
        {
            "decision_id": text,
            "experiment": text,
            "variant": _object({"id": text, "creative": {"type": "object"}}),
            "propensity": {"type": "number"},
            "snapshot_version": {"type": "integer"},
            "mode": {"enum": ["explore", "holdout", "fixed", "fallback"]},
            "serving": {"enum": ["live", "stale", "cold"]},
            "fallback": {"type": "boolean"},
            "trackers": _object({"impression": text, "click": text}, ("click",)),
        },
        ("trackers",),
    )
    rejected = _object({"index": {"type": "integer"}, "error": detail})
    return {
        "Error": _object({"error": detail, "errors": _list(detail)}, ("errors",)),
        "Decision": decision,
        "Decisions": _object(
            {"decisions": _list({"anyOf": [_ref("Decision"), _ref("Error")]})}
        ),
        "Accepted": _object(
            {"accepted": {"type": "integer"}, "rejected": _list(rejected)}
        ),
    }


def _experiment_schemas() -> dict[str, Any]:
    schema = Experiment.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), "Experiment": schema}


def _object(
    properties: dict[str, Any], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _body(properties: dict[str, Any]) -> dict[str, Any]:
    return {**_object(properties), "additionalProperties": False}


def _any_of(item: dict[str, Any], n_max: int) -> dict[str, Any]:
    """A batch: a bad item does not spoil it, but gets an error in its place."""
    return {**_list({"anyOf": [item, {}]}), "maxItems": n_max}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF.format(name)}
