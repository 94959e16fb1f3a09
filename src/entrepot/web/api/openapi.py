"""The OpenAPI document: what the framework derives from the routes, and the refusals that they share.

Source: OpenAPI 3.1; RFC 9457 for the form of a refusal.
"""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

_PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "description": "A refusal (RFC 9457).",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, why, and what to do next."},
        "instance": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "problem"],
                "properties": {"field": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
}
_EVERYWHERE = (400, 401, 403, 422, 429, 503)
# Where something has a name in the path, and where something is changed.
_NAMED = (404,)
_CHANGING = (409, 413, 507)
_CHANGES = {"post", "put", "patch", "delete"}
_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}


class Api(FastAPI):
    """An application whose document names every refusal of every route."""

    def openapi(self) -> dict[str, Any]:
        """The document."""
        if not self.openapi_schema:
            document = super().openapi()
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for name in ("HTTPValidationError", "ValidationError"):  # the framework's own form, which we do not send
                schemas.pop(name, None)
            schemas["Problem"] = _PROBLEM
            components["responses"] = {_name(status): _describe(status) for status in _every_status()}
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _add_refusals(path, method, operation)
        return self.openapi_schema or {}


def _every_status() -> list[int]:
    return sorted((*_EVERYWHERE, *_NAMED, *_CHANGING))


def _name(status: int) -> str:
    return HTTPStatus(status).name.title().replace("_", "")


def _describe(status: int) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in _HEADERS:
        described["headers"] = {_HEADERS[status]: {"schema": {"type": "string"}}}
    return described


def _add_refusals(path: str, method: str, operation: dict[str, Any]) -> None:
    wanted = {*_EVERYWHERE, *(_NAMED if "{" in path else ()), *(_CHANGING if method in _CHANGES else ())}
    # Those that a route names itself are described here all the same.
    wanted |= {status for status in _NAMED if str(status) in operation["responses"]}
    for status in sorted(wanted):
        operation["responses"][str(status)] = {"$ref": f"#/components/responses/{_name(status)}"}
