"""SQL of replication: one function per question."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.storage.statements import add_up, insert_missing, upsert
from entrepot.storage.tables import replication_artifacts as artifacts
from entrepot.storage.tables import replication_rules as rules
from entrepot.storage.tables import replication_runs as runs
from entrepot.storage.tables import replication_sources as sources
from entrepot.storage.tables import replication_totals as totals
from entrepot.storage.tables import replication_transfers as transfers

Row = dict[str, Any]
Document = dict[str, Any]

UNFINISHED = ("queued", "running", "waiting")
FINISHED = ("done", "failed", "cancelled")
# Runs that are looked at for one to claim; those before may all have to wait for others of their source.
_CANDIDATES = 200


# Sources and rules


def find_source(connection: sa.Connection, name: str) -> Document | None:
    """A source's document."""
    return connection.scalar(sa.select(sources.c.document).where(sources.c.name == name))


def list_sources(connection: sa.Connection) -> dict[str, Document]:
    """Every source's document, by name."""
    query = sa.select(sources.c.name, sources.c.document).order_by(sources.c.name)
    return {row.name: row.document for row in connection.execute(query)}


def put_source(connection: sa.Connection, name: str, document: Document, now: datetime) -> None:
    """Keep a source."""
    upsert(connection, sources, {"name": name, "document": document, "updated_at": now})


def delete_source(connection: sa.Connection, name: str) -> None:
    """Drop a source that no rule copies from."""
    connection.execute(sources.delete().where(sources.c.name == name))
    connection.execute(totals.delete().where(totals.c.subject == f"source:{name}"))


def find_rule(connection: sa.Connection, name: str, *, is_locked: bool = False) -> Document | None:
    """A rule's document; locked, nobody else changes it before this transaction ends."""
    query = sa.select(rules.c.document).where(rules.c.name == name)
    return connection.scalar(query.with_for_update() if is_locked else query)


def lock_rules(connection: sa.Connection) -> dict[str, Document]:
    """Every rule's document, by name; no other transaction changes one of them before this one ends."""
    connection.execute(sa.select(sources.c.name).order_by(sources.c.name).with_for_update())
    return list_rules(connection)


def put_rule(
    connection: sa.Connection, name: str, source: str, document: Document, now: datetime, scheduled_at: datetime | None
) -> None:
    """Keep a rule, whose schedule wants a run at `scheduled_at`."""
    row = {"name": name, "source": source, "document": document, "updated_at": now, "scheduled_at": scheduled_at}
    upsert(connection, rules, row)


def delete_rule(connection: sa.Connection, name: str) -> None:
    """Drop a rule. Its runs stay for as long as runs are kept."""
    connection.execute(rules.delete().where(rules.c.name == name))
    connection.execute(totals.delete().where(totals.c.subject == f"rule:{name}"))


def list_rules(connection: sa.Connection) -> dict[str, Document]:
    """Every rule's document, by name."""
    query = sa.select(rules.c.name, rules.c.document).order_by(rules.c.name)
    return {row.name: row.document for row in connection.execute(query)}


def list_rules_of(connection: sa.Connection, source: str) -> dict[str, Document]:
    """The documents of the rules that copy from a source, by name."""
    query = sa.select(rules.c.name, rules.c.document).where(rules.c.source == source).order_by(rules.c.name)
    return {row.name: row.document for row in connection.execute(query)}


def find_scheduled_at(connection: sa.Connection, rule: str) -> datetime | None:
    """When a rule's schedule wants a run."""
    return connection.scalar(sa.select(rules.c.scheduled_at).where(rules.c.name == rule))


def list_scheduled(connection: sa.Connection, now: datetime) -> list[Row]:
    """The rules (`name`, `document`, `scheduled_at`) whose schedule wants a run by now."""
    query = sa.select(rules.c.name, rules.c.document, rules.c.scheduled_at).where(rules.c.scheduled_at <= now)
    return [dict(row) for row in connection.execute(query).mappings()]


def move_schedule(connection: sa.Connection, rule: str, before: datetime, after: datetime | None) -> bool:
    """Let a schedule want its next run; False when another process was quicker."""
    statement = rules.update().where(rules.c.name == rule, rules.c.scheduled_at == before).values(scheduled_at=after)
    return connection.execute(statement).rowcount == 1


# Runs


def insert_run(connection: sa.Connection, row: Row) -> bool:
    """Add a run; False when the rule has one already of which there can be one (which the database sees to)."""
    return insert_missing(connection, runs, [row]) == 1


def find_run(connection: sa.Connection, run_id: str, *, is_locked: bool = False) -> Row | None:
    """A run; locked, nobody else changes it before this transaction ends."""
    query = sa.select(runs).where(runs.c.id == run_id)
    row = connection.execute(query.with_for_update() if is_locked else query).mappings().first()
    return None if row is None else dict(row)


def find_active_run(connection: sa.Connection, rule: str) -> Row | None:
    """The unfinished run of the whole of a rule."""
    query = sa.select(runs).where(runs.c.rule == rule, runs.c.status.in_(UNFINISHED), runs.c.scope.is_(None))
    row = connection.execute(query).mappings().first()
    return None if row is None else dict(row)


def lock_queued_pushes(connection: sa.Connection, rule: str) -> Row | None:
    """The run in which pushes wait for a worker; nobody claims it before this transaction ends."""
    query = sa.select(runs).where(runs.c.rule == rule, runs.c.status == "queued", runs.c.scope.is_not(None))
    row = connection.execute(query.with_for_update()).mappings().first()
    return None if row is None else dict(row)


def list_unfinished(connection: sa.Connection, rule: str) -> list[str]:
    """The ids of a rule's unfinished runs."""
    return list(connection.scalars(sa.select(runs.c.id).where(runs.c.rule == rule, runs.c.status.in_(UNFINISHED))))


def has_claimable(connection: sa.Connection, now: datetime, silent_since: datetime) -> bool:
    """Whether some run may be claimed, for all that can be told cheaply."""
    return connection.scalar(sa.select(sa.exists().where(_is_claimable(now, silent_since)))) is True


def list_claimable(connection: sa.Connection, now: datetime, silent_since: datetime) -> list[Row]:
    """Runs that nobody works on and that are due, the most urgent first, with their `source` (None: no such rule)."""
    query = (
        sa.select(runs, rules.c.source, rules.c.document)
        .join(rules, rules.c.name == runs.c.rule, isouter=True)
        .where(_is_claimable(now, silent_since))
        .order_by(runs.c.priority.desc(), runs.c.scope.is_(None), runs.c.queued_at, runs.c.id)
        .limit(_CANDIDATES)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def _is_claimable(now: datetime, silent_since: datetime) -> sa.ColumnElement[bool]:
    is_due = runs.c.status.in_(["queued", "waiting"]) & sa.or_(runs.c.due_at.is_(None), runs.c.due_at <= now)
    return is_due | ((runs.c.status == "running") & (runs.c.seen_at < silent_since))


def lock_source(connection: sa.Connection, name: str) -> Document:
    """A source's document; no other transaction counts its runs before this one ends."""
    query = sa.select(sources.c.document).where(sources.c.name == name).with_for_update()
    document: Document = connection.scalar(query) or {}
    return document


def count_running(connection: sa.Connection, source: str, silent_since: datetime, *, is_whole: bool) -> int:
    """How many runs from a source go on, of whole rules or of pushes; pulls, which somebody waits for, go beside."""
    query = (
        sa.select(sa.func.count())
        .select_from(runs.join(rules, rules.c.name == runs.c.rule))
        .where(
            rules.c.source == source,
            runs.c.status == "running",
            runs.c.seen_at >= silent_since,
            runs.c.cause != "pull",
            runs.c.scope.is_(None) if is_whole else runs.c.scope.is_not(None),
        )
    )
    return connection.scalar(query) or 0


def claim_run(connection: sa.Connection, row: Row, runner: str, now: datetime) -> bool:
    """Let `runner` work on a run that stands as in `row`; False when another was quicker."""
    seen = runs.c.seen_at.is_(None) if row["seen_at"] is None else runs.c.seen_at == row["seen_at"]
    statement = (
        runs.update()
        .where(runs.c.id == row["id"], runs.c.status == row["status"], runs.c.tries == row["tries"], seen)
        .values(
            status="running",
            runner=runner,
            seen_at=now,
            due_at=None,
            tries=runs.c.tries + 1,
            started_at=sa.func.coalesce(runs.c.started_at, now),
        )
    )
    return connection.execute(statement).rowcount == 1


def update_run(connection: sa.Connection, run_id: str, statuses: Collection[str], **values: Any) -> bool:
    """Change a run that has one of these statuses; False when it has another."""
    statement = runs.update().where(runs.c.id == run_id, runs.c.status.in_(statuses)).values(**values)
    return connection.execute(statement).rowcount == 1


def update_claimed_run(connection: sa.Connection, run_id: str, runner: str | None, **values: Any) -> bool:
    """Change a run that `runner` works on; False when it no longer does."""
    statement = runs.update().where(runs.c.id == run_id, runs.c.runner == runner, runs.c.status == "running")
    return connection.execute(statement.values(**values)).rowcount == 1


def update_cancelled_run(connection: sa.Connection, run_id: str, runner: str | None, report: Document) -> None:
    """Say how far a run had come that was cancelled while `runner` worked on it."""
    statement = runs.update().where(runs.c.id == run_id, runs.c.runner == runner, runs.c.status == "cancelled")
    connection.execute(statement.values(report=report))


def reschedule_runs(connection: sa.Connection, rule: str, priority: int, due_at: datetime) -> None:
    """Let the queued runs of a rule that was changed go by what it says now."""
    statement = runs.update().where(runs.c.rule == rule, runs.c.status == "queued")
    connection.execute(statement.values(priority=priority, due_at=due_at))


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are wanted: of a rule, with some status, behind the one that was queued at an instant with an id."""

    rule: str | None = None
    statuses: Collection[str] = ()
    after: tuple[datetime, str] | None = None


def list_runs(connection: sa.Connection, wanted: RunFilter, limit: int) -> list[Row]:
    """The latest runs that fit, newest first."""
    query = sa.select(runs).order_by(runs.c.queued_at.desc(), runs.c.id).limit(limit)
    if wanted.rule is not None:
        query = query.where(runs.c.rule == wanted.rule)
    if wanted.statuses:
        query = query.where(runs.c.status.in_(wanted.statuses))
    if wanted.after is not None:
        at, run_id = wanted.after
        query = query.where((runs.c.queued_at < at) | ((runs.c.queued_at == at) & (runs.c.id > run_id)))
    return [dict(row) for row in connection.execute(query).mappings()]


def delete_old_runs(connection: sa.Connection, rule: str, kept: int, before: datetime) -> None:
    """Drop the finished runs of a rule but the latest `kept`, and those of every rule that ended before an instant.

    Of pulls, as many are kept beside the others: customers must not be able to make what is told of those go away.
    """

    def newest(is_it: sa.ColumnElement[bool]) -> sa.Select[tuple[str]]:
        return (
            sa.select(runs.c.id)
            .where(runs.c.rule == rule, runs.c.status.in_(FINISHED), is_it)
            .order_by(runs.c.queued_at.desc(), runs.c.id)
            .limit(kept)
        )

    is_pull = runs.c.cause == "pull"
    is_surplus = (
        (runs.c.rule == rule)
        & runs.c.status.in_(FINISHED)
        & sa.or_(is_pull & runs.c.id.not_in(newest(is_pull)), ~is_pull & runs.c.id.not_in(newest(~is_pull)))
    )
    connection.execute(runs.delete().where(is_surplus | (runs.c.finished_at < before)))


# Artifacts


def insert_artifacts(connection: sa.Connection, run_id: str, number: int, rows: Iterable[Row]) -> None:
    """Add what became of tags in the try of this number."""
    if new := [{**row, "run_id": run_id, "try": number} for row in rows]:
        connection.execute(artifacts.insert(), new)


def list_artifacts(connection: sa.Connection, run_id: str, after: int, limit: int) -> list[Row]:
    """What became of the tags of a run, in the order in which it did, behind the row with the id `after`."""
    query = (
        sa.select(artifacts)
        .where(artifacts.c.run_id == run_id, artifacts.c.id > after)
        .order_by(artifacts.c.id)
        .limit(limit)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


# What is behind, and what was counted


def lock_unreplicated(connection: sa.Connection, rule: str) -> dict[str, str] | None:
    """What a rule knows to be not here; nobody else changes that before this transaction ends. None: no such rule."""
    query = sa.select(rules.c.unreplicated).where(rules.c.name == rule).with_for_update()
    row = connection.execute(query).first()
    return None if row is None else (row.unreplicated or {})


def update_rule(connection: sa.Connection, rule: str, **values: Any) -> None:
    """Note what runs found out about a rule."""
    connection.execute(rules.update().where(rules.c.name == rule).values(**values))


def add_totals(connection: sa.Connection, subject: str, amounts: Mapping[str, int]) -> None:
    """Count; `subject` is `rule:NAME` or `source:NAME`."""
    rows = [{"subject": subject, "name": name, "amount": amount} for name, amount in sorted(amounts.items()) if amount]
    add_up(connection, totals, rows, ["amount"])


@dataclass(frozen=True, slots=True)
class Figures:
    """What is measured: rules with what their runs found out, (subject, name, amount), and runs by status."""

    rules: list[Row]
    totals: list[tuple[str, str, int]]
    unfinished: dict[str, int]


def read_figures(connection: sa.Connection) -> Figures:
    """All that is measured."""
    known = sa.select(rules.c.name, rules.c.unreplicated, rules.c.listed_at, rules.c.succeeded_at).order_by(
        rules.c.name
    )
    counted = sa.select(totals.c.subject, totals.c.name, totals.c.amount).order_by(totals.c.subject, totals.c.name)
    active = (
        sa.select(runs.c.status, sa.func.count().label("amount"))
        .where(runs.c.status.in_(UNFINISHED))
        .group_by(runs.c.status)
    )
    return Figures(
        rules=[dict(row) for row in connection.execute(known).mappings()],
        totals=[(row.subject, row.name, row.amount) for row in connection.execute(counted)],
        unfinished=dict.fromkeys(UNFINISHED, 0) | {row.status: row.amount for row in connection.execute(active)},
    )


# Blobs on their way


def find_transfer(connection: sa.Connection, repository: str, digest: str) -> str | None:
    """The upload session that receives a blob."""
    query = sa.select(transfers.c.upload_id).where(transfers.c.repository == repository, transfers.c.digest == digest)
    return connection.scalar(query)


def insert_transfer(connection: sa.Connection, repository: str, digest: str, upload_id: str) -> bool:
    """Let an upload session receive a blob; False when another one does already."""
    row = {"repository": repository, "digest": digest, "upload_id": upload_id}
    return insert_missing(connection, transfers, [row]) == 1
