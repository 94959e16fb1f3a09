"""One request to the registry whose sender is known and may do it."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from entrepot.access.decisions import is_allowed
from entrepot.access.scopes import Action
from entrepot.accounts.authentication import Principal
from entrepot.errors import RequestInvalid
from entrepot.oci.reference import RepositoryName
from entrepot.web.asgi import Headers, Request, Send, send_bytes, send_json

# Docker looks for it to tell a registry from other servers.
API_VERSION = (b"docker-distribution-api-version", b"registry/2.0")


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a route's method works with; `item` is the part of the path behind the route's name, not parsed yet."""

    request: Request
    send: Send
    principal: Principal
    name: RepositoryName
    item: str

    @property
    def is_head(self) -> bool:
        """Whether only the headers are wanted."""
        return self.request.method == "HEAD"

    def may(self, repository: RepositoryName, action: Action) -> bool:
        """Whether the asker may do that with any repository, this one or another."""
        return is_allowed(self.principal.plan, self.principal.scopes, repository, action)

    def widen_challenge(self, repository: RepositoryName, action: Action) -> None:
        """Let a refusal for want of a scope ask for this one as well. Source: docker token spec, "scope"."""
        self.request.scope["entrepot.challenge"] += f" repository:{repository}:{action}"

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole answer."""
        await send_bytes(self.send, status, [API_VERSION, *headers], body, is_head=self.is_head)

    async def answer_page(self, key: str, names: list[str], path: str, *, is_last: bool, extra: dict[str, str]) -> None:
        """Send part of a list, with a Link to what follows.

        Spec: distribution-spec 1.1, "Listing Tags"; RFC 5988.
        """
        headers: Headers = [API_VERSION]
        if not is_last and names:
            headers.append(next_page(path, {"n": str(len(names)), "last": names[-1]}))
        await send_json(self.send, 200, {**extra, key: names}, headers, is_head=self.is_head)


def next_page(path: str, query: dict[str, str]) -> tuple[bytes, bytes]:
    """The Link header to what follows."""
    return (b"link", f'<{path}?{urlencode(query, safe="/")}>; rel="next"'.encode())


def matches_etag(header: str, etag: str, *, is_strong: bool = False) -> bool:
    """Whether a list of entity tags names this one, by weak or strong comparison (RFC 9110, section 8.8.3.2)."""
    if header.strip() == "*":
        return True
    tags = (one.strip() for one in header.split(","))
    return any((tag if is_strong else tag.removeprefix("W/")) == etag for tag in tags)


def read_condition(request: Request) -> Callable[[str | None], bool] | None:
    """What a change depends on: whether it may happen to something with this digest now, None when it is not there.

    Source: RFC 9110, sections 13.1.1 (If-Match) and 13.1.2 (If-None-Match).
    """
    wanted, unwanted = request.header(b"if-match"), request.header(b"if-none-match")
    if not wanted and not unwanted:
        return None

    def holds(digest: str | None) -> bool:
        if wanted and (digest is None or not matches_etag(wanted, f'"{digest}"', is_strong=True)):
            return False
        return not unwanted or digest is None or not matches_etag(unwanted, f'"{digest}"')

    return holds


def read_page(request: Request, max_page: int) -> tuple[str, int]:
    """(`last`, number of entries) that a list request asks for. Raises RequestInvalid."""
    wanted = request.parameter("n")
    if wanted is None:
        count = max_page
    elif wanted.isascii() and wanted.isdigit() and len(wanted) <= 19:  # noqa: PLR2004 - 2**63
        count = min(int(wanted), max_page)
    else:
        raise RequestInvalid(f"n={wanted[:30]!r}: give the number of entries wanted, 0 or more")
    return request.parameter("last") or "", count
