"""Change notices between processes, through the database.

A service publishes a notice in the same transaction as its change, so the two cannot part. Every process reads new
notices many times a second and hands them to whoever listens, which is how caches forget what changed elsewhere. A
process that cannot read notices knows it: `is_current` turns false, and caches stop answering.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa
import structlog

from entrepot.errors import EntrepotError
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database, T, Work
from entrepot.storage.tables import signals

Listener = Callable[[str], None]

POLL_SECONDS = 0.1
# Caches may be this far behind before they stop answering; the promise to users is one second.
CURRENT_SECONDS = 0.8
_KEPT = timedelta(hours=1)
_PRUNE_SECONDS = 300.0

log = structlog.get_logger(__name__)


def publish(connection: sa.Connection, topic: str, key: str, now: datetime) -> None:
    """Tell every process, once this transaction commits, that `key` of `topic` changed."""
    connection.execute(signals.insert().values(topic=topic, key=key, at=now))


def _read_after(connection: sa.Connection, last_id: int) -> list[tuple[int, str, str]]:
    query = sa.select(signals.c.id, signals.c.topic, signals.c.key).where(signals.c.id > last_id).order_by(signals.c.id)
    return [(row.id, row.topic, row.key) for row in connection.execute(query)]


def _read_last_id(connection: sa.Connection) -> int:
    return connection.scalar(sa.select(sa.func.max(signals.c.id))) or 0


def _prune(connection: sa.Connection, before: datetime) -> None:
    # The newest row stays, so that ids never start again for a process that was away.
    connection.execute(
        signals.delete().where(
            signals.c.at < before, signals.c.id < sa.select(sa.func.max(signals.c.id)).scalar_subquery()
        )
    )


class Signals:
    """This process's ear. `listen` first, then `start`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._listeners: dict[str, list[Listener]] = defaultdict(list)
        self._last_id = 0
        self._current_until = 0.0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def listen(self, topic: str, listener: Listener) -> None:
        """Call `listener` with each key of `topic` that changes, in any process.

        It runs on the thread of the signals, so it must be brief.
        """
        self._listeners[topic].append(listener)

    def is_current(self) -> bool:
        """Whether every change older than a second has been heard of."""
        return time.monotonic() < self._current_until

    def start(self) -> None:
        """Begin to listen, on a thread of its own, so that a busy event loop delays no revocation."""
        self._last_id = self._database.read_now(_read_last_id)
        self._current_until = time.monotonic() + CURRENT_SECONDS
        self._thread = threading.Thread(target=self._poll, name="signals", daemon=True)
        self._thread.start()

    async def commit(self, work: Work[T]) -> T:
        """What `work` answers, in one transaction whose notices this process has heard when this returns."""
        answer = await self._database.write(work)
        await asyncio.to_thread(self.catch_up)
        return answer

    def catch_up(self) -> None:
        """Hear everything that is committed by now; for a thread that just wrote and wants to see its own change."""
        with self._lock:
            asked_at = time.monotonic()
            for number, topic, key in self._database.read_now(
                lambda connection: _read_after(connection, self._last_id)
            ):
                for listener in self._listeners[topic]:
                    listener(key)
                self._last_id = number
            self._current_until = asked_at + CURRENT_SECONDS

    def stop(self) -> None:
        """Stop listening; caches stop answering soon after."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _poll(self) -> None:
        prune_at = time.monotonic() + _PRUNE_SECONDS
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self.catch_up()
                if time.monotonic() > prune_at:
                    prune_at = time.monotonic() + _PRUNE_SECONDS
                    self._database.write_now(lambda connection: _prune(connection, self._clock() - _KEPT))
            except EntrepotError as error:
                log.warning("signals_unreadable", error=str(error))
