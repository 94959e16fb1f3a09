"""The first schema.

Revision: 0001
Previous: none
"""

import sqlalchemy as sa
from alembic import op

from entrepot.storage.tables import Id, Instant, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", text(36), nullable=False),
        sa.Column("name", text(63), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("plans", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("revoked_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("name", name=op.f("uq_api_keys_name")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_api_keys_secret_hash")),
    )
    op.create_table(
        "audit",
        sa.Column("id", Id, nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("actor", text(128), nullable=False),
        sa.Column("action", text(64), nullable=False),
        sa.Column("target", text(255), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("request_id", text(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_target"), "audit", ["target"], unique=False)
    op.create_table(
        "blobs",
        sa.Column("digest", text(140), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "plans",
        sa.Column("name", text(63), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_plans")),
    )
    op.create_table(
        "replication_runs",
        sa.Column("id", text(36), nullable=False),
        sa.Column("rule", text(63), nullable=False),
        sa.Column("status", text(16), nullable=False),
        sa.Column("queued_at", Instant(), nullable=False),
        sa.Column("started_at", Instant(), nullable=True),
        sa.Column("runner", text(36), nullable=True),
        sa.Column("seen_at", Instant(), nullable=True),
        sa.Column("finished_at", Instant(), nullable=True),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.CheckConstraint("status IN ('queued', 'running', 'done', 'failed')", name="ck_replication_runs_status"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replication_runs")),
    )
    op.create_index(op.f("ix_replication_runs_rule_queued_at"), "replication_runs", ["rule", "queued_at"], unique=False)
    op.create_index(
        "uq_replication_runs_active",
        "replication_runs",
        ["rule"],
        unique=True,
        sqlite_where=sa.text("status IN ('queued', 'running')"),
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_table(
        "replication_sources",
        sa.Column("name", text(63), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_replication_sources")),
    )
    op.create_table(
        "repositories",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repositories")),
        sa.UniqueConstraint("name", name=op.f("uq_repositories_name")),
    )
    op.create_table(
        "signals",
        sa.Column("id", Id, nullable=False),
        sa.Column("topic", text(32), nullable=False),
        sa.Column("key", text(400), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signals")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "uploads",
        sa.Column("id", text(36), nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index(op.f("ix_uploads_created_at"), "uploads", ["created_at"], unique=False)
    op.create_table(
        "accounts",
        sa.Column("id", Id, nullable=False),
        sa.Column("name", text(63), nullable=False),
        sa.Column("external_id", text(255), nullable=True),
        sa.Column("plan", text(63), nullable=False),
        sa.Column("status", text(16), nullable=False),
        sa.Column("identity", sa.JSON(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.CheckConstraint("status IN ('active', 'suspended', 'deleted')", name="ck_accounts_status"),
        sa.ForeignKeyConstraint(["plan"], ["plans.name"], name=op.f("fk_accounts_plan")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("external_id", name=op.f("uq_accounts_external_id")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )
    op.create_index(op.f("ix_accounts_plan"), "accounts", ["plan"], unique=False)
    op.create_table(
        "manifests",
        sa.Column("repository_id", Id, nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("media_type", text(255), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("subject", text(140), nullable=True),
        sa.Column("artifact_type", text(255), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["repository_id"], ["repositories.id"], name=op.f("fk_manifests_repository_id")),
        sa.PrimaryKeyConstraint("repository_id", "digest", name=op.f("pk_manifests")),
    )
    op.create_table(
        "replication_rules",
        sa.Column("name", text(63), nullable=False),
        sa.Column("source", text(63), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["source"], ["replication_sources.name"], name=op.f("fk_replication_rules_source")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_replication_rules")),
    )
    op.create_table(
        "repository_blobs",
        sa.Column("repository_id", Id, nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name=op.f("fk_repository_blobs_digest")),
        sa.ForeignKeyConstraint(["repository_id"], ["repositories.id"], name=op.f("fk_repository_blobs_repository_id")),
        sa.PrimaryKeyConstraint("repository_id", "digest", name=op.f("pk_repository_blobs")),
    )
    op.create_table(
        "upload_chunks",
        sa.Column("upload_id", text(36), nullable=False),
        sa.Column("start_byte", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", text(64), nullable=False),
        sa.Column("key", text(255), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["uploads.id"], name=op.f("fk_upload_chunks_upload_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("upload_id", "start_byte", name=op.f("pk_upload_chunks")),
    )
    op.create_table(
        "credentials",
        sa.Column("id", text(36), nullable=False),
        sa.Column("account_id", Id, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("revoked_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_credentials_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credentials")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_credentials_secret_hash")),
    )
    op.create_index(op.f("ix_credentials_account_id"), "credentials", ["account_id"], unique=False)
    op.create_table(
        "manifest_blobs",
        sa.Column("repository_id", sa.BigInteger(), nullable=False),
        sa.Column("manifest", text(140), nullable=False),
        sa.Column("blob", text(140), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id", "blob"],
            ["repository_blobs.repository_id", "repository_blobs.digest"],
            name=op.f("fk_manifest_blobs_repository_id_blob"),
        ),
        sa.ForeignKeyConstraint(
            ["repository_id", "manifest"],
            ["manifests.repository_id", "manifests.digest"],
            name=op.f("fk_manifest_blobs_repository_id_manifest"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("repository_id", "manifest", "blob", name=op.f("pk_manifest_blobs")),
    )
    op.create_index(
        op.f("ix_manifest_blobs_repository_id_blob"), "manifest_blobs", ["repository_id", "blob"], unique=False
    )
    op.create_table(
        "manifest_children",
        sa.Column("repository_id", sa.BigInteger(), nullable=False),
        sa.Column("manifest", text(140), nullable=False),
        sa.Column("child", text(140), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id", "child"],
            ["manifests.repository_id", "manifests.digest"],
            name=op.f("fk_manifest_children_repository_id_child"),
        ),
        sa.ForeignKeyConstraint(
            ["repository_id", "manifest"],
            ["manifests.repository_id", "manifests.digest"],
            name=op.f("fk_manifest_children_repository_id_manifest"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("repository_id", "manifest", "child", name=op.f("pk_manifest_children")),
    )
    op.create_index(
        op.f("ix_manifest_children_repository_id_child"), "manifest_children", ["repository_id", "child"], unique=False
    )
    op.create_table(
        "tags",
        sa.Column("repository_id", Id, nullable=False),
        sa.Column("name", text(128), nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository_id", "digest"],
            ["manifests.repository_id", "manifests.digest"],
            name=op.f("fk_tags_repository_id_digest"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["repository_id"], ["repositories.id"], name=op.f("fk_tags_repository_id")),
        sa.PrimaryKeyConstraint("repository_id", "name", name=op.f("pk_tags")),
    )
    op.create_index(op.f("ix_tags_repository_id_digest"), "tags", ["repository_id", "digest"], unique=False)
    op.create_table(
        "usage",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("pulls", sa.BigInteger(), nullable=False),
        sa.Column("bytes_served", sa.BigInteger(), nullable=False),
        sa.Column("first_pull_at", Instant(), nullable=True),
        sa.Column("last_pull_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_account_id")),
        sa.PrimaryKeyConstraint("account_id", "repository", name=op.f("pk_usage")),
    )


def downgrade() -> None:
    raise RuntimeError("the first schema has no predecessor; delete the database instead")
