"""SQL of garbage collection: one function per question.

What is found is judged again by the statement that deletes it. On PostgreSQL a hold that commits in between makes that
statement look at the row anew, and a foreign key that would break makes the transaction begin again.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.oci.digest import Digest
from entrepot.registry.records import grow_repository, is_child_of_any
from entrepot.storage.blobs import first_key
from entrepot.storage.statements import insert_missing
from entrepot.storage.tables import (
    Instant,
    blobs,
    gc_runs,
    manifest_blobs,
    manifests,
    repositories,
    repository_blobs,
    tags,
    upload_chunks,
    uploads,
)

_RUN = "gc"

_UPLOAD_TOUCHED = sa.func.coalesce(uploads.c.updated_at, uploads.c.created_at, type_=Instant)
_LINK_HELD = sa.func.coalesce(repository_blobs.c.held_at, repository_blobs.c.created_at, type_=Instant)
_MANIFEST_HELD = sa.func.coalesce(manifests.c.held_at, manifests.c.created_at, type_=Instant)


def list_stale_uploads(connection: sa.Connection, before: datetime, after: str, limit: int) -> list[tuple[str, int]]:
    """(id, bytes) of sessions that received nothing since `before`, by id after `after`."""
    query = (
        sa.select(uploads.c.id, uploads.c.size_bytes)
        .where(uploads.c.created_at < before, _UPLOAD_TOUCHED < before, uploads.c.id > after)
        .order_by(uploads.c.id)
        .limit(limit)
    )
    return [(row.id, row.size_bytes) for row in connection.execute(query)]


def delete_stale_upload(connection: sa.Connection, upload_id: str, before: datetime) -> list[str] | None:
    """Close a session that is still stale; answers the keys of what it received, None when it was not."""
    keys = list(connection.scalars(sa.select(upload_chunks.c.key).where(upload_chunks.c.upload_id == upload_id)))
    statement = uploads.delete().where(uploads.c.id == upload_id, _UPLOAD_TOUCHED < before)
    return keys if connection.execute(statement).rowcount else None


@dataclass(frozen=True, slots=True)
class Found:
    """Something in a repository that nothing refers to, and its size in bytes."""

    repository_id: int
    repository: str
    digest: str
    size: int


Place = tuple[int, str]
"""(repository id, digest): where a walk over everything stands."""


def _is_unreferenced_manifest(before: datetime) -> sa.ColumnElement[bool]:
    """No tag, no index, and no subject that is here makes anybody look for it."""
    subjects = manifests.alias("subjects")
    return sa.and_(
        _MANIFEST_HELD < before,
        ~sa.exists()
        .where(tags.c.repository_id == manifests.c.repository_id, tags.c.digest == manifests.c.digest)
        .correlate(manifests),
        ~is_child_of_any(),
        ~sa.exists()
        .where(subjects.c.repository_id == manifests.c.repository_id, subjects.c.digest == manifests.c.subject)
        .correlate(manifests),
    )


def list_unreferenced_manifests(
    connection: sa.Connection, before: datetime, after: Place, limit: int
) -> tuple[list[Found], Place | None]:
    """Manifests that nothing refers to among the next `limit` of all; and where the walk goes on, None at its end."""
    return _walk(
        connection, manifests, sa.func.length(manifests.c.content), _is_unreferenced_manifest(before), after, limit
    )


def delete_unreferenced_manifest(connection: sa.Connection, found: Found, before: datetime) -> bool:
    """Drop a manifest to which still nothing refers; answers whether it did."""
    statement = manifests.delete().where(
        manifests.c.repository_id == found.repository_id,
        manifests.c.digest == found.digest,
        _is_unreferenced_manifest(before),
    )
    if connection.execute(statement).rowcount == 0:
        return False
    grow_repository(connection, found.repository_id, -found.size, None)
    return True


def _is_unreferenced_link(before: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(
        _LINK_HELD < before,
        ~sa.exists()
        .where(
            manifest_blobs.c.repository_id == repository_blobs.c.repository_id,
            manifest_blobs.c.blob == repository_blobs.c.digest,
        )
        .correlate(repository_blobs),
    )


def list_unreferenced_links(
    connection: sa.Connection, before: datetime, after: Place, limit: int
) -> tuple[list[Found], Place | None]:
    """Blobs that no manifest of their repository names, among the next `limit` of all; and where the walk goes on."""
    size = sa.select(blobs.c.size_bytes).where(blobs.c.digest == repository_blobs.c.digest).scalar_subquery()
    return _walk(connection, repository_blobs, size, _is_unreferenced_link(before), after, limit)


def delete_unreferenced_link(connection: sa.Connection, found: Found, before: datetime) -> bool:
    """Let a repository no longer hold a blob that still no manifest names; answers whether it did."""
    statement = repository_blobs.delete().where(
        repository_blobs.c.repository_id == found.repository_id,
        repository_blobs.c.digest == found.digest,
        _is_unreferenced_link(before),
    )
    if connection.execute(statement).rowcount == 0:
        return False
    grow_repository(connection, found.repository_id, -found.size, None)
    return True


def _walk(
    connection: sa.Connection, table: sa.Table, size: Any, condition: sa.ColumnElement[bool], after: Place, limit: int
) -> tuple[list[Found], Place | None]:
    """What of the next `limit` rows meets a condition.

    The limit is on the rows that are looked at, not on those that are found, so that every step costs the same. The
    condition is asked as a column: as a filter, with an upper bound, PostgreSQL would rather read the whole table.
    """
    key = (table.c.repository_id, table.c.digest)
    seen = connection.execute(
        sa.select(*key, condition.label("is_found"))
        .where(sa.tuple_(*key) > sa.tuple_(*(sa.literal(one) for one in after)))
        .order_by(*key)
        .limit(limit)
    ).all()
    following = (seen[-1].repository_id, seen[-1].digest) if len(seen) == limit else None
    keys = [(row.repository_id, row.digest) for row in seen if row.is_found]
    if not keys:
        return [], following
    query = (
        sa.select(*key, size.label("size"), repositories.c.name)
        .join(repositories, repositories.c.id == table.c.repository_id)
        .where(
            # SQLite looks up a range by an index, but no list of pairs.
            sa.tuple_(*key) >= sa.tuple_(*(sa.literal(one) for one in keys[0])),
            sa.tuple_(*key) <= sa.tuple_(*(sa.literal(one) for one in keys[-1])),
            sa.tuple_(*key).in_(keys),
        )
        .order_by(*key)
    )
    found = [Found(row.repository_id, row.name, row.digest, row.size) for row in connection.execute(query)]
    return found, following


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """A blob that no repository holds: its size in bytes, and the object with its content."""

    digest: str
    size: int
    key: str


def list_unheld_blobs(connection: sa.Connection, after: str, limit: int) -> tuple[list[FoundBlob], str | None]:
    """Blobs that no repository holds, among the next `limit` of all; and where the walk goes on, None at its end."""
    seen = connection.execute(
        sa.select(blobs, (~_is_held()).label("is_found"))
        .where(blobs.c.digest > after)
        .order_by(blobs.c.digest)
        .limit(limit)
    ).all()
    found = [
        FoundBlob(row.digest, row.size_bytes, row.key or first_key(Digest.parse(row.digest)))
        for row in seen
        if row.is_found
    ]
    return found, (seen[-1].digest if len(seen) == limit else None)


def delete_unheld_blob(connection: sa.Connection, digest: str) -> bool:
    """Forget a blob that still no repository holds; answers whether it did."""
    return connection.execute(blobs.delete().where(blobs.c.digest == digest, ~_is_held())).rowcount > 0


def _is_held() -> sa.ColumnElement[bool]:
    return sa.exists().where(repository_blobs.c.digest == blobs.c.digest).correlate(blobs)


def count_other_holders(connection: sa.Connection, found: Found, before: datetime) -> int:
    """How many other repositories hold a blob and will go on to do so."""
    query = (
        sa.select(sa.func.count())
        .select_from(repository_blobs)
        .where(
            repository_blobs.c.digest == found.digest,
            repository_blobs.c.repository_id != found.repository_id,
            ~_is_unreferenced_link(before),
        )
    )
    return connection.scalar(query) or 0


def read_known_keys(connection: sa.Connection, keys: Collection[str]) -> set[str]:
    """Those of `keys` whose object holds a blob or part of an upload."""
    return set(connection.scalars(sa.select(blobs.c.key).where(blobs.c.key.in_(keys)))) | set(
        connection.scalars(sa.select(upload_chunks.c.key).where(upload_chunks.c.key.in_(keys)))
    )


def find_run(connection: sa.Connection) -> dict[str, Any] | None:
    """The latest run."""
    row = connection.execute(sa.select(gc_runs).where(gc_runs.c.name == _RUN)).mappings().first()
    return None if row is None else dict(row)


def insert_run(connection: sa.Connection, row: dict[str, Any]) -> bool:
    """Begin the first run ever; False when there was one."""
    return insert_missing(connection, gc_runs, [{"name": _RUN, **row}]) == 1


def take_run(connection: sa.Connection, last: dict[str, Any], row: dict[str, Any]) -> bool:
    """Begin a run after the `last` one; False when another process was quicker."""
    statement = gc_runs.update().where(
        gc_runs.c.name == _RUN, gc_runs.c.runner == last["runner"], gc_runs.c.seen_at == last["seen_at"]
    )
    return connection.execute(statement.values(row)).rowcount == 1


def update_run(connection: sa.Connection, runner: str, **values: Any) -> bool:
    """Say where a run stands; False when another process took it over."""
    statement = gc_runs.update().where(gc_runs.c.name == _RUN, gc_runs.c.runner == runner)
    return connection.execute(statement.values(values)).rowcount == 1
