"""SQL of upkeep: one function per step, each a batch that takes milliseconds and can be repeated without harm."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import sqlalchemy as sa

from entrepot.access.lifetimes import next_warning, warning_times
from entrepot.accounts.events import EventType, emit
from entrepot.storage.statements import delete_some, insert_missing
from entrepot.storage.tables import (
    accounts,
    credentials,
    events,
    idempotent_answers,
    installation,
    usage,
    usage_periods,
)

BATCH: Final = 500
# Quiet days after which an account is dormant.
DORMANT_DAYS: Final = 30
# How far everybody got with looking for dormant accounts: a day, and the last account of it that was looked at.
_PLACE = installation.c.name == "dormant_place"


def warn_of_ends(connection: sa.Connection, now: datetime) -> int:
    """Warn of credentials that are about to end; answers how many were looked at."""
    query = (
        sa.select(
            credentials.c.id,
            credentials.c.created_at,
            credentials.c.expires_at,
            credentials.c.revoked_at,
            credentials.c.last_used_at,
            accounts.c.id.label("account_id"),
            accounts.c.name,
            accounts.c.plan,
        )
        .join(accounts, accounts.c.id == credentials.c.account_id)
        .where(credentials.c.warn_at <= now)
        .order_by(credentials.c.warn_at)
        .limit(BATCH)
        .with_for_update(of=credentials, skip_locked=True)
    )
    rows = connection.execute(query).all()
    for row in rows:
        # One that was revoked, or replaced by another, ends as its holder wanted.
        is_alive = row.revoked_at is None and row.expires_at > now
        due = [at for at in warning_times(row.created_at, row.expires_at) if at <= now]
        if is_alive and due:
            emit(
                connection,
                EventType.CREDENTIAL_EXPIRING,
                now,
                account_id=row.account_id,
                account=row.name,
                once=f"expiring:{row.id}:{due[-1]:%Y-%m-%dT%H:%M:%S}",
                plan=row.plan,
                credential=row.id,
                expires_at=row.expires_at,
                last_used_at=row.last_used_at,
            )
        later = next_warning(row.created_at, row.expires_at, now) if is_alive else None
        connection.execute(credentials.update().where(credentials.c.id == row.id).values(warn_at=later))
    return len(rows)


def tell_dormant(connection: sa.Connection, now: datetime) -> int:
    """Tell of accounts that have pulled nothing since a day that is long enough ago; answers 0 when all were looked at.

    It goes by the days on which accounts pulled: each is looked at once, by whoever comes first.
    """
    last_day = now.date() - timedelta(days=DORMANT_DAYS + 1)
    place = _lock_place(connection, last_day)
    day, _, after = place.partition(" ")
    start = datetime.combine(date.fromisoformat(day), time(), UTC)
    if start.date() > last_day:
        return 0
    ids = _list_pullers(connection, start, int(after or -1))
    for account_id in ids:
        if not _has_pulled_since(connection, account_id, start):
            _tell_dormant(connection, account_id, start, now)
    place = f"{start.date() + timedelta(days=1)}" if len(ids) < BATCH else f"{day} {ids[-1]}"
    connection.execute(installation.update().where(_PLACE).values(value=place))
    return max(1, len(ids))


def _lock_place(connection: sa.Connection, first: date) -> str:
    """Where to go on; others wait until this transaction ends."""
    query = sa.select(installation.c.value).where(_PLACE).with_for_update()
    found: str | None = connection.scalar(query)
    if found is None:
        insert_missing(connection, installation, [{"name": "dormant_place", "value": str(first)}])
        found = connection.scalar(query)
    return found or str(first)


def _list_pullers(connection: sa.Connection, day: datetime, after: int) -> list[int]:
    period = usage_periods.c
    query = (
        sa.select(period.account_id)
        .distinct()
        .where(period.period == "d", period.start == day, period.account_id > after, period.pulls > 0)
        .order_by(period.account_id)
        .limit(BATCH)
    )
    return list(connection.scalars(query))


def _has_pulled_since(connection: sa.Connection, account_id: int, day: datetime) -> bool:
    period = usage_periods.c
    later = (period.account_id == account_id) & (period.period == "d") & (period.start > day) & (period.pulls > 0)
    return connection.scalar(sa.select(period.account_id).where(later).limit(1)) is not None


def _tell_dormant(connection: sa.Connection, account_id: int, day: datetime, now: datetime) -> None:
    query = sa.select(accounts.c.name, accounts.c.plan).where(
        accounts.c.id == account_id, accounts.c.status == "active"
    )
    account = connection.execute(query).first()
    if account is None:
        return
    last_pull_at = connection.scalar(
        sa.select(sa.func.max(usage.c.last_pull_at)).where(usage.c.account_id == account_id)
    )
    emit(
        connection,
        EventType.ACCOUNT_DORMANT,
        now,
        account_id=account_id,
        account=account.name,
        once=f"dormant:{account_id}:{day:%Y-%m-%d}",
        plan=account.plan,
        last_pull_at=last_pull_at,
    )


def drop_events(connection: sa.Connection, before: datetime) -> int:
    """Drop events from before an instant, and their deliveries; answers how many."""
    return delete_some(connection, events, events.c.at < before, BATCH)


def drop_answers(connection: sa.Connection, before: datetime) -> int:
    """Drop what requests with an Idempotency-Key were answered before an instant; answers how many."""
    return delete_some(connection, idempotent_answers, idempotent_answers.c.at < before, BATCH)
