"""Labels, steps, usage over time, refusals, shared counters, events and webhooks; API keys with limits of their own.

Revision: 0003
Previous: 0002
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from entrepot.storage.tables import Id, Instant, text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", text(160), nullable=False),
        sa.Column("start", Instant(), nullable=False),
        sa.Column("member", text(43), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("until", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("name", "start", "member", name=op.f("pk_counters")),
    )
    op.create_index(op.f("ix_counters_until"), "counters", ["until"], unique=False)
    op.create_table(
        "idempotent_answers",
        sa.Column("api_key", text(63), nullable=False),
        sa.Column("key", text(255), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("account", text(63), nullable=True),
        sa.Column("at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("api_key", "key", name=op.f("pk_idempotent_answers")),
    )
    op.create_index(op.f("ix_idempotent_answers_account"), "idempotent_answers", ["account"], unique=False)
    op.create_index(op.f("ix_idempotent_answers_at"), "idempotent_answers", ["at"], unique=False)
    op.create_table(
        "webhooks",
        sa.Column("name", text(63), nullable=False),
        sa.Column("url", text(2000), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary(), nullable=True),
        sa.Column("previous_until", Instant(), nullable=True),
        sa.Column("types", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("failing_since", Instant(), nullable=True),
        sa.Column("disabled_at", Instant(), nullable=True),
        sa.Column("disabled_reason", text(200), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_accounts_created_at"), "accounts", ["created_at"], unique=False)
    op.create_table(
        "account_fetches",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_account_fetches_account_id")),
        sa.PrimaryKeyConstraint("account_id", "digest", name=op.f("pk_account_fetches")),
    )
    op.create_index(op.f("ix_account_fetches_at"), "account_fetches", ["at"], unique=False)
    op.create_table(
        "account_steps",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("step", text(32), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("week", Instant(), nullable=False),
        sa.Column("plan", text(63), nullable=False),
        sa.Column("created_by", text(63), nullable=True),
        sa.Column("took", sa.SmallInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_account_steps_account_id")),
        sa.PrimaryKeyConstraint("account_id", "step", name=op.f("pk_account_steps")),
    )
    op.create_index(
        op.f("ix_account_steps_week_plan_step_took_created_by"),
        "account_steps",
        ["week", "plan", "step", "took", "created_by"],
        unique=False,
    )
    op.create_table(
        "events",
        sa.Column("id", Id, nullable=False),
        sa.Column("event_id", text(40), nullable=False),
        sa.Column("type", text(32), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("account_id", Id, nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("once", text(200), nullable=True),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_events_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("event_id", name=op.f("uq_events_event_id")),
        sa.UniqueConstraint("once", name=op.f("uq_events_once")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_account_id_number"), "events", ["account_id", "number"], unique=False)
    op.create_index(op.f("ix_events_at"), "events", ["at"], unique=False)
    op.create_index(op.f("ix_events_number"), "events", ["number"], unique=True)
    op.create_index(op.f("ix_events_type_number"), "events", ["type", "number"], unique=False)
    op.create_table(
        "refusals",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("day", Instant(), nullable=False),
        sa.Column("reason", text(32), nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("message", text(500), nullable=False),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.Column("first_at", Instant(), nullable=True),
        sa.Column("last_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_refusals_account_id")),
        sa.PrimaryKeyConstraint("account_id", "day", "reason", "repository", name=op.f("pk_refusals")),
    )
    op.create_index(op.f("ix_refusals_day"), "refusals", ["day"], unique=False)
    op.create_table(
        "usage_clients",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("client", text(32), nullable=False),
        sa.Column("pulls", sa.BigInteger(), nullable=False),
        sa.Column("first_at", Instant(), nullable=True),
        sa.Column("last_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_clients_account_id")),
        sa.PrimaryKeyConstraint("account_id", "client", name=op.f("pk_usage_clients")),
    )
    op.create_table(
        "usage_networks",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("network", text(43), nullable=False),
        sa.Column("pulls", sa.BigInteger(), nullable=False),
        sa.Column("first_at", Instant(), nullable=True),
        sa.Column("last_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_networks_account_id")),
        sa.PrimaryKeyConstraint("account_id", "network", name=op.f("pk_usage_networks")),
    )
    op.create_index(op.f("ix_usage_networks_last_at"), "usage_networks", ["last_at"], unique=False)
    op.create_table(
        "usage_periods",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("period", text(1), nullable=False),
        sa.Column("start", Instant(), nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("tag", text(128), nullable=False),
        sa.Column("pulls", sa.BigInteger(), nullable=False),
        sa.Column("bytes_served", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_periods_account_id")),
        sa.PrimaryKeyConstraint("account_id", "period", "start", "repository", "tag", name=op.f("pk_usage_periods")),
    )
    op.create_index(
        op.f("ix_usage_periods_period_start_account_id"),
        "usage_periods",
        ["period", "start", "account_id"],
        unique=False,
    )
    op.create_table(
        "usage_versions",
        sa.Column("account_id", Id, nullable=False),
        sa.Column("repository", text(255), nullable=False),
        sa.Column("digest", text(140), nullable=False),
        sa.Column("pulls", sa.BigInteger(), nullable=False),
        sa.Column("first_at", Instant(), nullable=True),
        sa.Column("last_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_usage_versions_account_id")),
        sa.PrimaryKeyConstraint("account_id", "repository", "digest", name=op.f("pk_usage_versions")),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("webhook", text(63), nullable=False),
        sa.Column("event_id", Id, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", Instant(), nullable=True),
        sa.Column("delivered_at", Instant(), nullable=True),
        sa.Column("problem", text(200), nullable=True),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_webhook_deliveries_event_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["webhook"], ["webhooks.name"], name=op.f("fk_webhook_deliveries_webhook"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("webhook", "event_id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(op.f("ix_webhook_deliveries_event_id"), "webhook_deliveries", ["event_id"], unique=False)
    op.create_index(
        op.f("ix_webhook_deliveries_webhook_next_at"), "webhook_deliveries", ["webhook", "next_at"], unique=False
    )
    op.add_column("accounts", sa.Column("labels", sa.JSON(), server_default="{}", nullable=False))
    op.add_column("accounts", sa.Column("created_by", text(63), nullable=True))
    op.add_column("api_keys", sa.Column("networks", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("api_keys", sa.Column("expires_at", Instant(), nullable=True))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("api_keys", sa.Column("own_accounts_only", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("api_keys", sa.Column("last_used_at", Instant(), nullable=True))
    op.add_column("api_keys", sa.Column("previous_hash", sa.LargeBinary(length=32), nullable=True))
    op.add_column("api_keys", sa.Column("previous_until", Instant(), nullable=True))
    op.create_index(op.f("ix_api_keys_previous_hash"), "api_keys", ["previous_hash"], unique=True)
    op.add_column("api_keys", sa.Column("workload", text(63), nullable=True))
    op.add_column("api_keys", sa.Column("token_hash", sa.LargeBinary(length=32), nullable=True))
    op.create_index(op.f("ix_api_keys_workload_expires_at"), "api_keys", ["workload", "expires_at"], unique=False)
    op.add_column("audit", sa.Column("address", text(45), nullable=True))
    op.create_index(op.f("ix_audit_at"), "audit", ["at"], unique=False)
    op.add_column("credentials", sa.Column("is_revoked", sa.Boolean(), server_default=sa.false(), nullable=False))
    _note_revoked()
    op.add_column("credentials", sa.Column("last_used_at", Instant(), nullable=True))
    op.add_column("credentials", sa.Column("warn_at", Instant(), nullable=True))
    op.create_index(op.f("ix_credentials_expires_at"), "credentials", ["expires_at"], unique=False)
    op.create_index(op.f("ix_credentials_warn_at"), "credentials", ["warn_at"], unique=False)
    # Of credentials that are there already: upkeep looks at each once, and sets when to warn.
    op.execute("UPDATE credentials SET warn_at = created_at WHERE expires_at IS NOT NULL")


def _note_revoked() -> None:
    """What was revoked before stays so, whatever the clock says."""
    credentials = sa.table("credentials", sa.column("is_revoked", sa.Boolean()), sa.column("revoked_at", Instant()))
    ended = credentials.c.revoked_at <= datetime.now(UTC)
    op.execute(credentials.update().where(ended).values(is_revoked=True))


def downgrade() -> None:
    raise RuntimeError("this version's content cannot be read by the one before; restore a backup instead")
