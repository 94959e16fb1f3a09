"""What the plain ASGI faces share: reading requests within limits, and sending answers.

Source: ASGI 3.0, HTTP connection scope, with the `http.response.pathsend` extension.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import parse_qsl

from entrepot.errors import BlobTooLarge, ClientGone, RequestInvalid

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Address = IPv4Address | IPv6Address
Networks = Sequence[IPv4Network | IPv6Network]

# Longer than any client's query: two scopes, a mount, a page.
MAX_QUERY_BYTES = 8192
# On average; what is slower only keeps a connection busy. Any modem was faster.
LEAST_BYTES_PER_SECOND = 1024


class Request:
    """One HTTP request, its headers and query read only when asked for.

    `is_plus_literal`: a plus sign in the query is one, as in URIs (RFC 3986), and no space, as in forms.
    """

    __slots__ = ("_is_plus_literal", "_receive", "_stall_seconds", "method", "path", "scope")

    def __init__(self, scope: Scope, receive: Receive, *, stall_seconds: float, is_plus_literal: bool = False) -> None:
        self.scope = scope
        self._is_plus_literal = is_plus_literal
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive = receive
        self._stall_seconds = stall_seconds

    def header(self, name: bytes) -> str:
        """The first header of this lower-case name, empty when there is none."""
        for key, value in self.scope["headers"]:
            if key == name:
                text: str = value.decode("latin-1")
                return text
        return ""

    def query(self) -> list[tuple[str, str]]:
        """The query's pairs, decoded. Raises RequestInvalid when it is too long or not UTF-8."""
        raw: bytes = self.scope["query_string"]
        if self._is_plus_literal:
            raw = raw.replace(b"+", b"%2B")
        if len(raw) > MAX_QUERY_BYTES:
            raise RequestInvalid(f"the query has {len(raw)} bytes; at most {MAX_QUERY_BYTES} are read")
        if b"%00" in raw:
            # No database keeps it, so nothing can have it in its name.
            raise RequestInvalid("the query holds a NUL character")
        try:
            return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
        except ValueError as error:
            raise RequestInvalid("the query cannot be read; percent-encode it as UTF-8") from error

    def parameter(self, name: str) -> str | None:
        """The first query parameter of this name."""
        return next((value for key, value in self.query() if key == name), None)

    @property
    def has_body(self) -> bool:
        """Whether the client announced a body."""
        return bool(self.header(b"transfer-encoding")) or self.header(b"content-length") not in {"", "0"}

    def verify_announced(self, limit: int, error: type[Exception] = BlobTooLarge) -> None:
        """Raises `error` when the client announces more than `limit` bytes: then none of them need to be read."""
        announced = self.header(b"content-length")
        if announced.isdigit() and int(announced) > limit:
            raise error(f"a body of {announced} bytes was announced; at most {limit} are accepted")

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives.

        Raises ClientGone when the client breaks off, sends nothing for too long, or next to nothing.
        """
        is_more = self.has_body
        # Only what we wait for the client counts, not what it waits for us.
        waited, received = 0.0, 0
        while is_more:
            asked_at = time.monotonic()
            try:
                async with asyncio.timeout(self._stall_seconds):
                    message = await self._receive()
            except TimeoutError:
                raise ClientGone(f"nothing came for {self._stall_seconds:.0f} seconds; nothing was kept") from None
            if message["type"] == "http.disconnect":
                raise ClientGone("the client went away before its body was complete; nothing was kept")
            piece = message.get("body", b"")
            waited += time.monotonic() - asked_at
            received += len(piece)
            is_more = message.get("more_body", False)
            if is_more and waited > self._stall_seconds + received / LEAST_BYTES_PER_SECOND:
                raise ClientGone(f"less than {LEAST_BYTES_PER_SECOND} bytes a second came; nothing was kept")
            yield piece

    async def is_left(self) -> bool:
        """Return once the client goes away, which is True, or turns out to send what nobody reads."""
        for _ in range(2):  # the end of a body that is not there comes first
            if (await self._receive())["type"] == "http.disconnect":
                return True
        return False

    async def send_piece(self, send: Send, piece: bytes) -> None:
        """Send part of an answer's body. Raises ClientGone when the client reads nothing for too long."""
        try:
            async with asyncio.timeout(self._stall_seconds):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            raise ClientGone(
                f"nothing was read for {self._stall_seconds:.0f} seconds; the answer is broken off"
            ) from None

    async def body(self, limit: int, error: type[Exception] = BlobTooLarge) -> bytes:
        """The whole body; raises `error` beyond `limit` bytes, unread where the client announced its length."""
        self.verify_announced(limit, error)
        collected = bytearray()
        async for piece in self.pieces():
            collected += piece
            if len(collected) > limit:
                raise error(f"the body has more than {limit} bytes, which is the limit")
        return bytes(collected)


def client_address(scope: Scope, trusted: Networks) -> Address | None:
    """The address of the client, None when it cannot be told.

    Behind proxies whose networks are `trusted` it is the last address in X-Forwarded-For that is not one of theirs:
    what stands before it anybody could have written.
    """
    client = scope.get("client")
    peer = _parse_address(client[0]) if client else None
    if peer is None or not is_within(peer, trusted):
        return peer
    hops = [
        hop.strip()
        for key, value in scope["headers"]
        if key == b"x-forwarded-for"
        for hop in value.decode("latin-1").split(",")
    ]
    for hop in reversed(hops):
        address = _parse_address(hop)
        if address is None:
            return peer
        if not is_within(address, trusted):
            return address
        peer = address
    return peer


def is_within(address: Address, networks: Networks) -> bool:
    """Whether an address belongs to one of the networks."""
    return any(address in network for network in networks)


def _parse_address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A socket that takes both families shows IPv4 clients so (RFC 4291, section 2.5.5.2).
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


async def send_bytes(send: Send, status: int, headers: Headers, body: bytes, *, is_head: bool = False) -> None:
    """Answer with `body`, whose length is announced even when a HEAD leaves it out."""
    if status not in {204, 304}:  # which have none; a length would be another's (RFC 9110, 8.6)
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if is_head else body})


async def send_json(
    send: Send, status: int, document: object, headers: Iterable[tuple[bytes, bytes]] = (), *, is_head: bool = False
) -> None:
    """Answer with a JSON document."""
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    await send_bytes(send, status, [(b"content-type", b"application/json"), *headers], body, is_head=is_head)
