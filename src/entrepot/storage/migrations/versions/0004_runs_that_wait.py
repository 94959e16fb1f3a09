"""Replication runs that wait, are scheduled, cancelled or asked for by pushes or pulls; what became of each tag.

Revision: 0004
Previous: 0003
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from entrepot.storage.tables import Id, Instant, text

revision = "0004"
down_revision = "0003"

_UNFINISHED = "status IN ('queued', 'running', 'waiting') AND scope IS NULL"
_UNCLAIMED_PUSHES = "status = 'queued' AND scope IS NOT NULL"


def upgrade() -> None:
    op.add_column("replication_rules", sa.Column("scheduled_at", Instant(), nullable=True))
    op.add_column("replication_rules", sa.Column("listed_at", Instant(), nullable=True))
    op.add_column("replication_rules", sa.Column("unreplicated", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("replication_rules", sa.Column("succeeded_at", Instant(), nullable=True))
    op.create_index(op.f("ix_replication_rules_scheduled_at"), "replication_rules", ["scheduled_at"], unique=False)
    _change_runs()
    op.create_table(
        "replication_artifacts",
        sa.Column("id", Id, nullable=False),
        sa.Column("run_id", text(36), nullable=False),
        sa.Column("try", sa.Integer(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("origin", text(255), nullable=False),
        sa.Column("target", text(255), nullable=False),
        sa.Column("tag", text(128), nullable=False),
        sa.Column("digest", text(140), nullable=True),
        sa.Column("outcome", text(16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("side", text(16), nullable=True),
        sa.Column("problem", text(1000), nullable=True),
        sa.Column("is_temporary", sa.Boolean(), nullable=True),
        sa.Column("signed_by", text(400), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["replication_runs.id"], name=op.f("fk_replication_artifacts_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replication_artifacts")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_replication_artifacts_run_id_id"), "replication_artifacts", ["run_id", "id"], unique=False)
    op.create_table(
        "replication_transfers",
        sa.Column("repository", text(255), nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("upload_id", text(36), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["uploads.id"], name=op.f("fk_replication_transfers_upload_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("repository", "digest", name=op.f("pk_replication_transfers")),
        sa.UniqueConstraint("upload_id", name=op.f("uq_replication_transfers_upload_id")),
    )
    _create_pulls()
    op.create_table(
        "replication_totals",
        sa.Column("subject", text(80), nullable=False),
        sa.Column("name", text(40), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "name", name=op.f("pk_replication_totals")),
    )


def _create_pulls() -> None:
    op.create_table(
        "replication_pulls",
        sa.Column("run_id", text(36), nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("tag", text(128), nullable=False),
        sa.Column("digest", text(140), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["replication_runs.id"], name=op.f("fk_replication_pulls_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_replication_pulls")),
        sa.UniqueConstraint("repository", "tag", name=op.f("uq_replication_pulls_repository_tag")),
    )
    op.create_table(
        "replication_arrivals",
        sa.Column("run_id", text(36), nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", text(255), nullable=True),
        sa.Column("content", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["replication_pulls.run_id"], name=op.f("fk_replication_arrivals_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "digest", name=op.f("pk_replication_arrivals")),
    )
    op.create_index(
        op.f("ix_replication_arrivals_repository_digest"),
        "replication_arrivals",
        ["repository", "digest"],
        unique=False,
    )


def _change_runs() -> None:
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column("due_at", Instant(), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("cause", text(16), nullable=False, server_default="request"),
        sa.Column("scope", sa.JSON(none_as_null=True), nullable=True),
    )
    op.drop_index("uq_replication_runs_active", "replication_runs")
    # SQLite cannot change a constraint: the table is made anew there.
    with op.batch_alter_table("replication_runs") as table:
        table.drop_constraint(op.f("ck_replication_runs_status"), type_="check")
        for column in columns:
            table.add_column(column)
        table.create_check_constraint(
            op.f("ck_replication_runs_status"),
            "status IN ('queued', 'running', 'waiting', 'done', 'failed', 'cancelled')",
        )
    op.create_index(op.f("ix_replication_runs_status_due_at"), "replication_runs", ["status", "due_at"], unique=False)
    op.create_index(op.f("ix_replication_runs_finished_at"), "replication_runs", ["finished_at"], unique=False)
    for name, condition in (
        ("uq_replication_runs_active", _UNFINISHED),
        ("uq_replication_runs_pushes", _UNCLAIMED_PUSHES),
    ):
        op.create_index(
            name,
            "replication_runs",
            ["rule"],
            unique=True,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )


def downgrade() -> None:
    raise RuntimeError("this version's content cannot be read by the one before; restore a backup instead")
