"""Webhooks: where events are delivered to, and what became of it.

Source: Standard Webhooks 1.0.0, https://www.standardwebhooks.com/. What sends them is accounts/deliveries.py.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from yarl import URL

from entrepot.access.destinations import Destinations
from entrepot.access.keys import Keys
from entrepot.access.secrets import Secret
from entrepot.access.signatures import generate_key, show_key
from entrepot.accounts import event_records
from entrepot.accounts import webhook_records as records
from entrepot.accounts.audit import Actor, note
from entrepot.accounts.events import EventType, emit
from entrepot.accounts.sealing import seal, unseal
from entrepot.accounts.webhook_records import DeliveryStatus
from entrepot.errors import Conflict, EventUnknown, RequestInvalid, WebhookDisabled, WebhookInvalid, WebhookUnknown
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database, T

MAX_WEBHOOKS = 50
MAX_GRACE = timedelta(days=30)
DEFAULT_GRACE = timedelta(days=1)
DISABLED_BY_REQUEST = "disabled by request"
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MAX_NAME = 63
_DROPPED_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where events are delivered to; `types` None means every type.

    `failing_since` is when the first of those attempts was that have failed without a success since.
    """

    name: str
    url: str
    types: frozenset[str] | None
    created_at: datetime
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: str | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far an event got on the way to a webhook; `row` is its place in the list."""

    row: int
    event_id: str
    type: str
    at: datetime
    status: DeliveryStatus
    attempts: int
    next_at: datetime | None
    delivered_at: datetime | None
    problem: str | None


class Webhooks:
    """Every webhook."""

    def __init__(self, database: Database, clock: Clock, keys: Keys, destinations: Destinations) -> None:
        self._database = database
        self._clock = clock
        self._keys = keys
        self._destinations = destinations

    async def put(
        self, name: str, url: str, types: Iterable[str] | None, actor: Actor, *, is_enabled: bool = True
    ) -> tuple[Webhook, Secret | None]:
        """Set up a webhook, or change one; a new one gets the events from now on, and its secret is answered.

        One that is enabled again goes on where it stood. Raises WebhookInvalid, or Conflict when there are too many.
        """
        _verify_name(name)
        self._destinations.verify_url(url)
        values: dict[str, Any] = {"url": url, "types": None if types is None else sorted(set(types))}

        def work(connection: sa.Connection) -> tuple[Webhook, Secret | None]:
            now = self._clock()
            secret = None
            if records.find_webhook(connection, name) is None:
                secret = self._insert(connection, name, values, now)
            if secret is not None:
                note(
                    connection,
                    actor,
                    "webhook.created",
                    name,
                    now,
                    origin=_origin_of(values["url"]),
                    types=values["types"],
                )
            before = _read(_get(connection, name))
            state = _plan_state(before, now, is_enabled=is_enabled)
            records.update_webhook(connection, name, **values, **state)
            after = _read(_get(connection, name))
            if secret is None and after != before:
                note(connection, actor, "webhook.changed", name, now, before=_show(before), after=_show(after))
            return after, secret

        return await self._database.write(work)

    async def list_webhooks(self) -> list[Webhook]:
        """Every webhook, by name."""
        return [_read(row) for row in await self._database.read(records.list_webhooks)]

    async def get(self, name: str) -> Webhook:
        """One webhook. Raises WebhookUnknown."""
        return _read(await self._database.read(lambda connection: _get(connection, name)))

    async def delete(self, name: str, actor: Actor) -> None:
        """Drop a webhook, and what waits to be delivered to it. Raises WebhookUnknown."""

        def disable(connection: sa.Connection, now: datetime) -> None:
            records.disable_webhook(connection, name, now, "being deleted")

        def drop(connection: sa.Connection) -> int:
            return records.drop_deliveries(connection, name, _DROPPED_AT_ONCE)

        def delete(connection: sa.Connection, now: datetime) -> None:
            records.delete_webhook(connection, name)
            note(connection, actor, "webhook.deleted", name, now)

        await self._change(name, disable)
        # There may be millions, too many for one transaction.
        while await self._database.write(drop):
            pass
        await self._change(name, delete)

    async def rotate_secret(self, name: str, grace: timedelta, actor: Actor) -> Secret:
        """A new secret; deliveries are signed with the old one, too, until the grace is over.

        Raises WebhookUnknown, or RequestInvalid for a grace that is negative or too long.
        """
        if not timedelta(0) <= grace <= MAX_GRACE:
            raise RequestInvalid(f"the grace must be 0 to {int(MAX_GRACE.total_seconds())} seconds")

        def work(connection: sa.Connection, now: datetime) -> Secret:
            key = generate_key()
            previous = _get(connection, name)["secret"] if grace else None
            records.update_webhook(
                connection,
                name,
                secret=seal(self._keys.webhooks, key, name),
                previous_secret=previous,
                previous_until=now + grace if grace else None,
            )
            note(connection, actor, "webhook.secret_rotated", name, now, grace_seconds=int(grace.total_seconds()))
            return show_key(key)

        return await self._change(name, work)

    async def replay_event(self, name: str, event_id: str, actor: Actor) -> None:
        """Deliver one event once more. Raises WebhookUnknown, WebhookDisabled or EventUnknown."""

        def work(connection: sa.Connection, now: datetime) -> None:
            _verify_enabled(connection, name)
            event = event_records.find(connection, event_id)
            if event is None:
                raise EventUnknown(f"there is no event {event_id[:40]!r}; it may have been dropped with age")
            records.put_deliveries(connection, name, [event["id"]], now)
            note(connection, actor, "webhook.replayed", name, now, event=event_id)

        await self._change(name, work)

    async def replay_since(self, name: str, since: datetime, actor: Actor) -> int:
        """Deliver every event from an instant on once more; answers how many.

        Raises WebhookUnknown or WebhookDisabled.
        """

        def work(connection: sa.Connection, now: datetime) -> int:
            _verify_enabled(connection, name)
            count = records.rewind(connection, name, _get(connection, name)["types"], since)
            note(connection, actor, "webhook.replayed", name, now, since=since.isoformat())
            return count

        return await self._change(name, work)

    async def test(self, name: str, actor: Actor) -> str:
        """Deliver an event that says nothing; answers its id. Raises WebhookUnknown or WebhookDisabled."""

        def work(connection: sa.Connection, now: datetime) -> str:
            _verify_enabled(connection, name)
            event_id = str(emit(connection, EventType.WEBHOOK_TEST, now, webhook=name))
            event = event_records.find(connection, event_id)
            records.put_deliveries(connection, name, [] if event is None else [event["id"]], now)
            note(connection, actor, "webhook.tested", name, now, event=event_id)
            return event_id

        return await self._change(name, work)

    async def list_deliveries(
        self, name: str, status: DeliveryStatus | None, before: int | None, limit: int
    ) -> list[Delivery]:
        """Deliveries of a webhook, the newest events first, from the one before `before`. Raises WebhookUnknown."""

        def work(connection: sa.Connection) -> list[records.Row]:
            _get(connection, name)
            return records.list_deliveries(connection, name, status, before, limit)

        return [_read_delivery(row) for row in await self._database.read(work)]

    def open_keys(self, row: records.Row, now: datetime) -> list[bytes]:
        """What the deliveries of a webhook's row are signed with, the newest first; empty when it cannot be read."""
        sealed = [row["secret"]]
        if row["previous_until"] is not None and row["previous_until"] > now:
            sealed.append(row["previous_secret"])
        keys = [unseal(self._keys.sealing, one, row["name"]) for one in sealed]
        return [key for key in keys if key is not None]

    def _insert(self, connection: sa.Connection, name: str, values: dict[str, Any], now: datetime) -> Secret | None:
        """The secret of a new webhook; None when another process made it at this moment."""
        if records.count_webhooks(connection) >= MAX_WEBHOOKS:
            raise Conflict(f"there are {MAX_WEBHOOKS} webhooks, which is the most; delete one first")
        key = generate_key()
        row = {
            "name": name,
            "secret": seal(self._keys.webhooks, key, name),
            "created_at": now,
            "last_number": event_records.latest_number(connection),
            **values,
        }
        return show_key(key) if records.insert_webhook(connection, row) else None

    async def _change(self, name: str, change: Callable[[sa.Connection, datetime], T]) -> T:
        def work(connection: sa.Connection) -> T:
            _get(connection, name)
            return change(connection, self._clock())

        return await self._database.write(work)


def _plan_state(before: Webhook, now: datetime, *, is_enabled: bool) -> dict[str, Any]:
    """What to change to enable or disable a webhook, unless it is so already."""
    if is_enabled and before.disabled_at is not None:
        return {"disabled_at": None, "disabled_reason": None, "failing_since": None}
    if not is_enabled and before.disabled_at is None:
        return {"disabled_at": now, "disabled_reason": DISABLED_BY_REQUEST}
    return {}


def _verify_name(name: str) -> None:
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise WebhookInvalid(
            f"name {name[:80]!r}: use lower-case letters and digits, with single . _ - between, at most {_MAX_NAME}"
        )


def _verify_enabled(connection: sa.Connection, name: str) -> None:
    row = _get(connection, name)
    if row["disabled_at"] is not None:
        raise WebhookDisabled(f"webhook {name} is disabled ({row['disabled_reason']}); enable it first")


def _origin_of(url: str) -> str:
    """What the audit log says of a URL: its path may be a secret of the receiver's."""
    return str(URL(url).origin())


def _show(webhook: Webhook) -> dict[str, Any]:
    return {
        "origin": _origin_of(webhook.url),
        "types": None if webhook.types is None else sorted(webhook.types),
        "enabled": webhook.disabled_at is None,
    }


def _get(connection: sa.Connection, name: str) -> records.Row:
    row = records.find_webhook(connection, name)
    if row is None:
        raise WebhookUnknown(f"there is no webhook {name[:80]!r}")
    return row


def _read(row: records.Row) -> Webhook:
    return Webhook(
        name=row["name"],
        url=row["url"],
        types=None if row["types"] is None else frozenset(row["types"]),
        created_at=row["created_at"],
        failing_since=row["failing_since"],
        disabled_at=row["disabled_at"],
        disabled_reason=row["disabled_reason"],
    )


def _read_delivery(row: records.Row) -> Delivery:
    status: DeliveryStatus = "waiting"
    if row["delivered_at"] is not None:
        status = "delivered"
    elif row["next_at"] is None:
        status = "given_up"
    return Delivery(
        row=row["event_id"],
        event_id=row["public_id"],
        type=row["type"],
        at=row["at"],
        status=status,
        attempts=row["attempts"],
        next_at=row["next_at"],
        delivered_at=row["delivered_at"],
        problem=row["problem"],
    )
