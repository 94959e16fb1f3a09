"""Manifests, tags and blobs of repositories.

Get, judge, keep: what arrives is hashed and parsed before anything of it is recorded, and one transaction records it. A
manifest is recorded only when all that it names is there, so no reader ever meets a gap.

Garbage collection may run at any time. Whoever is told that a blob or manifest is here, in order to build on it, holds
it: collection leaves alone what was held within its grace (see `registry/garbage.py`).
"""

import json
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa

from entrepot.errors import (
    BlobReferenced,
    BlobUnknown,
    DigestMismatch,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestReferenced,
    ManifestUnknown,
    NameUnknown,
    PreconditionFailed,
    QuotaExceeded,
    SizeInvalid,
    TagImmutable,
)
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest, read_annotations
from entrepot.oci.reference import Reference, RepositoryName, Tag
from entrepot.registry import records
from entrepot.registry.leftovers import Companions, delete_leftovers, find_leftovers
from entrepot.registry.policies import Policies
from entrepot.registry.reach import Reach, find_reached
from entrepot.registry.records import BlobRow
from entrepot.storage.blobs import BlobStore, OpenBlob, Staged
from entrepot.storage.cache import Cache
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

T = TypeVar("T")
Condition = Callable[[str | None], bool]
"""Whether a tag may be changed that names this digest now, None when it is not there."""

MANIFEST_CACHE_BYTES = 32 * 1024 * 1024
BLOB_CACHE_ENTRIES = 50_000
# What an entry costs beside its content: key, objects, dictionary.
_ENTRY_BYTES = 1024
# Page size of tag and repository lists when the client names none, and the most it gets.
MAX_PAGE = 1000
# A page of referrers ends here, though it may have one entry; distribution-spec 1.1 wants it below 4 MiB.
_REFERRERS_BYTES = 1024 * 1024
_REFERRERS = 500
# Repositories that are looked at for a mount that names none.
_MOUNT_CANDIDATES = 200
# A hold is renewed when this part of the grace has passed, so that most of it is always left.
_HOLD_RENEWED = 0.25


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


@dataclass(frozen=True, slots=True)
class Referrer:
    """A descriptor of what speaks of a manifest."""

    media_type: str
    digest: Digest
    size: int
    artifact_type: str | None
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Referrers:
    """Part of the referrers of a manifest; `is_last` when nothing follows."""

    entries: list[Referrer]
    is_last: bool


class Registry:
    """The content of every repository. Who may see it is for the callers to decide.

    `grace` is how long garbage collection leaves alone what nothing refers to.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        signals: Signals,
        clock: Clock,
        *,
        max_blob_bytes: int,
        grace: timedelta,
        policies: Policies | None = None,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._signals = signals
        self._clock = clock
        self._max_blob_bytes = max_blob_bytes
        self._hold_renewed = grace * _HOLD_RENEWED
        self._policies = policies or Policies()
        self._manifests: Cache[str, StoredManifest] = Cache(MANIFEST_CACHE_BYTES, signals.is_current)
        self._held_blobs: Cache[str, BlobRow] = Cache(BLOB_CACHE_ENTRIES, signals.is_current)
        self.reach = Reach(database, signals)
        signals.listen("manifest", self._manifests.forget)
        signals.listen("blob", self._held_blobs.forget)

    def is_still(self, name: RepositoryName, reference: Reference, stored: StoredManifest) -> bool:
        """Whether a reference still names the manifest that it did; False may also mean that it takes a closer look."""
        return self._manifests.find(_key(name, reference)) is stored

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

    async def verify_held_manifest(self, name: RepositoryName, digest: Digest) -> None:
        """Raises ManifestUnknown unless a repository has a manifest, whatever caches say; it stays to be built on."""
        if not await self.hold_manifest(name, digest):
            raise ManifestUnknown(f"repository {name} has no manifest {digest}")

    async def verify_held_blob(self, name: RepositoryName, digest: Digest) -> None:
        """Raises BlobUnknown unless a repository has a blob, whatever caches say; it stays to be built on."""
        if not await self.hold_blob(name, digest):
            raise BlobUnknown(f"repository {name} has no blob {digest}")

    async def hold_manifest(self, name: RepositoryName, digest: Digest) -> bool:
        """Whether a repository has a manifest; if so, it stays for a publisher to build on."""
        return await self._hold(name, digest, records.find_manifest_hold, records.hold_manifest)

    async def open_blob(self, name: RepositoryName, digest: Digest) -> OpenBlob:
        """A blob of a repository, ready to be read. Raises BlobUnknown.

        Spec: distribution-spec 1.1, "Pulling blobs".
        """
        key = _key(name, digest)
        row = self._held_blobs.find(key)
        if row is None:
            mark = self._held_blobs.mark()
            row = await self._database.read(lambda connection: records.find_blob(connection, name, digest))
            if row is None:
                raise BlobUnknown(f"repository {name} has no blob {digest}")
            self._held_blobs.keep(key, row, mark)
        return await self._blobs.open(row.key, digest, row.size)

    async def sign_blob(self, blob: OpenBlob, lifetime: timedelta) -> str:
        """A URL in blob storage by which anybody can GET the blob for a while. Raises StorageUnavailable."""
        return await self._blobs.sign(blob, lifetime)

    async def hold_blob(self, name: RepositoryName, digest: Digest) -> bool:
        """Whether a repository holds a blob; if so, it stays for a publisher to build on."""
        return await self._hold(name, digest, records.find_blob_hold, records.hold_blob)

    async def mount_blob(
        self,
        name: RepositoryName,
        digest: Digest,
        may_read: Callable[[RepositoryName], bool],
        *,
        source: RepositoryName | None = None,
    ) -> bool:
        """Let a repository hold a blob that `source`, or any other for which `may_read` holds, has; False otherwise.

        Raises QuotaExceeded. Spec: distribution-spec 1.1, "Mounting a blob from another repository".
        """

        def work(connection: sa.Connection) -> bool:
            if source is None:
                candidates = [one for one in records.list_holders(connection, digest, _MOUNT_CANDIDATES) if one != name]
            else:
                candidates = [source] if records.find_blob(connection, source, digest) is not None else []
            size = records.find_blob_size(connection, digest)
            if size is None or not any(may_read(candidate) for candidate in candidates):
                return False
            now = self._clock()
            repository_id = records.ensure_repository(connection, name, now)
            if records.link_blob(connection, repository_id, digest, now):
                self._grow(connection, name, repository_id, size)
            return True

        return await self._signals.commit(work)

    async def put_blob(
        self, name: RepositoryName, digest: Digest, pieces: AsyncIterator[bytes], *, size: int | None = None
    ) -> int:
        """Keep a blob whose digest and size (bytes) are known; answers its size.

        Raises DigestMismatch, SizeInvalid, BlobTooLarge, QuotaExceeded or StorageFull; then nothing is kept.
        """
        staged = await self._blobs.stage(pieces, limit=self._max_blob_bytes, expected=digest)
        if size is not None and staged.size != size:
            await self._blobs.drop(staged.key)
            raise SizeInvalid(f"blob {digest} has {staged.size} bytes, not {size} as announced; nothing was kept")
        try:
            await self.record_blob(name, staged, lambda _: None)
        except QuotaExceeded:
            await self._blobs.drop(staged.key)
            raise
        return staged.size

    async def record_blob(self, name: RepositoryName, staged: Staged, also: Callable[[sa.Connection], object]) -> None:
        """Let a repository hold the blob in a staged object, which goes away if another object has it already.

        `also` joins the transaction. Raises QuotaExceeded, or what `also` raises; the object stays as it was then.
        """

        def work(connection: sa.Connection) -> str:
            now = self._clock()
            repository_id = records.ensure_repository(connection, name, now)
            key = records.insert_blob(connection, staged.digest, staged.size, staged.key, now)
            if records.link_blob(connection, repository_id, staged.digest, now):
                self._grow(connection, name, repository_id, staged.size)
            also(connection)
            return key

        if await self._signals.commit(work) != staged.key:
            await self._blobs.drop(staged.key)

    async def delete_blob(self, name: RepositoryName, digest: Digest) -> None:
        """Let a repository no longer hold a blob.

        Raises BlobUnknown, NameUnknown, or BlobReferenced while a manifest names it.
        Spec: distribution-spec 1.1, "Deleting Blobs".
        """

        def work(connection: sa.Connection) -> None:
            repository_id = _get_repository(connection, name)
            row = records.find_blob(connection, name, digest)
            if row is None:
                raise BlobUnknown(f"repository {name} has no blob {digest}")
            users = records.list_manifests_with(connection, repository_id, digest)
            if users:
                raise BlobReferenced(f"blob {digest} is part of {', '.join(users)}; delete that first")
            # Of two who delete it at once, one takes its room off.
            if not records.unlink_blob(connection, repository_id, digest):
                raise BlobUnknown(f"repository {name} has no blob {digest}")
            records.grow_repository(connection, repository_id, -row.size, None)
            publish(connection, "blob", _key(name, digest), self._clock())

        await self._signals.commit(work)

    async def put_manifest(
        self,
        name: RepositoryName,
        manifest: Manifest,
        *,
        tags: Sequence[Tag] = (),
        condition: Condition | None = None,
        may_lack: Collection[Digest] = (),
    ) -> None:
        """Keep a manifest, and let `tags` name it, if the `condition` holds for each of them.

        An index may lack those of its children that are in `may_lack`: it is kept as one that names what is not here.

        Raises ManifestBlobUnknown when it names what the repository does not hold, ManifestInvalid when it gives
        another size for it, PreconditionFailed, TagImmutable or QuotaExceeded. Spec: distribution-spec 1.1, "Pushing
        Manifests".
        """

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            repository_id = records.ensure_repository(connection, name, now)
            held = records.read_blob_sizes(connection, repository_id, {blob.digest for blob in manifest.blobs})
            children = records.read_manifest_sizes(
                connection, repository_id, {child.digest for child in manifest.children}
            )
            is_sparse = self._policies.allows_sparse(name)
            for blob in manifest.blobs:
                if not (blob.is_foreign or is_sparse) or blob.digest in held:
                    _verify_there("blob", name, blob, held)
            for child in manifest.children:
                if child.digest in children or not (is_sparse or child.digest in may_lack):
                    _verify_there("manifest", name, child, children)
            if records.insert_manifest(connection, repository_id, manifest, held | children, now):
                self._grow(connection, name, repository_id, manifest.size)
            # What belongs to it may be reached now, and an index makes its children no longer top level.
            for changed in (manifest.digest, *(child.digest for child in manifest.children)):
                publish(connection, "manifest", _key(name, changed), now)
            for tag in tags:
                self._put_tag(connection, name, repository_id, tag, manifest.digest, condition)

        await self._signals.commit(work)

    async def put_tag(
        self, name: RepositoryName, tag: Tag, digest: Digest, *, condition: Condition | None = None
    ) -> None:
        """Let `tag` name a manifest that is there, if the `condition` holds.

        Raises ManifestUnknown, PreconditionFailed or TagImmutable.
        """

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            repository_id = records.ensure_repository(connection, name, now)
            # Held, so that a collector who thought that nothing leads to it looks again.
            if not records.hold_manifest(connection, repository_id, digest, now):
                raise ManifestUnknown(f"repository {name} has no manifest {digest} for tag {tag}")
            self._put_tag(connection, name, repository_id, tag, digest, condition)

        await self._signals.commit(work)

    def _put_tag(
        self,
        connection: sa.Connection,
        name: RepositoryName,
        repository_id: int,
        tag: Tag,
        digest: Digest,
        condition: Condition | None = None,
    ) -> None:
        now = self._clock()
        before = None if condition is None else records.find_tag(connection, repository_id, tag)
        if condition is not None and not condition(before):
            raise _condition_failed(name, tag)
        if self._policies.is_immutable(name, tag):
            if not records.insert_tag(connection, repository_id, tag, digest, now):
                raise _is_immutable(name, tag)
        elif condition is None:
            records.put_tag(connection, repository_id, tag, digest, now)
        elif not records.replace_tag(connection, repository_id, tag, before, digest, now):
            raise _condition_failed(name, tag)
        publish(connection, "manifest", _key(name, tag), now)

    def verify_movable(self, name: RepositoryName, tag: Tag) -> None:
        """Raises TagImmutable if a tag that is there may name nothing else, ever."""
        if self._policies.is_immutable(name, tag):
            raise _is_immutable(name, tag)

    def verify_deletable(self, name: RepositoryName, *tags: Tag) -> None:
        """Raises TagImmutable if one of these tags may not be deleted."""
        for tag in tags:
            if self._policies.is_immutable(name, tag):
                raise TagImmutable(f"tag {tag} of {name} is immutable and cannot be deleted")

    async def read_tag_digests(self, name: RepositoryName, tags: Collection[Tag]) -> dict[Tag, Digest]:
        """What those of `tags` that are there name."""
        return await self._database.read(lambda connection: records.read_tag_digests(connection, name, tags))

    async def select_held(self, name: RepositoryName, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that are manifests of a repository."""

        def work(connection: sa.Connection) -> set[Digest]:
            repository_id = records.find_repository(connection, name)
            return (
                set() if repository_id is None else set(records.read_manifest_sizes(connection, repository_id, digests))
            )

        return await self._database.read(work)

    async def list_absences(self, name: RepositoryName, indexes: Collection[Digest]) -> dict[Digest, set[Digest]]:
        """What some indexes of a repository name that is not here, by index; nothing for those that lack nothing."""

        def work(connection: sa.Connection) -> dict[Digest, set[Digest]]:
            repository_id = records.find_repository(connection, name)
            return {} if repository_id is None else records.list_absences(connection, repository_id, indexes)

        return await self._database.read(work)

    async def delete_manifest(
        self, name: RepositoryName, reference: Reference, *, condition: Condition | None = None
    ) -> None:
        """Drop a tag, or, by digest, a manifest with all its tags, if the `condition` holds for it.

        Raises ManifestUnknown, NameUnknown, PreconditionFailed, TagImmutable, or ManifestReferenced while an index
        needs the manifest. Spec: distribution-spec 1.1, "Deleting tags" and "Deleting Manifests".
        """

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            repository_id = _get_repository(connection, name)
            if isinstance(reference, Tag):
                changed = self._drop_tag(connection, name, repository_id, reference, condition)
            else:
                changed = self._drop_manifest(connection, name, repository_id, reference, condition)
            for one in changed:
                publish(connection, "manifest", _key(name, one), now)

        await self._signals.commit(work)

    def _drop_tag(
        self, connection: sa.Connection, name: RepositoryName, repository_id: int, tag: Tag, condition: Condition | None
    ) -> list[Reference]:
        """Drop a tag; answers what changed by that."""
        named = records.lock_tag(connection, repository_id, tag)
        if named is None:
            raise ManifestUnknown(f"repository {name} has no manifest {tag}")
        self.verify_deletable(name, tag)
        if condition is not None and not condition(named):
            raise _condition_failed(name, tag)
        records.delete_tag(connection, repository_id, tag)
        return [tag]

    def _drop_manifest(
        self,
        connection: sa.Connection,
        name: RepositoryName,
        repository_id: int,
        digest: Digest,
        condition: Condition | None,
    ) -> list[Reference]:
        """Drop a manifest and all its tags; answers what changed by that, its children included."""
        if not records.lock_manifest(connection, repository_id, digest):
            raise ManifestUnknown(f"repository {name} has no manifest {digest}")
        parents = records.list_parents(connection, repository_id, digest)
        if parents:
            raise ManifestReferenced(f"manifest {digest} is part of {', '.join(parents)}; delete that first")
        tags = [Tag(tag) for tag in records.list_tags_of(connection, repository_id, digest)]
        self.verify_deletable(name, *tags)
        if condition is not None and not condition(str(digest)):
            raise _condition_failed(name, digest)
        children = [Digest.parse(one) for one in records.list_children(connection, repository_id, digest)]
        records.delete_manifest(connection, repository_id, digest)
        return [digest, *tags, *children]

    async def select_reached(self, name: RepositoryName, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that are manifests of a repository to which a tag leads."""

        def work(connection: sa.Connection) -> set[Digest]:
            repository_id = records.find_repository(connection, name)
            if repository_id is None:
                return set()
            reached = find_reached(connection, repository_id, {str(digest) for digest in digests})
            return {digest for digest in digests if str(digest) in reached}

        return await self._database.read(work)

    async def delete_leftovers(self, name: RepositoryName, companions: Companions) -> list[Tag]:
        """Drop tags that speak of what no other tag leads to any more; answers which (see `leftovers.py`)."""
        # Looked at without the writer's lock first: mostly there is nothing.
        if not await self._database.read(lambda connection: find_leftovers(connection, name, companions)):
            return []
        return await self._signals.commit(
            lambda connection: delete_leftovers(connection, name, companions, self._policies, self._clock())
        )

    async def select_blobs(self, digests: Collection[Digest]) -> set[Digest]:
        """Those of `digests` that are blobs of some repository, so that any other can have them without a transfer."""
        return await self._database.read(lambda connection: records.select_held_blobs(connection, digests))

    async def list_referrers(
        self, name: RepositoryName, subject: Digest, artifact_type: str | None, after: str
    ) -> Referrers:
        """What speaks of a manifest, whether that is here or not: of one artifact type, or of any, by digest.

        Spec: distribution-spec 1.1, "Listing Referrers".
        """

        def work(connection: sa.Connection) -> tuple[list[records.ReferrerRow], dict[str, bytes]]:
            repository_id = records.find_repository(connection, name)
            if repository_id is None:
                return [], {}
            rows = records.list_referrers(connection, repository_id, subject, artifact_type, after, _REFERRERS + 1)
            # Their annotations stand in their bytes, of which only a page's worth is read.
            page = _head(rows[:_REFERRERS], lambda row: row.size, _REFERRERS_BYTES)
            return rows, records.read_manifest_contents(connection, repository_id, [row.digest for row in page])

        rows, contents = await self._database.read(work)
        entries = [
            Referrer(
                row.media_type,
                Digest.parse(row.digest),
                row.size,
                row.artifact_type,
                read_annotations(contents[row.digest]),
            )
            for row in rows
            if row.digest in contents
        ]
        # As they are sent: in ASCII, where one character may take six.
        page = _head(entries, lambda entry: len(json.dumps(entry.annotations)), _REFERRERS_BYTES)
        return Referrers(page, is_last=len(page) == len(rows))

    async def list_tags(
        self, name: RepositoryName, after: str, limit: int, is_visible: Callable[[str], bool] = lambda _tag: True
    ) -> Page:
        """Up to `limit` tags that are `is_visible`, after `after`, in lexical order. Raises NameUnknown."""

        def work(connection: sa.Connection) -> list[str]:
            repository_id = _get_repository(connection, name)
            return _list_visible(
                lambda last, batch: records.list_tags(connection, repository_id, last, batch), after, limit, is_visible
            )

        names = await self._database.read(work)
        return Page(names[:limit], is_last=len(names) <= limit)

    async def list_repositories(
        self, after: str, limit: int, is_visible: Callable[[RepositoryName], bool], prefixes: Collection[str]
    ) -> Page:
        """Up to `limit` names that are `is_visible`, after `after`, in lexical order.

        Every visible name begins with one of `prefixes`, so that nobody has to look through all the others.
        """

        def work(connection: sa.Connection) -> list[str]:
            visible: list[str] = []
            for prefix in _least_prefixes(prefixes):
                if len(visible) <= limit:
                    visible += _list_visible(
                        lambda last, batch, prefix=prefix: records.list_repositories(connection, last, prefix, batch),  # type: ignore[misc]
                        after,
                        limit - len(visible),
                        lambda name: is_visible(RepositoryName(name)),
                    )
            return visible

        names = await self._database.read(work)
        return Page(names[:limit], is_last=len(names) <= limit)

    async def _verify_repository(self, name: RepositoryName) -> None:
        await self._database.read(lambda connection: _get_repository(connection, name))

    async def _hold(
        self,
        name: RepositoryName,
        digest: Digest,
        find: Callable[[sa.Connection, int, Digest], datetime | None],
        renew: Callable[[sa.Connection, int, Digest, datetime], bool],
    ) -> bool:
        """Whether something is there; renews its hold unless that was done of late."""

        def held_at(connection: sa.Connection) -> datetime | None:
            repository_id = records.find_repository(connection, name)
            return None if repository_id is None else find(connection, repository_id, digest)

        def work(connection: sa.Connection) -> bool:
            # It may have been collected meanwhile.
            repository_id = records.find_repository(connection, name)
            return repository_id is not None and renew(connection, repository_id, digest, now)

        now = self._clock()
        last = await self._database.read(held_at)
        if last is None or now - last < self._hold_renewed:
            return last is not None
        return await self._database.write(work)

    def _grow(self, connection: sa.Connection, name: RepositoryName, repository_id: int, size: int) -> None:
        """Count `size` bytes more for a repository. Raises QuotaExceeded."""
        quota = self._policies.quota_of(name)
        if not records.grow_repository(connection, repository_id, size, quota):
            raise QuotaExceeded(
                f"repository {name} may hold {quota} bytes, and {size} more do not fit; "
                "delete what is not needed, or ask for a larger quota"
            )


def _list_visible(
    read: Callable[[str, int], list[str]], after: str, limit: int, is_visible: Callable[[str], bool]
) -> list[str]:
    """More than `limit` visible names after `after`, or all there are; `read` answers so many names after another."""
    visible: list[str] = []
    # More at a time the fewer of them turn out to be visible.
    last, batch = after, limit + 1
    while len(visible) <= limit:
        names = read(last, batch)
        visible += filter(is_visible, names)
        if len(names) < batch:
            break
        last, batch = names[-1], max(batch, min(batch * 2, MAX_PAGE))
    return visible


def _get_repository(connection: sa.Connection, name: RepositoryName) -> int:
    repository_id = records.find_repository(connection, name)
    if repository_id is None:
        raise NameUnknown(f"there is no repository {name}")
    return repository_id


def _is_immutable(name: RepositoryName, tag: Tag) -> TagImmutable:
    return TagImmutable(f"tag {tag} of {name} is immutable and names another manifest; push under a new tag")


def _condition_failed(name: RepositoryName, reference: Reference) -> PreconditionFailed:
    return PreconditionFailed(f"{reference} of {name} is not what the request depends on; look at it and decide anew")


def _head(entries: list[T], size: Callable[[T], int], limit: int) -> list[T]:
    """The first entries that together stay within a limit; one at least."""
    taken = 0
    for number, entry in enumerate(entries):
        taken += size(entry)
        if number and taken > limit:
            return entries[:number]
    return entries


def _least_prefixes(prefixes: Collection[str]) -> list[str]:
    """Those that do not begin with another one, in order: together they cover the same names, each once."""
    least: list[str] = []
    for prefix in sorted(prefixes):
        if not least or not prefix.startswith(least[-1]):
            least.append(prefix)
    return least


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
