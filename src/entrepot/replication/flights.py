"""One tag on its way here because somebody pulls it, and what may be told of it before it has arrived.

The tag is copied as any run copies it (`replications.py`); the source that the run reads from is watched. Once the tag
is admitted, all manifests that it leads to are read and kept where every process finds them (`replication_arrivals`),
and its blobs are written beside as they come (`spools.py`).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from entrepot.errors import EntrepotError, RunInterrupted, SourceUnsupported, TagLeftOut
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import Descriptor, Manifest
from entrepot.oci.reference import Reference, RepositoryName, Tag
from entrepot.registry.service import StoredManifest
from entrepot.replication import pull_records
from entrepot.replication.concurrency import Turns, for_each
from entrepot.replication.copy import MAX_DEPTH
from entrepot.replication.events import BlobEnded, Event, ItemAdmitted, ItemFailed, ItemLeftOut
from entrepot.replication.replications import OpenSource, Replications
from entrepot.replication.rules import Rule
from entrepot.replication.runs import Run, Runs
from entrepot.replication.source import Source, TagEntry
from entrepot.replication.source_specs import SourceSpec
from entrepot.replication.spools import Spool, Spools
from entrepot.replication.transfers import Transfers
from entrepot.storage.database import Database

# What a tag may lead to for its parts to be had before it is here. Real indexes have some 40 manifests.
MAX_MANIFESTS = 500
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_MANIFESTS_AT_ONCE = 16
# Blobs that wait for their turn to be fetched, so that each of them can be hurried.
_WAITING_BLOBS = 64

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tag that is not here, and the rule that says where it comes from."""

    rule: Rule
    spec: SourceSpec
    origin: RepositoryName
    name: RepositoryName
    tag: Tag


class Flight:
    """A claimed run that fetches `wanted`, which named `manifest` a moment ago.

    `first` is what the tag names, as soon as it may be served; None when it is here. It raises what kept the tag away.
    """

    def __init__(
        self,
        run: Run,
        wanted: Wanted,
        manifest: Manifest,
        database: Database,
        runs: Runs,
        replications: Replications,
        transfers: Transfers,
        spools: Spools,
        open_source: OpenSource,
    ) -> None:
        self.run = run
        self.wanted = wanted
        self._database = database
        self._runs = runs
        self._transfers = transfers
        self._spools = spools
        self._open_source = open_source
        self._replications = replications.over(self._open_watched, at_once=_WAITING_BLOBS)
        self.turns = Turns(wanted.rule.options.concurrency or runs.limits.concurrency)
        self.first: asyncio.Future[StoredManifest | None] = asyncio.get_running_loop().create_future()
        self.first.add_done_callback(_look_at)
        self.named: Manifest | None = manifest
        self.manifests = {manifest.digest: manifest}
        self.awaited: set[Digest] = set()
        self.announcing: asyncio.Task[None] | None = None
        self._source: Source | None = None
        self._files: dict[Digest, Spool] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._failure: EntrepotError | None = None

    async def fly(self) -> str:
        """Fetch it all; answers the status of the run. Cancelled, it lets anybody else go on. Raises EntrepotError."""
        is_over = True
        try:
            run = await self._replications.carry_out(self.run, self._hear)
            if not self.first.done():
                self._tell_end(run)
        except asyncio.CancelledError:
            is_over = False
            raise
        except RunInterrupted as error:
            is_over = False
            self._failure = error
            raise
        finally:
            if self.announcing is not None:
                self.announcing.cancel()
            if not self.first.done():
                self.first.set_exception(self._failure or RunInterrupted("the fetch was broken off; try again"))
            await self._end_files()
            if is_over:
                await self._runs.forget_pull(self.run)
        return run.status

    def hurry(self, digest: Digest) -> None:
        """Somebody waits for a blob."""
        if digest in self.awaited:
            self.turns.hurry(digest)

    def _tell_end(self, run: Run) -> None:
        if self._failure is not None:
            self.first.set_exception(self._failure)
        elif run.status == "done":
            self.first.set_result(None)
        else:
            problem = run.report.get("problem", {}).get("problem", "see the report of its run")
            self.first.set_exception(RunInterrupted(f"run {run.id} {run.status}: {problem}"))

    def _hear(self, event: Event) -> None:
        match event:
            case ItemAdmitted(item, stand_in):
                if self.announcing is not None:  # the tag moved
                    self.announcing.cancel()
                self.announcing = asyncio.create_task(self._announce(item.digest, stand_in))
                self.announcing.add_done_callback(_look_at)
            case ItemFailed(_, error):
                self._failure = error
            case ItemLeftOut(_, reason):
                self._failure = TagLeftOut(reason)
            case BlobEnded(blob, is_complete) if blob.digest in self._files:
                self._end_file(blob.digest, is_judged=is_complete)
            case _:
                pass

    # What is told of it

    async def _announce(self, digest: Digest, stand_in: Manifest | None) -> None:
        """Say what the tag names here, and all that it leads to."""
        try:
            root = stand_in or await self._read(digest)
            found = await self._explore(root)
        except EntrepotError as error:  # which the copying meets as well, or what is too large to be told
            _log.info("pull not served before it is here", tag=f"{self.wanted.name}:{self.wanted.tag}", why=str(error))
            return
        rows = {str(one.digest): _describe(one) for one in found.values()}
        blobs = {blob.digest: blob for one in found.values() for blob in one.blobs if not blob.is_foreign}
        none: dict[str, Any] = {"media_type": None, "content": None}
        for blob in blobs.values():
            row = {"digest": str(blob.digest), "size_bytes": blob.size, **none}
            rows.setdefault(str(blob.digest), row)
        run_id, name = self.run.id, self.wanted.name.value
        await self._database.write(
            lambda connection: pull_records.insert_arrivals(
                connection, run_id, name, str(root.digest), list(rows.values())
            )
        )
        self.awaited = set(blobs)
        if not self.first.done():
            self.first.set_result(
                StoredManifest(root.digest, root.media_type, root.content, is_top_level=root.subject is None)
            )

    async def _explore(self, root: Manifest) -> dict[Digest, Manifest]:
        """A manifest, and all that it leads to and the rule keeps. Raises SourceError or ManifestInvalid."""
        found = {root.digest: root}
        level = self._list_kept(root)
        for _ in range(MAX_DEPTH):
            new = list({child.digest: child for child in level if child.digest not in found}.values())
            if len(found) + len(new) > MAX_MANIFESTS:
                raise SourceUnsupported(f"it leads to more than {MAX_MANIFESTS} manifests")
            level = []

            async def read(child: Descriptor, below: list[Descriptor] = level) -> None:
                manifest = found[child.digest] = await self._read(child.digest)
                below.extend(self._list_kept(manifest))
                if sum(one.size for one in found.values()) > MAX_MANIFEST_BYTES:
                    raise SourceUnsupported(f"its manifests have more than {MAX_MANIFEST_BYTES} bytes")

            await for_each(new, read, at_once=_MANIFESTS_AT_ONCE)
        self.manifests |= found
        return found

    def _list_kept(self, manifest: Manifest) -> list[Descriptor]:
        platforms = self.wanted.rule.platforms
        if platforms is None or not manifest.is_index:
            return list(manifest.children)
        kept = platforms.kept(manifest)
        return [child for child in manifest.children if child.digest in kept]

    async def _read(self, digest: Digest) -> Manifest:
        known = self.manifests.get(digest)
        if known is None:
            if self._source is None:
                raise RunInterrupted("the source is closed")
            known = await self._source.get_manifest(self.wanted.origin, digest)
        return known

    # What the run reads

    @asynccontextmanager
    async def _open_watched(self, spec: SourceSpec) -> AsyncIterator[Source]:
        async with self._open_source(spec) as source:
            self._source = source
            try:
                yield _Watched(source, self)
            finally:
                self._source = None

    async def begin_file(self, blob: Descriptor, start: int) -> Spool | None:
        """A file that the blob is written to as it comes, behind the `start` bytes that came before; None: none."""
        if blob.digest in self._files:  # it was begun before, and broke off
            self._end_file(blob.digest, is_judged=False)
        if blob.digest not in self.awaited:
            return None
        try:
            spool = self._files[blob.digest] = self._spools.begin(blob.digest, self.run.runner or "")
        except OSError as error:
            _log.warning("pulled blob not sent on", problem=str(error))
            return None
        if start:
            await self._fill(spool, blob, start)
        return spool

    async def _fill(self, spool: Spool, blob: Descriptor, start: int) -> None:
        written = 0
        try:
            async for piece in spool.tee(self._transfers.read_received(self.wanted.name, blob.digest)):
                written += len(piece)
        except EntrepotError as error:
            _log.warning("pulled blob not sent on", problem=str(error))
        if written != start:
            spool.give_up()

    def _end_file(self, digest: Digest, *, is_judged: bool) -> None:
        spool = self._files.pop(digest)
        spool.hide()  # at once, since another may take its name
        task = asyncio.create_task(spool.end(is_judged=is_judged))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_files(self) -> None:
        for digest in list(self._files):
            self._end_file(digest, is_judged=False)
        if self._ending:
            await asyncio.wait(self._ending)


class _Watched:
    """A source, of which is kept what passes. Implements `Source`."""

    def __init__(self, source: Source, flight: Flight) -> None:
        self._source = source
        self._flight = flight

    @property
    def name(self) -> str:
        """What the rule file calls it."""
        return self._source.name

    def list_repositories(self) -> AsyncIterator[RepositoryName]:
        """As the source does."""
        return self._source.list_repositories()

    def list_tags(self, repository: RepositoryName) -> AsyncIterator[TagEntry]:
        """As the source does."""
        return self._source.list_tags(repository)

    async def get_digest(self, repository: RepositoryName, tag: Tag) -> Digest:
        """What was found out before the run began, and is asked for once; then as the source does."""
        named, self._flight.named = self._flight.named, None
        if named is not None and (repository, tag) == (self._flight.wanted.origin, self._flight.wanted.tag):
            return named.digest
        return await self._source.get_digest(repository, tag)

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> Manifest:
        """One that was read already, or as the source does."""
        await self._announced()
        known = self._flight.manifests.get(reference) if isinstance(reference, Digest) else None
        return known or await self._source.get_manifest(repository, reference)

    async def list_referrers(
        self, repository: RepositoryName, subject: Digest, *, has_fallback: bool = True
    ) -> list[Descriptor]:
        """As the source does."""
        return await self._source.list_referrers(repository, subject, has_fallback=has_fallback)

    def open_blob(
        self, repository: RepositoryName, blob: Descriptor, start: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """As the source does, when it is the blob's turn; written beside where somebody may ask for it."""
        return self._open_blob(repository, blob, start)

    @asynccontextmanager
    async def _open_blob(
        self, repository: RepositoryName, blob: Descriptor, start: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with AsyncExitStack() as stack:
            if self._flight.announcing is not None:
                await self._announced()
                await stack.enter_async_context(self._flight.turns.turn(blob.digest))
            spool = await self._flight.begin_file(blob, start)
            pieces = await stack.enter_async_context(self._source.open_blob(repository, blob, start))
            yield pieces if spool is None else spool.tee(pieces)

    async def _announced(self) -> None:
        """Wait until it is said what the tag leads to, so that nothing is read twice or passes unseen."""
        if self._flight.announcing is not None:
            await asyncio.wait({self._flight.announcing})


def _describe(manifest: Manifest) -> dict[str, Any]:
    return {
        "digest": str(manifest.digest),
        "size_bytes": manifest.size,
        "media_type": manifest.media_type,
        "content": manifest.content,
    }


def _look_at(done: "asyncio.Future[Any]") -> None:
    """Have nothing complain that nobody waited for it."""
    if not done.cancelled():
        done.exception()
