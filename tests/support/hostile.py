"""A registry that serves what it was given, and misbehaves as it was told."""

import asyncio
import json
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from tests.support.content import Image, index_of

Misbehave = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Answers a request in place of the registry; None lets the registry answer."""

PIECE_BYTES = 64 * 1024


@dataclass
class HostileRegistry:
    """Speaks distribution-spec 1.1, "Pull" and "Content Discovery", without login unless told otherwise."""

    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    tags: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    page: int = 1000
    has_referrers: bool = False
    misbehave: Misbehave | None = None
    seen: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def put_manifest(self, repository: str, content: bytes, media_type: str, tag: str | None = None) -> str:
        """Serve a manifest; answers its digest."""
        digest = str(Digest.of(content))
        self.manifests[repository, digest] = (media_type, content)
        if tag is not None:
            self.manifests[repository, tag] = (media_type, content)
            self.tags[repository].append(tag)
        return digest

    def delete_tag(self, repository: str, tag: str) -> None:
        """Serve a tag no more."""
        self.tags[repository].remove(tag)
        del self.manifests[repository, tag]

    def put_image(self, repository: str, tag: str | None = None, image: Image | None = None) -> Image:
        """Serve an image."""
        image = image or Image()
        for content in (image.config, image.layer):
            self.blobs[str(Digest.of(content))] = content
        self.put_manifest(repository, image.manifest, media_types.OCI_MANIFEST, tag)
        return image

    def put_index(self, repository: str, tag: str, *images: Image) -> str:
        """Serve an index of images; answers its digest."""
        for image in images:
            self.put_image(repository, image=image)
        return self.put_manifest(repository, index_of(*images), media_types.OCI_INDEX, tag)

    def count(self, *words: str) -> int:
        """How many requests had all these words in their first line."""
        return sum(all(word in line for word in words) for line in self.seen)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        self.seen.append(f"{request.method} {request.path_qs}")
        self.authorizations.append(request.headers.get("Authorization"))
        if self.misbehave is not None and (answer := await self.misbehave(request)) is not None:
            return answer
        return await self.behave(request)

    async def behave(self, request: web.Request) -> web.StreamResponse:
        """One request, answered as a registry does."""
        path = request.path.removeprefix("/v2/")
        if path == "_catalog":
            return self._page(request, sorted(self.tags), "repositories")
        if path.endswith("/tags/list"):
            name = path.removesuffix("/tags/list")
            if name not in self.tags:
                return _error(404, "NAME_UNKNOWN")
            return self._page(request, sorted(self.tags[name]), "tags")
        name, _, subject = path.partition("/referrers/")
        if subject and self.has_referrers:
            return self._referrers(request, name, subject)
        return self._content(request, path)

    def put_fallback(self, repository: str, subject: str, *digests: str) -> str:
        """Serve the tag that lists what speaks of a manifest; answers its digest."""
        entries = [self._describe(repository, digest) for digest in digests]
        document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}
        tag = subject.replace(":", "-")
        if tag in self.tags[repository]:
            self.tags[repository].remove(tag)
        return self.put_manifest(repository, json.dumps(document).encode(), media_types.OCI_INDEX, tag)

    def _referrers(self, request: web.Request, name: str, subject: str) -> web.Response:
        digests = [
            reference
            for (repository, reference), (_, content) in sorted(self.manifests.items())
            if repository == name and ":" in reference
            if (json.loads(content).get("subject") or {}).get("digest") == subject
        ]
        rest = [digest for digest in digests if digest > request.query.get("last", "")]
        headers = {}
        if len(rest) > self.page:
            headers["Link"] = f'<{request.path}?last={rest[self.page - 1]}>; rel="next"'
        entries = [self._describe(name, digest) for digest in rest[: self.page]]
        document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}
        return web.Response(body=json.dumps(document), content_type=media_types.OCI_INDEX, headers=headers)

    def _describe(self, repository: str, digest: str) -> dict[str, Any]:
        media_type, content = self.manifests[repository, digest]
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _content(self, request: web.Request, path: str) -> web.Response:
        name, _, reference = path.rpartition("/")
        if name.endswith("/manifests"):
            found = self.manifests.get((name.removesuffix("/manifests"), reference))
            if found is None:
                return _error(404, "MANIFEST_UNKNOWN")
            digest = str(Digest.of(found[1]))
            headers = {"Content-Type": found[0], "Docker-Content-Digest": digest}
            return web.Response(body=found[1], headers=headers)
        if reference in self.blobs:
            return self._blob(request, self.blobs[reference])
        return _error(404, "BLOB_UNKNOWN")

    def _page(self, request: web.Request, names: list[str], field: str) -> web.Response:
        last, limit = request.query.get("last", ""), min(int(request.query.get("n", "1000")), self.page)
        rest = [name for name in names if name > last]
        headers = {}
        if len(rest) > limit:
            headers["Link"] = f'<{request.path}?n={limit}&last={rest[limit - 1]}>; rel="next"'
        return web.json_response({field: rest[:limit]}, headers=headers)

    def _blob(self, request: web.Request, content: bytes) -> web.Response:
        start = request.http_range.start or 0
        if start == 0:
            return web.Response(body=content, content_type="application/octet-stream")
        part = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return web.Response(status=206, body=content[start:], headers={"Content-Range": part})


async def send_pieces(
    request: web.Request, pieces: AsyncIterator[bytes] | list[bytes], *, length: int | None = None, pause: float = 0
) -> web.StreamResponse:
    """Send a body piece by piece; chunked when no `length` is announced, and broken off when it is too long."""
    answer = web.StreamResponse()
    if length is None:
        answer.enable_chunked_encoding()
    else:
        answer.content_length = length
    await answer.prepare(request)
    if isinstance(pieces, list):
        pieces = _each(pieces)
    async for piece in pieces:
        await answer.write(piece)
        await asyncio.sleep(pause)
    if length is not None and request.transport is not None:
        request.transport.close()
    return answer


async def _each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _error(status: int, code: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": "no such thing"}]}, status=status)


@asynccontextmanager
async def serving(
    registry: HostileRegistry | None = None, address: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[HostileRegistry]:
    """A hostile registry on a free port of this machine."""
    registry = registry or HostileRegistry()
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", registry.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, address, 0, ssl_context=tls)
    await site.start()
    registry.url = f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield registry
    finally:
        await runner.cleanup()


class Gate:
    """Holds up a blob after its first bytes, until it is opened."""

    def __init__(self, hostile: HostileRegistry, content: bytes, first: int = 100_000) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        self._content = content
        self._first = first
        hostile.misbehave = self.misbehave

    async def misbehave(self, request: web.Request) -> web.StreamResponse | None:
        """Answer for the blob."""
        if str(Digest.of(self._content)) not in request.path or self.opened.is_set():
            return None
        answer = web.StreamResponse(headers={"Content-Length": str(len(self._content))})
        await answer.prepare(request)
        await answer.write(self._content[: self._first])
        self.reached.set()
        await self.opened.wait()
        await answer.write(self._content[self._first :])
        return answer
