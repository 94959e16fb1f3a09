"""Counting pulls: in memory on the way out, in the database a second later.

Counting can neither fail nor slow a pull. What a killed process had not written yet is lost, at most a second's worth;
a process that stops writes all of it.
"""

import threading
from dataclasses import dataclass
from datetime import datetime

import structlog

from entrepot.accounts import records
from entrepot.errors import EntrepotError
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

FLUSH_SECONDS = 1.0
# Distinct (account, repository) pairs kept while the database is away; beyond that counts are dropped, not memory.
MAX_PENDING = 100_000

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Count:
    pulls: int = 0
    bytes_served: int = 0
    first_pull_at: datetime | None = None
    last_pull_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RepositoryUsage:
    """What one account took from one repository; `bytes_served` are those of answers begun."""

    repository: str
    pulls: int
    bytes_served: int
    first_pull_at: datetime | None
    last_pull_at: datetime | None


class UsageCounter:
    """Counts of this process that are not in the database yet, and those that are."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._pending: dict[tuple[int, str], _Count] = {}
        self._dropped = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def count_pull(self, account_id: int, repository: str, bytes_served: int) -> None:
        """One pull, and the bytes of its manifest."""
        self._count(account_id, repository, 1, bytes_served)

    def count_bytes(self, account_id: int, repository: str, bytes_served: int) -> None:
        """Bytes that belong to no pull of their own."""
        self._count(account_id, repository, 0, bytes_served)

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
        """Begin to write counts down, on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write down what is left, and end."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def flush(self) -> None:
        """Write down all that was counted; what cannot be written now stays for the next time."""
        with self._lock:
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
                "first_pull_at": count.first_pull_at,
                "last_pull_at": count.last_pull_at,
            }
            for (account_id, repository), count in pending.items()
        ]
        try:
            self._database.write_now(lambda connection: records.add_usage(connection, rows))
        except EntrepotError as error:
            log.warning("usage_not_written", error=str(error))
            self._put_back(pending)

    def _count(self, account_id: int, repository: str, pulls: int, bytes_served: int) -> None:
        key = (account_id, repository)
        with self._lock:
            count = self._pending.get(key)
            if count is None:
                if len(self._pending) >= MAX_PENDING:
                    self._dropped += 1
                    return
                count = self._pending[key] = _Count()
            count.pulls += pulls
            count.bytes_served += bytes_served
            if pulls:
                count.last_pull_at = self._clock()
                count.first_pull_at = count.first_pull_at or count.last_pull_at

    def _put_back(self, pending: dict[tuple[int, str], _Count]) -> None:
        with self._lock:
            for key, count in pending.items():
                newer = self._pending.get(key)
                if newer is not None:
                    count.pulls += newer.pulls
                    count.bytes_served += newer.bytes_served
                    count.first_pull_at = count.first_pull_at or newer.first_pull_at
                    count.last_pull_at = newer.last_pull_at or count.last_pull_at
                self._pending[key] = count

    def _run(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            self.flush()
