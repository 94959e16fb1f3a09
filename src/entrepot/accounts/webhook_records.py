"""SQL of webhooks and their deliveries: one function per question."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from entrepot.accounts import event_records
from entrepot.storage.statements import insert_missing, upsert_all
from entrepot.storage.tables import events, webhook_deliveries, webhooks

Row = sa.RowMapping
DeliveryStatus = Literal["waiting", "delivered", "given_up"]

_deliveries = webhook_deliveries.c
# Delivered to nobody but the webhook that is tested.
_TEST = "webhook.test"


def insert_webhook(connection: sa.Connection, row: dict[str, Any]) -> bool:
    """Add a webhook; False when its name is taken."""
    return insert_missing(connection, webhooks, [row]) == 1


def find_webhook(connection: sa.Connection, name: str) -> Row | None:
    """A webhook."""
    return connection.execute(sa.select(webhooks).where(webhooks.c.name == name)).mappings().first()


def list_webhooks(connection: sa.Connection) -> list[Row]:
    """Every webhook, by name."""
    return list(connection.execute(sa.select(webhooks).order_by(webhooks.c.name)).mappings())


def count_webhooks(connection: sa.Connection) -> int:
    """How many there are."""
    return connection.scalar(sa.select(sa.func.count()).select_from(webhooks)) or 0


def update_webhook(connection: sa.Connection, name: str, **values: Any) -> None:
    """Change a webhook."""
    connection.execute(webhooks.update().where(webhooks.c.name == name).values(**values))


def delete_webhook(connection: sa.Connection, name: str) -> bool:
    """Drop a webhook with what deliveries it has left; answers whether it was there."""
    return connection.execute(webhooks.delete().where(webhooks.c.name == name)).rowcount > 0


def drop_deliveries(connection: sa.Connection, name: str, limit: int) -> int:
    """Drop up to `limit` deliveries of a webhook; answers how many."""
    some = sa.select(_deliveries.event_id).where(_deliveries.webhook == name).limit(limit)
    statement = webhook_deliveries.delete().where(_deliveries.webhook == name, _deliveries.event_id.in_(some))
    return connection.execute(statement).rowcount


def note_success(connection: sa.Connection, name: str) -> None:
    """Forget since when a webhook has failed."""
    failing = (webhooks.c.name == name) & webhooks.c.failing_since.is_not(None)
    connection.execute(webhooks.update().where(failing).values(failing_since=None))


def note_failure(connection: sa.Connection, name: str, now: datetime) -> datetime:
    """Remember that a webhook fails; answers since when it has."""
    working = (webhooks.c.name == name) & webhooks.c.failing_since.is_(None)
    connection.execute(webhooks.update().where(working).values(failing_since=now))
    return connection.scalar(sa.select(webhooks.c.failing_since).where(webhooks.c.name == name)) or now


def disable_webhook(connection: sa.Connection, name: str, now: datetime, reason: str) -> bool:
    """Disable a webhook that is not disabled yet; answers whether it was not."""
    enabled = (webhooks.c.name == name) & webhooks.c.disabled_at.is_(None)
    statement = webhooks.update().where(enabled).values(disabled_at=now, disabled_reason=reason)
    return connection.execute(statement).rowcount > 0


def list_busy(connection: sa.Connection, now: datetime) -> tuple[list[str], list[str]]:
    """Of the webhooks that are enabled: those that have not been given all events, and those with deliveries due."""
    latest = event_records.latest_number(connection)
    rows = connection.execute(
        sa.select(webhooks.c.name, webhooks.c.last_number).where(webhooks.c.disabled_at.is_(None))
    ).all()
    due = [name for name, _ in rows if _is_due(connection, name, now)]
    return [name for name, last in rows if last < latest], due


def _is_due(connection: sa.Connection, name: str, now: datetime) -> bool:
    query = sa.select(_deliveries.event_id).where(_deliveries.webhook == name, _deliveries.next_at <= now).limit(1)
    return connection.scalar(query) is not None


def give_deliveries(connection: sa.Connection, name: str, now: datetime, limit: int) -> int:
    """Make deliveries of the next `limit` events that a webhook wants; answers how many events it was given."""
    webhook = connection.execute(
        sa.select(webhooks.c.types, webhooks.c.last_number)
        .where(webhooks.c.name == name, webhooks.c.disabled_at.is_(None))
        .with_for_update()
    ).first()
    if webhook is None:
        return 0
    # Before the events, so that none can be numbered in between and passed over below.
    latest = event_records.latest_number(connection)
    query = (
        sa.select(events.c.id, events.c.type, events.c.number)
        .where(events.c.number > webhook.last_number)
        .order_by(events.c.number)
        .limit(limit)
    )
    found = connection.execute(query).all()
    if not found:
        # Those in between were dropped with age.
        update_webhook(connection, name, last_number=max(latest, webhook.last_number))
        return 0
    wanted = [row.id for row in found if row.type != _TEST and (webhook.types is None or row.type in webhook.types)]
    put_deliveries(connection, name, wanted, now)
    update_webhook(connection, name, last_number=found[-1].number)
    return len(found)


def put_deliveries(connection: sa.Connection, webhook: str, ids: Iterable[int], now: datetime) -> None:
    """Let events be delivered to a webhook from the beginning, those that were delivered before, too."""
    fresh = {"attempts": 0, "next_at": now, "delivered_at": None, "problem": None}
    upsert_all(connection, webhook_deliveries, [{"webhook": webhook, "event_id": one} | fresh for one in ids])


def rewind(connection: sa.Connection, name: str, types: Collection[str] | None, since: datetime) -> int:
    """Let a webhook be given the events from an instant on once more; answers how many it wants of them."""
    query = sa.select(sa.func.min(events.c.number)).where(events.c.at >= since)
    first = connection.scalar(query)
    if first is None:
        return 0
    query = sa.select(sa.func.count()).select_from(events).where(events.c.number >= first, events.c.type != _TEST)
    if types is not None:
        query = query.where(events.c.type.in_(list(types)))
    earlier = (webhooks.c.name == name) & (webhooks.c.last_number >= first)
    connection.execute(webhooks.update().where(earlier).values(last_number=first - 1))
    return connection.scalar(query) or 0


def claim_deliveries(connection: sa.Connection, name: str, now: datetime, until: datetime, limit: int) -> list[Row]:
    """Take up to `limit` deliveries that are due: nobody else has them before `until`. `attempts` counts this one."""
    query = (
        sa.select(
            _deliveries.event_id.label("row_id"),
            (_deliveries.attempts + 1).label("attempt"),
            events.c.event_id,
            events.c.type,
            events.c.at,
            events.c.data,
        )
        .join(events, events.c.id == _deliveries.event_id)
        .where(_deliveries.webhook == name, _deliveries.next_at <= now)
        .order_by(_deliveries.next_at, _deliveries.event_id)
        .limit(limit)
        # Of two workers, the other takes the next ones instead of waiting. SQLite has one writer anyway.
        .with_for_update(of=webhook_deliveries, skip_locked=True)
    )
    rows = list(connection.execute(query).mappings())
    if rows:
        taken = (_deliveries.webhook == name) & _deliveries.event_id.in_([row["row_id"] for row in rows])
        values = {"attempts": _deliveries.attempts + 1, "next_at": until}
        connection.execute(webhook_deliveries.update().where(taken).values(values))
    return rows


def finish_attempt(
    connection: sa.Connection, name: str, row_id: int, attempt: int, until: datetime, **values: Any
) -> bool:
    """Write down how an attempt ended; False when somebody else has the delivery by now."""
    mine = (
        (_deliveries.webhook == name)
        & (_deliveries.event_id == row_id)
        & (_deliveries.attempts == attempt)
        & (_deliveries.next_at == until)
    )
    return connection.execute(webhook_deliveries.update().where(mine).values(**values)).rowcount > 0


def list_deliveries(
    connection: sa.Connection, name: str, status: DeliveryStatus | None, before: int | None, limit: int
) -> list[Row]:
    """Deliveries of a webhook, the newest events first, from the one before the row `before`."""
    query = (
        sa.select(webhook_deliveries, events.c.event_id.label("public_id"), events.c.type, events.c.at)
        .join(events, events.c.id == _deliveries.event_id)
        .where(_deliveries.webhook == name)
        .order_by(_deliveries.event_id.desc())
        .limit(limit)
    )
    if status == "waiting":
        query = query.where(_deliveries.next_at.is_not(None))
    elif status == "delivered":
        query = query.where(_deliveries.delivered_at.is_not(None))
    elif status == "given_up":
        query = query.where(_deliveries.next_at.is_(None), _deliveries.delivered_at.is_(None))
    if before is not None:
        query = query.where(_deliveries.event_id < before)
    return list(connection.execute(query).mappings())
