"""The audit log: who changed what, when and how. Rows are written in the transaction of the change itself."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.accounts import records
from entrepot.storage.database import Database


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change: `api-key:<name>` or `cli:<user>`, and the request that asked for it."""

    name: str
    request_id: str | None = None


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


class AuditLog:
    """Every change there ever was."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_rows(self, target: str | None, before_id: int | None, limit: int) -> list[AuditRow]:
        """Up to `limit` rows of one target, or of all, newest first, from the one before `before_id`."""
        rows = await self._database.read(lambda connection: records.list_audit(connection, target, before_id, limit))
        return [AuditRow(**row) for row in rows]


def note(connection: sa.Connection, actor: Actor, action: str, target: str, now: datetime, **detail: Any) -> None:
    """Write one row.

    `detail` must be JSON. It holds no secret and nothing of an identity, since rows outlive the erasing of an account.
    """
    records.insert_audit(
        connection,
        {
            "at": now,
            "actor": actor.name,
            "action": action,
            "target": target,
            "detail": detail,
            "request_id": actor.request_id,
        },
    )
