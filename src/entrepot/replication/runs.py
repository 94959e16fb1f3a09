"""Rules in force, and their runs.

A run is a row that one process claims, with a sign of life every few seconds; one whose process died is taken over by
another. Copying is idempotent, so whoever takes over begins with the list and finds what has arrived.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

import sqlalchemy as sa
import structlog

from entrepot.accounts.audit import Actor, note
from entrepot.errors import (
    DatabaseUnavailable,
    EntrepotError,
    RuleInvalid,
    RuleUnknown,
    RunActive,
    RunInterrupted,
    SignatureRefused,
    SourceError,
    SourceMissing,
    SourceUnreachable,
    Unavailable,
)
from entrepot.oci.digest import Digest
from entrepot.oci.reference import RepositoryName, Tag, subject_of
from entrepot.registry.service import Registry
from entrepot.replication import records
from entrepot.replication.admission import Admission
from entrepot.replication.companions import Companion, Tags
from entrepot.replication.concurrency import for_each
from entrepot.replication.differences import Change, Item, Route, plan_items
from entrepot.replication.events import (
    CompanionFailed,
    Event,
    ItemFailed,
    ItemFinished,
    Listed,
    RepositoryFailed,
    Tell,
)
from entrepot.replication.publication import Publication
from entrepot.replication.report import Report
from entrepot.replication.rules import Rule, RuleFile
from entrepot.replication.signing import Signing
from entrepot.replication.source import Source
from entrepot.replication.source_specs import SourceSpec, parse_source
from entrepot.replication.trust.files import load_policy
from entrepot.replication.trust.policy import TrustPolicy
from entrepot.replication.trust.signers import Signer, open_signer
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

OpenSource = Callable[[SourceSpec], AbstractAsyncContextManager[Source]]

# Small requests, of which a source takes more at once than blobs.
_LISTINGS_AT_ONCE = 16
_KEPT_RUNS = 100
# Tags in a row that fail because the source does not answer, before the rest is not even tried.
_MAX_UNREACHABLE = 10

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a rule; `report` as Report.to_document gives it."""

    id: str
    rule: str
    status: str
    runner: str | None
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    report: dict[str, Any]

    @classmethod
    def read(cls, row: records.Row) -> Self:
        """The run in a row."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    def to_document(self) -> dict[str, Any]:
        """As `replicate status --json` shows it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "runner"}


@dataclass(frozen=True, slots=True)
class Survey:
    """What a source has: an item for every tag that a rule means, and by repository the tags that speak of a digest."""

    items: list[Item]
    tags: dict[RepositoryName, Tags]

    @property
    def due(self) -> list[Item]:
        """What is not here yet, or is something else here."""
        return [item for item in self.items if item.change is not Change.SAME]

    def unchanged(self) -> dict[Route, set[Digest]]:
        """For every repository, in order, what its tags name both there and here."""
        found: dict[Route, set[Digest]] = {}
        for item in self.items:
            found.setdefault(item.route, set()).update({item.digest} if item.change is Change.SAME else ())
        return found


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: copy the items that are due but not refused, and what was attached to others since."""

    items: list[Item]
    refused: dict[Item, SignatureRefused] = field(default_factory=dict)
    late: list[tuple[Route, Companion]] = field(default_factory=list)


class _Patience:
    """Tells of failures and goes on, until the source has not answered too often in a row."""

    def __init__(self) -> None:
        self._unreachable = 0

    @contextlib.contextmanager
    def telling(self, tell: Callable[[EntrepotError], None]) -> Iterator[None]:
        """Tell of an error in the context instead of raising it. Raises Unavailable, and SourceUnreachable at last."""
        try:
            yield
        except Unavailable:  # our own side: the others would fail, too
            raise
        except EntrepotError as error:
            tell(error)
            self._unreachable = self._unreachable + 1 if isinstance(error, SourceUnreachable) else 0
            if self._unreachable > _MAX_UNREACHABLE:
                raise
        else:
            self._unreachable = 0


def silent(_: Event) -> None:
    """Tells nobody."""


class Replications:
    """Every source, rule and run. `host` is the public name of our registry, which signatures speak of."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        clock: Clock,
        *,
        concurrency: int,
        open_source: OpenSource,
        host: str = "localhost",
        beat_seconds: float = 3,
        silence_seconds: float = 15,
    ) -> None:
        self._database = database
        self._registry = registry
        self._clock = clock
        self._concurrency = concurrency
        self._host = host
        self._open_source = open_source
        self._beat_seconds = beat_seconds
        self._silence = timedelta(seconds=silence_seconds)

    async def apply(self, file: RuleFile, actor: Actor) -> None:
        """Put sources and rules in force, all of them or none; others stay as they are. Raises RuleInvalid."""

        def work(connection: sa.Connection) -> None:
            now = self._clock()
            for spec in file.sources:
                before, after = records.find_source(connection, spec.name), spec.to_document()
                if before != after:
                    records.put_source(connection, spec.name, after, now)
                    note(connection, actor, "source.applied", spec.name, now, before=before, after=after)
            for rule in file.rules:
                if records.find_source(connection, rule.source) is None:
                    raise RuleInvalid(
                        f"rules.{rule.name}.source: there is no source {rule.source!r}, "
                        "neither in this file nor applied before"
                    )
                before, after = records.find_rule(connection, rule.name), rule.to_document()
                if before != after:
                    records.put_rule(connection, rule.name, rule.source, after, now)
                    note(connection, actor, "rule.applied", rule.name, now, before=before, after=after)

        await self._database.write(work)

    async def list_rules(self) -> list[Rule]:
        """Every rule, by name."""
        documents = await self._database.read(records.list_rules)
        return [Rule.parse(name, document) for name, document in documents.items()]

    async def list_runs(self, rule: str | None, limit: int) -> list[Run]:
        """The latest runs of one rule, or of all. Raises RuleUnknown."""
        if rule is not None:
            await self._get(rule)
        return [Run.read(row) for row in await self._database.read(lambda found: records.list_runs(found, rule, limit))]

    async def plan(self, name: str, tell: Tell = silent) -> Plan:
        """What a run of the rule would find, tag by tag. Raises RuleUnknown, RuleInvalid or SourceError."""
        rule, spec = await self._get(name)
        policy = _load_trust(rule)
        async with self._open_source(spec) as source:
            survey = await self._list(source, rule, tell)
            publication = self._prepare(source, rule, policy, None, tell)
            plan = Plan(survey.items)

            async def judge(item: Item) -> None:
                try:
                    await publication.judge(item, survey.tags[item.origin])
                except SignatureRefused as error:
                    plan.refused[item] = error

            await for_each(survey.due, judge, at_once=_LISTINGS_AT_ONCE)
            for route, digests in survey.unchanged().items():
                found = await publication.find_late(route, survey.tags[route.origin], digests)
                plan.late.extend((route, companion) for companion in found)
            return plan

    async def queue(self, name: str, actor: Actor) -> Run:
        """Let some worker run the rule soon. Raises RuleUnknown or RunActive."""
        return await self._begin(name, actor, is_here=False)

    async def run(self, name: str, actor: Actor, tell: Tell = silent) -> Run:
        """Run the rule here and now; a queued run, or one whose process died, is taken over.

        Raises RuleUnknown, RunActive while another process runs it, RunInterrupted when another process took it over.
        What went wrong in the run itself stands in its report.
        """
        run = await self._begin(name, actor, is_here=True)
        report = Report()
        try:
            return await self._carry_out(run, report, tell)
        except asyncio.CancelledError:
            report.note_end(RunInterrupted("stopped before its end; run it again, and it goes on where it stood"))
            await self._finish(run, report)
            raise

    async def claim(self) -> Run | None:
        """A run that nobody works on, for `carry_out`."""

        def work(connection: sa.Connection) -> Run | None:
            now = self._clock()
            run_id = records.find_claimable_run(connection, now - self._silence)
            return None if run_id is None else self._take(connection, run_id, now)

        # Looked at without the writer's lock first: mostly there is nothing.
        silent_since = self._clock() - self._silence
        if await self._database.read(lambda found: records.find_claimable_run(found, silent_since)) is None:
            return None
        return await self._database.write(work)

    async def give_back(self, run: Run) -> None:
        """Let somebody else go on with a claimed run."""
        await self._database.write(
            lambda connection: records.update_claimed_run(connection, run.id, run.runner, status="queued")
        )

    async def carry_out(self, run: Run) -> Run:
        """Work on a claimed run until it is finished. Raises RunInterrupted when another process took it over."""
        return await self._carry_out(run, Report(), silent)

    async def _carry_out(self, run: Run, report: Report, tell: Tell) -> Run:
        def hear(event: Event) -> None:
            report.note(event)
            tell(event)

        work = asyncio.create_task(self._replicate(run.rule, hear))
        beat = asyncio.create_task(self._beat(run, report))
        try:
            await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await beat  # raises RunInterrupted
            await work
        except RunInterrupted:
            raise
        except EntrepotError as error:
            report.note_end(error)
        except Exception:  # noqa: BLE001 - reason below
            # A mistake of ours: the run must end all the same, or it would be taken up again and again.
            _log.exception("run failed unexpectedly", rule=run.rule, run=run.id)
            report.note_end(EntrepotError(f"failed unexpectedly; the log of run {run.id} says more"))
        finally:
            for task in (work, beat):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work, beat})
        return await self._finish(run, report)

    async def _begin(self, name: str, actor: Actor, *, is_here: bool) -> Run:
        def work(connection: sa.Connection) -> Run:
            now = self._clock()
            if records.find_rule(connection, name) is None:
                raise _no_rule(name)
            run_id = str(uuid.uuid4())
            row: records.Row = {"id": run_id, "rule": name, "status": "queued", "queued_at": now, "report": {}}
            if records.insert_run(connection, row):
                note(connection, actor, "run.started", name, now, run=run_id)
            else:
                active = records.find_active_run(connection, name) or row
                if not is_here or not self._is_free(active, now):
                    raise RunActive(
                        f"rule {name!r} has a run that is {active['status']}; see: entrepot replicate status {name}. "
                        f"If its process died, another takes it over {self._silence.seconds} seconds later"
                    )
                run_id = active["id"]
            return self._take(connection, run_id, now) if is_here else _get_run(connection, run_id)

        return await self._database.write(work)

    def _is_free(self, row: records.Row, now: datetime) -> bool:
        return row["status"] == "queued" or (row["seen_at"] is not None and row["seen_at"] < now - self._silence)

    def _take(self, connection: sa.Connection, run_id: str, now: datetime) -> Run:
        records.claim_run(connection, run_id, uuid.uuid4().hex, now)
        return _get_run(connection, run_id)

    async def _get(self, name: str) -> tuple[Rule, SourceSpec]:
        def work(connection: sa.Connection) -> tuple[Rule, SourceSpec]:
            document = records.find_rule(connection, name)
            if document is None:
                raise _no_rule(name)
            rule = Rule.parse(name, document)
            return rule, parse_source(rule.source, records.find_source(connection, rule.source))

        return await self._database.read(work)

    async def _replicate(self, name: str, tell: Tell) -> None:
        """Copy what a rule means; what fails for one tag is told, and the others go on."""
        rule, spec = await self._get(name)
        policy = _load_trust(rule)
        async with self._open_source(spec) as source, _open_signer(rule) as signer:
            survey = await self._list(source, rule, tell)
            tell(Listed(survey.items))
            publication = self._prepare(source, rule, policy, signer, tell)
            patience = _Patience()

            async def publish(item: Item) -> None:
                with patience.telling(lambda error: tell(ItemFailed(item, error))):
                    signed = await publication.publish(item, survey.tags[item.origin])
                    tell(ItemFinished(item, signed))

            await for_each(survey.due, publish, at_once=self._concurrency)
            for route, digests in survey.unchanged().items():
                tags = survey.tags[route.origin]
                await self._refresh(publication, route, tags, digests, patience, tell)

    async def _refresh(
        self,
        publication: Publication,
        route: Route,
        tags: Tags,
        digests: set[Digest],
        patience: _Patience,
        tell: Tell,
    ) -> None:
        """Copy what was attached to tags that are as here since, and sign what was not signed."""
        late: list[Companion] = []
        with patience.telling(lambda error: tell(CompanionFailed(route, "referrers", error))):
            late = await publication.find_late(route, tags, digests)

        async def bring(companion: Companion) -> None:
            with patience.telling(lambda error: tell(CompanionFailed(route, str(companion), error))):
                await publication.bring(route, tags, companion)

        async def sign(digest: Digest) -> None:
            with patience.telling(lambda error: tell(CompanionFailed(route, f"signing {digest}", error))):
                await publication.sign(route, digest)

        await for_each(late, bring, at_once=self._concurrency)
        await for_each(sorted(digests), sign, at_once=self._concurrency)

    def _prepare(
        self, source: Source, rule: Rule, policy: TrustPolicy | None, signer: Signer | None, tell: Tell
    ) -> Publication:
        return Publication(
            source,
            self._registry,
            concurrency=self._concurrency,
            tell=tell,
            follow=rule.follow,
            admission=None if policy is None else Admission(source, policy, self._clock),
            signing=None if signer is None else Signing(self._registry, signer, self._host),
        )

    async def _list(self, source: Source, rule: Rule, tell: Tell) -> Survey:
        """Every tag at the source that the rule means, in order."""
        literal = rule.literal_repositories()
        names = await _find_repositories(source, rule) if literal is None else literal
        items: list[Item] = []
        tags: dict[RepositoryName, Tags] = {}

        async def list_one(name: RepositoryName) -> None:
            try:
                there, tags[name] = await _read_tags(source, rule, name)
            except SourceMissing as error:
                # A repository that the source lists, but that has no tags, is unknown to some of them.
                if literal is not None:
                    tell(RepositoryFailed(name, error))
                return
            target = rule.target_of(name)
            here = await self._registry.read_tag_digests(target, there.keys())
            items.extend(plan_items(name, target, there, here))

        await for_each(names, list_one, at_once=self._concurrency)
        return Survey(sorted(items, key=lambda item: (item.origin, item.tag)), tags)

    async def _beat(self, run: Run, report: Report) -> None:
        """Show life, and how far the run is, until cancelled. Raises RunInterrupted when it is not ours any more."""
        last = self._clock()
        while True:
            await asyncio.sleep(self._beat_seconds)
            now = self._clock()

            def work(connection: sa.Connection, now: datetime = now) -> bool:
                return records.update_claimed_run(
                    connection, run.id, run.runner, seen_at=now, report=report.to_document()
                )

            try:
                is_ours = await self._database.write(work)
            except DatabaseUnavailable:
                is_ours = now - last < self._silence
            else:
                last = now
            if not is_ours:
                raise RunInterrupted(f"run {run.id} of rule {run.rule!r} was taken over by another process")

    async def _finish(self, run: Run, report: Report) -> Run:
        def work(connection: sa.Connection) -> Run:
            status = "done" if report.is_good else "failed"
            if not records.update_claimed_run(
                connection,
                run.id,
                run.runner,
                status=status,
                finished_at=self._clock(),
                report=report.to_document(),
            ):
                raise RunInterrupted(f"run {run.id} of rule {run.rule!r} was taken over by another process")
            records.delete_old_runs(connection, run.rule, _KEPT_RUNS)
            return _get_run(connection, run.id)

        finished = await self._database.write(work)
        _log.info("run finished", rule=run.rule, run=run.id, status=finished.status, **_summary(finished.report))
        return finished


def _no_rule(name: str) -> RuleUnknown:
    return RuleUnknown(f"there is no rule {name!r}; see: entrepot replicate list")


def _get_run(connection: sa.Connection, run_id: str) -> Run:
    row = records.find_run(connection, run_id)
    if row is None:
        raise RuntimeError(f"run {run_id} vanished inside a transaction")
    return Run.read(row)


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    problem = report.get("problem", {}).get("problem")
    return {"tags_copied": report["tags_copied"], "bytes": report["bytes"], "failed": report["failed"]} | (
        {"problem": problem} if problem else {}
    )


async def _find_repositories(source: Source, rule: Rule) -> list[RepositoryName]:
    """The repositories that the source lists and the rule means."""
    try:
        return sorted({name async for name in source.list_repositories() if rule.selects(name)})
    except SourceUnreachable:
        raise
    except SourceError as error:
        raise type(error)(
            f"{error}. Where a source does not list its repositories, name them in the rule without *"
        ) from error


async def _read_tags(source: Source, rule: Rule, repository: RepositoryName) -> tuple[dict[Tag, Digest], Tags]:
    """What every tag that the rule means names at the source; and the tags that speak of a digest."""
    entries = [entry async for entry in source.list_tags(repository)]
    attached = {entry.tag: entry.digest for entry in entries if subject_of(entry.tag) is not None}
    entries = [entry for entry in entries if rule.selects_tag(entry.tag)]
    found = {entry.tag: entry.digest for entry in entries if entry.digest is not None}

    async def read(tag: Tag) -> None:
        with contextlib.suppress(SourceMissing):  # deleted since it was listed
            found[tag] = await source.get_digest(repository, tag)

    await for_each([entry.tag for entry in entries if entry.digest is None], read, at_once=_LISTINGS_AT_ONCE)
    return found, attached


def _load_trust(rule: Rule) -> TrustPolicy | None:
    return None if rule.trust is None else load_policy(rule.trust, f"rules.{rule.name}.trust")


@asynccontextmanager
async def _open_signer(rule: Rule) -> AsyncIterator[Signer | None]:
    if rule.sign is None:
        yield None
        return
    async with open_signer(rule.sign, f"rules.{rule.name}.sign") as signer:
        yield signer
