"""The ASGI application of `/v2/`: find the route, know the sender, decide, answer; refuse in one place."""

from collections.abc import Awaitable, Callable

import structlog

from entrepot.access.decisions import verify_allowed
from entrepot.access.scopes import Action
from entrepot.accounts.authentication import Authenticator, Principal
from entrepot.accounts.limits import Limiter
from entrepot.accounts.usage import UsageCounter
from entrepot.errors import (
    EntrepotError,
    FetchUnfinished,
    PullLimitExceeded,
    RangeNotSatisfiable,
    ScopeInsufficient,
    TokenInvalid,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unsupported,
    UploadOffsetWrong,
)
from entrepot.oci.reference import RepositoryName
from entrepot.registry.service import Registry
from entrepot.registry.uploads import Uploads
from entrepot.replication.pull_through import PullThrough
from entrepot.web.asgi import Headers, Receive, Request, Scope, Send, send_json
from entrepot.web.basic import read_basic
from entrepot.web.errors import error_document, find_answer
from entrepot.web.limits import retry_headers
from entrepot.web.oci.arrivals import Arrivals
from entrepot.web.oci.errors import ANSWERS
from entrepot.web.oci.exchange import API_VERSION, Exchange
from entrepot.web.oci.memory import Memory
from entrepot.web.oci.pull import Pull, Redirects
from entrepot.web.oci.push import Push
from entrepot.web.oci.routes import Route, find_route
from entrepot.web.refusals import Refusals
from entrepot.web.visitors import Visitors

Method = Callable[[Exchange], Awaitable[None]]

_RETRY_AFTER_SECONDS = 5

log = structlog.get_logger(__name__)

_NOWHERE = RepositoryName("none")


class OciFace:
    """`/v2/*`.

    `realm` is the address of the token service, `service` the name that tokens are made out to. `redirects` None: every
    byte goes through this server. `chunk_bytes_min` is the length that chunks of uploads are asked to have.
    """

    def __init__(
        self,
        registry: Registry,
        uploads: Uploads,
        authenticator: Authenticator,
        usage: UsageCounter,
        limiter: Limiter,
        visitors: Visitors,
        refusals: Refusals,
        pulls: PullThrough,
        *,
        realm: str,
        service: str,
        stall_seconds: float,
        redirects: Redirects | None,
        max_blob_bytes: int,
        chunk_bytes_min: int,
    ) -> None:
        self._authenticator = authenticator
        self._visitors = visitors
        self._refusals = refusals
        self._challenge = f'Bearer realm="{realm}",service="{service}"'
        self._stall_seconds = stall_seconds
        self._memory = Memory(authenticator, registry)
        arrivals = Arrivals(pulls, usage, limiter, visitors)
        pull = self._pull = Pull(registry, usage, limiter, visitors, self._memory, arrivals, redirects)
        push = Push(registry, uploads, max_blob_bytes=max_blob_bytes, chunk_bytes_min=chunk_bytes_min)
        self._catalog = pull.catalog
        self._methods: dict[tuple[str, str], tuple[Action, Method]] = {
            ("manifest", "GET"): (Action.PULL, pull.manifest),
            ("manifest", "HEAD"): (Action.PULL, pull.manifest),
            ("manifest", "PUT"): (Action.PUSH, push.put_manifest),
            ("manifest", "DELETE"): (Action.DELETE, push.delete_manifest),
            ("blob", "GET"): (Action.PULL, pull.blob),
            ("blob", "HEAD"): (Action.PULL, pull.blob),
            ("blob", "DELETE"): (Action.DELETE, push.delete_blob),
            ("referrers", "GET"): (Action.PULL, pull.referrers),
            ("referrers", "HEAD"): (Action.PULL, pull.referrers),
            ("tags", "GET"): (Action.PULL, pull.tags),
            ("tags", "HEAD"): (Action.PULL, pull.tags),
            ("uploads", "POST"): (Action.PUSH, push.begin_upload),
            ("upload", "GET"): (Action.PUSH, push.upload_status),
            ("upload", "HEAD"): (Action.PUSH, push.upload_status),
            ("upload", "PATCH"): (Action.PUSH, push.append_chunk),
            ("upload", "PUT"): (Action.PUSH, push.finish_upload),
            ("upload", "DELETE"): (Action.PUSH, push.cancel_upload),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] == "GET" and (known := self._memory.find(scope)) is not None:
            scope["entrepot.route"] = "manifest"
            try:
                await self._pull.answer(known, scope, send)
            except PullLimitExceeded as error:
                scope["entrepot.repository"] = known.name.value
                self._refusals.know(scope, known.principal.account_id, known.principal.account)
                await self._refuse(self._request(scope, receive), send, error)
            return
        request = self._request(scope, receive)
        try:
            await self._answer(request, send)
        except EntrepotError as error:
            if scope.get("entrepot.status"):  # an answer has begun, and can only be broken off
                raise
            await self._refuse(request, send, error)

    def _request(self, scope: Scope, receive: Receive) -> Request:
        # Nothing in these queries has spaces, but media types have plus signs.
        return Request(scope, receive, stall_seconds=self._stall_seconds, is_plus_literal=True)

    async def _answer(self, request: Request, send: Send) -> None:
        raw_path = request.scope["raw_path"].decode("latin-1")
        if raw_path in {"/v2/", "/v2"}:
            request.scope["entrepot.route"] = "ping"
            await self._authenticate(request)
            _verify_reading(request)
            await send_json(send, 200, {}, [API_VERSION], is_head=request.method == "HEAD")
            return
        if raw_path == "/v2/_catalog":
            request.scope["entrepot.route"] = "catalog"
            request.scope["entrepot.challenge"] = "registry:catalog:*"
            principal = await self._authenticate(request)
            _verify_reading(request)
            await self._catalog(Exchange(request, send, principal, _NOWHERE, ""))
            return
        route = find_route(raw_path)
        request.scope["entrepot.route"] = route.kind
        request.scope["entrepot.repository"] = route.name.value
        action, method = self._find_method(request, route)
        principal = await self._authenticate(request)
        verify_allowed(principal.plan, principal.scopes, route.name, action)
        await method(Exchange(request, send, principal, route.name, route.item))

    def _find_method(self, request: Request, route: Route) -> tuple[Action, Method]:
        found = self._methods.get((route.kind, request.method))
        if found is None:
            possible = [method for kind, method in self._methods if kind == route.kind]
            raise _unsupported(request, possible)
        actions = "pull" if found[0] is Action.PULL else f"pull,{found[0]}"
        request.scope["entrepot.challenge"] = f"repository:{route.name}:{actions}"
        return found

    async def _authenticate(self, request: Request) -> Principal:
        """Who asks. Raises Unauthenticated's kinds."""
        principal = await self._find_principal(request)
        self._refusals.know(request.scope, principal.account_id, principal.account)
        return principal

    async def _find_principal(self, request: Request) -> Principal:
        """Source: RFC 6750 (Bearer), RFC 7617 (Basic)."""
        scheme, _, value = request.header(b"authorization").partition(" ")
        match scheme.lower():
            case "bearer":
                return await self._authenticator.authenticate_token(value)
            case "basic":
                return await self._authenticator.log_in(*read_basic(value), self._visitors.site_of(request.scope))
            case "":
                raise Unauthenticated("authentication required: log in with the username and secret of your credential")
            case _:
                raise Unauthenticated("this kind of authorization is not known here; use Bearer or Basic")

    async def _refuse(self, request: Request, send: Send, error: EntrepotError) -> None:
        status, code = find_answer(ANSWERS, error)
        headers: Headers = [API_VERSION]
        if status == 401:  # noqa: PLR2004 - RFC 9110, 15.5.2
            headers.append((b"www-authenticate", self._challenge_for(request, error).encode("latin-1", "replace")))
        if isinstance(error, UploadOffsetWrong):
            headers += [
                (b"location", request.scope["raw_path"]),
                (b"range", b"0-%d" % max(error.expected - 1, 0)),
            ]
        if status == 405:  # noqa: PLR2004 - RFC 9110, 15.5.6
            headers.append((b"allow", request.scope["entrepot.possible"].encode()))
        if isinstance(error, RangeNotSatisfiable):
            headers.append((b"content-range", b"bytes */%d" % error.size))  # RFC 9110, 15.5.17
        if isinstance(error, Unavailable):
            headers.append((b"retry-after", b"%d" % _RETRY_AFTER_SECONDS))
        if isinstance(error, TooManyRequests):
            headers += retry_headers(error)
        if request.has_body:
            # What is left of the body is not read, so the connection cannot serve another request.
            headers.append((b"connection", b"close"))
        # A source that is away was noted once, and not for each client that waited for it.
        if status >= 500 and not isinstance(error, FetchUnfinished):  # noqa: PLR2004
            log.error("request_failed", path=request.path, method=request.method, error=str(error), exc_info=error)
        message = self._refusals.tell(request.scope, error, request.scope.get("entrepot.repository", ""))
        await send_json(send, status, error_document(code, message), headers, is_head=request.method == "HEAD")

    def _challenge_for(self, request: Request, error: EntrepotError) -> str:
        """Where to get a token, and for what. Source: docker token spec; RFC 6750, section 3."""
        challenge = self._challenge
        if scope := request.scope.get("entrepot.challenge"):
            challenge += f',scope="{scope}"'
        if isinstance(error, TokenInvalid):
            challenge += ',error="invalid_token"'
        if isinstance(error, ScopeInsufficient):
            challenge += ',error="insufficient_scope"'
        return challenge


def _verify_reading(request: Request) -> None:
    if request.method not in {"GET", "HEAD"}:
        raise _unsupported(request, ["GET", "HEAD"])


def _unsupported(request: Request, possible: list[str]) -> Unsupported:
    request.scope["entrepot.possible"] = ", ".join(possible)
    return Unsupported(f"{request.method[:20]} is not possible here; {', '.join(possible)} are")
