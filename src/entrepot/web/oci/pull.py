"""Reading: manifests, blobs, tags and the list of repositories.

Spec: distribution-spec 1.1, "Pull" and "Content Discovery".
"""

import re

from entrepot.access.scopes import Action
from entrepot.accounts.usage import UsageCounter
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import Reference, RepositoryName, Tag, parse_reference
from entrepot.registry.service import MAX_PAGE, Registry, StoredManifest
from entrepot.storage.blobs import OpenBlob
from entrepot.web.asgi import Headers
from entrepot.web.oci.exchange import API_VERSION, Exchange, read_page

# Where clients look for what speaks of a digest: cosign's tags, and the fallback of distribution-spec 1.1 ("Referrers
# Tag Schema"). Fetching them is not a pull of the artifact.
_REFERRER_TAG = re.compile(r"sha256-[0-9a-f]{64}(?:\.[a-z]+)?")


class Pull:
    """The reading half of `/v2/`."""

    def __init__(self, registry: Registry, usage: UsageCounter) -> None:
        self._registry = registry
        self._usage = usage

    async def manifest(self, exchange: Exchange) -> None:
        """GET or HEAD `/v2/<name>/manifests/<reference>`."""
        reference = parse_reference(exchange.item)
        stored = self._registry.find_cached_manifest(exchange.name, reference) or await self._registry.pull_manifest(
            exchange.name, reference
        )
        digest = str(stored.digest).encode()
        headers: Headers = [
            (b"content-type", stored.media_type.encode()),
            (b"docker-content-digest", digest),
            (b"etag", b'"%b"' % digest),
        ]
        if exchange.request.header(b"if-none-match") == f'"{stored.digest}"':
            await exchange.answer(304, headers)
            return
        await exchange.answer(200, headers, stored.content)
        if not exchange.is_head:
            self._count(exchange, reference, stored)

    def _count(self, exchange: Exchange, reference: Reference, stored: StoredManifest) -> None:
        """A pull is one manifest GET that names a tag or a top-level digest; the rest is only bytes."""
        is_pull = stored.is_top_level and not (isinstance(reference, Tag) and _REFERRER_TAG.fullmatch(reference.value))
        count = self._usage.count_pull if is_pull else self._usage.count_bytes
        count(exchange.principal.account_id, exchange.name.value, len(stored.content))

    async def blob(self, exchange: Exchange) -> None:
        """GET or HEAD `/v2/<name>/blobs/<digest>`, whole or one range of it."""
        digest = Digest.parse(exchange.item)
        blob = await self._registry.open_blob(exchange.name, digest)
        headers: Headers = [
            API_VERSION,
            (b"content-type", b"application/octet-stream"),
            (b"docker-content-digest", str(digest).encode()),
            (b"etag", f'"{digest}"'.encode()),
            (b"accept-ranges", b"bytes"),
        ]
        part = None
        if not exchange.is_head:
            part = ByteRange.parse(exchange.request.header(b"range"), blob.size)
        if part is not None:
            headers.append((b"content-range", part.content_range(blob.size).encode()))
        served = part or ByteRange(0, blob.size)
        headers.append((b"content-length", b"%d" % served.size))
        await exchange.send({"type": "http.response.start", "status": 200 if part is None else 206, "headers": headers})
        if exchange.is_head:
            await exchange.send({"type": "http.response.body", "body": b""})
            return
        self._usage.count_bytes(exchange.principal.account_id, exchange.name.value, served.size)
        await _send_blob(exchange, blob, served)

    async def tags(self, exchange: Exchange) -> None:
        """GET `/v2/<name>/tags/list`."""
        after, count = read_page(exchange.request, MAX_PAGE)
        page = await self._registry.list_tags(exchange.name, after, count)
        path = f"/v2/{exchange.name}/tags/list"
        await exchange.answer_page("tags", page.names, path, is_last=page.is_last, extra={"name": str(exchange.name)})

    async def catalog(self, exchange: Exchange) -> None:
        """GET `/v2/_catalog`: the repositories from which the asker may pull.

        Source: CNCF distribution's API, "Listing Repositories"; the distribution spec has no such list.
        """

        def is_visible(name: RepositoryName) -> bool:
            return exchange.principal.plan.allows(name, Action.PULL)

        after, count = read_page(exchange.request, MAX_PAGE)
        page = await self._registry.list_repositories(after, count, is_visible)
        await exchange.answer_page("repositories", page.names, "/v2/_catalog", is_last=page.is_last, extra={})


async def _send_blob(exchange: Exchange, blob: OpenBlob, part: ByteRange) -> None:
    """Let the server send a whole file by itself; stream what is only a part, or lies elsewhere."""
    is_whole = part.size == blob.size
    if is_whole and blob.path is not None and "http.response.pathsend" in exchange.request.scope.get("extensions", {}):
        await exchange.send({"type": "http.response.pathsend", "path": str(blob.path)})
        return
    if part.size:
        async for piece in blob.pieces(part):
            await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
    await exchange.send({"type": "http.response.body", "body": b""})
