"""SQL of events: one function per question.

An event gets its number after its commit, from whoever looks for events next, one process at a time. Its id is taken
before the commit, and commits come in another order: a reader that goes by ids would miss what is committed late.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.accounts.reach import EVERYONE, AccountReach
from entrepot.storage.statements import insert_missing
from entrepot.storage.tables import accounts, events, installation

Row = sa.RowMapping

# The last number that was given. It outlives the events, so that no number is ever given twice.
_COUNTER = installation.c.name == "event_number"


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are listed; None does not restrict. `since` is included, and `reach` is whom the asker may see."""

    types: frozenset[str] | None = None
    account_id: int | None = None
    since: datetime | None = None
    reach: AccountReach = EVERYONE


def insert(connection: sa.Connection, row: dict[str, Any]) -> bool:
    """Add an event, unless it happens once and did already; answers whether it was added."""
    return insert_missing(connection, events, [row]) == 1


def is_any_without_number(connection: sa.Connection) -> bool:
    """Whether there are events that have no number yet."""
    return connection.scalar(sa.select(events.c.id).where(events.c.number.is_(None)).limit(1)) is not None


def give_numbers(connection: sa.Connection, limit: int) -> int:
    """Give the next numbers to up to `limit` events that have none; answers how many that were."""
    value = sa.select(installation.c.value).where(_COUNTER).with_for_update()
    last = connection.scalar(value)
    if last is None:
        insert_missing(connection, installation, [{"name": "event_number", "value": "0"}])
        last = connection.scalar(value)
    # Read under the lock, so that it shows every number that others have given.
    query = sa.select(events.c.id).where(events.c.number.is_(None)).order_by(events.c.id).limit(limit)
    ids = list(connection.scalars(query))
    if not ids:
        return 0
    first = int(last or 0) + 1
    statement = events.update().where(events.c.id == sa.bindparam("event")).values(number=sa.bindparam("place"))
    connection.execute(statement, [{"event": one, "place": first + place} for place, one in enumerate(ids)])
    connection.execute(installation.update().where(_COUNTER).values(value=str(first + len(ids) - 1)))
    return len(ids)


def latest_number(connection: sa.Connection) -> int:
    """The last number that was given, 0 when none was."""
    return int(connection.scalar(sa.select(installation.c.value).where(_COUNTER)) or 0)


def find(connection: sa.Connection, event_id: str) -> Row | None:
    """The event with a public id."""
    return connection.execute(sa.select(events).where(events.c.event_id == event_id)).mappings().first()


def list_events(connection: sa.Connection, wanted: EventFilter, after: int, limit: int) -> list[Row]:
    """Events that fit, by number, from the one after `after`."""
    query = sa.select(events).where(events.c.number > after).order_by(events.c.number).limit(limit)
    if wanted.types is not None:
        query = query.where(events.c.type.in_(sorted(wanted.types)))
    if wanted.account_id is not None:
        query = query.where(events.c.account_id == wanted.account_id)
    if wanted.since is not None:
        query = query.where(events.c.at >= wanted.since)
    if wanted.reach.is_limited:
        query = query.join(accounts, accounts.c.id == events.c.account_id).where(*wanted.reach.conditions(accounts))
    return list(connection.execute(query).mappings())
