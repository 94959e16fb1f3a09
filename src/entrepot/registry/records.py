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
from entrepot.storage.blobs import Staged
from entrepot.storage.statements import insert_missing, upsert
from entrepot.storage.tables import (
    blobs,
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


def list_repositories(connection: sa.Connection, after: str, limit: int) -> list[str]:
    """Names after `after`, in lexical order."""
    query = sa.select(repositories.c.name).where(repositories.c.name > after).order_by(repositories.c.name).limit(limit)
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
    child_of = (
        sa.exists()
        .where(manifest_children.c.repository_id == manifests.c.repository_id)
        .where(manifest_children.c.child == manifests.c.digest)
    )
    query = (
        sa.select(
            manifests.c.digest,
            manifests.c.media_type,
            manifests.c.content,
            manifests.c.subject,
            child_of.label("is_child"),
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


def find_blob_size(connection: sa.Connection, name: RepositoryName, digest: Digest) -> int | None:
    """Size in bytes of a blob, when the repository holds it."""
    query = (
        sa.select(blobs.c.size_bytes)
        .join(repository_blobs, repository_blobs.c.digest == blobs.c.digest)
        .join(repositories, repositories.c.id == repository_blobs.c.repository_id)
        .where(repositories.c.name == name.value, blobs.c.digest == str(digest))
    )
    return connection.scalar(query)


def is_blob_anywhere(connection: sa.Connection, digest: Digest) -> bool:
    """Whether any repository holds the blob."""
    return connection.scalar(sa.select(sa.exists().where(repository_blobs.c.digest == str(digest)))) or False


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


def insert_blob(connection: sa.Connection, repository_id: int, digest: Digest, size: int, now: datetime) -> None:
    """Record a stored blob, and that the repository holds it."""
    insert_missing(connection, blobs, [{"digest": str(digest), "size_bytes": size, "created_at": now}])
    link_blob(connection, repository_id, digest, now)


def link_blob(connection: sa.Connection, repository_id: int, digest: Digest, now: datetime) -> None:
    """Record that the repository holds a blob that is stored already."""
    row = {"repository_id": repository_id, "digest": str(digest), "created_at": now}
    insert_missing(connection, repository_blobs, [row])


def insert_manifest(
    connection: sa.Connection, repository_id: int, manifest: Manifest, held: Collection[Digest], now: datetime
) -> None:
    """Keep a manifest and what it names; `held` are those of its blobs that the repository holds."""
    key = {"repository_id": repository_id, "manifest": str(manifest.digest)}
    insert_missing(
        connection,
        manifests,
        [
            {
                "repository_id": repository_id,
                "digest": str(manifest.digest),
                "media_type": manifest.media_type,
                "content": manifest.content,
                "subject": str(manifest.subject.digest) if manifest.subject else None,
                "artifact_type": manifest.artifact_type,
                "created_at": now,
            }
        ],
    )
    insert_missing(connection, manifest_blobs, [{**key, "blob": str(digest)} for digest in held])
    children = {child.digest for child in manifest.children}
    insert_missing(connection, manifest_children, [{**key, "child": str(digest)} for digest in children])


def put_tag(connection: sa.Connection, repository_id: int, tag: Tag, digest: Digest, now: datetime) -> None:
    """Let a tag name a manifest, whatever it named before."""
    row = {"repository_id": repository_id, "name": tag.value, "digest": str(digest), "updated_at": now}
    upsert(connection, tags, row)


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
    """Digests of the indexes that name a manifest, at most ten."""
    query = (
        sa.select(manifest_children.c.manifest)
        .where(manifest_children.c.repository_id == repository_id, manifest_children.c.child == str(digest))
        .limit(10)
    )
    return list(connection.scalars(query))


def delete_tag(connection: sa.Connection, repository_id: int, tag: Tag) -> bool:
    """Drop a tag; answers whether it was there."""
    statement = tags.delete().where(tags.c.repository_id == repository_id, tags.c.name == tag.value)
    return connection.execute(statement).rowcount > 0


def delete_manifest(connection: sa.Connection, repository_id: int, digest: Digest) -> bool:
    """Drop a manifest, its tags and what it names; answers whether it was there."""
    statement = manifests.delete().where(manifests.c.repository_id == repository_id, manifests.c.digest == str(digest))
    return connection.execute(statement).rowcount > 0


def insert_upload(connection: sa.Connection, upload_id: str, name: RepositoryName, now: datetime) -> None:
    """Open an upload session."""
    connection.execute(uploads.insert().values(id=upload_id, repository=name.value, created_at=now))


def is_upload(connection: sa.Connection, upload_id: str, name: RepositoryName) -> bool:
    """Whether the session is open, in this repository."""
    query = sa.exists().where(uploads.c.id == upload_id, uploads.c.repository == name.value)
    return connection.scalar(sa.select(query)) or False


def list_chunks(connection: sa.Connection, upload_id: str) -> list[Staged]:
    """What a session has received, in order."""
    query = sa.select(upload_chunks).where(upload_chunks.c.upload_id == upload_id).order_by(upload_chunks.c.start_byte)
    return [Staged(row.key, row.size_bytes, row.sha256) for row in connection.execute(query)]


def insert_chunk(connection: sa.Connection, upload_id: str, start: int, chunk: Staged) -> bool:
    """Add a chunk to a session; False when another writer took its place."""
    row = {
        "upload_id": upload_id,
        "start_byte": start,
        "size_bytes": chunk.size,
        "sha256": chunk.sha256,
        "key": chunk.key,
    }
    return insert_missing(connection, upload_chunks, [row]) == 1


def delete_upload(connection: sa.Connection, upload_id: str) -> bool:
    """Close a session; answers whether it was open."""
    return connection.execute(uploads.delete().where(uploads.c.id == upload_id)).rowcount > 0


def _batches(values: Iterable[Digest | Tag]) -> Iterator[list[str]]:
    names = [str(value) for value in values]
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]
