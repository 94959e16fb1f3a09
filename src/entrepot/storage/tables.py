"""The tables, in one place, so that migrations and every feature's records speak of the same columns.

Instants are UTC. Rules that must hold when two writers meet are constraints here, not checks in Python.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime on every database; SQLite itself keeps no time zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store UTC; a naive value is a mistake of ours."""
        if value is not None and value.tzinfo is None:
            raise ValueError("an instant must carry its time zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Read UTC."""
        if value is None:
            return None
        instant: datetime = value
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)


def text(characters: int) -> sa.String:
    """Text that every database compares byte by byte, as the lists of the distribution spec are ordered.

    SQLite does so by itself; PostgreSQL would follow the language that the database was made for.
    """
    return sa.String(characters).with_variant(postgresql.VARCHAR(characters, collation="C"), "postgresql")


# A 64-bit key that SQLite also counts up by itself.
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _repository() -> sa.Column[int]:
    return sa.Column("repository_id", sa.ForeignKey("repositories.id"), primary_key=True)


# registry

repositories = sa.Table(
    "repositories",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", text(255), nullable=False, unique=True),
    sa.Column("created_at", Instant, nullable=False),
    # What its blobs take, each counted once; kept up to date by whoever links or unlinks one.
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
)

blobs = sa.Table(
    "blobs",
    metadata,
    sa.Column("digest", text(140), primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    # The object that holds it. NULL: one that version 0001 named after the digest.
    sa.Column("key", text(255), nullable=True),
    sa.Index(None, "key", unique=True),
)

# A blob is seen only in the repositories that received it: knowing a digest is no right to read it.
repository_blobs = sa.Table(
    "repository_blobs",
    metadata,
    _repository(),
    sa.Column("digest", sa.ForeignKey("blobs.digest"), primary_key=True),
    sa.Column("created_at", Instant, nullable=False),
    # When a publisher was last told that it is here. Garbage collection leaves it alone for a while after.
    sa.Column("held_at", Instant, nullable=True),
    sa.Index(None, "digest"),
)

manifests = sa.Table(
    "manifests",
    metadata,
    _repository(),
    sa.Column("digest", text(140), primary_key=True),
    sa.Column("media_type", text(255), nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("subject", text(140), nullable=True),
    # Of a manifest without one, its config's media type, as the referrers API shows it.
    sa.Column("artifact_type", text(255), nullable=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("held_at", Instant, nullable=True),
    sa.Index(None, "repository_id", "subject", "digest"),
)

# What a manifest names. The foreign keys keep a blob or child from going away under a manifest that needs it.
manifest_blobs = sa.Table(
    "manifest_blobs",
    metadata,
    sa.Column("repository_id", sa.BigInteger, primary_key=True),
    sa.Column("manifest", text(140), primary_key=True),
    sa.Column("blob", text(140), primary_key=True),
    sa.ForeignKeyConstraint(
        ["repository_id", "manifest"], ["manifests.repository_id", "manifests.digest"], ondelete="CASCADE"
    ),
    sa.ForeignKeyConstraint(["repository_id", "blob"], ["repository_blobs.repository_id", "repository_blobs.digest"]),
    sa.Index(None, "repository_id", "blob"),
)

manifest_children = sa.Table(
    "manifest_children",
    metadata,
    sa.Column("repository_id", sa.BigInteger, primary_key=True),
    sa.Column("manifest", text(140), primary_key=True),
    sa.Column("child", text(140), primary_key=True),
    sa.ForeignKeyConstraint(
        ["repository_id", "manifest"], ["manifests.repository_id", "manifests.digest"], ondelete="CASCADE"
    ),
    sa.ForeignKeyConstraint(["repository_id", "child"], ["manifests.repository_id", "manifests.digest"]),
    sa.Index(None, "repository_id", "child"),
)

# Children of sparse indexes that are not here. One that arrives moves to manifest_children.
manifest_absences = sa.Table(
    "manifest_absences",
    metadata,
    sa.Column("repository_id", sa.BigInteger, primary_key=True),
    sa.Column("manifest", text(140), primary_key=True),
    sa.Column("child", text(140), primary_key=True),
    sa.ForeignKeyConstraint(
        ["repository_id", "manifest"], ["manifests.repository_id", "manifests.digest"], ondelete="CASCADE"
    ),
    sa.Index(None, "repository_id", "child"),
)

tags = sa.Table(
    "tags",
    metadata,
    _repository(),
    sa.Column("name", text(128), primary_key=True),
    sa.Column("digest", text(140), nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    sa.ForeignKeyConstraint(
        ["repository_id", "digest"], ["manifests.repository_id", "manifests.digest"], ondelete="CASCADE"
    ),
    sa.Index(None, "repository_id", "digest"),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", text(36), primary_key=True),
    sa.Column("repository", text(255), nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    # NULL: nothing was received since it was opened.
    sa.Column("updated_at", Instant, nullable=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("chunks", sa.Integer, nullable=False, server_default="0"),
    sa.Index(None, "created_at"),
)

# The received parts of an upload. The key makes two chunks at one offset impossible, whoever writes them.
upload_chunks = sa.Table(
    "upload_chunks",
    metadata,
    sa.Column("upload_id", sa.ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("start_byte", sa.BigInteger, primary_key=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    # Version 0001's column; empty for another algorithm.
    sa.Column("sha256", text(64), nullable=False),
    sa.Column("key", text(255), nullable=False),
    sa.Column("digest", text(140), nullable=True),
    sa.Index(None, "key"),
)

# The latest run of garbage collection, in one row: who works on it, and where the next goes on if they die.
gc_runs = sa.Table(
    "gc_runs",
    metadata,
    sa.Column("name", text(16), primary_key=True),
    sa.Column("runner", text(36), nullable=False),
    sa.Column("started_at", Instant, nullable=False),
    sa.Column("seen_at", Instant, nullable=False),
    sa.Column("finished_at", Instant, nullable=True),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("place", sa.JSON, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
)

# accounts

plans = sa.Table(
    "plans",
    metadata,
    sa.Column("name", text(63), primary_key=True),
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
)

accounts = sa.Table(
    "accounts",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", text(63), nullable=False, unique=True),
    # NULL once the account is deleted: its identity is erased, its counts stay.
    sa.Column("external_id", text(255), nullable=True, unique=True),
    sa.Column("plan", sa.ForeignKey("plans.name"), nullable=False),
    sa.Column("status", text(16), nullable=False),
    sa.Column("identity", sa.JSON, nullable=False),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=True),
    sa.Column("deleted_at", Instant, nullable=True),
    # The platform's own words for it, each a short text.
    sa.Column("labels", sa.JSON, nullable=False, server_default="{}"),
    # The API key that created it, by name; NULL: the command line.
    sa.Column("created_by", text(63), nullable=True),
    sa.CheckConstraint("status IN ('active', 'suspended', 'deleted')", name="ck_accounts_status"),
    sa.Index(None, "plan"),
    sa.Index(None, "created_at"),
)

# How far an account got: each step once, at its first time, with all that the funnel groups by.
account_steps = sa.Table(
    "account_steps",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("step", text(32), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    # Of the sign-up: its Monday, its plan, and the API key that made it.
    sa.Column("week", Instant, nullable=False),
    sa.Column("plan", text(63), nullable=False),
    sa.Column("created_by", text(63), nullable=True),
    # How long it was since the step before, as a number of accounts/steps.py's TOOK.
    sa.Column("took", sa.SmallInteger, nullable=False),
    sa.Index(None, "week", "plan", "step", "took", "created_by"),
)

# What an account fetched on the way to its first whole image; dropped when it got there, or gave up.
account_fetches = sa.Table(
    "account_fetches",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("digest", text(140), primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Index(None, "at"),
)

credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("id", text(36), primary_key=True),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=False),
    sa.Column("secret_hash", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("expires_at", Instant, nullable=True),
    # When it ends before its time: at once, or when a grace has passed.
    sa.Column("revoked_at", Instant, nullable=True),
    # Whether it ended at once: then it stays so, even where a clock is put back.
    sa.Column("is_revoked", sa.Boolean, nullable=False, server_default=sa.false()),
    # To the minute or so: it is written down in batches.
    sa.Column("last_used_at", Instant, nullable=True),
    # When its holder is to be warned next that it is about to end. NULL: never, or never again.
    sa.Column("warn_at", Instant, nullable=True),
    sa.Index(None, "account_id"),
    sa.Index(None, "expires_at"),
    sa.Index(None, "warn_at"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", text(36), primary_key=True),
    sa.Column("name", text(63), nullable=False, unique=True),
    sa.Column("secret_hash", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("scopes", sa.JSON, nullable=False),
    # NULL: any plan.
    sa.Column("plans", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("created_at", Instant, nullable=False),
    sa.Column("revoked_at", Instant, nullable=True),
    # NULL: from anywhere.
    sa.Column("networks", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("expires_at", Instant, nullable=True),
    sa.Column("requests_per_minute", sa.Integer, nullable=True),
    sa.Column("own_accounts_only", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("last_used_at", Instant, nullable=True),
    # The secret before the last rotation, and until when it holds.
    sa.Column("previous_hash", sa.LargeBinary(32), nullable=True),
    sa.Column("previous_until", Instant, nullable=True),
    # The workload that got it by a token of its platform, and that token's hash; NULL: made by hand.
    sa.Column("workload", text(63), nullable=True),
    sa.Column("token_hash", sa.LargeBinary(32), nullable=True),
    sa.Index(None, "previous_hash", unique=True),
    sa.Index(None, "workload", "expires_at"),
)

# What a request with an Idempotency-Key was answered, without its secret.
idempotent_answers = sa.Table(
    "idempotent_answers",
    metadata,
    sa.Column("api_key", text(63), primary_key=True),
    sa.Column("key", text(255), primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    # The account that it tells of, by name: erased with it.
    sa.Column("account", text(63), nullable=True),
    sa.Column("at", Instant, nullable=False),
    sa.Index(None, "account"),
    sa.Index(None, "at"),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("repository", text(255), primary_key=True),
    sa.Column("pulls", sa.BigInteger, nullable=False),
    sa.Column("bytes_served", sa.BigInteger, nullable=False),
    sa.Column("first_pull_at", Instant, nullable=True),
    sa.Column("last_pull_at", Instant, nullable=True),
)

# Pulls and bytes of an hour ('h') or a day ('d', UTC); hours are kept for a while, days for long. No tag: by digest.
usage_periods = sa.Table(
    "usage_periods",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("period", text(1), primary_key=True),
    sa.Column("start", Instant, primary_key=True),
    sa.Column("repository", text(255), primary_key=True),
    sa.Column("tag", text(128), primary_key=True),
    sa.Column("pulls", sa.BigInteger, nullable=False),
    sa.Column("bytes_served", sa.BigInteger, nullable=False),
    sa.Index(None, "period", "start", "account_id"),
)

# Each version (top-level digest) that an account pulled.
usage_versions = sa.Table(
    "usage_versions",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("repository", text(255), primary_key=True),
    sa.Column("digest", text(140), primary_key=True),
    sa.Column("pulls", sa.BigInteger, nullable=False),
    sa.Column("first_at", Instant, nullable=True),
    sa.Column("last_at", Instant, nullable=True),
)

usage_clients = sa.Table(
    "usage_clients",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("client", text(32), primary_key=True),
    sa.Column("pulls", sa.BigInteger, nullable=False),
    sa.Column("first_at", Instant, nullable=True),
    sa.Column("last_at", Instant, nullable=True),
)

# Truncated to /24 and /48, and kept no longer than the settings say.
usage_networks = sa.Table(
    "usage_networks",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("network", text(43), primary_key=True),
    sa.Column("pulls", sa.BigInteger, nullable=False),
    sa.Column("first_at", Instant, nullable=True),
    sa.Column("last_at", Instant, nullable=True),
    sa.Index(None, "last_at"),
)

# What accounts were refused, each reason once a day with its count.
refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("account_id", sa.ForeignKey("accounts.id"), primary_key=True),
    sa.Column("day", Instant, primary_key=True),
    sa.Column("reason", text(32), primary_key=True),
    sa.Column("repository", text(255), primary_key=True),
    sa.Column("message", text(500), nullable=False),
    sa.Column("times", sa.BigInteger, nullable=False),
    sa.Column("first_at", Instant, nullable=True),
    sa.Column("last_at", Instant, nullable=True),
    sa.Index(None, "day"),
)

# Amounts that several processes count together: pulls of an hour, failures of a minute.
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", text(160), primary_key=True),
    # Of the window that is counted.
    sa.Column("start", Instant, primary_key=True),
    # Where a name has several amounts: those of each network.
    sa.Column("member", text(43), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("until", Instant, nullable=False),
    sa.Index(None, "until"),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("at", Instant, nullable=False),
    sa.Column("actor", text(128), nullable=False),
    sa.Column("action", text(64), nullable=False),
    sa.Column("target", text(255), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("request_id", text(64), nullable=True),
    # Whom the request came from.
    sa.Column("address", text(45), nullable=True),
    sa.Index(None, "target"),
    sa.Index(None, "at"),
)

# What happened that the platform may want to know.
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("event_id", text(40), nullable=False, unique=True),
    sa.Column("type", text(32), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("account_id", sa.ForeignKey("accounts.id"), nullable=True),
    sa.Column("data", sa.JSON, nullable=False),
    # Makes an event happen once: a second one with the same words is none.
    sa.Column("once", text(200), nullable=True, unique=True),
    # Its place among all events, given after its commit, so that whoever reads on from a number misses none: ids are
    # taken before the commit, in whatever order. NULL: not given yet.
    sa.Column("number", sa.BigInteger, nullable=True),
    sa.Index(None, "number", unique=True),
    sa.Index(None, "account_id", "number"),
    sa.Index(None, "type", "number"),
    sa.Index(None, "at"),
    sqlite_autoincrement=True,
)

webhooks = sa.Table(
    "webhooks",
    metadata,
    sa.Column("name", text(63), primary_key=True),
    sa.Column("url", text(2000), nullable=False),
    # Encrypted: unlike other secrets it must be known to sign with it.
    sa.Column("secret", sa.LargeBinary, nullable=False),
    # The secret before the last rotation, and until when it signs, too.
    sa.Column("previous_secret", sa.LargeBinary, nullable=True),
    sa.Column("previous_until", Instant, nullable=True),
    # NULL: every type.
    sa.Column("types", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("created_at", Instant, nullable=False),
    # The number of the last event that it was given deliveries for.
    sa.Column("last_number", sa.BigInteger, nullable=False),
    # Since when every attempt has failed; NULL: the last one succeeded.
    sa.Column("failing_since", Instant, nullable=True),
    sa.Column("disabled_at", Instant, nullable=True),
    sa.Column("disabled_reason", text(200), nullable=True),
)

webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("webhook", sa.ForeignKey("webhooks.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("event_id", sa.ForeignKey("events.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    # When to try; while an attempt is under way, when others may take it for dead. NULL: delivered, or given up.
    sa.Column("next_at", Instant, nullable=True),
    sa.Column("delivered_at", Instant, nullable=True),
    sa.Column("problem", text(200), nullable=True),
    sa.Index(None, "webhook", "next_at"),
    sa.Index(None, "event_id"),
)

# replication

replication_sources = sa.Table(
    "replication_sources",
    metadata,
    sa.Column("name", text(63), primary_key=True),
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
)

replication_rules = sa.Table(
    "replication_rules",
    metadata,
    sa.Column("name", text(63), primary_key=True),
    sa.Column("source", sa.ForeignKey("replication_sources.name"), nullable=False),
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("updated_at", Instant, nullable=False),
    # When its schedule wants a run. Whoever moves it on, of all processes, queues that run.
    sa.Column("scheduled_at", Instant, nullable=True),
    # Of its latest listing: what was not here, and since when; see replication/lag.py.
    sa.Column("listed_at", Instant, nullable=True),
    sa.Column("unreplicated", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("succeeded_at", Instant, nullable=True),
    sa.Index(None, "scheduled_at"),
)

_UNFINISHED = "status IN ('queued', 'running', 'waiting') AND scope IS NULL"
_UNCLAIMED_PUSHES = "status = 'queued' AND scope IS NOT NULL"

replication_runs = sa.Table(
    "replication_runs",
    metadata,
    sa.Column("id", text(36), primary_key=True),
    sa.Column("rule", text(63), nullable=False),
    sa.Column("status", text(16), nullable=False),
    sa.Column("queued_at", Instant, nullable=False),
    sa.Column("started_at", Instant, nullable=True),
    # Who works on it, and their sign of life: a running run that shows none for a while is taken over.
    sa.Column("runner", text(36), nullable=True),
    sa.Column("seen_at", Instant, nullable=True),
    sa.Column("finished_at", Instant, nullable=True),
    sa.Column("report", sa.JSON, nullable=False),
    # Not begun before; NULL: at once.
    sa.Column("due_at", Instant, nullable=True),
    # How often it was begun.
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    # What asked for it: a request, the schedule, pushes, or a pull of what was not here.
    sa.Column("cause", text(16), nullable=False, server_default="request"),
    # The repositories and tags that it is about, as pushes named them; NULL: all that the rule means.
    sa.Column("scope", sa.JSON(none_as_null=True), nullable=True),
    sa.CheckConstraint(
        "status IN ('queued', 'running', 'waiting', 'done', 'failed', 'cancelled')", name="ck_replication_runs_status"
    ),
    sa.Index(None, "rule", "queued_at"),
    sa.Index(None, "status", "due_at"),
    sa.Index(None, "finished_at"),
    # One unfinished run of the whole rule, whoever asks.
    sa.Index(
        "uq_replication_runs_active",
        "rule",
        unique=True,
        sqlite_where=sa.text(_UNFINISHED),
        postgresql_where=sa.text(_UNFINISHED),
    ),
    # Pushes wait for their rule's worker in one run.
    sa.Index(
        "uq_replication_runs_pushes",
        "rule",
        unique=True,
        sqlite_where=sa.text(_UNCLAIMED_PUSHES),
        postgresql_where=sa.text(_UNCLAIMED_PUSHES),
    ),
)

# What became of the single tags of a run.
replication_artifacts = sa.Table(
    "replication_artifacts",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("run_id", sa.ForeignKey("replication_runs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("try", sa.Integer, nullable=False),
    sa.Column("at", Instant, nullable=False),
    sa.Column("origin", text(255), nullable=False),
    sa.Column("target", text(255), nullable=False),
    # Empty: the whole repository.
    sa.Column("tag", text(128), nullable=False),
    sa.Column("digest", text(140), nullable=True),
    sa.Column("outcome", text(16), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("side", text(16), nullable=True),
    sa.Column("problem", text(1000), nullable=True),
    sa.Column("is_temporary", sa.Boolean, nullable=True),
    sa.Column("signed_by", text(400), nullable=True),
    sa.Index(None, "run_id", "id"),
    sqlite_autoincrement=True,
)

# Large blobs on their way, each received so far by an upload session that any process can go on with.
replication_transfers = sa.Table(
    "replication_transfers",
    metadata,
    sa.Column("repository", text(255), primary_key=True),
    sa.Column("digest", text(140), primary_key=True),
    sa.Column("upload_id", sa.ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False, unique=True),
)

# Tags that replication put here, and what they named then: only these may it ever take away again.
replicated_tags = sa.Table(
    "replicated_tags",
    metadata,
    sa.Column("rule", text(63), primary_key=True),
    sa.Column("repository", text(255), primary_key=True),
    sa.Column("tag", text(128), primary_key=True),
    # The repository at the source.
    sa.Column("origin", text(255), nullable=False),
    sa.Column("digest", text(140), nullable=False),
    # Since when the source is known not to have it; NULL: it had it when it was listed last.
    sa.Column("missing_since", Instant, nullable=True),
)

# Tags that were asked for before they were here, each fetched by one run: whoever else asks waits for that one.
replication_pulls = sa.Table(
    "replication_pulls",
    metadata,
    sa.Column("run_id", sa.ForeignKey("replication_runs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("repository", text(255), nullable=False),
    sa.Column("tag", text(128), nullable=False),
    # What the tag names at the source; NULL until it may be published.
    sa.Column("digest", text(140), nullable=True),
    sa.UniqueConstraint("repository", "tag"),
)

# What such a tag leads to, so that every process can answer for it; without `content` it is a blob.
replication_arrivals = sa.Table(
    "replication_arrivals",
    metadata,
    sa.Column("run_id", sa.ForeignKey("replication_pulls.run_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("digest", text(140), primary_key=True),
    sa.Column("repository", text(255), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("media_type", text(255), nullable=True),
    sa.Column("content", sa.LargeBinary, nullable=True),
    sa.Index(None, "repository", "digest"),
)

# What was counted since the rule or source (`rule:NAME`, `source:NAME`) came to be, over all processes.
replication_totals = sa.Table(
    "replication_totals",
    metadata,
    sa.Column("subject", text(80), primary_key=True),
    sa.Column("name", text(40), primary_key=True),
    sa.Column("amount", sa.BigInteger, nullable=False),
)

# between processes

# Facts that every process must agree on.
installation = sa.Table(
    "installation",
    metadata,
    sa.Column("name", text(63), primary_key=True),
    sa.Column("value", text(255), nullable=False),
)

signals = sa.Table(
    "signals",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("topic", text(32), nullable=False),
    sa.Column("key", text(400), nullable=False),
    sa.Column("at", Instant, nullable=False),
    sqlite_autoincrement=True,
)
