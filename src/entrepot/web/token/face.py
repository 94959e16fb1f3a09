"""The ASGI application of `/token`: a credential in, a token of five minutes out; and the keys that tokens verify by.

Source: docker token spec ("Token Authentication Specification") for GET with Basic; its OAuth2 variant ("Docker
Registry v2 authentication using OAuth2") for POST. Clients differ: docker sends no scope when it logs in, crane repeats
`scope`, containerd and helm send several separated by spaces. A scope that the plan does not grant is left out of the
token, as the spec asks; what it would have been for is then refused by the registry, with the reason.

A client that asks for offline access, as docker does when it logs in, gets a refresh token beside it, and stores that
in place of the secret.
"""

from datetime import UTC, datetime
from urllib.parse import parse_qsl

import structlog

from entrepot.access.decisions import grant_scopes
from entrepot.access.scopes import parse_scopes
from entrepot.access.secrets import Secret
from entrepot.accounts.authentication import Authenticator, Principal
from entrepot.accounts.tokens import LIFETIME, Tokens
from entrepot.accounts.usage import UsageCounter
from entrepot.errors import EntrepotError, RequestInvalid, TooManyRequests, Unauthenticated, Unsupported
from entrepot.web.asgi import Headers, Receive, Request, Scope, Send, send_json
from entrepot.web.basic import read_basic
from entrepot.web.errors import error_document, find_answer
from entrepot.web.limits import retry_headers
from entrepot.web.refusals import Refusals
from entrepot.web.token.errors import ANSWERS
from entrepot.web.visitors import Visitors

_MAX_FORM_BYTES = 16 * 1024
_NO_STORE = (b"cache-control", b"no-store")
JWKS_PATH = "/.well-known/jwks.json"
# A key is in the set for a month before it signs anything, so an hour's age does no harm.
_JWKS_AGE = (b"cache-control", b"public, max-age=3600")

log = structlog.get_logger(__name__)


class TokenFace:
    """`/token`, for the one registry that is named `service`."""

    def __init__(
        self,
        authenticator: Authenticator,
        tokens: Tokens,
        usage: UsageCounter,
        visitors: Visitors,
        refusals: Refusals,
        *,
        service: str,
        stall_seconds: float,
    ) -> None:
        self._authenticator = authenticator
        self._tokens = tokens
        self._usage = usage
        self._visitors = visitors
        self._refusals = refusals
        self._service = service
        self._stall_seconds = stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        scope["entrepot.route"] = "token"
        request = Request(scope, receive, stall_seconds=self._stall_seconds)
        try:
            await self._answer(request, send)
        except EntrepotError as error:
            await self._refuse(request, send, error)

    async def _answer(self, request: Request, send: Send) -> None:
        if request.path == JWKS_PATH:
            await self._answer_keys(request, send)
            return
        if request.path != "/token" or request.method not in {"GET", "POST"}:
            raise Unsupported("tokens are issued on GET and POST of /token")
        is_oauth = request.method == "POST"
        fields = await _read_form(request) if is_oauth else request.query()
        self._verify_service([value for key, value in fields if key == "service"])
        wanted = parse_scopes(value for key, value in fields if key == "scope")
        given = dict(fields)
        site = self._visitors.site_of(request.scope)
        if is_oauth:
            principal = await self._authenticate_grant(given, site)
        else:
            principal = await self._authenticator.log_in(*_read_authorization(request), site)
        granted = grant_scopes(principal.plan, wanted)
        token = self._tokens.issue(principal.account, principal.credential_id, granted)
        document = {
            "token": token,
            "access_token": token,
            "expires_in": int(LIFETIME.total_seconds()),
            "issued_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        if is_oauth:
            document["scope"] = " ".join(map(str, granted))
        if _wants_refresh_token(given):
            document["refresh_token"] = self._authenticator.refresh_token(principal).reveal()
        self._usage.count_login(principal)
        await send_json(send, 200, document, [_NO_STORE])

    async def _answer_keys(self, request: Request, send: Send) -> None:
        request.scope["entrepot.route"] = "jwks"
        if request.method not in {"GET", "HEAD"}:
            raise Unsupported(f"the keys of tokens are read with GET of {JWKS_PATH}")
        await send_json(send, 200, self._tokens.describe_keys(), [_JWKS_AGE], is_head=request.method == "HEAD")

    async def _authenticate_grant(self, given: dict[str, str], site: str) -> Principal:
        """Who asks by OAuth2. Source: RFC 6749, sections 4.3 and 6."""
        match given.get("grant_type", ""):
            case "password":
                if "username" not in given or "password" not in given:
                    raise Unauthenticated("authentication required: send the username and secret of your credential")
                return await self._authenticator.log_in(given["username"], Secret(given["password"]), site)
            case "refresh_token":
                if "refresh_token" not in given:
                    raise Unauthenticated("authentication required: send the refresh_token, or log in again")
                return await self._authenticator.log_in_again(Secret(given["refresh_token"]), site)
            case grant:
                raise RequestInvalid(f"grant_type {grant[:40]!r} is not supported; use password, or GET with Basic")

    async def _refuse(self, request: Request, send: Send, error: EntrepotError) -> None:
        status, code = find_answer(ANSWERS, error)
        headers: Headers = [_NO_STORE]
        if status == 401:  # noqa: PLR2004 - RFC 9110, 15.5.2
            headers.append((b"www-authenticate", b'Basic realm="entrepot", charset="UTF-8"'))
        if status == 503:  # noqa: PLR2004
            headers.append((b"retry-after", b"5"))
        if isinstance(error, TooManyRequests):
            headers += retry_headers(error)
        if request.has_body:
            headers.append((b"connection", b"close"))
        if status >= 500:  # noqa: PLR2004
            log.error("token_failed", error=str(error), exc_info=error)
        await send_json(
            send,
            status,
            error_document(code, self._refusals.tell(request.scope, error)),
            headers,
            is_head=request.method == "HEAD",
        )

    def _verify_service(self, named: list[str]) -> None:
        """A client that names another service was sent here by mistake, and would get a token of no use."""
        for service in named:
            if service != self._service:
                raise RequestInvalid(f"this server issues tokens for {self._service!r}, not for {service[:80]!r}")


def _read_authorization(request: Request) -> tuple[str, Secret]:
    scheme, _, value = request.header(b"authorization").partition(" ")
    if scheme.lower() != "basic":
        raise Unauthenticated("authentication required: log in with the username and secret of your credential")
    return read_basic(value)


def _wants_refresh_token(given: dict[str, str]) -> bool:
    """Whether to answer a refresh token: GET asks by `offline_token`, OAuth2 by `access_type`, or has one already."""
    return (
        given.get("offline_token", "").lower() == "true"
        or given.get("access_type") == "offline"
        or given.get("grant_type") == "refresh_token"
    )


async def _read_form(request: Request) -> list[tuple[str, str]]:
    body = await request.body(_MAX_FORM_BYTES)
    if b"%00" in body or b"\x00" in body:
        # As in a query: no database keeps it.
        raise RequestInvalid("the form holds a NUL character")
    try:
        return parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError as error:
        raise RequestInvalid("the body is not a form (application/x-www-form-urlencoded)") from error
