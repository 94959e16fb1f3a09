"""Shared counts in the database: for installations without Redis, and while it is away."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from entrepot.storage.counters import Amounts, Change
from entrepot.storage.database import Database
from entrepot.storage.statements import delete_some, raise_and_add
from entrepot.storage.tables import counters

_BATCH = 400
_PRUNED_AT_ONCE = 5_000


class DatabaseCounters:
    """A CounterStore."""

    name = "database"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def exchange(self, changes: Sequence[Change]) -> list[Amounts]:
        """See CounterStore."""
        # What only asks takes no writer's turn.
        run = self._database.write if any(change.shares for change in changes) else self._database.read
        return await run(lambda connection: _exchange(connection, changes))

    async def prune(self, before: datetime) -> None:
        """See CounterStore."""
        await self._database.write(lambda connection: _prune(connection, before))

    def close(self) -> None:
        """See CounterStore; whoever opened the database closes it."""


def _exchange(connection: sa.Connection, changes: Sequence[Change]) -> list[Amounts]:
    # In one order, so that two processes which write the same rows wait for each other instead of deadlocking.
    rows = [
        {
            "name": change.name,
            "start": _instant(change.start),
            "member": share.member,
            "until": _instant(change.until),
            "known": share.known,
            "added": share.added,
        }
        for change in sorted(changes, key=lambda change: (change.name, change.start))
        for share in change.shares
    ]
    raise_and_add(connection, counters, rows, "amount")
    found: defaultdict[tuple[str, datetime], dict[str, int]] = defaultdict(dict)
    keys = [(change.name, _instant(change.start)) for change in changes]
    for first in range(0, len(keys), _BATCH):
        batch = keys[first : first + _BATCH]
        # By name alone, whose past windows are few: SQLite looks up no list of pairs by an index.
        query = sa.select(counters.c.name, counters.c.start, counters.c.member, counters.c.amount).where(
            counters.c.name.in_([name for name, _ in batch]), counters.c.start >= min(start for _, start in batch)
        )
        for row in connection.execute(query):
            found[row.name, row.start][row.member] = row.amount
    return [found[key] for key in keys]


def _prune(connection: sa.Connection, before: datetime) -> None:
    delete_some(connection, counters, counters.c.until < before, _PRUNED_AT_ONCE)


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
