"""A source that speaks the OCI distribution protocol: any registry.

Implements the client's side of distribution-spec 1.1, "Pull" and "Content Discovery", and of `_catalog` as the CNCF
distribution serves it. Whatever the registry sends is checked against what was asked for, or limited in size and time.
"""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from entrepot.errors import (
    DigestInvalid,
    ManifestInvalid,
    NameInvalid,
    SourceLied,
    SourceMissing,
    SourceUnreachable,
    SourceUnsupported,
    TagInvalid,
)
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag, referrers_tag
from entrepot.replication.backoff import Deadlines
from entrepot.replication.connections import PIECE_BYTES
from entrepot.replication.headers import find_next_page
from entrepot.replication.source import MAX_REFERRERS, TagEntry
from entrepot.replication.transport import NotUnderstood, Transport, visible

T = TypeVar("T")

_ACCEPT = {"Accept": ", ".join(sorted(media_types.ACCEPTED))}
_ACCEPT_INDEX = {"Accept": media_types.OCI_INDEX}
_CATALOG_SCOPE = "registry:catalog:*"
_PAGE = 1000
# 1,000 names of 255 characters, with room for JSON around them; some registries send everything at once.
_PAGE_BYTES = 16 * 1024 * 1024
_MAX_PAGES = 10_000
# Below this rate, on average, a source only keeps us busy.
_LEAST_BYTES_PER_SECOND = 4096
_OK = 200


class RegistrySource:
    """A registry, read with one login."""

    def __init__(self, transport: Transport, deadlines: Deadlines) -> None:
        self._transport = transport
        self._deadlines = deadlines
        # Repositories whose registry has no API for referrers.
        self._without_referrers: set[RepositoryName] = set()

    @property
    def name(self) -> str:
        """What the rule file calls it."""
        return self._transport.name

    async def list_repositories(self) -> AsyncIterator[RepositoryName]:
        """Every repository that `_catalog` shows us."""
        async for name in self._list("/v2/_catalog", "repositories", _CATALOG_SCOPE):
            # A name that our own registry could not hold is none that a rule can mean.
            if (repository := _parsed(RepositoryName.parse, name)) is not None:
                yield repository

    async def list_tags(self, repository: RepositoryName) -> AsyncIterator[TagEntry]:
        """Every tag of a repository; the protocol's list says nothing else of them. Raises SourceMissing."""
        async for name in self._list(f"/v2/{repository}/tags/list", "tags", _pull_scope(repository)):
            tag = _parsed(Tag.parse, name)
            if tag is None:
                raise SourceLied(f"source {self.name} lists {name[:150]!r} in {repository}, which is no tag")
            yield TagEntry(tag)

    async def get_digest(self, repository: RepositoryName, tag: Tag) -> Digest:
        """What `tag` names now: by HEAD, or by reading the manifest where HEAD does not say."""
        answer = await self._transport.read(
            "HEAD", self._url(repository, "manifests", tag), scope=_pull_scope(repository), limit=0, headers=_ACCEPT
        )
        digest = _parsed(Digest.parse, answer.headers.get("Docker-Content-Digest", ""))
        return digest or (await self.get_manifest(repository, tag)).digest

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> Manifest:
        """A manifest; named by digest it has that digest. Raises SourceMissing, SourceLied or SourceUnsupported."""
        answer = await self._transport.read(
            "GET",
            self._url(repository, "manifests", reference),
            scope=_pull_scope(repository),
            limit=MAX_MANIFEST_BYTES,
            headers=_ACCEPT,
        )
        what = f"source {self.name}: manifest {repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"
        if isinstance(reference, Digest) and not reference.is_of(answer.body):
            raise SourceLied(f"{what} has another digest, {Digest.of(answer.body, reference.algorithm)}")
        content_type = media_types.bare(answer.headers.get("Content-Type", ""))
        if content_type.endswith("json") and content_type not in {*media_types.ACCEPTED, "application/json"}:
            raise SourceUnsupported(f"{what} is of type {content_type[:100]}, which cannot be kept here")
        announced = content_type if content_type in media_types.ACCEPTED else ""
        algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
        try:
            return Manifest.parse(answer.body, announced, algorithm)
        except ManifestInvalid as error:
            raise SourceLied(f"{what} is no manifest: {error}") from error

    async def list_referrers(
        self, repository: RepositoryName, subject: Digest, *, has_fallback: bool = True
    ) -> list[Descriptor]:
        """What speaks of a manifest: by the API, or where the registry has none, by the tag that stands in for it."""
        if repository not in self._without_referrers:
            found = await self._ask_referrers(repository, subject)
            if found is not None:
                return found
            self._without_referrers.add(repository)
        if not has_fallback:
            return []
        try:
            index = await self.get_manifest(repository, referrers_tag(subject))
        except SourceMissing:
            return []
        self._verify_referrers(subject, len(index.children))
        return list(index.children)

    async def _ask_referrers(self, repository: RepositoryName, subject: Digest) -> list[Descriptor] | None:
        """What the API answers, every page of it; None where there is no such API."""
        url: URL | None = self._url(repository, "referrers", subject)
        found: list[Descriptor] = []
        pages = 0
        while url is not None:
            try:
                answer = await self._transport.read(
                    "GET", url, scope=_pull_scope(repository), limit=MAX_MANIFEST_BYTES, headers=_ACCEPT_INDEX
                )
            except (SourceMissing, NotUnderstood):
                if pages == 0:
                    return None
                raise
            if pages == 0 and media_types.bare(answer.headers.get("Content-Type", "")) != media_types.OCI_INDEX:
                return None  # the spec asks for this type: it is some other page, with status 200
            try:
                found += Manifest.parse(answer.body, media_types.OCI_INDEX).children
            except ManifestInvalid as error:
                raise SourceLied(f"source {self.name}: {visible(url)} sent no index of referrers: {error}") from error
            pages += 1
            self._verify_referrers(subject, max(len(found), pages))
            further = find_next_page(answer.headers.getall("Link", []))
            url = None if further is None else self._next_page(url, further)
        return found

    def _verify_referrers(self, subject: Digest, count: int) -> None:
        if count > MAX_REFERRERS:
            raise SourceUnsupported(
                f"source {self.name}: more than {MAX_REFERRERS} manifests speak of {subject}; remove what is not "
                "needed, or copy without them (referrers: none)"
            )

    @asynccontextmanager
    async def open_blob(
        self, repository: RepositoryName, blob: Descriptor, start: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of a blob from `start` on; what breaks off is continued by Range. Raises SourceError."""
        pieces = self._read_blob(repository, blob, start)
        try:
            yield pieces
        finally:
            await pieces.aclose()

    async def _read_blob(self, repository: RepositoryName, blob: Descriptor, start: int) -> AsyncGenerator[bytes, None]:
        url = self._url(repository, "blobs", blob.digest)
        at = failed_at = start
        tries = self._transport.begin_tries()
        while at < blob.size:
            headers = {"Range": f"bytes={at}-"} if at else {}
            # Of this try alone: the wait between two is ours, not the source's.
            received, begun = 0, time.monotonic()
            try:
                async with self._transport.open("GET", url, scope=_pull_scope(repository), headers=headers) as answer:
                    # What ignores Range sends everything again.
                    skip = at if answer.status == _OK else 0
                    self._verify_length(answer, blob, at - skip, repository)
                    async for piece in answer.content.iter_chunked(PIECE_BYTES):
                        received += len(piece)
                        fresh = piece[skip:] if skip else piece
                        skip = max(skip - len(piece), 0)
                        at += len(fresh)
                        if at > blob.size:
                            raise SourceLied(f"{self._blob(repository, blob)} has more than its {blob.size} bytes")
                        self._verify_pace(url, received, time.monotonic() - begun)
                        if at - failed_at >= PIECE_BYTES:
                            tries.forget()
                        if fresh:
                            yield fresh
                if at < blob.size:
                    raise SourceLied(f"{self._blob(repository, blob)} ends after {at} of {blob.size} bytes")
            except SourceUnreachable as error:
                failed_at = at
                await tries.wait(error)

    def _verify_length(
        self, answer: aiohttp.ClientResponse, blob: Descriptor, start: int, repository: RepositoryName
    ) -> None:
        """Raises SourceLied when the answer announces other bytes than those from `start` to the end."""
        length = answer.content_length
        if length is not None and length != blob.size - start:
            raise SourceLied(
                f"{self._blob(repository, blob)} is announced with {start + length} bytes, "
                f"its manifest says {blob.size}"
            )
        part = answer.headers.get("Content-Range")
        if answer.status != _OK and part != f"bytes {start}-{blob.size - 1}/{blob.size}":
            raise SourceLied(f"{self._blob(repository, blob)}: asked from byte {start}, got {str(part)[:100]!r}")

    def _verify_pace(self, url: URL, received: int, seconds: float) -> None:
        if seconds > self._deadlines.idle_seconds + received / _LEAST_BYTES_PER_SECOND:
            raise SourceUnreachable(
                f"source {self.name}: {visible(url)} sends less than {_LEAST_BYTES_PER_SECOND} bytes a second"
            )

    def _blob(self, repository: RepositoryName, blob: Descriptor) -> str:
        return f"source {self.name}: blob {blob.digest} of {repository}"

    async def _list(self, path: str, field: str, scope: str) -> AsyncIterator[str]:
        """The names on all pages of a list. Spec: distribution-spec 1.1, "Listing Tags"."""
        url = self._transport.origin.with_path(path).with_query(n=str(_PAGE))
        seen = {url}
        for _ in range(_MAX_PAGES):
            answer = await self._transport.read("GET", url, scope=scope, limit=_PAGE_BYTES)
            for name in self._parse_page(url, field, answer.body):
                yield name
            target = find_next_page(answer.headers.getall("Link", []))
            if target is None:
                return
            url = self._next_page(url, target)
            if url in seen:
                break
            seen.add(url)
        raise SourceLied(f"source {self.name}: the pages of {visible(url)} have no end")

    def _parse_page(self, url: URL, field: str, body: bytes) -> list[str]:
        try:
            document: Any = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        names = document.get(field) if isinstance(document, dict) else None
        # distribution 2 says null for a repository whose tags were all deleted.
        if isinstance(document, dict) and field in document and names is None:
            return []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SourceLied(
                f"source {self.name}: {visible(url)} sent no list of {field}; is its url that of a registry?"
            )
        return names

    def _next_page(self, url: URL, target: str) -> URL:
        """Where the next page is: with us or nowhere, since the login is sent along."""
        try:
            further = url.join(URL(target, encoded=True))
            is_ours = further.origin() == self._transport.origin
        except ValueError:
            is_ours = False
        if not is_ours:
            raise SourceLied(f"source {self.name}: the next page of {visible(url)} is on another server")
        return further

    def _url(self, repository: RepositoryName, kind: str, reference: Reference) -> URL:
        return self._transport.origin.with_path(f"/v2/{repository}/{kind}/{reference}")


def _pull_scope(repository: RepositoryName) -> str:
    return f"repository:{repository}:pull"


def _parsed(parse: Callable[[str], T], text: str) -> T | None:
    try:
        return parse(text)
    except (NameInvalid, TagInvalid, DigestInvalid):
        return None
