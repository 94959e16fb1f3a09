"""One request to the registry whose sender is known and may do it."""

from dataclasses import dataclass

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

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole answer."""
        await send_bytes(self.send, status, [API_VERSION, *headers], body, is_head=self.is_head)

    async def answer_page(self, key: str, names: list[str], path: str, *, is_last: bool, extra: dict[str, str]) -> None:
        """Send part of a list, with a Link to what follows.

        Spec: distribution-spec 1.1, "Listing Tags"; RFC 5988.
        """
        headers: Headers = [API_VERSION]
        if not is_last and names:
            target = f"{path}?n={len(names)}&last={names[-1]}"
            headers.append((b"link", f'<{target}>; rel="next"'.encode()))
        await send_json(self.send, 200, {**extra, key: names}, headers, is_head=self.is_head)


def read_page(request: Request, max_page: int) -> tuple[str, int]:
    """(`last`, number of entries) that a list request asks for. Raises RequestInvalid."""
    wanted = request.parameter("n")
    if wanted is None:
        count = max_page
    elif wanted.isascii() and wanted.isdigit() and len(wanted) <= 9:  # noqa: PLR2004 - more than any list has
        count = min(int(wanted), max_page)
    else:
        raise RequestInvalid(f"n={wanted[:30]!r}: give the number of entries wanted, 0 or more")
    return request.parameter("last") or "", count
