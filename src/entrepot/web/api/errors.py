"""From errors to problems: the one table of this face.

Source: RFC 9457 (Problem Details for HTTP APIs).
"""

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from entrepot import errors
from entrepot.errors import EntrepotError, TooManyRequests
from entrepot.web.errors import find_answer

# (HTTP status, title), looked up over the error's MRO.
ANSWERS: dict[type[EntrepotError], tuple[int, str]] = {
    errors.EntrepotError: (500, "Internal error"),
    errors.Invalid: (400, "Invalid request"),
    errors.PlanInvalid: (422, "Invalid plan"),
    errors.RuleInvalid: (422, "Invalid rule"),
    errors.IdentityInvalid: (422, "Invalid account"),
    errors.IdempotencyKeyReused: (422, "Idempotency key reused"),
    errors.WebhookInvalid: (422, "Invalid webhook"),
    errors.Unsupported: (405, "Not supported"),
    errors.TooLarge: (413, "Too large"),
    errors.NotFound: (404, "Not found"),
    # What the path does not name, but the body does.
    errors.PlanMissing: (422, "Unknown plan"),
    errors.Conflict: (409, "Conflict"),
    errors.Unauthenticated: (401, "Unauthenticated"),
    errors.Denied: (403, "Not allowed"),
    errors.TooManyRequests: (429, "Too many requests"),
    errors.Unavailable: (503, "Unavailable"),
    errors.StorageFull: (507, "Storage full"),
    errors.ClientGone: (400, "Incomplete request"),
}

log = structlog.get_logger(__name__)


def problem(
    request: Request,
    status: int,
    title: str,
    detail: str,
    *,
    errors: list[dict[str, str]] | None = None,
    retry_seconds: int | None = None,
) -> JSONResponse:
    """A problem document."""
    document: dict[str, object] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        # What a caller sent may hold characters that UTF-8 has not.
        "detail": detail.encode("utf-8", "backslashreplace").decode(),
        "instance": request.url.path,
    }
    if errors is not None:
        document["errors"] = errors
    headers = {}
    if status == 401:  # noqa: PLR2004 - RFC 9110, 15.5.2
        headers["WWW-Authenticate"] = 'Bearer realm="entrepot"'
    if status == 503:  # noqa: PLR2004
        headers["Retry-After"] = "5"
    if retry_seconds is not None:
        headers["Retry-After"] = str(retry_seconds)
    return JSONResponse(document, status, headers, media_type="application/problem+json")


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The problem that one of our errors is."""
    if not isinstance(error, EntrepotError):
        raise error
    status, title = find_answer(ANSWERS, error)
    if status >= 500:  # noqa: PLR2004
        log.error("api_failed", path=request.url.path, error=str(error), exc_info=error)
    retry_seconds = error.retry_seconds if isinstance(error, TooManyRequests) else None
    return problem(request, status, title, str(error), retry_seconds=retry_seconds)


def answer_invalid_body(request: Request, error: Exception) -> JSONResponse:
    """The problem of a body or parameter that does not fit, every wrong field named."""
    if not isinstance(error, RequestValidationError):
        raise error
    wrong = [
        {"field": ".".join(str(part) for part in entry["loc"]), "problem": str(entry["msg"])}
        for entry in error.errors()
    ]
    detail = "; ".join(f"{entry['field']}: {entry['problem']}" for entry in wrong)
    return problem(request, 422, "Invalid request", detail, errors=wrong)


def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """The problem of a path or method that is not there."""
    if not isinstance(error, HTTPException):
        raise error
    if isinstance(error.__cause__, EntrepotError):  # the framework's wrapping of what the body's limit raised
        return answer_error(request, error.__cause__)
    answer = problem(request, error.status_code, "Not possible", f"{error.detail}; see /api/docs")
    if error.status_code == 405:  # noqa: PLR2004 - RFC 9110, 15.5.6
        answer.headers["Allow"] = ", ".join(_allowed_methods(request)) or (error.headers or {}).get("Allow", "")
    return answer


def _allowed_methods(request: Request) -> list[str]:
    """What may be done with a path, by the document: the framework tells of the first route alone."""
    parts = request.url.path.split("/")
    allowed: set[str] = set()
    for path, operations in request.app.openapi()["paths"].items():
        pattern = path.split("/")
        if len(pattern) == len(parts) and all(
            one == other or one.startswith("{") for one, other in zip(pattern, parts, strict=True)
        ):
            allowed |= {method.upper() for method in operations}
    return sorted(allowed)
