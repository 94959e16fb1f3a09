"""The audit log: who changed what, when and how. Rows are written in the transaction of the change itself."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.accounts import records
from entrepot.accounts.records import AuditFilter
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

_EXPORTED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change: `api-key:<name>`, `oidc:<workload>` or `cli:<user>`; the request, and whence it came.

    `key` is the key that a workload has at the moment.
    """

    name: str
    request_id: str | None = None
    address: str | None = None
    key: str | None = None

    @property
    def api_key(self) -> str | None:
        """In whose name accounts are created: an API key's, or `oidc:<workload>`; None when it is neither."""
        kind, _, name = self.name.partition(":")
        if kind == "oidc":
            return self.name
        return name if kind == "api-key" else None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    request_id: str | None
    address: str | None


class AuditLog:
    """Every change, for as long as it is kept. Rows are added and read, and never altered."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def list_rows(self, wanted: AuditFilter, before_id: int | None, limit: int) -> list[AuditRow]:
        """Up to `limit` rows that fit, newest first, from the one before `before_id`."""
        rows = await self._database.read(lambda connection: records.list_audit(connection, wanted, before_id, limit))
        return [AuditRow(**row) for row in rows]

    async def export(self, wanted: AuditFilter) -> AsyncIterator[list[AuditRow]]:
        """All rows that fit, newest first, by pages."""
        before_id: int | None = None
        while page := await self.list_rows(wanted, before_id, _EXPORTED_AT_ONCE):
            yield page
            before_id = page[-1].id


def note(connection: sa.Connection, actor: Actor, action: str, target: str, now: datetime, **detail: Any) -> None:
    """Write one row.

    `detail` must be JSON. It holds no secret and nothing of an identity, since rows outlive the erasing of an account.
    """
    if actor.key is not None:
        detail["key"] = actor.key
    records.insert_audit(
        connection,
        {
            "at": now,
            "actor": actor.name,
            "action": action,
            "target": target,
            "detail": detail,
            "request_id": actor.request_id,
            "address": actor.address,
        },
    )
