"""The platform API: FastAPI with an OpenAPI document at /api/docs, every refusal a problem document."""

import re
import uuid
from collections.abc import Awaitable, Callable

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from entrepot import __version__
from entrepot.accounts.key_rates import Allowance
from entrepot.errors import EntrepotError, RequestInvalid, TooLarge
from entrepot.web.api import (
    accounts,
    administration,
    events,
    keys,
    replication,
    repositories,
    secret_scanning,
    usage,
    webhooks,
)
from entrepot.web.api.errors import answer_error, answer_http_error, answer_invalid_body, problem
from entrepot.web.api.openapi import Api
from entrepot.web.api.run_streams import RunStreams
from entrepot.web.api.services import Services
from entrepot.web.asgi import Message, Receive, Scope, Send

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 64 * 1024
_PREFIX = "/api/v1"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def create_api(services: Services) -> FastAPI:
    """The application for paths that begin with `/api/`."""
    api = Api(
        title="Entrepot platform API",
        version=__version__,
        description="Issues pull credentials to sign-ups, takes them back, and tells who pulled. "
        "Send an API key: `Authorization: Bearer entk_...`.",
        docs_url="/api/docs",
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    api.state.services = services
    api.state.run_streams = RunStreams(services.runs)
    api.include_router(accounts.router, prefix=_PREFIX)
    api.include_router(usage.router, prefix=_PREFIX)
    api.include_router(events.router, prefix=_PREFIX)
    api.include_router(webhooks.router, prefix=_PREFIX)
    api.include_router(administration.router, prefix=_PREFIX)
    api.include_router(keys.router, prefix=_PREFIX)
    api.include_router(secret_scanning.router, prefix=_PREFIX)
    api.include_router(replication.router, prefix=_PREFIX)
    api.include_router(repositories.router, prefix=_PREFIX)
    api.add_exception_handler(EntrepotError, answer_error)
    api.add_exception_handler(RequestValidationError, answer_invalid_body)
    api.add_exception_handler(HTTPException, answer_http_error)
    api.add_middleware(_BodyLimit)
    api.add_middleware(_Unexpected)

    @api.middleware("http")
    async def identify(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Give the request an id, the client's own if it is well formed, for the answer and the audit log."""
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        request.scope["entrepot.route"] = "api"
        if "\x00" in request.url.path or b"%00" in request.scope["query_string"]:
            # No database keeps it, so nothing can have it in its name.
            response: Response = problem(request, 400, "Invalid request", "the address holds a NUL character")
        else:
            response = await call_next(request)
        route = request.scope.get("route")
        if route is not None:
            request.scope["entrepot.route"] = _PREFIX + route.path.removeprefix(_PREFIX)
        allowance: Allowance | None = getattr(request.state, "allowance", None)
        if allowance is not None:
            response.headers["RateLimit-Limit"] = str(allowance.limit)
            response.headers["RateLimit-Remaining"] = str(allowance.remaining)
            response.headers["RateLimit-Reset"] = str(allowance.reset_seconds)
        response.headers["X-Request-Id"] = request.state.request_id
        response.headers["Cache-Control"] = "no-store"
        return response

    return api


class _Unexpected:
    """Answers with a problem document where something failed that nobody expected, and logs it."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        try:
            await self._app(scope, receive, send)
        except Exception:
            if scope["type"] != "http" or scope.get("entrepot.status"):
                raise
            log.exception("api_broke", path=scope["path"], method=scope["method"])
            answer = problem(Request(scope), 500, "Internal error", "this is our mistake; it is logged")
            await answer(scope, receive, send)


class _BodyLimit:
    """Stops reading a body at the limit, whatever its Content-Length says."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        received = 0
        is_report = scope.get("path") == _PREFIX + secret_scanning.PATH
        limit = secret_scanning.MAX_REPORT_BYTES if is_report else MAX_BODY_BYTES

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise TooLarge(f"the body has more than {limit} bytes, which is the limit")
            if message["type"] == "http.disconnect" and scope["type"] == "http" and not scope.get("entrepot.status"):
                raise RequestInvalid("the client went away before its body was complete")
            return message

        await self._app(scope, receive_limited if scope["type"] == "http" else receive, send)
