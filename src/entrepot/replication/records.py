"""SQL of replication: one function per question."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.storage.statements import insert_missing, upsert
from entrepot.storage.tables import replication_rules as rules
from entrepot.storage.tables import replication_runs as runs
from entrepot.storage.tables import replication_sources as sources

Row = dict[str, Any]

_ACTIVE = runs.c.status.in_(["queued", "running"])


def find_source(connection: sa.Connection, name: str) -> dict[str, Any] | None:
    """A source's document."""
    return connection.scalar(sa.select(sources.c.document).where(sources.c.name == name))


def put_source(connection: sa.Connection, name: str, document: dict[str, Any], now: datetime) -> None:
    """Keep a source."""
    upsert(connection, sources, {"name": name, "document": document, "updated_at": now})


def find_rule(connection: sa.Connection, name: str) -> dict[str, Any] | None:
    """A rule's document."""
    return connection.scalar(sa.select(rules.c.document).where(rules.c.name == name))


def put_rule(connection: sa.Connection, name: str, source: str, document: dict[str, Any], now: datetime) -> None:
    """Keep a rule."""
    upsert(connection, rules, {"name": name, "source": source, "document": document, "updated_at": now})


def list_rules(connection: sa.Connection) -> dict[str, dict[str, Any]]:
    """Every rule's document, by name."""
    query = sa.select(rules.c.name, rules.c.document).order_by(rules.c.name)
    return {row.name: row.document for row in connection.execute(query)}


def insert_run(connection: sa.Connection, row: Row) -> bool:
    """Add a run; False when its rule has an unfinished one (which the database sees to)."""
    return insert_missing(connection, runs, [row]) == 1


def find_run(connection: sa.Connection, run_id: str) -> Row | None:
    """A run."""
    row = connection.execute(sa.select(runs).where(runs.c.id == run_id)).mappings().first()
    return None if row is None else dict(row)


def find_active_run(connection: sa.Connection, rule: str) -> Row | None:
    """The unfinished run of a rule."""
    row = connection.execute(sa.select(runs).where(runs.c.rule == rule, _ACTIVE)).mappings().first()
    return None if row is None else dict(row)


def find_claimable_run(connection: sa.Connection, silent_since: datetime) -> str | None:
    """The id of the oldest run that nobody works on: queued, or without a sign of life since `silent_since`."""
    is_silent = (runs.c.status == "running") & (runs.c.seen_at < silent_since)
    query = sa.select(runs.c.id).where((runs.c.status == "queued") | is_silent).order_by(runs.c.queued_at).limit(1)
    return connection.scalar(query)


def claim_run(connection: sa.Connection, run_id: str, runner: str, now: datetime) -> None:
    """Let `runner` work on a run."""
    connection.execute(
        runs.update()
        .where(runs.c.id == run_id)
        .values(status="running", runner=runner, seen_at=now, started_at=sa.func.coalesce(runs.c.started_at, now))
    )


def update_claimed_run(connection: sa.Connection, run_id: str, runner: str | None, **values: Any) -> bool:
    """Change a run that `runner` works on; False when it no longer does."""
    statement = runs.update().where(runs.c.id == run_id, runs.c.runner == runner, runs.c.status == "running")
    return connection.execute(statement.values(**values)).rowcount == 1


def list_runs(connection: sa.Connection, rule: str | None, limit: int) -> list[Row]:
    """The latest runs of one rule, or of all."""
    query = sa.select(runs).order_by(runs.c.queued_at.desc(), runs.c.id).limit(limit)
    if rule is not None:
        query = query.where(runs.c.rule == rule)
    return [dict(row) for row in connection.execute(query).mappings()]


def delete_old_runs(connection: sa.Connection, rule: str, kept: int) -> None:
    """Drop the finished runs of a rule but the latest `kept`."""
    finished = runs.c.status.in_(["done", "failed"])
    newest = (
        sa.select(runs.c.id)
        .where(runs.c.rule == rule, finished)
        .order_by(runs.c.queued_at.desc(), runs.c.id)
        .limit(kept)
    )
    connection.execute(runs.delete().where(runs.c.rule == rule, finished, runs.c.id.not_in(newest)))
