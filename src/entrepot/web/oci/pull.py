"""Reading: manifests, blobs, tags, referrers and the list of repositories.

Spec: distribution-spec 1.1, "Pull" and "Content Discovery".
"""

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from entrepot.access.decisions import tags_denied
from entrepot.access.scopes import Action
from entrepot.accounts.limits import Limiter
from entrepot.accounts.usage import UsageCounter
from entrepot.errors import BlobUnknown, ManifestUnknown, NameUnknown
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import ByteRange
from entrepot.oci.reference import Reference, RepositoryName, Tag, parse_reference, subject_of
from entrepot.registry.service import MAX_PAGE, Referrer, Registry, StoredManifest
from entrepot.storage.blobs import OpenBlob
from entrepot.web.asgi import Headers, Networks, Scope, Send, client_address, is_within, send_bytes
from entrepot.web.limits import limit_headers
from entrepot.web.oci.arrivals import IMMUTABLE, Arrivals
from entrepot.web.oci.exchange import API_VERSION, Exchange, matches_etag, next_page, read_page
from entrepot.web.oci.memory import Memory, Remembered
from entrepot.web.visitors import Visitors

# A tag may move, so a cached answer must be asked about.
_REVALIDATED = (b"cache-control", b"private, no-cache")


@dataclass(frozen=True, slots=True)
class Redirects:
    """Who is sent to blob storage itself, by a URL that lives so long: everybody but clients of some networks."""

    lifetime: timedelta
    exempt: Networks
    trusted_proxies: Networks


class Pull:
    """The reading half of `/v2/`. `redirects` None: every byte goes through this server."""

    def __init__(
        self,
        registry: Registry,
        usage: UsageCounter,
        limiter: Limiter,
        visitors: Visitors,
        memory: Memory,
        arrivals: Arrivals,
        redirects: Redirects | None,
    ) -> None:
        self._registry = registry
        self._usage = usage
        self._limiter = limiter
        self._visitors = visitors
        self._memory = memory
        self._arrivals = arrivals
        self._redirects = redirects

    async def manifest(self, exchange: Exchange) -> None:
        """GET or HEAD `/v2/<name>/manifests/<reference>`."""
        reference = parse_reference(exchange.item)
        generation = await self._verify_reached(exchange, reference)
        stored = await self._find_manifest(exchange, reference)
        digest = str(stored.digest)
        headers: Headers = [
            API_VERSION,
            (b"content-type", stored.media_type.encode()),
            (b"docker-content-digest", digest.encode()),
            (b"etag", f'"{digest}"'.encode()),
            _REVALIDATED if isinstance(reference, Tag) else IMMUTABLE,
        ]
        known = exchange.request.header(b"if-none-match")
        is_same = known and matches_etag(known, f'"{digest}"')
        if is_same or exchange.is_head:
            # Neither is a pull, but both tell how many are left.
            headers += limit_headers(await self._limiter.look(exchange.principal))
            await send_bytes(exchange.send, 304 if is_same else 200, headers, stored.content, is_head=True)
            return
        headers.append((b"content-length", b"%d" % len(stored.content)))
        is_pull = _is_pull(reference, stored)
        answer = Remembered(exchange.principal, exchange.name, reference, stored, headers, is_pull, generation)
        await self.answer(answer, exchange.request.scope, exchange.send)
        if self._registry.is_still(exchange.name, reference, stored):
            self._memory.keep(answer, exchange.request.scope)

    async def _find_manifest(self, exchange: Exchange, reference: Reference) -> StoredManifest:
        """What `reference` names here, or is about to. Raises ManifestUnknown or NameUnknown."""
        try:
            stored = await self._registry.pull_manifest(exchange.name, reference)
            if exchange.is_head and exchange.may(exchange.name, Action.PUSH):
                # A publisher asks in order to leave out what is here.
                await self._registry.verify_held_manifest(exchange.name, stored.digest)
        except (ManifestUnknown, NameUnknown):
            arriving = await self._arrivals.find_manifest(exchange, reference)
            if arriving is None:
                raise
            return arriving
        return stored

    async def _verify_reached(self, exchange: Exchange, reference: Reference) -> int | None:
        """Raises PlanDenied unless the plan allows to pull this tag, or a tag that leads to this digest.

        Answers the repository's generation for which that holds, None where it always does.
        """
        name, plan = exchange.name, exchange.principal.plan
        limits = plan.tag_limits(name, Action.PULL)
        if limits is None or (isinstance(reference, Tag) and limits.allow(reference.value)):
            return None
        # What is signed and what signs it go together.
        digest = subject_of(reference) if isinstance(reference, Tag) else reference
        generation = self._registry.reach.generation(name)
        if digest is None or not (
            await self._registry.reach.is_reached(name, digest, limits)
            or await self._arrivals.leads_to(name, digest, limits)
        ):
            raise tags_denied(plan, name, str(reference), limits)
        return generation

    async def answer(self, answer: Remembered, scope: Scope, send: Send) -> None:
        """Count a manifest, and send it. Raises PullLimitExceeded."""
        content, principal = answer.stored.content, answer.principal
        name, digest = answer.name.value, str(answer.stored.digest)
        headers = answer.headers
        if answer.is_pull:
            tag = answer.reference.value if isinstance(answer.reference, Tag) else ""
            visitor = self._visitors.of(scope)
            if principal.plan.limits is not None:
                allowance = await self._limiter.admit(principal, name, digest, visitor.network)
                headers = [*headers, *limit_headers(allowance)]
            self._usage.count_pull(principal, name, tag, digest, visitor, len(content))
        else:
            if principal.plan.limits is not None:
                headers = [*headers, *limit_headers(await self._limiter.look(principal))]
            self._usage.count_content(principal, name, digest, len(content))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def blob(self, exchange: Exchange) -> None:
        """GET or HEAD `/v2/<name>/blobs/<digest>`, whole or one range of it."""
        digest = Digest.parse(exchange.item)
        await self._verify_reached(exchange, digest)
        try:
            if exchange.is_head and exchange.may(exchange.name, Action.PUSH):
                await self._registry.verify_held_blob(exchange.name, digest)
            blob = await self._registry.open_blob(exchange.name, digest)
        except BlobUnknown:
            arriving = await self._arrivals.find_blob(exchange, digest)
            if arriving is None:
                raise
            if not isinstance(arriving, OpenBlob):
                await self._arrivals.send_blob(exchange, digest, arriving)
                return
            blob = arriving
        await self._send_blob(exchange, digest, blob)

    async def _send_blob(self, exchange: Exchange, digest: Digest, blob: OpenBlob) -> None:
        etag = f'"{digest}"'
        headers: Headers = [
            API_VERSION,
            (b"docker-content-digest", str(digest).encode()),
            (b"etag", etag.encode()),
            IMMUTABLE,
        ]
        known = exchange.request.header(b"if-none-match")
        if known and matches_etag(known, etag):
            await exchange.send({"type": "http.response.start", "status": 304, "headers": headers})
            await exchange.send({"type": "http.response.body", "body": b""})
            return
        part = None if exchange.is_head else _wanted_range(exchange, blob.size, etag)
        served = part or ByteRange(0, blob.size)
        if not exchange.is_head:
            self._usage.count_content(exchange.principal, exchange.name.value, str(digest), served.size)
            if self._is_redirected(exchange):
                await self._redirect(exchange, blob)
                return
        headers += [(b"content-type", b"application/octet-stream"), (b"accept-ranges", b"bytes")]
        if part is not None:
            headers.append((b"content-range", part.content_range(blob.size).encode()))
        headers.append((b"content-length", b"%d" % served.size))
        await _send_blob(exchange, blob, served, 200 if part is None else 206, headers)

    def _is_redirected(self, exchange: Exchange) -> bool:
        if self._redirects is None:
            return False
        address = client_address(exchange.request.scope, self._redirects.trusted_proxies)
        return address is None or not is_within(address, self._redirects.exempt)

    async def _redirect(self, exchange: Exchange, blob: OpenBlob) -> None:
        """Spec: distribution-spec 1.1, "Pulling blobs"; 307 keeps the method and the range."""
        if self._redirects is not None:
            url = await self._registry.sign_blob(blob, self._redirects.lifetime)
            headers: Headers = [
                (b"location", url.encode()),
                (b"docker-content-digest", str(blob.digest).encode()),
                (b"cache-control", b"no-store"),
            ]
            await exchange.answer(307, headers)

    async def tags(self, exchange: Exchange) -> None:
        """GET `/v2/<name>/tags/list`."""
        after, count = read_page(exchange.request, MAX_PAGE)
        limits = exchange.principal.plan.tag_limits(exchange.name, Action.PULL)
        if limits is None:
            page = await self._registry.list_tags(exchange.name, after, count)
        else:
            page = await self._registry.list_tags(exchange.name, after, count, limits.allow)
        path = f"/v2/{exchange.name}/tags/list"
        await exchange.answer_page("tags", page.names, path, is_last=page.is_last, extra={"name": str(exchange.name)})

    async def referrers(self, exchange: Exchange) -> None:
        """GET `/v2/<name>/referrers/<digest>`, filtered by `artifactType`. Spec: "Listing Referrers"."""
        subject = Digest.parse(exchange.item)
        await self._verify_reached(exchange, subject)
        await self._arrivals.settle(exchange, subject)
        artifact_type = exchange.request.parameter("artifactType") or None
        after = exchange.request.parameter("last") or ""
        found = await self._registry.list_referrers(exchange.name, subject, artifact_type, after)
        headers: Headers = [(b"content-type", media_types.OCI_INDEX.encode())]
        query = {}
        if artifact_type is not None:
            headers.append((b"oci-filters-applied", b"artifactType"))
            query["artifactType"] = artifact_type
        if not found.is_last:
            query["last"] = str(found.entries[-1].digest)
            headers.append(next_page(f"/v2/{exchange.name}/referrers/{subject}", query))
        document = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_INDEX,
            "manifests": [_describe(entry) for entry in found.entries],
        }
        # In ASCII: annotations may hold what UTF-8 cannot write.
        await exchange.answer(200, headers, json.dumps(document, separators=(",", ":")).encode())

    async def catalog(self, exchange: Exchange) -> None:
        """GET `/v2/_catalog`: the repositories from which the asker may pull.

        Source: CNCF distribution's API, "Listing Repositories"; the distribution spec has no such list.
        """
        plan = exchange.principal.plan

        def is_visible(name: RepositoryName) -> bool:
            return plan.allows(name, Action.PULL)

        after, count = read_page(exchange.request, MAX_PAGE)
        page = await self._registry.list_repositories(after, count, is_visible, plan.prefixes(Action.PULL))
        await exchange.answer_page("repositories", page.names, "/v2/_catalog", is_last=page.is_last, extra={})


def _is_pull(reference: Reference, stored: StoredManifest) -> bool:
    """A pull is one manifest GET that names a tag or a top-level digest; the rest is only bytes.

    Fetching what speaks of a digest, by the tags that clients look for, is not a pull of the artifact.
    """
    return stored.is_top_level and not (isinstance(reference, Tag) and subject_of(reference) is not None)


def _describe(entry: Referrer) -> dict[str, Any]:
    """The descriptor of a referrer, with its artifact type and annotations. Spec: "Listing Referrers"."""
    descriptor: dict[str, Any] = {
        "mediaType": entry.media_type,
        "digest": str(entry.digest),
        "size": entry.size,
    }
    if entry.artifact_type:
        descriptor["artifactType"] = entry.artifact_type
    if entry.annotations:
        descriptor["annotations"] = entry.annotations
    return descriptor


def _wanted_range(exchange: Exchange, size: int, etag: str) -> ByteRange | None:
    """The part that is asked for, None for the whole. Raises RangeNotSatisfiable. Source: RFC 9110, 14.2 and 13.1.5."""
    header = exchange.request.header(b"range")
    if not header:
        return None
    condition = exchange.request.header(b"if-range").strip()
    return None if condition and condition != etag else ByteRange.parse(header, size)


async def _send_blob(exchange: Exchange, blob: OpenBlob, part: ByteRange, status: int, headers: Headers) -> None:
    """Let the server send a whole file by itself; stream what is only a part, or lies elsewhere."""
    start = {"type": "http.response.start", "status": status, "headers": headers}
    if exchange.is_head:
        await exchange.send(start)
    elif (
        part.size == blob.size
        and blob.path is not None
        and "http.response.pathsend" in exchange.request.scope.get("extensions", {})
    ):
        await exchange.send(start)
        await exchange.send({"type": "http.response.pathsend", "path": str(blob.path)})
        return
    else:
        # The first piece is awaited: once the answer has begun, it could only be broken off.
        has_begun = False
        async for piece in await blob.read(part):
            if not has_begun:
                await exchange.send(start)
                has_begun = True
            await exchange.request.send_piece(exchange.send, piece)
        if not has_begun:
            await exchange.send(start)
    await exchange.send({"type": "http.response.body", "body": b""})
