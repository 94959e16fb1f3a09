"""Manifests, tags and blobs of repositories.

Get, judge, keep: what arrives is hashed and parsed before anything of it is recorded, and one transaction records it. A
manifest is recorded only when all that it names is there, so no reader ever meets a gap.
"""

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

import sqlalchemy as sa

from entrepot.errors import (
    BlobUnknown,
    DigestMismatch,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestReferenced,
    ManifestUnknown,
    NameUnknown,
    SizeInvalid,
)
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag
from entrepot.registry import records
from entrepot.storage.blobs import BlobStore, OpenBlob
from entrepot.storage.cache import Cache
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

MANIFEST_CACHE_BYTES = 32 * 1024 * 1024
BLOB_CACHE_ENTRIES = 50_000
# What an entry costs beside its content: key, objects, dictionary.
_ENTRY_BYTES = 1024
# Page size of tag and repository lists when the client names none, and the most it gets.
MAX_PAGE = 1000


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as it is served. `is_top_level` when no index names it and it speaks of no subject."""

    digest: Digest
    media_type: str
    content: bytes
    is_top_level: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; `is_last` when nothing follows."""

    names: list[str]
    is_last: bool


class Registry:
    """The content of every repository. Who may see it is for the callers to decide."""

    def __init__(
        self, database: Database, blobs: BlobStore, signals: Signals, clock: Clock, *, max_blob_bytes: int
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._max_blob_bytes = max_blob_bytes
        self._manifests: Cache[str, StoredManifest] = Cache(MANIFEST_CACHE_BYTES, signals.is_current)
        self._sizes: Cache[str, int] = Cache(BLOB_CACHE_ENTRIES, signals.is_current)
        signals.listen("manifest", self._manifests.forget)

    def find_cached_manifest(self, name: RepositoryName, reference: Reference) -> StoredManifest | None:
        """The manifest, when this process knows it without asking the database."""
        return self._manifests.find(_key(name, reference))

    async def pull_manifest(self, name: RepositoryName, reference: Reference) -> StoredManifest:
        """The manifest that `reference` names in a repository.

        Raises ManifestUnknown when there is none, NameUnknown when there is no such repository.
        Spec: distribution-spec 1.1, "Pulling manifests".
        """
        key = _key(name, reference)
        cached = self._manifests.find(key)
        if cached is not None:
            return cached
        mark = self._manifests.mark()
        row = await self._database.read(lambda connection: records.find_manifest(connection, name, reference))
        if row is None:
            await self._verify_repository(name)
            raise ManifestUnknown(f"repository {name} has no manifest {reference}")
        stored = StoredManifest(
            digest=Digest.parse(row.digest),
            media_type=row.media_type,
            content=row.content,
            is_top_level=not row.is_child and row.subject is None,
        )
        self._manifests.keep(key, stored, mark, weight=len(stored.content) + _ENTRY_BYTES)
        return stored

    async def find_manifest(self, name: RepositoryName, reference: Reference) -> Manifest | None:
        """The parsed manifest that `reference` names, None when there is none."""
        row = await self._database.read(lambda connection: records.find_manifest(connection, name, reference))
        if row is None:
            return None
        return Manifest.parse(row.content, row.media_type, Digest.parse(row.digest).algorithm)

    async def open_blob(self, name: RepositoryName, digest: Digest) -> OpenBlob:
        """A blob of a repository, ready to be read. Raises BlobUnknown.

        Spec: distribution-spec 1.1, "Pulling blobs".
        """
        if await self.find_blob(name, digest) is None:
            raise BlobUnknown(f"repository {name} has no blob {digest}")
        return await self._blobs.open(digest)

    async def find_blob(self, name: RepositoryName, digest: Digest) -> int | None:
        """Size in bytes of a blob, None when the repository does not hold it."""
        key = _key(name, digest)
        size = self._sizes.find(key)
        if size is None:
            mark = self._sizes.mark()
            size = await self._database.read(lambda connection: records.find_blob_size(connection, name, digest))
            if size is not None:
                self._sizes.keep(key, size, mark)
        return size

    async def mount_blob(self, name: RepositoryName, digest: Digest, *, source: RepositoryName | None = None) -> bool:
        """Let a repository hold a blob that `source` (or any other, when None) holds; False when it does not.

        Spec: distribution-spec 1.1, "Mounting a blob from another repository".
        """

        def work(connection: sa.Connection) -> bool:
            if source is None:
                is_held = records.is_blob_anywhere(connection, digest)
            else:
                is_held = records.find_blob_size(connection, source, digest) is not None
            if is_held:
                now = self._clock()
                records.link_blob(connection, records.ensure_repository(connection, name, now), digest, now)
            return is_held

        return await self._database.write(work)

    async def put_blob(
        self, name: RepositoryName, digest: Digest, pieces: AsyncIterator[bytes], *, size: int | None = None
    ) -> int:
        """Keep a blob whose digest and size (bytes) are known; answers its size.

        Raises DigestMismatch, SizeInvalid, BlobTooLarge or StorageFull; then nothing is kept.
        """
        staged = await self._blobs.stage(pieces, limit=self._max_blob_bytes)
        if size is not None and staged.size != size:
            await self._blobs.drop(staged)
            raise SizeInvalid(f"blob {digest} has {staged.size} bytes, not {size} as announced; nothing was kept")
        await self._blobs.keep([staged], digest)
        await self.record_blob(name, digest, staged.size, lambda _: None)
        return staged.size

    async def record_blob(
        self, name: RepositoryName, digest: Digest, size: int, also: Callable[[sa.Connection], object]
    ) -> None:
        """Record that a repository holds a blob which is in storage by now; `also` joins the transaction."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            records.insert_blob(connection, records.ensure_repository(connection, name, now), digest, size, now)
            also(connection)

        await self._database.write(work)

    async def put_manifest(self, name: RepositoryName, manifest: Manifest, *, tag: Tag | None = None) -> None:
        """Keep a manifest, and let `tag` name it.

        Raises ManifestBlobUnknown when it names what the repository does not hold, ManifestInvalid when it gives
        another size for it. Spec: distribution-spec 1.1, "Pushing Manifests".
        """

        def work(connection: sa.Connection) -> list[str]:
            now = self._clock()
            repository_id = records.ensure_repository(connection, name, now)
            held = records.read_blob_sizes(connection, repository_id, {blob.digest for blob in manifest.blobs})
            children = records.read_manifest_sizes(
                connection, repository_id, {child.digest for child in manifest.children}
            )
            for blob in manifest.blobs:
                if not blob.is_foreign:
                    _verify_there("blob", name, blob, held)
            for child in manifest.children:
                _verify_there("manifest", name, child, children)
            records.insert_manifest(connection, repository_id, manifest, held, now)
            # An index makes its children no longer top level.
            changed = [_key(name, child) for child in children]
            if tag is not None:
                records.put_tag(connection, repository_id, tag, manifest.digest, now)
                changed.append(_key(name, tag))
            for key in changed:
                publish(connection, "manifest", key, now)
            return changed

        self._forget(await self._database.write(work))

    async def put_tag(self, name: RepositoryName, tag: Tag, digest: Digest) -> None:
        """Let `tag` name a manifest that is there. Raises ManifestUnknown."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            repository_id = records.ensure_repository(connection, name, now)
            if digest not in records.read_manifest_sizes(connection, repository_id, [digest]):
                raise ManifestUnknown(f"repository {name} has no manifest {digest} for tag {tag}")
            records.put_tag(connection, repository_id, tag, digest, now)
            publish(connection, "manifest", _key(name, tag), now)

        await self._database.write(work)
        self._forget([_key(name, tag)])

    async def read_tag_digests(self, name: RepositoryName, tags: Collection[Tag]) -> dict[Tag, Digest]:
        """What those of `tags` that are there name."""
        return await self._database.read(lambda connection: records.read_tag_digests(connection, name, tags))

    async def delete_manifest(self, name: RepositoryName, reference: Reference) -> None:
        """Drop a tag; or, by digest, a manifest with all its tags.

        Raises ManifestUnknown, NameUnknown, or ManifestReferenced while an index names the manifest.
        Spec: distribution-spec 1.1, "Deleting tags" and "Deleting Manifests".
        """

        def work(connection: sa.Connection) -> list[str]:
            now = self._clock()
            repository_id = records.find_repository(connection, name)
            if repository_id is None:
                raise NameUnknown(f"there is no repository {name}")
            if isinstance(reference, Tag):
                changed = [_key(name, reference)]
                was_there = records.delete_tag(connection, repository_id, reference)
            else:
                parents = records.list_parents(connection, repository_id, reference)
                if parents:
                    raise ManifestReferenced(f"manifest {reference} is part of {', '.join(parents)}; delete that first")
                tags = records.list_tags_of(connection, repository_id, reference)
                changed = [_key(name, reference), *(_key(name, Tag(tag)) for tag in tags)]
                was_there = records.delete_manifest(connection, repository_id, reference)
            if not was_there:
                raise ManifestUnknown(f"repository {name} has no manifest {reference}")
            for key in changed:
                publish(connection, "manifest", key, now)
            return changed

        self._forget(await self._database.write(work))

    async def list_tags(self, name: RepositoryName, after: str, limit: int) -> Page:
        """Up to `limit` tags after `after`, in lexical order. Raises NameUnknown."""

        def work(connection: sa.Connection) -> list[str]:
            repository_id = records.find_repository(connection, name)
            if repository_id is None:
                raise NameUnknown(f"there is no repository {name}")
            return records.list_tags(connection, repository_id, after, limit + 1)

        names = await self._database.read(work)
        return Page(names[:limit], is_last=len(names) <= limit)

    async def list_repositories(self, after: str, limit: int, is_visible: Callable[[RepositoryName], bool]) -> Page:
        """Up to `limit` names that `is_visible`, after `after`, in lexical order."""

        def work(connection: sa.Connection) -> list[str]:
            visible: list[str] = []
            last = after
            while len(visible) <= limit:
                names = records.list_repositories(connection, last, MAX_PAGE)
                visible += [name for name in names if is_visible(RepositoryName(name))]
                if len(names) < MAX_PAGE:
                    break
                last = names[-1]
            return visible

        names = await self._database.read(work)
        return Page(names[:limit], is_last=len(names) <= limit)

    async def _verify_repository(self, name: RepositoryName) -> None:
        if await self._database.read(lambda connection: records.find_repository(connection, name)) is None:
            raise NameUnknown(f"there is no repository {name}")

    def _forget(self, keys: list[str]) -> None:
        """Forget here at once; other processes hear of it through signals."""
        for key in keys:
            self._manifests.forget(key)


def _key(name: RepositoryName, reference: Reference) -> str:
    separator = ":" if isinstance(reference, Tag) else "@"
    return f"{name.value}{separator}{reference}"


def _verify_there(kind: str, name: RepositoryName, descriptor: Descriptor, held: dict[Digest, int]) -> None:
    size = held.get(descriptor.digest)
    if size is None:
        raise ManifestBlobUnknown(
            f"the manifest names {kind} {descriptor.digest}, which {name} does not hold; push it first"
        )
    if size != descriptor.size:
        raise ManifestInvalid(
            f"the manifest says that {kind} {descriptor.digest} has {descriptor.size} bytes, but it has {size}"
        )


def verify_digest(manifest: Manifest, digest: Digest) -> None:
    """Raises DigestMismatch unless `manifest` has this digest."""
    if not digest.is_of(manifest.content):
        raise DigestMismatch(f"the manifest has digest {manifest.digest}, not {digest} as announced; nothing was kept")
