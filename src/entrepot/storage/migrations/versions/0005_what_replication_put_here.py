"""Which tags replication put here, so that it may take them away again.

Revision: 0005
Previous: 0004
"""

import sqlalchemy as sa
from alembic import op

from entrepot.storage.tables import Instant, text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "replicated_tags",
        sa.Column("rule", text(63), nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("tag", text(128), nullable=False),
        sa.Column("origin", text(255), nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("missing_since", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("rule", "repository", "tag", name=op.f("pk_replicated_tags")),
    )


def downgrade() -> None:
    raise RuntimeError("this version's content cannot be read by the one before; restore a backup instead")
