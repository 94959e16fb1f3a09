"""Carrying runs out: list, compare, copy, and tell how it goes.

Copying is idempotent, so whoever takes a run over begins with the list and finds what has arrived.
"""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import structlog

from entrepot.accounts.audit import Actor
from entrepot.errors import (
    DatabaseUnavailable,
    EntrepotError,
    RuleUnknown,
    RunCancelled,
    RunInterrupted,
    SignatureRefused,
    SourceUnreachable,
    TagImmutable,
    TagLeftOut,
    Unavailable,
    WindowClosed,
)
from entrepot.oci.digest import Digest
from entrepot.registry.service import Registry
from entrepot.registry.uploads import Uploads
from entrepot.replication.admission import Admission
from entrepot.replication.bandwidth import Bandwidth
from entrepot.replication.companions import Companion, Tags
from entrepot.replication.concurrency import for_each
from entrepot.replication.deletions import Absences, Deletions
from entrepot.replication.differences import Change, Item, Route
from entrepot.replication.events import (
    CompanionFailed,
    Event,
    ItemFailed,
    ItemFinished,
    ItemLeftOut,
    ItemStarted,
    Listed,
    RepositoryFailed,
    Tell,
    silent,
)
from entrepot.replication.lag import Lag
from entrepot.replication.listing import LISTINGS_AT_ONCE, Spot, Survey, survey
from entrepot.replication.measure import Size, measure
from entrepot.replication.provenance import Arrivals, Provenance
from entrepot.replication.publication import Publication
from entrepot.replication.report import Report
from entrepot.replication.rulebook import Rulebook
from entrepot.replication.rules import Rule
from entrepot.replication.runs import Run, Runs, unclaimed_status
from entrepot.replication.selection import Memory, Selection
from entrepot.replication.signing import Signing
from entrepot.replication.source import Source
from entrepot.replication.source_specs import SourceSpec
from entrepot.replication.transfers import Transfers
from entrepot.replication.trust.files import load_policy
from entrepot.replication.trust.policy import TrustPolicy
from entrepot.replication.trust.signers import Signer, open_signer
from entrepot.replication.verification import Comparison, Verification
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

OpenSource = Callable[[SourceSpec], AbstractAsyncContextManager[Source]]

# Tags in a row that fail because the source does not answer, before the rest is not even tried.
_MAX_UNREACHABLE = 10
# How often what is behind is noted while a run goes on.
_LAG_SECONDS = 30.0

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: copy the items that are due but not refused, and what was attached to others since.

    `size` is of these items; `absences` are tags here that are gone at the source, if the rule ever deletes such;
    `left_out` are tags at the source that the rule does not copy, with the reason.
    """

    items: list[Item]
    refused: dict[Item, SignatureRefused | TagImmutable] = field(default_factory=dict)
    late: list[tuple[Route, Companion]] = field(default_factory=list)
    left_out: dict[Item, str] = field(default_factory=dict)
    size: Size = field(default_factory=Size)
    absences: Absences = field(default_factory=lambda: Absences([], []))

    @property
    def due(self) -> list[Item]:
        """What is not here yet, or is something else here."""
        return [item for item in self.items if item.change is not Change.SAME]


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


class Replications:
    """Does what rules say. `host` is the public name of our registry, which signatures speak of."""

    def __init__(
        self,
        database: Database,
        runs: Runs,
        rulebook: Rulebook,
        registry: Registry,
        uploads: Uploads,
        clock: Clock,
        *,
        open_source: OpenSource,
        host: str = "localhost",
    ) -> None:
        self._database = database
        self._runs = runs
        self._rulebook = rulebook
        self._registry = registry
        self._uploads = uploads
        self._clock = clock
        self._open_source = open_source
        self._host = host
        self._most_at_once: int | None = None
        self._limits = runs.limits
        self._memory = Memory()

    async def plan(self, name: str, tell: Tell = silent) -> Plan:
        """What a run of the rule would find, tag by tag. Raises RuleUnknown, RuleInvalid or SourceError."""
        rule, spec = await self._rulebook.get_rule_and_source(name)
        policy = _load_trust(rule)
        async with self._open_source(spec) as source:
            found = await self._survey(source, rule, None, tell)
            publication = self._prepare(source, rule, policy, None, tell)
            plan = Plan(found.items, left_out=found.left_out)

            async def judge(item: Item) -> None:
                try:
                    await publication.judge(item, found.tags[item.origin])
                except (SignatureRefused, TagImmutable) as error:
                    plan.refused[item] = error

            await for_each(found.due, judge, at_once=LISTINGS_AT_ONCE)
            accepted = [item for item in found.due if item not in plan.refused]
            size = await measure(source, self._registry, accepted, rule.platforms)
            for item, problem in size.failures.items():
                tell(ItemFailed(item, problem))
            absences = plan.absences
            if rule.deletions.deletes:
                has_others = len(accepted) > len(size.failures)
                absences = await self._deletions(rule, spec, source, tell).find(found, has_others=has_others)
            plan = replace(plan, size=size, absences=absences)

            async def find_late(entry: tuple[Route, set[Digest]]) -> None:
                route, digests = entry
                tags = found.tags[route.origin]
                late = [] if tags is None else await publication.find_late(route, tags, digests)
                plan.late.extend((route, companion) for companion in late)

            await for_each(found.unchanged().items(), find_late, at_once=LISTINGS_AT_ONCE)
            plan.late.sort(key=lambda entry: entry[0].origin)
            return plan

    async def verify(self, name: str, *, is_deep: bool) -> Comparison:
        """What of the rule differs here from its source. Raises RuleUnknown or SourceError."""
        rule, spec = await self._rulebook.get_rule_and_source(name)
        unlisted: list[str] = []

        def hear(event: Event) -> None:
            if isinstance(event, RepositoryFailed):
                unlisted.append(f"{event.repository}: {event.error}")

        async with self._open_source(spec) as source:
            found = await self._survey(source, rule, None, hear)
            absences = await self._deletions(rule, spec, source, hear).find(found)
        verification = Verification(self._registry, rule, is_deep=is_deep)
        return await verification.compare(found, unlisted, absences.vanished, self._clock())

    async def run(self, name: str, actor: Actor, tell: Tell = silent) -> Run:
        """Run the rule here and now, whatever its window; one that nobody works on is taken over.

        Raises RuleUnknown, RunActive while another process runs it, RunInterrupted when it was cancelled or another
        process took it over. What went wrong in the run itself stands in its report; it is not tried again by itself.
        """
        run = await self._runs.claim_now(name, actor)
        report, lag = Report(before=run.report), Lag(is_whole=True)
        try:
            return await self._carry_out(run, report, lag, tell, is_here=True)
        except asyncio.CancelledError:
            report.note_end(RunInterrupted("stopped before its end; run it again, and it goes on where it stood"))
            with contextlib.suppress(RunInterrupted):
                await self._end(run, report, lag, "cancelled")
            raise

    async def carry_out(self, run: Run, tell: Tell = silent) -> Run:
        """Work on a claimed run until it ends, or has to wait: to be tried again, or for its window.

        One that somebody waits for, a pull, does neither. Cancelled, it lets anybody else go on. Raises RunInterrupted
        when it is not ours any more.
        """
        report, lag = Report(before=run.report), Lag(is_whole=run.scope is None)
        try:
            return await self._carry_out(run, report, lag, tell, is_here=run.cause == "pull")
        except WindowClosed:
            return await self._release(run, report, lag)
        except asyncio.CancelledError:
            with contextlib.suppress(RunInterrupted):  # it has just ended, or is not ours any more
                await self._release(run, report, lag)
            raise

    def over(self, open_source: OpenSource, *, at_once: int) -> "Replications":
        """The same, with sources that are opened in another way, and read so many blobs at once by themselves."""
        other = copy.copy(self)
        other._open_source, other._most_at_once = open_source, at_once  # noqa: SLF001 - it is one of us
        return other

    async def _carry_out(self, run: Run, report: Report, lag: Lag, tell: Tell, *, is_here: bool) -> Run:
        def hear(event: Event) -> None:
            report.note(event)
            lag.note(event)
            tell(event)

        with self._runs.watching(run) as changed:
            work = asyncio.create_task(self._replicate(run, hear, is_here=is_here))
            beat = asyncio.create_task(self._beat(run, report, lag, changed))
            try:
                await asyncio.wait({work, beat}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    await beat  # raises RunInterrupted
                await work
            except RunCancelled:
                await _stop(work, beat)
                await self._runs.note_cancelled(run, report)
                raise
            except RunInterrupted:
                raise
            except EntrepotError as error:
                report.note_end(error)
            except Exception:  # noqa: BLE001 - reason below
                # A mistake of ours: the run must end all the same, or it would be taken up again and again.
                _log.exception("run failed unexpectedly", rule=run.rule, run=run.id)
                report.note_end(EntrepotError(f"failed unexpectedly; the log of run {run.id} says more"))
            finally:
                await _stop(work, beat)
        return await self._finish(run, report, lag, may_wait=not is_here)

    async def _replicate(self, run: Run, tell: Tell, *, is_here: bool) -> None:
        """Copy what a run is about; what fails for one tag is told, and the others go on."""
        rule, spec = await self._rulebook.get_rule_and_source(run.rule)
        policy = _load_trust(rule)
        scope = None if run.scope is None else [Spot.read(spot) for spot in run.scope]

        def verify_open() -> None:
            now = self._clock()
            if not is_here and rule.options.next_open(now) > now:
                raise WindowClosed(f"the window of rule {rule.name!r} has closed")

        arrivals = Arrivals()

        def note(event: Event) -> None:
            arrivals.note(event)
            tell(event)

        async with self._open_source(spec) as source, _open_signer(rule) as signer:
            # Who asks for a tag that matches waits for that one, whichever others the rule would pick.
            found = await self._survey(source, rule, scope, tell, is_exact=run.cause == "pull")
            note(Listed(found.items))
            _note_left_out(found, note)
            publication = self._prepare(source, rule, policy, signer, note)
            patience = _Patience()

            async def publish(item: Item) -> None:
                verify_open()
                note(ItemStarted(item))
                with patience.telling(lambda error: note(ItemFailed(item, error))):
                    try:
                        copied, signed = await publication.publish(item, found.tags[item.origin])
                    except TagLeftOut as error:  # it moved meanwhile
                        note(ItemLeftOut(item, str(error)))
                    else:
                        note(ItemFinished(copied, signed))

            await for_each(found.due, publish, at_once=self._at_once(rule))

            async def refresh(entry: tuple[Route, set[Digest]]) -> None:
                route, digests = entry
                tags = found.tags[route.origin]
                if tags is not None:
                    verify_open()
                    await self._refresh(publication, route, tags, digests, patience, note)

            await for_each(found.unchanged().items(), refresh, at_once=self._at_once(rule))
            await Provenance(self._database, rule.name, spec).keep(arrivals.take())
            if await self._is_unchanged(rule, spec):
                await self._deletions(rule, spec, source, note).carry_out(
                    found, failed=arrivals.failed, telling=patience.telling, verify_open=verify_open
                )

    async def _is_unchanged(self, rule: Rule, spec: SourceSpec) -> bool:
        """Whether a rule says what it said when a run began: what it takes away must be wanted when it does."""
        return await self._rulebook.get_rule_and_source(rule.name) == (rule, spec)

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

        await for_each(late, bring, at_once=self._limits.concurrency)
        await for_each(sorted(digests), sign, at_once=self._limits.concurrency)

    def _prepare(
        self, source: Source, rule: Rule, policy: TrustPolicy | None, signer: Signer | None, tell: Tell
    ) -> Publication:
        transfers = Transfers(
            self._database,
            self._registry,
            self._uploads,
            part_bytes=self._limits.part_bytes,
            bandwidth=Bandwidth(rule.options.bytes_per_second),
        )
        return Publication(
            source,
            self._registry,
            transfers,
            concurrency=self._at_once(rule),
            tell=tell,
            follow=rule.follow,
            admission=None if policy is None else Admission(source, policy, self._clock),
            signing=None if signer is None else Signing(self._registry, signer, self._host),
            only_tagged=rule.deletions.deletes,
            selection=Selection(source, self._registry, rule, self._memory),
        )

    def _deletions(self, rule: Rule, spec: SourceSpec, source: Source, tell: Tell) -> Deletions:
        provenance = Provenance(self._database, rule.name, spec)
        return Deletions(rule, source, self._registry, provenance, self._clock, tell)

    async def _survey(
        self, source: Source, rule: Rule, scope: Sequence[Spot] | None, tell: Tell, *, is_exact: bool = False
    ) -> Survey:
        now, at_once = self._clock(), self._at_once(rule)
        found = await survey(source, self._registry, rule, scope, tell, at_once=at_once, now=now, is_exact=is_exact)
        return await Selection(source, self._registry, rule, self._memory).sort(found)

    def _at_once(self, rule: Rule) -> int:
        return self._most_at_once or rule.options.concurrency or self._limits.concurrency

    async def _beat(self, run: Run, report: Report, lag: Lag, changed: asyncio.Event) -> None:
        """Show life, and how far the run is, until cancelled. Raises RunInterrupted when it is not ours any more."""
        last, lag_noted = self._clock(), float("-inf")
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), self._limits.beat_seconds)
            changed.clear()
            now = self._clock()
            monotonic = asyncio.get_running_loop().time()
            notes_lag = lag.is_listed and monotonic - lag_noted > _LAG_SECONDS
            values = {"seen_at": now, "report": report.to_document(is_running=True)}
            try:
                is_ours = await self._runs.record(run, report, lag if notes_lag else None, values)
            except DatabaseUnavailable:
                is_ours = now - last < self._limits.silence
            else:
                last = now
                lag_noted = monotonic if notes_lag else lag_noted
            if not is_ours:
                raise await self._runs.why_not_ours(run)

    async def _finish(self, run: Run, report: Report, lag: Lag, *, may_wait: bool) -> Run:
        """End a run, or let it wait to be tried again."""
        if report.is_good:
            return await self._end(run, report, lag, "done")
        if not (may_wait and report.may_help_to_try_again and run.tries < self._limits.tries):
            return await self._end(run, report, lag, "failed")
        due_at = self._clock() + timedelta(seconds=self._limits.backoff.wait_seconds(run.tries))
        return await self._let_go(run, report, lag, status="waiting", due_at=await self._next_open(run, due_at))

    async def _end(self, run: Run, report: Report, lag: Lag, status: str) -> Run:
        return await self._let_go(run, report, lag, status=status, finished_at=self._clock())

    async def _release(self, run: Run, report: Report, lag: Lag) -> Run:
        """Let anybody go on with a run, as if it had not been begun this time."""
        due_at = await self._next_open(run, self._clock())
        status = unclaimed_status(run.scope)
        return await self._let_go(run, report, lag, status=status, due_at=due_at, tries=run.tries - 1)

    async def _next_open(self, run: Run, at: datetime) -> datetime:
        try:
            return (await self._rulebook.get_rule(run.rule)).rule.options.next_open(at)
        except RuleUnknown:  # deleted meanwhile, which cancels its runs
            return at

    async def _let_go(self, run: Run, report: Report, lag: Lag, **values: Any) -> Run:
        values["report"] = report.to_document()
        if not await self._runs.record(run, report, lag, values):
            raise await self._runs.why_not_ours(run)
        ended = await self._runs.get_run(run.id)
        _log.info("run ended", rule=run.rule, run=run.id, status=ended.status, **_summary(ended.report))
        return ended


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    problem = report.get("problem", {}).get("problem")
    counts = {name: report[name] for name in ("tags_copied", "bytes", "failed") if name in report}
    return counts | ({"problem": problem} if problem else {})


def _note_left_out(found: Survey, tell: Tell) -> None:
    for item, reason in found.left_out.items():
        tell(ItemLeftOut(item, reason))


async def _stop(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait(set(tasks))


def _load_trust(rule: Rule) -> TrustPolicy | None:
    return None if rule.trust is None else load_policy(rule.trust, f"rules.{rule.name}.trust")


@asynccontextmanager
async def _open_signer(rule: Rule) -> AsyncIterator[Signer | None]:
    if rule.sign is None:
        yield None
        return
    async with open_signer(rule.sign, f"rules.{rule.name}.sign") as signer:
        yield signer
