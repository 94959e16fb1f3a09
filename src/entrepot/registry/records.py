"""SQL of the registry: one function per question.

A repository is addressed by its id inside the database and by its name everywhere else.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag
from entrepot.storage.blobs import Staged, first_key
from entrepot.storage.statements import insert_missing, upsert
from entrepot.storage.tables import (
    Instant,
    blobs,
    manifest_absences,
    manifest_blobs,
    manifest_children,
    manifests,
    repositories,
    repository_blobs,
    tags,
    upload_chunks,
    uploads,
)

# SQLite allows some 32,000 variables in a statement, PostgreSQL 65,535.
_BATCH = 1000


def find_repository(connection: sa.Connection, name: RepositoryName) -> int | None:
    """The id of a repository."""
    return connection.scalar(sa.select(repositories.c.id).where(repositories.c.name == name.value))


def ensure_repository(connection: sa.Connection, name: RepositoryName, now: datetime) -> int:
    """The id of a repository, which exists from now on."""
    found = find_repository(connection, name)
    if found is not None:
        return found
    insert_missing(connection, repositories, [{"name": name.value, "created_at": now}])
    created = find_repository(connection, name)
    if created is None:
        raise RuntimeError(f"repository {name} vanished inside a transaction")
    return created


def list_repositories(connection: sa.Connection, after: str, prefix: str, limit: int) -> list[str]:
    """Names that begin with `prefix`, after `after`, in lexical order."""
    query = sa.select(repositories.c.name).where(repositories.c.name > after).order_by(repositories.c.name).limit(limit)
    if prefix:
        # No character of a name sorts behind DEL.
        query = query.where(repositories.c.name >= prefix, repositories.c.name < prefix + "\x7f")
    return list(connection.scalars(query))


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A manifest as it is kept; `is_child` when an index in the same repository names it."""

    digest: str
    media_type: str
    content: bytes
    subject: str | None
    is_child: bool


def find_manifest(connection: sa.Connection, name: RepositoryName, reference: Reference) -> ManifestRow | None:
    """What `reference` names in a repository: one indexed read."""
    query = (
        sa.select(
            manifests.c.digest,
            manifests.c.media_type,
            manifests.c.content,
            manifests.c.subject,
            is_child_of_any().label("is_child"),
        )
        .join(repositories, repositories.c.id == manifests.c.repository_id)
        .where(repositories.c.name == name.value)
    )
    if isinstance(reference, Tag):
        query = query.join(
            tags, (tags.c.repository_id == manifests.c.repository_id) & (tags.c.digest == manifests.c.digest)
        ).where(tags.c.name == reference.value)
    else:
        query = query.where(manifests.c.digest == str(reference))
    row = connection.execute(query).first()
    if row is None:
        return None
    return ManifestRow(row.digest, row.media_type, bytes(row.content), row.subject, bool(row.is_child))


def is_child_of_any() -> sa.ColumnElement[bool]:
    """Whether an index in its repository names the row of `manifests` of the statement around it."""

    def names(table: sa.Table) -> sa.ColumnElement[bool]:
        return (
            sa.exists()
            .where(table.c.repository_id == manifests.c.repository_id, table.c.child == manifests.c.digest)
            .correlate(manifests)
        )

    return sa.or_(names(manifest_children), names(manifest_absences))


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A blob's size in bytes, and the object that holds it."""

    size: int
    key: str


def find_blob(connection: sa.Connection, name: RepositoryName, digest: Digest) -> BlobRow | None:
    """A blob, when the repository holds it."""
    query = (
        sa.select(blobs.c.size_bytes, blobs.c.key)
        .join(repository_blobs, repository_blobs.c.digest == blobs.c.digest)
        .join(repositories, repositories.c.id == repository_blobs.c.repository_id)
        .where(repositories.c.name == name.value, blobs.c.digest == str(digest))
    )
    row = connection.execute(query).first()
    return None if row is None else BlobRow(row.size_bytes, row.key or first_key(digest))


def find_blob_size(connection: sa.Connection, digest: Digest) -> int | None:
    """Size in bytes of a blob, whichever repository holds it."""
    return connection.scalar(sa.select(blobs.c.size_bytes).where(blobs.c.digest == str(digest)))


def list_holders(connection: sa.Connection, digest: Digest, limit: int) -> list[RepositoryName]:
    """Repositories that hold a blob, up to `limit` of them."""
    query = (
        sa.select(repositories.c.name)
        .join(repository_blobs, repository_blobs.c.repository_id == repositories.c.id)
        .where(repository_blobs.c.digest == str(digest))
        .limit(limit)
    )
    return [RepositoryName(name) for name in connection.scalars(query)]


def read_blob_sizes(connection: sa.Connection, repository_id: int, digests: Iterable[Digest]) -> dict[Digest, int]:
    """Sizes of those of `digests` that the repository holds."""
    found: dict[Digest, int] = {}
    for some in _batches(digests):
        query = (
            sa.select(blobs.c.digest, blobs.c.size_bytes)
            .join(repository_blobs, repository_blobs.c.digest == blobs.c.digest)
            .where(
                repository_blobs.c.repository_id == repository_id,
                repository_blobs.c.digest.in_(some),
            )
        )
        found |= {Digest.parse(row.digest): row.size_bytes for row in connection.execute(query)}
    return found


def select_held_blobs(connection: sa.Connection, digests: Iterable[Digest]) -> set[Digest]:
    """Those of `digests` that some repository holds as blobs."""
    found: set[Digest] = set()
    for some in _batches(digests):
        query = sa.select(repository_blobs.c.digest).where(repository_blobs.c.digest.in_(some)).distinct()
        found |= {Digest.parse(digest) for digest in connection.scalars(query)}
    return found


def read_manifest_sizes(connection: sa.Connection, repository_id: int, digests: Iterable[Digest]) -> dict[Digest, int]:
    """Sizes of those of `digests` that are manifests of the repository."""
    found: dict[Digest, int] = {}
    for some in _batches(digests):
        query = sa.select(manifests.c.digest, sa.func.length(manifests.c.content).label("size")).where(
            manifests.c.repository_id == repository_id,
            manifests.c.digest.in_(some),
        )
        found |= {Digest.parse(row.digest): row.size for row in connection.execute(query)}
    return found


def read_tag_digests(connection: sa.Connection, name: RepositoryName, names: Iterable[Tag]) -> dict[Tag, Digest]:
    """What those of `names` that are there name."""
    found: dict[Tag, Digest] = {}
    for some in _batches(names):
        query = (
            sa.select(tags.c.name, tags.c.digest)
            .join(repositories, repositories.c.id == tags.c.repository_id)
            .where(repositories.c.name == name.value, tags.c.name.in_(some))
        )
        found |= {Tag(row.name): Digest.parse(row.digest) for row in connection.execute(query)}
    return found


def find_tag(connection: sa.Connection, repository_id: int, tag: Tag) -> str | None:
    """The digest that a tag names."""
    query = sa.select(tags.c.digest).where(tags.c.repository_id == repository_id, tags.c.name == tag.value)
    return connection.scalar(query)


def insert_blob(connection: sa.Connection, digest: Digest, size: int, key: str, now: datetime) -> str:
    """Record the object that holds a blob; answers the one that does, which may have been there before."""
    row = {"digest": str(digest), "size_bytes": size, "created_at": now, "key": key}
    if insert_missing(connection, blobs, [row]) == 1:
        return key
    found: str | None = connection.scalar(sa.select(blobs.c.key).where(blobs.c.digest == str(digest)))
    return found or first_key(digest)


def link_blob(connection: sa.Connection, repository_id: int, digest: Digest, now: datetime) -> bool:
    """Let a repository hold a recorded blob; False when it did already, which is noted as being asked for."""
    row = {"repository_id": repository_id, "digest": str(digest), "created_at": now, "held_at": now}
    while insert_missing(connection, repository_blobs, [row]) == 0:
        # On PostgreSQL the collector may take it away between the two statements.
        if hold_blob(connection, repository_id, digest, now):
            return False
    return True


def hold_blob(connection: sa.Connection, repository_id: int, digest: Digest, now: datetime) -> bool:
    """Note that a publisher counts on a blob; False when it is gone."""
    statement = repository_blobs.update().where(
        repository_blobs.c.repository_id == repository_id, repository_blobs.c.digest == str(digest)
    )
    return connection.execute(statement.values(held_at=now)).rowcount > 0


def find_blob_hold(connection: sa.Connection, repository_id: int, digest: Digest) -> datetime | None:
    """When a publisher last counted on a blob; None when the repository does not hold it."""
    query = sa.select(sa.func.coalesce(repository_blobs.c.held_at, repository_blobs.c.created_at, type_=Instant)).where(
        repository_blobs.c.repository_id == repository_id, repository_blobs.c.digest == str(digest)
    )
    found: datetime | None = connection.scalar(query)
    return found


def unlink_blob(connection: sa.Connection, repository_id: int, digest: Digest) -> bool:
    """Let a repository no longer hold a blob; answers whether it did."""
    statement = repository_blobs.delete().where(
        repository_blobs.c.repository_id == repository_id, repository_blobs.c.digest == str(digest)
    )
    return connection.execute(statement).rowcount > 0


def list_manifests_with(connection: sa.Connection, repository_id: int, digest: Digest) -> list[str]:
    """Digests of the manifests that name a blob, at most ten."""
    query = (
        sa.select(manifest_blobs.c.manifest)
        .where(manifest_blobs.c.repository_id == repository_id, manifest_blobs.c.blob == str(digest))
        .limit(10)
    )
    return list(connection.scalars(query))


def list_users(connection: sa.Connection, repository_id: int, digests: Collection[str]) -> set[str]:
    """One step up from manifests and blobs: the manifests and indexes that name any of them, and their subjects."""
    found: set[str] = set()
    for batch in _batches(digests):
        questions = (
            sa.select(manifest_blobs.c.manifest).where(
                manifest_blobs.c.repository_id == repository_id, manifest_blobs.c.blob.in_(batch)
            ),
            sa.select(manifest_children.c.manifest).where(
                manifest_children.c.repository_id == repository_id, manifest_children.c.child.in_(batch)
            ),
            sa.select(manifests.c.subject).where(
                manifests.c.repository_id == repository_id,
                manifests.c.digest.in_(batch),
                manifests.c.subject.is_not(None),
            ),
        )
        for question in questions:
            found.update(connection.scalars(question))
    return found


def list_steps_up(connection: sa.Connection, repository_id: int, digests: Collection[str]) -> Iterator[tuple[str, str]]:
    """For manifests, pairs of each with an index that names it, and with the subject that it speaks of."""
    for batch in _batches(digests):
        questions = (
            sa.select(manifest_children.c.child, manifest_children.c.manifest).where(
                manifest_children.c.repository_id == repository_id, manifest_children.c.child.in_(batch)
            ),
            sa.select(manifests.c.digest, manifests.c.subject).where(
                manifests.c.repository_id == repository_id,
                manifests.c.digest.in_(batch),
                manifests.c.subject.is_not(None),
            ),
        )
        for question in questions:
            yield from ((digest, above) for digest, above in connection.execute(question))


def list_tags_with_digests(
    connection: sa.Connection, repository_id: int, digests: Collection[str]
) -> Iterator[tuple[str, str]]:
    """The tags that name any of these manifests, each with what it names."""
    for batch in _batches(digests):
        query = sa.select(tags.c.name, tags.c.digest).where(
            tags.c.repository_id == repository_id, tags.c.digest.in_(batch)
        )
        yield from ((name, digest) for name, digest in connection.execute(query))


def list_tags_naming(connection: sa.Connection, repository_id: int, digests: Collection[str]) -> Iterator[str]:
    """The tags that name any of these manifests."""
    for batch in _batches(digests):
        query = sa.select(tags.c.name).where(tags.c.repository_id == repository_id, tags.c.digest.in_(batch))
        yield from connection.scalars(query)


def grow_repository(connection: sa.Connection, repository_id: int, size: int, limit: int | None) -> bool:
    """Add `size` bytes to what a repository takes; False when that would be more than `limit`."""
    statement = repositories.update().where(repositories.c.id == repository_id)
    if limit is not None:
        statement = statement.where(repositories.c.size_bytes + size <= limit)
    return connection.execute(statement.values(size_bytes=repositories.c.size_bytes + size)).rowcount == 1


def insert_manifest(
    connection: sa.Connection, repository_id: int, manifest: Manifest, held: Collection[Digest], now: datetime
) -> bool:
    """Keep a manifest and what it names; `held` are those of its blobs and children that the repository holds.

    False when it is there already, which is noted as being asked for.
    """
    key = {"repository_id": repository_id, "manifest": str(manifest.digest)}
    row = {
        "repository_id": repository_id,
        "digest": str(manifest.digest),
        "media_type": manifest.media_type,
        "content": manifest.content,
        "subject": str(manifest.subject.digest) if manifest.subject else None,
        "artifact_type": manifest.artifact_type,
        "created_at": now,
        "held_at": now,
    }
    is_new = True
    while is_new and insert_missing(connection, manifests, [row]) == 0:
        # As above: it may be collected between the two statements.
        is_new = not hold_manifest(connection, repository_id, manifest.digest, now)
    named_blobs = {blob.digest for blob in manifest.blobs if blob.digest in held}
    insert_missing(connection, manifest_blobs, [{**key, "blob": str(digest)} for digest in sorted(named_blobs)])
    children = sorted({child.digest for child in manifest.children})
    there = [{**key, "child": str(digest)} for digest in children if digest in held]
    absent = [{**key, "child": str(digest)} for digest in children if digest not in held]
    insert_missing(connection, manifest_children, there)
    insert_missing(connection, manifest_absences, absent)
    _end_absences(connection, repository_id, manifest.digest)
    return is_new


def _end_absences(connection: sa.Connection, repository_id: int, child: Digest) -> None:
    """Let the indexes that lacked a manifest, which has just arrived, have it as a child like any other."""
    is_absent = sa.and_(manifest_absences.c.repository_id == repository_id, manifest_absences.c.child == str(child))
    lacking = list(connection.scalars(sa.select(manifest_absences.c.manifest).where(is_absent)))
    if not lacking:
        return
    # Locked, since an index that is deleted at the same time must not get a child again.
    held = sa.select(manifests.c.digest).where(
        manifests.c.repository_id == repository_id, manifests.c.digest.in_(lacking)
    )
    rows = [
        {"repository_id": repository_id, "manifest": index, "child": str(child)}
        for index in connection.scalars(held.order_by(manifests.c.digest).with_for_update(read=True, key_share=True))
    ]
    insert_missing(connection, manifest_children, rows)
    connection.execute(manifest_absences.delete().where(is_absent))


def list_absences(
    connection: sa.Connection, repository_id: int, indexes: Collection[Digest]
) -> dict[Digest, set[Digest]]:
    """Children that some indexes of a repository name and that are not here, by index."""
    found: dict[Digest, set[Digest]] = {}
    for batch in _batches(indexes):
        # One that arrived at the same moment as the index may still be noted as absent.
        is_here = sa.exists().where(
            manifests.c.repository_id == repository_id, manifests.c.digest == manifest_absences.c.child
        )
        query = sa.select(manifest_absences.c.manifest, manifest_absences.c.child).where(
            manifest_absences.c.repository_id == repository_id, manifest_absences.c.manifest.in_(batch), ~is_here
        )
        for index, child in connection.execute(query):
            found.setdefault(Digest.parse(index), set()).add(Digest.parse(child))
    return found


def hold_manifest(connection: sa.Connection, repository_id: int, digest: Digest, now: datetime) -> bool:
    """Note that a publisher counts on a manifest; False when it is gone."""
    statement = manifests.update().where(manifests.c.repository_id == repository_id, manifests.c.digest == str(digest))
    return connection.execute(statement.values(held_at=now)).rowcount > 0


def find_manifest_hold(connection: sa.Connection, repository_id: int, digest: Digest) -> datetime | None:
    """When a publisher last counted on a manifest; None when the repository does not hold it."""
    query = sa.select(sa.func.coalesce(manifests.c.held_at, manifests.c.created_at, type_=Instant)).where(
        manifests.c.repository_id == repository_id, manifests.c.digest == str(digest)
    )
    found: datetime | None = connection.scalar(query)
    return found


@dataclass(frozen=True, slots=True)
class ReferrerRow:
    """A manifest whose subject is another; `size` is its length in bytes."""

    digest: str
    media_type: str
    artifact_type: str | None
    size: int


def list_referrers(
    connection: sa.Connection, repository_id: int, subject: Digest, artifact_type: str | None, after: str, limit: int
) -> list[ReferrerRow]:
    """Manifests whose subject is `subject`, by digest after `after`; of one artifact type, or of any."""
    query = (
        sa.select(
            manifests.c.digest,
            manifests.c.media_type,
            manifests.c.artifact_type,
            sa.func.length(manifests.c.content).label("size"),
        )
        .where(
            manifests.c.repository_id == repository_id,
            manifests.c.subject == str(subject),
            manifests.c.digest > after,
        )
        .order_by(manifests.c.digest)
        .limit(limit)
    )
    if artifact_type is not None:
        query = query.where(manifests.c.artifact_type == artifact_type)
    return [ReferrerRow(row.digest, row.media_type, row.artifact_type, row.size) for row in connection.execute(query)]


def read_manifest_contents(connection: sa.Connection, repository_id: int, digests: Collection[str]) -> dict[str, bytes]:
    """The bytes of manifests, by digest."""
    query = sa.select(manifests.c.digest, manifests.c.content).where(
        manifests.c.repository_id == repository_id, manifests.c.digest.in_(digests)
    )
    return {row.digest: bytes(row.content) for row in connection.execute(query)}


def put_tag(connection: sa.Connection, repository_id: int, tag: Tag, digest: Digest, now: datetime) -> None:
    """Let a tag name a manifest, whatever it named before."""
    upsert(connection, tags, _tag_row(repository_id, tag, digest, now))


def insert_tag(connection: sa.Connection, repository_id: int, tag: Tag, digest: Digest, now: datetime) -> bool:
    """Let a new tag name a manifest; False when it names another already."""
    if insert_missing(connection, tags, [_tag_row(repository_id, tag, digest, now)]) == 1:
        return True
    return find_tag(connection, repository_id, tag) == str(digest)


def replace_tag(
    connection: sa.Connection, repository_id: int, tag: Tag, before: str | None, digest: Digest, now: datetime
) -> bool:
    """Let a tag that names `before` (None: that is not there) name another manifest; False when that changed."""
    row = _tag_row(repository_id, tag, digest, now)
    if before is None:
        return insert_missing(connection, tags, [row]) == 1
    is_it = (tags.c.repository_id == repository_id) & (tags.c.name == tag.value) & (tags.c.digest == before)
    return connection.execute(tags.update().where(is_it).values(row)).rowcount == 1


def _tag_row(repository_id: int, tag: Tag, digest: Digest, now: datetime) -> dict[str, object]:
    return {"repository_id": repository_id, "name": tag.value, "digest": str(digest), "updated_at": now}


def list_tags(connection: sa.Connection, repository_id: int, after: str, limit: int) -> list[str]:
    """Tags after `after`, in lexical order."""
    query = (
        sa.select(tags.c.name)
        .where(tags.c.repository_id == repository_id, tags.c.name > after)
        .order_by(tags.c.name)
        .limit(limit)
    )
    return list(connection.scalars(query))


def list_tags_of(connection: sa.Connection, repository_id: int, digest: Digest) -> list[str]:
    """The tags that name a manifest."""
    query = sa.select(tags.c.name).where(tags.c.repository_id == repository_id, tags.c.digest == str(digest))
    return list(connection.scalars(query))


def list_parents(connection: sa.Connection, repository_id: int, digest: Digest) -> list[str]:
    """Digests of the indexes that need a manifest, at most ten."""
    query = (
        sa.select(manifest_children.c.manifest)
        .where(manifest_children.c.repository_id == repository_id, manifest_children.c.child == str(digest))
        .limit(10)
    )
    return list(connection.scalars(query))


def lock_tag(connection: sa.Connection, repository_id: int, tag: Tag) -> str | None:
    """The digest that a tag names, and will name until the transaction ends; None when it is not there.

    SQLite's only writer needs no lock, and has no statement for one.
    """
    query = sa.select(tags.c.digest).where(tags.c.repository_id == repository_id, tags.c.name == tag.value)
    return connection.scalar(query.with_for_update())


def delete_tag(connection: sa.Connection, repository_id: int, tag: Tag) -> None:
    """Drop a tag."""
    connection.execute(tags.delete().where(tags.c.repository_id == repository_id, tags.c.name == tag.value))


def lock_manifest(connection: sa.Connection, repository_id: int, digest: Digest) -> bool:
    """Keep others from naming a manifest until the transaction ends; False when it is not there."""
    query = sa.select(manifests.c.digest).where(
        manifests.c.repository_id == repository_id, manifests.c.digest == str(digest)
    )
    return connection.scalar(query.with_for_update()) is not None


def delete_manifest(connection: sa.Connection, repository_id: int, digest: Digest) -> bool:
    """Drop a manifest, its tags and what it names; answers whether it was there."""
    is_it = (manifests.c.repository_id == repository_id) & (manifests.c.digest == str(digest))
    size = connection.scalar(sa.select(sa.func.length(manifests.c.content)).where(is_it))
    if size is None or connection.execute(manifests.delete().where(is_it)).rowcount == 0:
        return False
    grow_repository(connection, repository_id, -size, None)
    return True


def list_children(connection: sa.Connection, repository_id: int, digest: Digest) -> list[str]:
    """Digests of the manifests that an index names, whether they are here or not."""
    return [
        child
        for table in (manifest_children, manifest_absences)
        for child in connection.scalars(
            sa.select(table.c.child).where(table.c.repository_id == repository_id, table.c.manifest == str(digest))
        )
    ]


def insert_upload(connection: sa.Connection, upload_id: str, name: RepositoryName, now: datetime) -> None:
    """Open an upload session."""
    connection.execute(uploads.insert().values(id=upload_id, repository=name.value, created_at=now))


@dataclass(frozen=True, slots=True)
class UploadRow:
    """How much a session has received: bytes, in so many chunks."""

    size: int
    chunks: int


def find_upload(connection: sa.Connection, upload_id: str, name: RepositoryName) -> UploadRow | None:
    """A session that is open in this repository."""
    query = sa.select(uploads.c.size_bytes, uploads.c.chunks).where(
        uploads.c.id == upload_id, uploads.c.repository == name.value
    )
    row = connection.execute(query).first()
    return None if row is None else UploadRow(row.size_bytes, row.chunks)


def list_chunks(connection: sa.Connection, upload_id: str) -> list[Staged]:
    """What a session has received, in order."""
    query = sa.select(upload_chunks).where(upload_chunks.c.upload_id == upload_id).order_by(upload_chunks.c.start_byte)
    return [
        Staged(row.key, row.size_bytes, Digest.parse(row.digest or f"sha256:{row.sha256}"))
        for row in connection.execute(query)
    ]


def append_chunk(connection: sa.Connection, upload_id: str, start: int, chunk: Staged, now: datetime) -> bool:
    """Add a chunk to a session of `start` bytes; False when it is closed, or another writer was quicker."""
    grown = (
        uploads.update()
        .where(uploads.c.id == upload_id, uploads.c.size_bytes == start)
        .values(size_bytes=uploads.c.size_bytes + chunk.size, chunks=uploads.c.chunks + 1, updated_at=now)
    )
    if connection.execute(grown).rowcount == 0:
        return False
    row = {
        "upload_id": upload_id,
        "start_byte": start,
        "size_bytes": chunk.size,
        "sha256": chunk.digest.hex if chunk.digest.algorithm == "sha256" else "",
        "digest": str(chunk.digest),
        "key": chunk.key,
    }
    connection.execute(upload_chunks.insert().values(row))
    return True


def delete_upload(connection: sa.Connection, upload_id: str) -> bool:
    """Close a session; answers whether it was open."""
    return connection.execute(uploads.delete().where(uploads.c.id == upload_id)).rowcount > 0


def _batches(values: Iterable[Digest | Tag | str]) -> Iterator[list[str]]:
    names = [str(value) for value in values]
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]
