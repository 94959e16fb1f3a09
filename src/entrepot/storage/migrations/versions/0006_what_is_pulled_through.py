"""Tags that are fetched because somebody asked, and what they lead to.

Revision: 0006
Previous: 0005
"""

import sqlalchemy as sa
from alembic import op

from entrepot.storage.tables import text

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
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


def downgrade() -> None:
    raise RuntimeError("this version's content cannot be read by the one before; restore a backup instead")
