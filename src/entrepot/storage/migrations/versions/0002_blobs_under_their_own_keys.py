"""Blobs under keys of their own, referrers, sparse indexes, quotas, garbage collection.

Revision: 0002
Previous: 0001
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from entrepot.storage.tables import Id, Instant, text

revision = "0002"
down_revision = "0001"

_BATCH = 500


def upgrade() -> None:
    op.add_column("blobs", sa.Column("key", text(255), nullable=True))
    op.create_index(op.f("ix_blobs_key"), "blobs", ["key"], unique=True)
    op.add_column("repository_blobs", sa.Column("held_at", Instant(), nullable=True))
    op.create_index(op.f("ix_repository_blobs_digest"), "repository_blobs", ["digest"], unique=False)
    op.add_column("manifests", sa.Column("held_at", Instant(), nullable=True))
    op.create_index(
        op.f("ix_manifests_repository_id_subject_digest"),
        "manifests",
        ["repository_id", "subject", "digest"],
        unique=False,
    )
    op.add_column("repositories", sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("uploads", sa.Column("updated_at", Instant(), nullable=True))
    op.add_column("uploads", sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("uploads", sa.Column("chunks", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("upload_chunks", sa.Column("digest", text(140), nullable=True))
    op.create_index(op.f("ix_upload_chunks_key"), "upload_chunks", ["key"], unique=False)
    op.create_table(
        "manifest_absences",
        sa.Column("repository_id", sa.BigInteger(), nullable=False),
        sa.Column("manifest", text(140), nullable=False),
        sa.Column("child", text(140), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id", "manifest"],
            ["manifests.repository_id", "manifests.digest"],
            name=op.f("fk_manifest_absences_repository_id_manifest"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("repository_id", "manifest", "child", name=op.f("pk_manifest_absences")),
    )
    op.create_index(
        op.f("ix_manifest_absences_repository_id_child"), "manifest_absences", ["repository_id", "child"], unique=False
    )
    op.create_table(
        "gc_runs",
        sa.Column("name", text(16), nullable=False),
        sa.Column("runner", text(36), nullable=False),
        sa.Column("started_at", Instant(), nullable=False),
        sa.Column("seen_at", Instant(), nullable=False),
        sa.Column("finished_at", Instant(), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("place", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_gc_runs")),
    )
    op.create_table(
        "installation",
        sa.Column("name", text(63), nullable=False),
        sa.Column("value", text(255), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_installation")),
    )
    # Programs of 0001 look for a blob under its digest alone.
    op.execute("INSERT INTO installation (name, value) VALUES ('schema_floor', '0002')")
    _fill_in()


def _fill_in() -> None:
    """What the new columns say of the rows that are there."""
    op.execute(
        "UPDATE repositories SET size_bytes = (SELECT coalesce(sum(blobs.size_bytes), 0) FROM repository_blobs "
        "JOIN blobs ON blobs.digest = repository_blobs.digest WHERE repository_blobs.repository_id = repositories.id) "
        "+ (SELECT coalesce(sum(length(manifests.content)), 0) FROM manifests "
        "WHERE manifests.repository_id = repositories.id)"
    )
    op.execute(
        "UPDATE uploads SET size_bytes = (SELECT coalesce(sum(upload_chunks.size_bytes), 0) FROM upload_chunks "
        "WHERE upload_chunks.upload_id = uploads.id), chunks = (SELECT count(*) FROM upload_chunks "
        "WHERE upload_chunks.upload_id = uploads.id)"
    )
    manifests = sa.table(
        "manifests",
        sa.column("repository_id", Id),
        sa.column("digest", text(140)),
        sa.column("content", sa.LargeBinary()),
        sa.column("subject", text(140)),
        sa.column("artifact_type", text(255)),
    )
    connection = op.get_bind()
    place: tuple[Any, ...] = (-1, "")
    while True:
        rows = connection.execute(
            sa.select(manifests.c.repository_id, manifests.c.digest, manifests.c.content)
            .where(
                manifests.c.subject.is_not(None),
                manifests.c.artifact_type.is_(None),
                sa.tuple_(manifests.c.repository_id, manifests.c.digest) > sa.tuple_(*place),
            )
            .order_by(manifests.c.repository_id, manifests.c.digest)
            .limit(_BATCH)
        ).all()
        for row in rows:
            config = json.loads(bytes(row.content)).get("config")
            if isinstance(config, dict):
                connection.execute(
                    manifests.update()
                    .where(manifests.c.repository_id == row.repository_id, manifests.c.digest == row.digest)
                    .values(artifact_type=config.get("mediaType"))
                )
        if len(rows) < _BATCH:
            return
        place = (rows[-1].repository_id, rows[-1].digest)


def downgrade() -> None:
    raise RuntimeError("this version's content cannot be read by the one before; restore a backup instead")
