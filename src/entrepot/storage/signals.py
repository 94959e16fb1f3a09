"""Change notices between processes: how caches forget what changed elsewhere.

A service publishes a notice in the same transaction as its change, so the two cannot part. Every process reads new
notices from the database many times a second. Redis, where there is one, brings them sooner, and lets a process ask the
database less often; it is never relied on, so losing it loses nothing.

A process that falls behind knows it: `is_current` turns false, and caches stop answering. One that cannot reach the
database at all goes on with what it knows for `outage_seconds`, since it could ask nobody else anyway.
"""

import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

import sqlalchemy as sa
import structlog

from entrepot.errors import DatabaseUnavailable, EntrepotError
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database, T, Work
from entrepot.storage.tables import signals

Listener = Callable[[str], None]
Measure = Callable[[float], None]


class Notice(NamedTuple):
    """This key of this topic changed at this instant, in unix seconds.

    `id` is the row's; it and the instant are 0 where a version that did not tell them sent the notice.
    """

    topic: str
    key: str
    id: int = 0
    at: float = 0


POLL_SECONDS = 0.1
# While Redis brings the notices, the database is asked only for what Redis may have lost.
POLL_SECONDS_BESIDE_WIRE = 0.4
# Caches may be this far behind before they stop answering; the promise to users is one second.
CURRENT_SECONDS = 0.8
OUTAGE_SECONDS = 60.0
# A database that leaves a question of microseconds open for this long is away.
_PATIENCE_SECONDS = 2.0
_KEPT = timedelta(hours=1)
_PRUNE_SECONDS = 300.0
# Transactions may commit in another order than they took their ids, but none lives nearly as long as this.
_GAP_SECONDS = 60.0
_MAX_GAPS = 10_000
# Notices that are remembered as heard, since most come on two ways and count once.
_MAX_MEASURED = 10_000

log = structlog.get_logger(__name__)


class Wire(Protocol):
    """Brings notices to other processes at once, mostly."""

    def start(self, hear: Callable[[Iterable[Notice]], None]) -> None:
        """Begin to pass on what others send; `hear` is called on a thread of the wire."""

    def send(self, notices: Iterable[Notice]) -> None:
        """Send to every other process. Returns at once and raises nothing."""

    def is_open(self) -> bool:
        """Whether notices arrive now, as far as can be told."""

    def stop(self) -> None:
        """End."""


def publish(connection: sa.Connection, topic: str, key: str, now: datetime) -> None:
    """Tell every process, once this transaction commits, that `key` of `topic` changed."""
    done = connection.execute(_INSERT, {"topic": topic, "key": key, "at": now})
    (number,) = done.inserted_primary_key or (0,)
    connection.info.setdefault(_PUBLISHED, []).append(Notice(topic, key, number, now.timestamp()))


_PUBLISHED = "entrepot.published"
_INSERT = signals.insert()


def _read_after(connection: sa.Connection, last_id: int, gaps: Iterable[int]) -> list[Notice]:
    query = (
        sa.select(signals.c.id, signals.c.topic, signals.c.key, signals.c.at)
        .where(sa.or_(signals.c.id > last_id, signals.c.id.in_(list(gaps))))
        .order_by(signals.c.id)
    )
    return [Notice(row.topic, row.key, row.id, row.at.timestamp()) for row in connection.execute(query)]


def _read_latest_ids(connection: sa.Connection) -> list[int]:
    return list(connection.scalars(sa.select(signals.c.id).order_by(signals.c.id.desc()).limit(_MAX_GAPS)))


def _prune(connection: sa.Connection, before: datetime) -> None:
    # The newest row stays, so that ids never start again for a process that was away.
    connection.execute(
        signals.delete().where(
            signals.c.at < before, signals.c.id < sa.select(sa.func.max(signals.c.id)).scalar_subquery()
        )
    )


class Signals:
    """This process's ear. `listen` first, then `start`."""

    def __init__(
        self, database: Database, clock: Clock, *, wire: Wire | None = None, outage_seconds: float = OUTAGE_SECONDS
    ) -> None:
        self._database = database
        self._clock = clock
        self._wire = wire
        self._outage_seconds = outage_seconds
        self._listeners: defaultdict[str, list[Listener]] = defaultdict(list)
        self._measures: dict[str, Measure] = {}
        self._measured: OrderedDict[int, None] = OrderedDict()
        self._measuring = threading.Lock()
        self._last_id = 0
        # Ids below the last that were not there yet, and until when one may still turn up.
        self._gaps: dict[int, float] = {}
        self._heard_at = float("-inf")
        self._asking_since: float | None = None
        self._is_away = False
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def listen(self, topic: str, listener: Listener) -> None:
        """Call `listener` with each key of `topic` that changes, in any process.

        It runs on whatever thread hears of it first, and maybe twice, so it must be brief and harmless to repeat.
        """
        self._listeners[topic].append(listener)

    def measure(self, topic: str, measure: Measure) -> None:
        """Call `measure`, once for each notice of `topic`, with the seconds between the change and hearing of it.

        It runs on any thread. The clock of whoever made the change may be ahead of ours: that counts as no time.
        """
        self._measures[topic] = measure

    def is_current(self) -> bool:
        """Whether caches may answer.

        That is while every change older than a second was heard of; and, when the database does not answer, until
        `outage_seconds` after it last did.
        """
        now = time.monotonic()
        asking_since = self._asking_since
        is_away = self._is_away or (asking_since is not None and now - asking_since > _PATIENCE_SECONDS)
        return now - self._heard_at < (self._outage_seconds if is_away else CURRENT_SECONDS)

    def start(self) -> None:
        """Begin to listen, on threads of their own, so that a busy event loop delays no revocation."""
        asked_at = time.monotonic()
        ids = self._database.read_now(_read_latest_ids)
        self._last_id = ids[0] if ids else 0
        if ids:
            self._note_gaps(ids[-1], sorted(ids), asked_at)
        self._heard_at = asked_at
        if self._wire is not None:
            self._wire.start(self._hear)
        self._thread = threading.Thread(target=self._poll, name="signals", daemon=True)
        self._thread.start()

    async def commit(self, work: Work[T]) -> T:
        """What `work` answers, in one transaction whose notices this process has heard when this returns."""
        answer, published = await self._database.write(lambda connection: _run_noting(connection, work))
        self._pass_on(published)
        return answer

    def commit_now(self, work: Work[T]) -> T:
        """`commit`, for threads."""
        answer, published = self._database.write_now(lambda connection: _run_noting(connection, work))
        self._pass_on(published)
        return answer

    def catch_up(self) -> None:
        """Hear everything that is committed by now. Raises DatabaseUnavailable."""
        with self._lock:
            asked_at = self._asking_since = time.monotonic()
            try:
                found = self._database.read_now(lambda connection: _read_after(connection, self._last_id, self._gaps))
            except DatabaseUnavailable as error:
                # Before the question is given up: between the two, caches would stop answering.
                was_away, self._is_away = self._is_away, True
                if not was_away:
                    log.warning("database_away", error=str(error), caches_answer_for_seconds=self._outage_seconds)
                raise
            finally:
                self._asking_since = None
            self._hear(found)
            ids = [notice.id for notice in found]
            for number in ids:
                self._gaps.pop(number, None)
            new = [number for number in ids if number > self._last_id]
            if new:
                self._note_gaps(self._last_id + 1, new, asked_at)
                self._last_id = new[-1]
            self._heard_at = asked_at
            self._is_away = False

    def stop(self) -> None:
        """Stop listening; caches stop answering soon after."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        if self._wire is not None:
            self._wire.stop()

    def _pass_on(self, published: list[Notice]) -> None:
        self._hear(published)
        if self._wire is not None and published:
            self._wire.send(published)

    def _hear(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            for listener in self._listeners.get(notice.topic, ()):
                listener(notice.key)
            measure = self._measures.get(notice.topic)
            if measure is not None and self._is_first(notice.id):
                measure(max(0.0, self._clock().timestamp() - notice.at))

    def _is_first(self, number: int) -> bool:
        """Whether this notice was not heard before, as far as can be told."""
        if number == 0:
            return False
        with self._measuring:
            if number in self._measured:
                return False
            self._measured[number] = None
            if len(self._measured) > _MAX_MEASURED:
                self._measured.popitem(last=False)
            return True

    def _note_gaps(self, first: int, ids: list[int], now: float) -> None:
        """Remember which ids from `first` on are missing among `ids` (ascending): they may be committed later."""
        self._gaps = {number: until for number, until in self._gaps.items() if until > now}
        present = set(ids)
        for number in range(max(first, ids[-1] - _MAX_GAPS), ids[-1]):
            if number not in present:
                self._gaps[number] = now + _GAP_SECONDS

    def _poll(self) -> None:
        prune_at = time.monotonic() + _PRUNE_SECONDS
        while not self._stopping.wait(self._pause()):
            try:
                self.catch_up()
                if time.monotonic() > prune_at:
                    prune_at = time.monotonic() + _PRUNE_SECONDS
                    self._database.write_now(lambda connection: _prune(connection, self._clock() - _KEPT))
            except DatabaseUnavailable:
                continue
            except EntrepotError as error:
                log.warning("signals_unreadable", error=str(error))

    def _pause(self) -> float:
        is_brought = self._wire is not None and self._wire.is_open()
        return POLL_SECONDS_BESIDE_WIRE if is_brought else POLL_SECONDS


def _run_noting(connection: sa.Connection, work: Work[T]) -> tuple[T, list[Notice]]:
    connection.info[_PUBLISHED] = []  # of an earlier transaction on this connection
    answer = work(connection)
    return answer, connection.info.pop(_PUBLISHED)
