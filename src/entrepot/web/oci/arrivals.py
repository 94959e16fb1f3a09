"""What is asked for and not here yet, but fetched because it is asked for (replication/pull_through.py).

Nothing here is called for what is here, nor before it was decided that the sender may have it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from entrepot.access.plans import TagLimits
from entrepot.access.scopes import Action
from entrepot.accounts.limits import Limiter
from entrepot.accounts.usage import UsageCounter
from entrepot.oci.digest import Digest
from entrepot.oci.reference import Reference, RepositoryName
from entrepot.registry.service import StoredManifest
from entrepot.replication.pull_through import PullThrough
from entrepot.replication.spools import Arrival
from entrepot.storage.blobs import OpenBlob
from entrepot.web.asgi import Headers
from entrepot.web.oci.exchange import API_VERSION, Exchange
from entrepot.web.visitors import Visitors

# What a digest names never changes (RFC 8246), but it is for whoever has shown who they are, not for shared caches.
IMMUTABLE = (b"cache-control", b"private, max-age=31536000, immutable")


class Arrivals:
    """Finds and sends it."""

    def __init__(self, pulls: PullThrough, usage: UsageCounter, limiter: Limiter, visitors: Visitors) -> None:
        self._pulls = pulls
        self._usage = usage
        self._limiter = limiter
        self._visitors = visitors

    async def find_manifest(self, exchange: Exchange, reference: Reference) -> StoredManifest | None:
        """A manifest, as soon as it may be served.

        Raises FetchUnfinished, or PullLimitExceeded before a source is asked.
        """
        if isinstance(reference, Digest) and _asks_what_is_here(exchange):
            return None
        principal = exchange.principal

        async def verify_may_ask() -> None:
            await self._limiter.verify_room(principal, self._visitors.of(exchange.request.scope).network)

        return await self._pulls.find_manifest(exchange.name, reference, principal.account_id, verify_may_ask)

    async def find_blob(self, exchange: Exchange, digest: Digest) -> OpenBlob | Arrival | int | None:
        """A blob, as soon as it can be read; for a HEAD, its size in bytes. Raises FetchUnfinished."""
        if exchange.is_head:
            return None if _asks_what_is_here(exchange) else await self._pulls.find_blob_size(exchange.name, digest)
        # A part would be complete before the whole could be judged.
        is_whole = not exchange.request.header(b"range")
        return await self._pulls.find_blob(exchange.name, digest, exchange.principal.account_id, is_whole=is_whole)

    async def send_blob(self, exchange: Exchange, digest: Digest, arriving: Arrival | int) -> None:
        """Send a blob as it arrives, or its headers. Raises ArrivalBroken, ClientGone."""
        size = arriving if isinstance(arriving, int) else arriving.size
        headers: Headers = [
            API_VERSION,
            (b"docker-content-digest", str(digest).encode()),
            (b"etag", f'"{digest}"'.encode()),
            IMMUTABLE,
            (b"content-type", b"application/octet-stream"),
            (b"accept-ranges", b"bytes"),
            (b"content-length", b"%d" % size),
        ]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        if isinstance(arriving, int):
            await exchange.send(start)
        else:
            async with _leaving_with_client(exchange, arriving), aclosing(arriving.pieces()) as pieces:
                # Once the answer has begun, it could only be broken off.
                first = await anext(pieces)
                self._usage.count_content(exchange.principal, exchange.name.value, str(digest), size)
                await exchange.send(start)
                await exchange.request.send_piece(exchange.send, first)
                async for piece in pieces:
                    await exchange.request.send_piece(exchange.send, piece)
        await exchange.send({"type": "http.response.body", "body": b""})

    async def leads_to(self, name: RepositoryName, digest: Digest, limits: TagLimits) -> bool:
        """Whether a tag that is on its way or has just arrived, and is allowed, leads to a manifest or blob."""
        return await self._pulls.leads_to(name, digest, limits)

    async def settle(self, exchange: Exchange, subject: Digest) -> None:
        """Wait until what speaks of a manifest that is on its way is here, too. Raises FetchUnfinished."""
        await self._pulls.settle(exchange.name, subject, exchange.principal.account_id)


@asynccontextmanager
async def _leaving_with_client(exchange: Exchange, arriving: Arrival) -> AsyncIterator[None]:
    """Let go of a blob as soon as the client goes away: while nothing comes, no piece that is sent would show that."""

    async def leave() -> None:
        if await exchange.request.is_left():
            arriving.leave()

    watching = asyncio.create_task(leave())
    try:
        yield
    finally:
        watching.cancel()


def _asks_what_is_here(exchange: Exchange) -> bool:
    """Whether a publisher asks in order to leave out what is here: then what is only on its way is not."""
    return exchange.is_head and exchange.may(exchange.name, Action.PUSH)
