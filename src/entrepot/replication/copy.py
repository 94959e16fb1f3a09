"""Copying a graph of descriptors: already here? Children first, then the node itself, and the tag last.

So no reader ever meets a manifest whose parts are missing, and a copy that was cut off goes on where it stood: what is
recorded here is complete. Nothing that a source sends is kept before its digest was checked.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from weakref import WeakValueDictionary

from entrepot.errors import DigestMismatch, ManifestInvalid, SizeInvalid, SourceLied, SourceUnsupported
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import RepositoryName
from entrepot.registry.service import Registry
from entrepot.replication.concurrency import for_each
from entrepot.replication.differences import Item, Route
from entrepot.replication.events import BlobEnded, BlobFound, BlobMounted, BlobStarted, Tell
from entrepot.replication.platforms import Platforms
from entrepot.replication.source import Source
from entrepot.replication.transfers import Transfers

# Indexes within indexes: real ones have one level, attestations and bundles two.
MAX_DEPTH = 8
# The tag for whose sake a task, and all that it starts, copies: what is told of a blob says so.
_copied_for: ContextVar[Item | None] = ContextVar("copied_for", default=None)


class GraphCopy:
    """Copies from one source into the registry. What is asked for twice at once is copied once.

    With `platforms`, what a tag names is copied without the children of its indexes that are for others.
    """

    def __init__(
        self,
        source: Source,
        registry: Registry,
        transfers: Transfers,
        *,
        concurrency: int,
        tell: Tell,
        platforms: Platforms | None = None,
    ) -> None:
        self._source = source
        self._registry = registry
        self._transfers = transfers
        self._concurrency = concurrency
        self._turns = asyncio.Semaphore(concurrency)
        self._tell = tell
        self._platforms = platforms
        self._locks: WeakValueDictionary[tuple[RepositoryName | None, Digest], asyncio.Lock] = WeakValueDictionary()

    async def copy(
        self, item: Item, *, stand_in: Manifest | None = None, before_tag: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Copy what a tag names, or the `stand_in` for it, do what is to be done `before_tag`, then move the tag.

        Raises SourceError, PreconditionFailed when the tag here was moved by somebody else, or what storing raises.
        """
        digest = item.digest if stand_in is None else stand_in.digest
        wanted = {None if item.here is None else str(item.here), str(digest)}
        token = _copied_for.set(item)
        try:
            await self.copy_manifest(item.route, digest, known=stand_in, platforms=self._platforms)
            if before_tag is not None:
                await before_tag()
        finally:
            _copied_for.reset(token)
        await self._registry.put_tag(item.target, item.tag, digest, condition=wanted.__contains__)

    async def copy_manifest(
        self,
        route: Route,
        digest: Digest,
        depth: int = 0,
        *,
        known: Manifest | None = None,
        platforms: Platforms | None = None,
    ) -> bool:
        """Copy a manifest with all that it names for these `platforms`, None: all; False when it was here.

        `known` is the manifest, if already read. An index that is here may have been copied for others: then what it
        lacks comes now. Raises SourceError, or what storing raises.
        """
        if depth > MAX_DEPTH:
            raise SourceUnsupported(
                f"source {self._source.name}: {route.origin} nests indexes more than {MAX_DEPTH} deep"
            )
        async with self._lock(route.target, digest):
            is_here = await self._registry.hold_manifest(route.target, digest)
            absent = await self._registry.list_absences(route.target, [digest]) if is_here else {}
            if is_here and not absent:
                return False
            manifest = known or await self._source.get_manifest(route.origin, digest)
            others = find_others(manifest, platforms)
            if is_here and absent[digest] <= others:
                return False

            async def copy_child(child: Descriptor) -> None:
                if child.digest not in others:
                    await self.copy_manifest(route, child.digest, depth + 1, platforms=platforms)

            async def copy_blob(blob: Descriptor) -> None:
                if not blob.is_foreign:
                    await self._copy_blob(route, blob)

            await for_each(manifest.children, copy_child, at_once=self._concurrency)
            await for_each(manifest.blobs, copy_blob, at_once=self._concurrency)
            try:
                await self._registry.put_manifest(route.target, manifest, may_lack=others)
            except ManifestInvalid as error:  # it names a blob that is here, with another size
                raise SourceLied(f"source {self._source.name}: {route.origin}@{digest}: {error}") from error
            return not is_here

    async def _copy_blob(self, route: Route, blob: Descriptor) -> None:
        async with self._lock(None, blob.digest):
            if await self._registry.hold_blob(route.target, blob.digest):
                self._tell(BlobFound(blob))
            elif await self._registry.mount_blob(route.target, blob.digest, _anybody):
                self._tell(BlobMounted(blob))
            else:
                async with self._turns:
                    await self._transfer(route, blob)

    async def _transfer(self, route: Route, blob: Descriptor) -> None:
        self._tell(BlobStarted(route.target, blob, _copied_for.get()))
        is_complete = False
        try:
            await self._transfers.bring(self._source, route, blob, self._tell)
            is_complete = True
        except (DigestMismatch, SizeInvalid) as error:
            raise SourceLied(f"source {self._source.name}: blob {blob.digest} of {route.origin}: {error}") from error
        finally:
            self._tell(BlobEnded(blob, is_complete))

    def _lock(self, target: RepositoryName | None, digest: Digest) -> asyncio.Lock:
        """One lock per manifest of a repository, and per blob, for as long as somebody holds or awaits it."""
        return self._locks.setdefault((target, digest), asyncio.Lock())


def find_others(manifest: Manifest, platforms: Platforms | None) -> frozenset[Digest]:
    """The children of an index that are for other platforms."""
    if platforms is None or not manifest.is_index:
        return frozenset()
    return frozenset(child.digest for child in manifest.children) - platforms.kept(manifest)


def _anybody(_: RepositoryName) -> bool:
    return True
