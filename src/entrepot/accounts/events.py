"""Events: what happened to accounts, for whoever wants to act on it.

An event is a row in the transaction of what it tells of, so that neither is ever without the other. It can be read
here, oldest first, and is delivered to webhooks (accounts/webhooks.py).
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from entrepot.accounts import event_records as records
from entrepot.accounts.event_records import EventFilter
from entrepot.storage.database import Database

NUMBERED_AT_ONCE = 500


class EventType(StrEnum):
    """What can happen; docs/reference/events.md has the data of each."""

    ACCOUNT_CREATED = "account.created"
    CREDENTIAL_ISSUED = "credential.issued"
    CREDENTIAL_ROTATED = "credential.rotated"
    CREDENTIAL_EXPIRING = "credential.expiring"
    CREDENTIAL_REVOKED = "credential.revoked"
    CREDENTIAL_LEAKED = "credential.leaked"
    LOGIN_FIRST = "login.first"
    PULL_FIRST = "pull.first"
    PULL_REFUSED = "pull.refused"
    QUOTA_80 = "quota.80"
    QUOTA_100 = "quota.100"
    ACCOUNT_DORMANT = "account.dormant"
    VERSION_ADOPTED = "version.adopted"
    # Asked for by whoever sets up a webhook, and delivered to that one alone.
    WEBHOOK_TEST = "webhook.test"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `number` is its place among all events."""

    id: str
    type: str
    at: datetime
    data: dict[str, Any]
    number: int


@dataclass(frozen=True, slots=True)
class EventPage:
    """Events in order. Reading on from `last_number` misses nothing; `has_more` says that there is more already."""

    events: list[Event]
    last_number: int
    has_more: bool


class Events:
    """Every event, for as long as it is kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_events(self, wanted: EventFilter, after: int, limit: int) -> EventPage:
        """Up to `limit` events that fit, oldest first, from the one after the number `after`."""
        await give_numbers(self._database)

        def work(connection: sa.Connection) -> tuple[list[records.Row], int]:
            return records.list_events(connection, wanted, after, limit + 1), records.latest_number(connection)

        rows, latest = await self._database.read(work)
        page = [Event(row["event_id"], row["type"], row["at"], row["data"], row["number"]) for row in rows[:limit]]
        has_more = len(rows) > limit
        # What does not fit is passed over, too, so that a reader does not look through it again.
        return EventPage(page, page[-1].number if has_more else max(after, latest), has_more)


async def give_numbers(database: Database) -> None:
    """Give every event that is committed by now its number."""
    if not await database.read(records.is_any_without_number):
        return
    while True:
        given = await database.write(lambda connection: records.give_numbers(connection, NUMBERED_AT_ONCE))
        if given < NUMBERED_AT_ONCE:
            return


def emit(
    connection: sa.Connection,
    kind: EventType,
    now: datetime,
    *,
    account_id: int | None = None,
    account: str | None = None,
    once: str | None = None,
    **detail: Any,
) -> str | None:
    """Let an event happen; one that happens `once` does nothing the second time that these words are given.

    `account` is the account's name. `detail` must be JSON, instants among it included, and holds no secret and nothing
    of an identity. Answers the event's id, None when it had happened before.
    """
    data = detail if account is None else {"account": account, **detail}
    event_id = f"evt_{uuid.uuid4().hex}"
    row = {
        "event_id": event_id,
        "type": kind.value,
        "at": now,
        "account_id": account_id,
        "data": {name: _to_json(value) for name, value in data.items()},
        "once": once,
    }
    return event_id if records.insert(connection, row) else None


def _to_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
