"""Counting pulls: in memory on the way out, in the database a second later.

Counting can neither fail nor slow a pull: it adds to numbers in memory, on the event loop alone, so that it takes no
lock. What a killed process had not written yet is lost, a second's worth; a process that stops writes all of it.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from entrepot.accounts import records
from entrepot.errors import EntrepotError
from entrepot.storage.database import Database

FLUSH_SECONDS = 1.0
# Distinct (account, repository) pairs kept while the database is away; beyond that counts are dropped, not memory.
MAX_PENDING = 100_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Count:
    """Instants are unix seconds, 0 for none."""

    pulls: int = 0
    bytes_served: int = 0
    first_pull_at: float = 0.0
    last_pull_at: float = 0.0


@dataclass(frozen=True, slots=True)
class RepositoryUsage:
    """What one account took from one repository; `bytes_served` are those of answers begun."""

    repository: str
    pulls: int
    bytes_served: int
    first_pull_at: datetime | None
    last_pull_at: datetime | None


_Key = tuple[int, str]


class UsageCounter:
    """Counts of this process that are not in the database yet, and those that are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: dict[_Key, _Count] = {}
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    def count_pull(self, account_id: int, repository: str, bytes_served: int) -> None:
        """One pull, and the bytes of its manifest."""
        count = self._find((account_id, repository))
        if count is not None:
            now = time.time()
            count.pulls += 1
            count.bytes_served += bytes_served
            count.last_pull_at = now
            if not count.first_pull_at:
                count.first_pull_at = now

    def count_bytes(self, account_id: int, repository: str, bytes_served: int) -> None:
        """Bytes that belong to no pull of their own."""
        count = self._find((account_id, repository))
        if count is not None:
            count.bytes_served += bytes_served

    async def usage_of(self, account_id: int) -> list[RepositoryUsage]:
        """An account's counts by repository, as far as they are in the database: up to a second old."""
        rows = await self._database.read(lambda connection: records.list_usage(connection, account_id))
        return [
            RepositoryUsage(
                row["repository"], row["pulls"], row["bytes_served"], row["first_pull_at"], row["last_pull_at"]
            )
            for row in rows
        ]

    def start(self) -> None:
        """Begin to write counts down, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="usage")

    async def stop(self) -> None:
        """Write down what is left, and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.flush()

    async def flush(self) -> None:
        """Write down all that was counted; what cannot be written now stays for the next time."""
        pending, self._pending = self._pending, {}
        dropped, self._dropped = self._dropped, 0
        if dropped:
            log.warning("usage_dropped", counts=dropped, reason="the database was away for too long")
        if not pending:
            return
        rows = [
            {
                "account_id": account_id,
                "repository": repository,
                "pulls": count.pulls,
                "bytes_served": count.bytes_served,
                "first_pull_at": _to_instant(count.first_pull_at),
                "last_pull_at": _to_instant(count.last_pull_at),
            }
            # In one order, so that two processes which write the same rows wait for each other instead of deadlocking.
            for (account_id, repository), count in sorted(pending.items())
        ]
        is_written = False
        try:
            await asyncio.shield(self._database.write(lambda connection: records.add_usage(connection, rows)))
            is_written = True
        except EntrepotError as error:
            log.warning("usage_not_written", error=str(error))
        except asyncio.CancelledError:
            is_written = True  # the shielded write goes on to its end
            raise
        finally:
            if not is_written:
                self._put_back(pending)

    def _find(self, key: _Key) -> _Count | None:
        count = self._pending.get(key)
        if count is None:
            if len(self._pending) >= MAX_PENDING:
                self._dropped += 1
                return None
            count = self._pending[key] = _Count()
        return count

    def _put_back(self, pending: dict[_Key, _Count]) -> None:
        for key, count in pending.items():
            newer = self._pending.get(key)
            if newer is not None:
                count.pulls += newer.pulls
                count.bytes_served += newer.bytes_served
                count.first_pull_at = count.first_pull_at or newer.first_pull_at
                count.last_pull_at = newer.last_pull_at or count.last_pull_at
            self._pending[key] = count

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()


def _to_instant(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
