"""The OpenAPI 3.1 document, made of the route table and the structs that the API reads and writes."""

import re
from typing import Any

import msgspec

from gateway.rules.problems import BASE, TYPES
from gateway.web.api import ROUTES, Public, Route
from gateway.web.bulk import LINE_BYTES_MAX, WINDOW

VERSION = "1"
REF = "#/components/schemas/{name}"
EVERYWHERE = (400, 401, 403, 429, 500, 503)
"""Answers that any authenticated route may give."""

API_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key with the scope that the route names. Where the installation asks for it, the client "
    "certificate of the same application goes with it (RFC 8446 §4.4.2).",
}

LINES_IN = (
    f"One JSON document a line, each at most {LINE_BYTES_MAX:,} bytes; the schema is a line's. `card.cvc` is refused"
    " here. A line with an `idempotency_key` may be sent again, like a request with the header."
)
LINES_OUT = (
    "One line for each line, in their order: the token, or the problem of this line alone. The answer may end early,"
    " whole: what has no line then was not looked at. Broken off, up to"
    f" {WINDOW} lines more than it shows may be done."
)
LIST_PARAMETERS = [
    {"name": "reference", "in": "query", "schema": {"type": "string"}},
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10}},
    {"name": "starting_after", "in": "query", "schema": {"type": "string"}},
]


def document() -> dict[str, Any]:
    """The whole document."""
    structs = {kind for route in ROUTES for kind in (route.body, *route.answers.values()) if kind is not None}
    _, schemas = msgspec.json.schema_components(sorted(structs, key=lambda kind: kind.__name__), ref_template=REF)
    schemas["Problem"] = _problem_schema()
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Payment tokenization gateway",
            "version": VERSION,
            "description": "Takes a card, returns a token; charges tokens and cards. Money is whole minor units.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"apiKey": API_KEY}},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": _responses(route),
        "security": [] if isinstance(route.permission, Public) else [{"apiKey": [route.permission]}],
    }
    if route.body is not None:
        schema = {"$ref": REF.format(name=route.body.__name__)}
        needed = any(field.required for field in msgspec.structs.fields(route.body))
        content = {route.stream or "application/json": {"schema": schema}}
        operation["requestBody"] = {"required": needed, "content": content}
        if route.stream:
            operation["requestBody"]["description"] = LINES_IN
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    if route.key:
        schema = {"type": "string", "minLength": 1, "maxLength": 255}
        required = route.key == "required"
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": required, "schema": schema})
    return parameters + (LIST_PARAMETERS if route.handler == "list_charges" else [])


def _responses(route: Route) -> dict[str, Any]:
    everywhere = () if isinstance(route.permission, Public) else EVERYWHERE
    responses = {str(status): _response(status, None) for status in everywhere}
    responses |= {str(status): _response(status, kind) for status, kind in route.answers.items()}
    return responses | ({"200": _stream(route)} if route.stream else {})


def _stream(route: Route) -> dict[str, Any]:
    kinds = [route.answers[200].__name__, "Problem"] if route.answers[200] else ["Problem"]
    schema = {"oneOf": [{"$ref": REF.format(name=name)} for name in kinds]}
    return {"description": LINES_OUT, "content": {route.stream: {"schema": schema}}}


def _response(status: int, kind: type[Any] | None) -> dict[str, Any]:
    if kind is not None:
        schema = {"$ref": REF.format(name=kind.__name__)}
        return {"description": kind.__doc__ or "", "content": {"application/json": {"schema": schema}}}
    if status < 400:  # noqa: PLR2004 - errors
        return {"description": "JSON", "content": {"application/json": {"schema": {"type": "object"}}}}
    titles = sorted(problem.title for problem in TYPES.values() if problem.status == status)
    content = {"application/problem+json": {"schema": {"$ref": REF.format(name="Problem")}}}
    return {"description": "; ".join(titles), "content": content}


def _problem_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "RFC 9457. `type` is one of a closed list.",
        "required": ["type", "title", "status"],
        "properties": {
            "type": {"type": "string", "enum": [BASE + slug for slug in TYPES]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "errors": {
                "type": "array",
                "items": {"type": "object", "properties": {"pointer": {"type": "string"}}},
            },
            "charge": {"$ref": REF.format(name="ChargeObject")},
            "refund": {"$ref": REF.format(name="RefundObject")},
            "decline": {
                "type": "object",
                "properties": {"class": {"type": "string"}, "code": {"type": "string"}},
            },
        },
    }
