"""Pull-through: what is asked for, means a rule that says so, and is not here yet, is fetched while it is served.

Whether whoever asks may have it was decided before anything here is called. One process fetches a tag, which the
database sees to; every process answers for it. See docs/decisions/0026.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import prometheus_client
import sqlalchemy as sa
import structlog

from entrepot.access.plans import TagLimits
from entrepot.errors import (
    BlobUnknown,
    EntrepotError,
    FetchUnfinished,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameUnknown,
    SignatureRefused,
    SourceError,
    SourceMissing,
    SourceUnsupported,
    TagLeftOut,
    Unavailable,
)
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag, subject_of
from entrepot.registry.service import Registry, StoredManifest
from entrepot.registry.uploads import Uploads
from entrepot.replication import pull_records
from entrepot.replication.concurrency import Shares
from entrepot.replication.flights import Flight, Wanted
from entrepot.replication.listing import Spot
from entrepot.replication.pull_records import ArrivalRow, PullRow
from entrepot.replication.replications import OpenSource, Replications
from entrepot.replication.rulebook import WORK_TOPIC, Rulebook
from entrepot.replication.rules import Rule
from entrepot.replication.runs import Runs
from entrepot.replication.source_specs import SourceSpec
from entrepot.replication.spools import Arrival, Spools
from entrepot.replication.transfers import Transfers
from entrepot.storage.blobs import OpenBlob
from entrepot.storage.cache import Cache
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

Rules = tuple[tuple[Rule, SourceSpec], ...]

# Published when a client waits for a blob; the key is `RUN DIGEST`.
HURRY_TOPIC = "replication.hurry"
_REMEMBERED = 10_000
# What comes of a manifest that cannot be kept, or not be rebuilt.
_NOT_KEPT = (SourceUnsupported, ManifestInvalid, ManifestTooLarge)
_MINUTE = 60.0
_HURRIED_SECONDS = 5.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.02, 0.25

FETCHED = prometheus_client.Counter(
    "entrepot_pull_through_total",
    "Tags that were asked for and not here, by what became of them.",
    ["rule", "result"],
)

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PullThroughLimits:
    """What pull-through may take, each in one process.

    Each source is asked for so many tags at once, each for `look_up_seconds`; a client waits `answer_seconds` for a
    manifest, and `blob_seconds` for the first byte of a blob. What a source does not have is remembered for
    `missing_seconds`, what it may not publish for `refused_seconds`, and that it does not answer for `away_seconds`. An
    account may ask a source in vain so often a minute. A run without a sign of life for `silence` is taken over.
    Of the `flights` and of the clients that wait, one account has no more than are left for others.
    """

    look_ups: int = 8
    look_up_seconds: float = 10
    flights: int = 16
    waiting: int = 500
    answer_seconds: float = 15
    blob_seconds: float = 60
    missing_seconds: float = 10
    refused_seconds: float = 60
    away_seconds: float = 5
    misses_per_minute: int = 60
    silence: timedelta = timedelta(seconds=5)


class PullThrough:
    """What rules fetch when it is asked for. `open_source` opens what is asked whether it has a tag."""

    def __init__(
        self,
        database: Database,
        signals: Signals,
        rulebook: Rulebook,
        runs: Runs,
        replications: Replications,
        registry: Registry,
        uploads: Uploads,
        clock: Clock,
        *,
        open_source: OpenSource,
        spools: Spools,
        limits: PullThroughLimits | None = None,
    ) -> None:
        self._database = database
        self._signals = signals
        self._rulebook = rulebook
        self._runs = runs
        self._replications = replications
        self._registry = registry
        # Only to read what came before: each run makes its own to bring more.
        self._transfers = Transfers(database, registry, uploads)
        self._clock = clock
        self._open_source = open_source
        self._spools = spools
        self._limits = limits or PullThroughLimits()
        self._rules: Cache[str, Rules] = Cache(1000, signals.is_current)
        self._remembered = _Remembered()
        self._look_ups: dict[str, asyncio.Semaphore] = {}
        self._questions: dict[tuple[RepositoryName, Tag], asyncio.Task[StoredManifest | None]] = {}
        self._flights: dict[str, tuple[Flight, asyncio.Task[None]]] = {}
        # Questions that are under way, by the account that asked first.
        self._asking: Counter[int] = Counter()
        self._in_flight = Shares(self._limits.flights)
        self._waiting = Shares(self._limits.waiting)
        self._hurried = _Remembered()
        self._loop: asyncio.AbstractEventLoop | None = None
        signals.listen(WORK_TOPIC, self._forget_rules)
        signals.listen(HURRY_TOPIC, self._hear_hurry)

    def start(self) -> None:
        """Begin to serve, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._spools.sweep()

    async def stop(self) -> None:
        """Let other processes go on with what is on its way."""
        tasks = [*self._questions.values(), *(task for _, task in self._flights.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What clients ask for

    async def find_manifest(
        self,
        name: RepositoryName,
        reference: Reference,
        account_id: int,
        verify_may_ask: Callable[[], Awaitable[None]],
    ) -> StoredManifest | None:
        """A manifest that is not here, as soon as it may be served; None when no rule brings it, or no source has it.

        A digest alone says nothing of what a rule selects, so it is answered only if a tag that is on its way leads to
        it. Raises FetchUnfinished, or what `verify_may_ask` raises, which is called before a source is asked.
        """
        if isinstance(reference, Digest):
            return await self._find_arriving_manifest(name, reference)
        subject = subject_of(reference)
        if subject is not None:
            is_awaited = await self.settle(name, subject, account_id)
            return await self._find_here(name, reference) if is_awaited else None
        wanted = await self._find_wanted(name, reference)
        if wanted is None:
            return None
        row = await self._find_pull(wanted)
        if row is not None and self._is_alive(row) and row.content is not None:
            FETCHED.labels(wanted.rule.name, "joined").inc()
            return _stored(row, row.content, is_root=True)
        await verify_may_ask()
        if self._remembered.count(("account", account_id)) >= self._limits.misses_per_minute:
            return None
        return await self._ask(wanted, account_id)

    async def find_blob(
        self, name: RepositoryName, digest: Digest, account_id: int, *, is_whole: bool
    ) -> OpenBlob | Arrival | None:
        """A blob that a tag on its way leads to, as soon as it can be read; None when there is no such tag.

        `is_whole`: it may be sent while it arrives. Raises FetchUnfinished.
        """
        if not await self._find_rules(name):
            return None
        is_hurried = False
        with self._among_waiting(account_id):
            async for _ in _until(self._limits.blob_seconds):
                row = await self._find_arrival(name, digest)
                with contextlib.suppress(BlobUnknown):
                    return await self._registry.open_blob(name, digest)
                if row is None or row.size is None or row.content is not None:
                    return None
                if not self._is_alive(row):
                    await self._take_over(name, Tag(row.tag), account_id)
                    continue
                arrival = self._spools.find(digest, row.runner or "", row.size) if is_whole and row.size else None
                if arrival is not None:
                    return arrival
                if not is_hurried:
                    is_hurried = True
                    await self._hurry(row.run_id, digest)
        raise _unfinished(f"blob {digest} of {name}")

    async def find_blob_size(self, name: RepositoryName, digest: Digest) -> int | None:
        """The size in bytes of a blob that a tag on its way leads to."""
        row = await self._find_arrival(name, digest) if await self._find_rules(name) else None
        return None if row is None or row.content is not None else row.size

    async def leads_to(self, name: RepositoryName, digest: Digest, limits: TagLimits) -> bool:
        """Whether a tag that is on its way or has just arrived, and is allowed, leads to a manifest or blob."""
        if not await self._find_rules(name):
            return False
        rows = await self._list_arrivals(name, digest)
        if any(limits.allow(row.tag) for row in rows):
            return True
        # What is not on its way any more is here, of which this process may hear a moment later.
        return await self._registry.reach.is_reached(name, digest, limits, is_fresh=True)

    async def settle(self, name: RepositoryName, subject: Digest, account_id: int) -> bool:
        """Wait until what belongs to a manifest that is on its way is here, too; False when it is not on its way.

        Raises FetchUnfinished.
        """
        # What belongs to it comes from the source, or is our own signature.
        if not any(rule.follow or rule.sign is not None for rule, _ in await self._find_rules(name)):
            return False
        is_awaited = False
        with self._among_waiting(account_id):
            async for _ in _until(self._limits.blob_seconds):
                row = await self._find_arrival(name, subject)
                if row is None:
                    return is_awaited
                is_awaited = True
                if not self._is_alive(row):
                    await self._take_over(name, Tag(row.tag), account_id)
        raise _unfinished(f"what belongs to {subject} of {name}")

    # Which rule brings a tag

    async def _read_rules(self) -> Rules:
        """The rules that pull through, and their sources: from memory, mostly."""
        found = self._rules.find("rules")
        if found is None:
            mark = self._rules.mark()
            specs = {spec.name: spec for spec in await self._rulebook.list_sources()}
            rules = await self._rulebook.list_rules()
            found = tuple((rule, specs[rule.source]) for rule in rules if rule.pull_through and rule.source in specs)
            self._rules.keep("rules", found, mark)
        return found

    def _forget_rules(self, what: str) -> None:
        if what != "runs":
            self._rules.forget("rules")

    async def _find_rules(self, name: RepositoryName) -> Rules:
        """The rules that copy to a repository."""
        return tuple(entry for entry in await self._read_rules() if entry[0].origin_of(name) is not None)

    async def _find_wanted(self, name: RepositoryName, tag: Tag) -> Wanted | None:
        # There is one at most: two rules that write the same tag are refused.
        for rule, spec in await self._find_rules(name):
            origin = rule.origin_of(name)
            if origin is not None and rule.selects_tag(tag):
                return Wanted(rule, spec, origin, name, tag)
        return None

    # Asking, once

    async def _ask(self, wanted: Wanted, account_id: int) -> StoredManifest | None:
        """What a tag names, asked for once in this process, however many wait. Raises FetchUnfinished."""
        key = (wanted.name, wanted.tag)
        if self._remembered.count(key):
            return None
        if self._remembered.count(("failed", *key)):
            raise _failed(f"{wanted.name}:{wanted.tag}")
        question = self._questions.get(key)
        if question is None:
            # What is not answered yet may be in vain, too.
            in_vain = self._remembered.count(("account", account_id)) + self._asking[account_id]
            if in_vain >= self._limits.misses_per_minute:
                raise FetchUnfinished("too much that is not here is asked for at once; try again in a moment")
            self._asking[account_id] += 1
            question = self._questions[key] = asyncio.create_task(self._answer(wanted, account_id))
            question.add_done_callback(lambda done: self._end_question(key, account_id, done))
        with self._among_waiting(account_id):
            # The question goes on without whoever asked.
            return await asyncio.shield(question)

    def _end_question(
        self, key: tuple[RepositoryName, Tag], account_id: int, done: "asyncio.Task[StoredManifest | None]"
    ) -> None:
        del self._questions[key]
        self._asking[account_id] -= 1
        if not self._asking[account_id]:
            del self._asking[account_id]
        if not done.cancelled():
            done.exception()

    async def _answer(self, wanted: Wanted, account_id: int) -> StoredManifest | None:
        what = f"{wanted.name}:{wanted.tag}"
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                return await self._fetch(wanted, account_id)
        except (SourceMissing, SignatureRefused, TagLeftOut, *_NOT_KEPT) as error:
            is_missing = isinstance(error, SourceMissing)
            seconds = self._limits.missing_seconds if is_missing else self._limits.refused_seconds
            self._remembered.add((wanted.name, wanted.tag), seconds)
            self._remembered.add(("account", account_id), _MINUTE)
            self._note(wanted, "missing" if is_missing else "refused", error)
            return None
        except SourceError as error:
            if error.temporary:
                self._remembered.add(("source", wanted.spec.name), self._limits.away_seconds)
            else:
                # So do some registries answer for what they have not: 401 or 403.
                self._remembered.add(("failed", wanted.name, wanted.tag), self._limits.missing_seconds)
                self._remembered.add(("account", account_id), _MINUTE)
            self._note(wanted, "failed", error)
            raise _failed(what) from error
        except TimeoutError as error:
            self._note(wanted, "late", None)
            raise _unfinished(what) from error
        except Unavailable:
            raise
        except EntrepotError as error:  # its run failed, with the reason in its report, or ended early
            self._remembered.add(("failed", wanted.name, wanted.tag), self._limits.missing_seconds)
            self._note(wanted, "failed", error)
            raise _failed(what) from error

    async def _fetch(self, wanted: Wanted, account_id: int) -> StoredManifest | None:
        async for _ in _until(self._limits.answer_seconds):
            row = await self._find_pull(wanted)
            if row is not None and self._is_alive(row):
                if row.content is not None:
                    return _stored(row, row.content, is_root=True)
                continue  # another process is about to say what it names
            here = await self._find_here(wanted.name, wanted.tag)
            if here is not None:
                return here
            flight = await self._begin(wanted, await self._look_up(wanted), account_id)
            if flight is not None:
                found = await asyncio.shield(flight.first)
                if found is not None:
                    return found
        raise TimeoutError

    async def _look_up(self, wanted: Wanted) -> Manifest:
        """What the tag names at the source now. Raises SourceError."""
        async with self._look_ups.setdefault(wanted.spec.name, asyncio.Semaphore(self._limits.look_ups)):
            if self._remembered.count(("source", wanted.spec.name)):
                raise FetchUnfinished(
                    f"{wanted.name}:{wanted.tag} is not here yet, and its source did not answer; try again in a moment"
                )
            try:
                async with asyncio.timeout(self._limits.look_up_seconds), self._open_source(wanted.spec) as source:
                    return await source.get_manifest(wanted.origin, wanted.tag)
            except TimeoutError:
                self._remembered.add(("source", wanted.spec.name), self._limits.away_seconds)
                raise

    async def _begin(self, wanted: Wanted, manifest: Manifest, account_id: int) -> Flight | None:
        """Begin to fetch a tag; None when another process was quicker. Raises FetchUnfinished."""
        if not self._in_flight.has_room(account_id):
            raise FetchUnfinished(f"{wanted.name}:{wanted.tag} is not here yet, and much is fetched already; try again")
        spot = Spot(wanted.origin.value, wanted.tag.value)
        with ExitStack() as place:
            place.enter_context(self._in_flight.hold(account_id))
            run = await self._runs.claim_pull(wanted.rule, spot, wanted.name, self._limits.silence)
            if run is None:
                return None
            flight = Flight(
                run,
                wanted,
                manifest,
                self._database,
                self._runs,
                self._replications,
                self._transfers,
                self._spools,
                self._open_source,
            )
            self._flights[run.id] = (flight, asyncio.create_task(self._fly(flight, place.pop_all())))
            return flight

    async def _fly(self, flight: Flight, place: ExitStack) -> None:
        try:
            with place:
                status = await flight.fly()
        except EntrepotError as error:
            self._note(flight.wanted, "interrupted", error)
        else:
            if flight.first.exception() is None:  # else whoever asked has noted it
                self._note(flight.wanted, "fetched" if status == "done" else "broken", None)
        finally:
            del self._flights[flight.run.id]

    async def _take_over(self, name: RepositoryName, tag: Tag, account_id: int) -> None:
        """Go on with what nobody works on any more. Raises FetchUnfinished."""
        wanted = await self._find_wanted(name, tag)
        if wanted is None or await self._ask(wanted, account_id) is None:
            raise _unfinished(f"{name}:{tag}")

    async def _hurry(self, run_id: str, digest: Digest) -> None:
        """Let whoever fetches it know that a client waits for a blob."""
        if run_id in self._flights:
            self._flights[run_id][0].hurry(digest)
        elif not self._hurried.count((run_id, digest)):
            # However many clients ask for it again and again, the others are told but now and then.
            self._hurried.add((run_id, digest), _HURRIED_SECONDS)
            await self._signals.commit(
                lambda connection: publish(connection, HURRY_TOPIC, f"{run_id} {digest}", self._clock())
            )

    def _hear_hurry(self, key: str) -> None:
        run_id, _, digest = key.partition(" ")
        if self._loop is not None and run_id in self._flights:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._hurry_here, run_id, Digest.parse(digest))

    def _hurry_here(self, run_id: str, digest: Digest) -> None:
        if run_id in self._flights:
            self._flights[run_id][0].hurry(digest)

    # What is known of what is on its way

    async def _find_arriving_manifest(self, name: RepositoryName, digest: Digest) -> StoredManifest | None:
        if not await self._find_rules(name):
            return None
        row = await self._find_arrival(name, digest)
        if row is None or row.content is None:
            return await self._find_here(name, digest)  # it may have arrived between two questions
        return _stored(row, row.content, is_root=row.is_root)

    async def _find_pull(self, wanted: Wanted) -> PullRow | None:
        def work(connection: sa.Connection) -> PullRow | None:
            return pull_records.find_pull(connection, wanted.name.value, wanted.tag.value)

        return await self._database.read(work)

    async def _find_arrival(self, name: RepositoryName, digest: Digest) -> ArrivalRow | None:
        return next(iter(await self._list_arrivals(name, digest)), None)

    async def _list_arrivals(self, name: RepositoryName, digest: Digest) -> list[ArrivalRow]:
        def work(connection: sa.Connection) -> list[ArrivalRow]:
            return pull_records.list_arrivals(connection, name.value, str(digest))

        return await self._database.read(work)

    async def _find_here(self, name: RepositoryName, reference: Reference) -> StoredManifest | None:
        with contextlib.suppress(ManifestUnknown, NameUnknown):
            return await self._registry.pull_manifest(name, reference)
        return None

    def _is_alive(self, row: PullRow) -> bool:
        seen_at: datetime | None = row.seen_at
        return row.status == "running" and seen_at is not None and seen_at > self._clock() - self._limits.silence

    @contextmanager
    def _among_waiting(self, account_id: int) -> Iterator[None]:
        if not self._waiting.has_room(account_id):
            raise FetchUnfinished("too many clients wait for what is fetched; try again in a moment")
        with self._waiting.hold(account_id):
            yield

    def _note(self, wanted: Wanted, result: str, error: EntrepotError | None) -> None:
        FETCHED.labels(wanted.rule.name, result).inc()
        more = {} if error is None else {"problem": str(error)}
        _log.info("pulled through", rule=wanted.rule.name, tag=f"{wanted.name}:{wanted.tag}", result=result, **more)


class _Remembered:
    """How often something happened since it first did, for a while. The oldest is forgotten when it is too much."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def count(self, key: Hashable) -> int:
        """How often; 0 when it is forgotten."""
        until, count = self._entries.get(key, (0.0, 0))
        return count if until > time.monotonic() else 0

    def add(self, key: Hashable, seconds: float) -> None:
        """Once more; the first time it is remembered for so long."""
        count = self.count(key)
        until = self._entries.pop(key)[0] if count else time.monotonic() + seconds
        self._entries[key] = (until, count + 1)
        if len(self._entries) > _REMEMBERED:
            self._entries.popitem(last=False)


async def _until(seconds: float) -> AsyncIterator[None]:
    """Turns at something that comes true by itself, ever less often, for so long."""
    deadline = time.monotonic() + seconds
    wait = _FIRST_WAIT_SECONDS
    while time.monotonic() < deadline:
        yield
        await asyncio.sleep(wait)
        wait = min(wait * 1.5, _LONGEST_WAIT_SECONDS)


def _stored(row: PullRow, content: bytes, *, is_root: bool) -> StoredManifest:
    manifest = Manifest.parse(content, row.media_type or "", Digest.parse(row.digest or "").algorithm)
    return StoredManifest(
        manifest.digest, manifest.media_type, content, is_top_level=is_root and manifest.subject is None
    )


def _failed(what: str) -> FetchUnfinished:
    return FetchUnfinished(f"{what} is not here yet, and could not be fetched a moment ago; try again later")


def _unfinished(what: str) -> FetchUnfinished:
    return FetchUnfinished(f"{what} is on its way from its source, and takes longer; try again in a moment")
