"""Garbage collection, while everybody goes on pulling and pushing.

It works in small steps, each a transaction of its own that judges again what it deletes:

1. uploads that received nothing for the grace are closed;
2. if it is asked for, manifests that no tag, index or present subject leads to are dropped;
3. repositories let go of blobs that none of their manifests names;
4. blobs that no repository holds are forgotten, then their objects dropped;
5. objects that the database does not know, which a killed process left, are swept away.

Nothing younger than the grace is touched, counted from when a publisher was last told that it is here. So a push that
found a blob here has the rest of the grace to name it in a manifest. A run that dies is taken over where it stood.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
import structlog

from entrepot.errors import CollectionActive, RunInterrupted, Unavailable
from entrepot.registry import garbage_records as records
from entrepot.registry.garbage_records import Found, FoundBlob, Place
from entrepot.storage.blobs import SHARDS, BlobStore
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database, Work
from entrepot.storage.signals import Signals, publish

UPLOADS: Final = "uploads"
MANIFESTS: Final = "manifests"
LINKS: Final = "links"
BLOBS: Final = "blobs"
OBJECTS: Final = "objects"
PHASES: Final = (UPLOADS, MANIFESTS, LINKS, BLOBS, OBJECTS)
# Rows that a step looks at: some milliseconds of the database's time.
_STEP = 500
_BEGINNING: Final[Place] = (-1, "")
# A run that shows no life for this long is taken over.
_SILENCE = timedelta(seconds=60)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Removed:
    """One thing that was removed, or would be: `what` names it, `size` is what it takes or took, in bytes."""

    phase: str
    what: str
    size: int


Tell = Callable[[Removed], None]
"""Is told of each thing; returns at once and raises nothing."""


@dataclass(slots=True)
class Report:
    """How many things of each phase were removed, and how many bytes of blob storage that frees."""

    removed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    freed_bytes: int = 0

    def to_document(self) -> dict[str, Any]:
        """As it is kept and shown."""
        return {"removed": self.removed, "freed_bytes": self.freed_bytes}


def silent(_: Removed) -> None:
    """Tells nobody."""


class GarbageCollector:
    """Removes what nothing refers to. With `untagged`, that includes manifests without a tag."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        signals: Signals,
        clock: Clock,
        *,
        grace: timedelta,
        untagged: bool,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._signals = signals
        self._clock = clock
        self._grace = grace
        self._untagged = untagged

    async def preview(self, tell: Tell = silent) -> Report:
        """What a run would remove now, told thing by thing; changes nothing."""
        return await _Run(self._database, self._blobs, self._signals, self._clock, self._grace, tell).preview(
            untagged=self._untagged
        )

    async def collect(self, tell: Tell = silent) -> Report:
        """Remove what nothing refers to, going on where a dead process stopped.

        Raises CollectionActive while another process is at it, RunInterrupted when one took over.
        """
        run = _Run(self._database, self._blobs, self._signals, self._clock, self._grace, tell)
        await self._database.write(lambda connection: self._claim(connection, run, None))
        return await self._carry_out(run)

    async def collect_if_due(self, interval: timedelta) -> Report | None:
        """`collect`, unless a run began less than `interval` ago."""
        run = _Run(self._database, self._blobs, self._signals, self._clock, self._grace, silent)
        if not await self._database.write(lambda connection: self._claim(connection, run, interval)):
            return None
        return await self._carry_out(run)

    async def _carry_out(self, run: "_Run") -> Report:
        begun = self._clock()
        await run.carry_out(untagged=self._untagged)
        report = run.report
        log.info("garbage_collected", seconds=(self._clock() - begun).total_seconds(), **report.to_document())
        return report

    def _claim(self, connection: sa.Connection, run: "_Run", interval: timedelta | None) -> bool:
        now = self._clock()
        row: dict[str, Any] = {
            "runner": run.runner,
            "started_at": now,
            "seen_at": now,
            "finished_at": None,
            "options": {"untagged": self._untagged},
            "place": {},
            "report": {},
        }
        last = records.find_run(connection)
        if last is None:
            if records.insert_run(connection, row):
                return True
            last = records.find_run(connection) or row
        if last["finished_at"] is None:
            if last["seen_at"] > now - _SILENCE:
                raise CollectionActive(
                    f"garbage is being collected since {last['started_at']:%Y-%m-%d %H:%M:%S} UTC; if that process "
                    f"died, run this again {_SILENCE.seconds} seconds later, and it goes on where the other stopped"
                )
            if last["options"] == row["options"]:
                run.go_on(last["place"], last["report"])
                row |= {"started_at": last["started_at"], "place": last["place"], "report": last["report"]}
        elif interval is not None and last["started_at"] > now - interval:
            return False
        if not records.take_run(connection, last, row):
            raise CollectionActive("another process began to collect garbage at this moment")
        return True


async def collect_regularly(collector: GarbageCollector, interval: timedelta, stop: asyncio.Event) -> None:
    """Collect garbage every `interval` (zero: never), once for all processes that do so, until `stop` is set."""
    # Often enough that a run which died is taken up soon.
    pause = min(interval, _SILENCE).total_seconds()
    while interval and not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
            return
        collecting = asyncio.create_task(collector.collect_if_due(interval))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({collecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        collecting.cancel()  # nothing, when it is done; else the next run goes on from here
        stopping.cancel()
        try:
            await collecting
        except (CollectionActive, RunInterrupted, Unavailable) as error:
            log.info("garbage_not_collected", reason=str(error))
        except asyncio.CancelledError:
            return


class _Run:
    """One run: where it stands, and what it did."""

    def __init__(
        self, database: Database, blobs: BlobStore, signals: Signals, clock: Clock, grace: timedelta, tell: Tell
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._signals = signals
        self._clock = clock
        self._grace = grace
        self._tell = tell
        self._first_phase = 0
        self._place: Any = None
        self.runner = str(uuid.uuid4())
        self.report = Report()

    def go_on(self, place: dict[str, Any], report: dict[str, Any]) -> None:
        """Begin where another run stopped."""
        if place:
            self._first_phase = PHASES.index(place["phase"])
            self._place = place["at"]
        if report:
            self.report = Report(dict(report["removed"]), report["freed_bytes"])

    async def carry_out(self, *, untagged: bool) -> None:
        """Every phase. Raises RunInterrupted when another process took over."""
        work = {
            UPLOADS: self._close_uploads,
            MANIFESTS: self._drop_manifests,
            LINKS: self._unlink_blobs,
            BLOBS: self._forget_blobs,
            OBJECTS: self._sweep_objects,
        }
        for phase in PHASES[self._first_phase :]:
            if phase != MANIFESTS or untagged:
                await work[phase]()
            self._place = None
        await self._save(OBJECTS, None, is_finished=True)

    async def preview(self, *, untagged: bool) -> Report:
        """What would be removed. What becomes garbage only by that is not looked for, but for blobs."""
        before = self._before()
        await self._preview_uploads(before)
        if untagged:
            await self._preview_walk(MANIFESTS, records.list_unreferenced_manifests, before)
        await self._preview_walk(LINKS, records.list_unreferenced_links, before)
        after: str | None = ""
        while after is not None:
            place = after
            found, after = await self._database.read(_unheld_after(place))
            for blob in found:
                self._note(BLOBS, blob.digest, blob.size, blob.size)
        for shard in SHARDS:
            for key, size in await self._list_unknown(shard, before):
                self._note(OBJECTS, key, size, size)
        return self.report

    async def _preview_uploads(self, before: datetime) -> None:
        after = ""
        while True:
            found = await self._database.read(_stale_after(before, after))
            for upload_id, size in found:
                self._note(UPLOADS, upload_id, size, size)
            if len(found) < _STEP:
                return
            after = found[-1][0]

    async def _preview_walk(self, phase: str, look: Any, before: datetime) -> None:
        place: Place | None = _BEGINNING
        seen: set[str] = set()
        while place is not None:

            def read(connection: sa.Connection, place: Place = place) -> tuple[list[tuple[Found, int]], Place | None]:
                found, following = look(connection, before, place, _STEP)
                return [(one, records.count_other_holders(connection, one, before)) for one in found], following

            found, place = await self._database.read(read)
            for one, others in found:
                self._note(phase, f"{one.repository}@{one.digest}", one.size, 0)
                if phase == LINKS and not others and one.digest not in seen:
                    # The last to hold it: the blob goes, too.
                    seen.add(one.digest)
                    self._note(BLOBS, one.digest, one.size, one.size)

    async def _close_uploads(self) -> None:
        before = self._before()
        after: str = self._place or ""
        while True:
            found = await self._database.read(_stale_after(before, after))
            for upload_id, size in found:
                keys = await self._database.write(_close_stale(upload_id, before))
                if keys is not None:
                    await self._blobs.drop(*keys)
                    self._note(UPLOADS, upload_id, size, size)
            if len(found) < _STEP:
                return
            after = found[-1][0]
            await self._save(UPLOADS, after)

    async def _drop_manifests(self) -> None:
        """Pass after pass, since a manifest that goes may leave others behind that nothing leads to."""
        is_again = True
        while is_again:
            removed = self.report.removed[MANIFESTS]
            await self._walk(
                MANIFESTS, "manifest", records.list_unreferenced_manifests, records.delete_unreferenced_manifest
            )
            is_again = self.report.removed[MANIFESTS] > removed

    async def _unlink_blobs(self) -> None:
        await self._walk(LINKS, "blob", records.list_unreferenced_links, records.delete_unreferenced_link)

    async def _walk(self, phase: str, topic: str, look: Any, delete: Any) -> None:
        before = self._before()
        place: Place | None = tuple(self._place) if self._place else _BEGINNING
        self._place = None
        while place is not None:

            def read(connection: sa.Connection, place: Place = place) -> tuple[list[Found], Place | None]:
                answer: tuple[list[Found], Place | None] = look(connection, before, place, _STEP)
                return answer

            found, place = await self._database.read(read)

            def work(connection: sa.Connection, found: list[Found] = found) -> list[Found]:
                gone = [one for one in found if delete(connection, one, before)]
                for one in gone:
                    publish(connection, topic, f"{one.repository}@{one.digest}", self._clock())
                return gone

            if found:
                for one in await self._signals.commit(work):
                    self._note(phase, f"{one.repository}@{one.digest}", one.size, 0)
            await self._save(phase, place)

    async def _forget_blobs(self) -> None:
        after: str | None = self._place or ""
        while after is not None:
            found, after = await self._database.read(_unheld_after(after))
            for blob in found:
                if await self._database.write(_forget(blob.digest)):
                    # Only now: an object may be orphaned, but a recorded blob must have one.
                    await self._blobs.drop(blob.key)
                    self._note(BLOBS, blob.digest, blob.size, blob.size)
            await self._save(BLOBS, after)

    async def _sweep_objects(self) -> None:
        before = self._before()
        first = int(self._place or 0)
        for number, shard in enumerate(SHARDS[first:], first):
            for key, size in await self._list_unknown(shard, before):
                await self._blobs.drop(key)
                self._note(OBJECTS, key, size, size)
            await self._save(OBJECTS, number + 1)

    async def _list_unknown(self, shard: str, before: datetime) -> list[tuple[str, int]]:
        """(key, bytes) of old objects that the database does not know.

        An object is written before it is recorded, so what is older than the grace and unknown will never be.
        """
        unknown = []
        async for page in self._blobs.list_objects(shard):
            old = {entry.key: entry.size for entry in page if entry.modified_at < before}
            known = await self._database.read(_known_among(old))
            unknown += [(key, size) for key, size in old.items() if key not in known]
        return unknown

    def _before(self) -> datetime:
        return self._clock() - self._grace

    def _note(self, phase: str, what: str, size: int, freed: int) -> None:
        self.report.removed[phase] += 1
        self.report.freed_bytes += freed
        self._tell(Removed(phase, what, size))

    async def _save(self, phase: str, at: Any, *, is_finished: bool = False) -> None:
        now = self._clock()
        values: dict[str, Any] = {
            "seen_at": now,
            "finished_at": now if is_finished else None,
            "place": {"phase": phase, "at": at},
            "report": self.report.to_document(),
        }
        if not await self._database.write(lambda connection: records.update_run(connection, self.runner, **values)):
            raise RunInterrupted("another process took this run of garbage collection over")


# A lambda in a loop would see the loop's last value.


def _stale_after(before: datetime, after: str) -> Work[list[tuple[str, int]]]:
    return lambda connection: records.list_stale_uploads(connection, before, after, _STEP)


def _close_stale(upload_id: str, before: datetime) -> Work[list[str] | None]:
    return lambda connection: records.delete_stale_upload(connection, upload_id, before)


def _unheld_after(after: str) -> Work[tuple[list[FoundBlob], str | None]]:
    return lambda connection: records.list_unheld_blobs(connection, after, _STEP)


def _forget(digest: str) -> Work[bool]:
    return lambda connection: records.delete_unheld_blob(connection, digest)


def _known_among(keys: Collection[str]) -> Work[set[str]]:
    return lambda connection: records.read_known_keys(connection, keys)
