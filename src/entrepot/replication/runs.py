"""Runs of rules: asked for, claimed, watched, cancelled.

A run is a row that one process claims, with a sign of life every second; one whose process died is taken over by
another. See docs/decisions/0022 for why this is not a job library.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

import sqlalchemy as sa
import structlog

from entrepot.accounts.audit import Actor, note
from entrepot.errors import (
    DatabaseUnavailable,
    RunActive,
    RunCancelled,
    RunFinished,
    RunInterrupted,
    RunUnknown,
)
from entrepot.oci.reference import RepositoryName, Tag
from entrepot.replication import pull_records, records
from entrepot.replication.backoff import Backoff
from entrepot.replication.lag import Lag
from entrepot.replication.listing import Spot
from entrepot.replication.records import Figures, RunFilter
from entrepot.replication.report import Report
from entrepot.replication.rulebook import RUN_TOPIC, WORK_TOPIC, Rulebook, cancel_run, get_rule
from entrepot.replication.rules import Rule
from entrepot.replication.transfers import PART_BYTES
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

# Spots that wait in one run of pushes; more stay in the queue that they come from.
MAX_SPOTS = 1000
_TRIES_TO_QUEUE = 5

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What runs may take: `concurrency` is in blobs of one run, `runs_per_source` where a source says nothing else.

    `tries` is how often a run is begun before it fails for good, with waits as `backoff` says.
    """

    concurrency: int = 4
    runs_per_source: int = 4
    tries: int = 10
    backoff: Backoff = field(default_factory=lambda: Backoff(first_seconds=10, most_seconds=600))
    part_bytes: int = PART_BYTES
    kept_runs: int = 200
    kept: timedelta = timedelta(days=90)
    beat_seconds: float = 1
    silence: timedelta = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a rule; `report` as Report.to_document gives it."""

    id: str
    rule: str
    status: str
    cause: str
    runner: str | None
    queued_at: datetime
    started_at: datetime | None
    due_at: datetime | None
    finished_at: datetime | None
    tries: int
    scope: list[dict[str, str]] | None
    report: dict[str, Any]

    @classmethod
    def read(cls, row: records.Row) -> Self:
        """The run in a row."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    @property
    def is_unfinished(self) -> bool:
        """Whether it goes on, or will."""
        return self.status in records.UNFINISHED

    def to_document(self) -> dict[str, Any]:
        """As `replicate status --json` shows it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "runner"}


class Runs:
    """Every run."""

    def __init__(
        self,
        database: Database,
        signals: Signals,
        rulebook: Rulebook,
        clock: Clock,
        limits: RunLimits | None = None,
    ) -> None:
        self._database = database
        self._signals = signals
        self._rulebook = rulebook
        self._clock = clock
        self.limits = limits or RunLimits()
        # What runs of this process are woken by when somebody else changes them; and workers, when there is work.
        self._watched: dict[str, _Bell] = {}
        self._workers: list[_Bell] = []
        signals.listen(RUN_TOPIC, self._ring_run)
        signals.listen(WORK_TOPIC, self._ring_workers)

    # Asking for runs

    async def queue(self, name: str, actor: Actor) -> Run:
        """Let some worker run the rule soon; a run that waits to be tried again waits no longer.

        Raises RuleUnknown, or RunActive while one is queued or goes on.
        """

        def work(connection: sa.Connection) -> Run:
            now = self._clock()
            rule = get_rule(connection, name)
            row = _new_row(rule, "request", now)
            if not records.insert_run(connection, row):
                active = records.find_active_run(connection, name) or row
                if not records.update_run(connection, active["id"], ["waiting"], due_at=row["due_at"]):
                    raise self._is_active(active)
                row = active
            note(connection, actor, "run.started", name, now, run=row["id"])
            publish(connection, WORK_TOPIC, "runs", now)
            return _get_run(connection, row["id"])

        return await self._signals.commit(work)

    async def queue_scheduled(self) -> None:
        """Queue what schedules want by now: once over all processes, and once however often it was missed."""
        now = self._clock()
        due = await self._database.read(lambda connection: records.list_scheduled(connection, now))

        def work(connection: sa.Connection) -> None:
            for row in due:
                rule = Rule.parse(row["name"], row["document"])
                following = rule.options.next_scheduled(now)
                if not records.move_schedule(connection, rule.name, row["scheduled_at"], following):
                    continue
                if records.insert_run(connection, _new_row(rule, "schedule", now)):
                    publish(connection, WORK_TOPIC, "runs", now)
                else:
                    _log.info("schedule skipped", rule=rule.name, reason="its last run is not finished")

        if due:
            await self._signals.commit(work)

    async def queue_pushes(self, source: str, spots: Sequence[Spot], emptied: Sequence[Spot] = ()) -> bool:
        """Queue what the rules of a source mean of `spots`; False when so much waits that it must come later.

        Of the spots where something was deleted, `emptied`, what those rules mean that delete, too.
        """

        def work(connection: sa.Connection) -> bool:
            now = self._clock()
            for name, document in records.list_rules_of(connection, source).items():
                rule = Rule.parse(name, document)
                told = [*spots, *(emptied if rule.deletions.deletes else ())]
                wanted = [spot for spot in told if _selects(rule, spot)]
                if wanted and not self._queue_spots(connection, rule, wanted, now):
                    return False
            publish(connection, WORK_TOPIC, "runs", now)
            return True

        return await self._signals.commit(work)

    def _queue_spots(self, connection: sa.Connection, rule: Rule, spots: Sequence[Spot], now: datetime) -> bool:
        for _ in range(_TRIES_TO_QUEUE):
            row = _new_row(rule, "push", now) | {"scope": [spot.to_document() for spot in sorted(set(spots))]}
            if records.insert_run(connection, row):
                return True
            waiting = records.lock_queued_pushes(connection, rule.name)
            if waiting is None:  # claimed at this moment
                continue
            scope = sorted({*spots, *map(Spot.read, waiting["scope"])})
            if len(scope) > MAX_SPOTS:
                return False
            return records.update_run(
                connection, waiting["id"], ["queued"], scope=[spot.to_document() for spot in scope]
            )
        return False

    async def claim_now(self, name: str, actor: Actor) -> Run:
        """The run of a rule, for this process, whatever its window: a new one, or one that nobody works on.

        Raises RuleUnknown, or RunActive while another process works on it.
        """

        def work(connection: sa.Connection) -> Run:
            now = self._clock()
            row = _new_row(get_rule(connection, name), "request", now)
            if records.insert_run(connection, row):
                note(connection, actor, "run.started", name, now, run=row["id"])
            active = records.find_active_run(connection, name) or row
            is_free = active["status"] != "running" or active["seen_at"] < now - self.limits.silence
            taken = self._take(connection, active, now) if is_free else None
            if taken is None:
                raise self._is_active(active)
            return taken

        return await self._signals.commit(work)

    async def claim_pull(self, rule: Rule, spot: Spot, target: RepositoryName, silence: timedelta) -> Run | None:
        """A run, for this process and at once, that fetches a tag to `target`; None while a live one does so.

        One that nobody works on, or that showed no life for so long, is taken over.
        """

        def work(connection: sa.Connection) -> Run | None:
            now = self._clock()
            pull_records.delete_finished(connection)
            found = pull_records.find_pull(connection, target.value, spot.tag)
            if found is not None:
                row = records.find_run(connection, found.run_id, is_locked=True)
                is_free = row is not None and (row["status"] != "running" or row["seen_at"] < now - silence)
                return self._take(connection, row, now) if row is not None and is_free else None
            row = _new_row(rule, "pull", now) | {"scope": [spot.to_document()], "status": "waiting"}
            records.insert_run(connection, row)
            if not pull_records.insert_pull(connection, row["id"], target.value, spot.tag):
                pull_records.delete_run(connection, row["id"])
                return None
            return self._take(connection, row | {"tries": 0, "seen_at": None}, now)

        return await self._database.write(work)

    async def forget_pull(self, run: Run) -> None:
        """A run that fetched a tag has ended, one way or another."""
        await self._database.write(lambda connection: pull_records.delete_pull(connection, run.id))

    def _is_active(self, row: records.Row) -> RunActive:
        name = row["rule"]
        return RunActive(
            f"rule {name!r} has a run that is {row['status']}; see: entrepot replicate status {name}. "
            f"If its process died, another takes it over {self.limits.silence.seconds} seconds later"
        )

    async def list_runs(self, wanted: RunFilter, limit: int) -> list[Run]:
        """The latest runs that fit, newest first. Raises RuleUnknown."""
        if wanted.rule is not None:
            await self._rulebook.get_rule(wanted.rule)
        rows = await self._database.read(lambda connection: records.list_runs(connection, wanted, limit))
        return [Run.read(row) for row in rows]

    async def get_run(self, run_id: str) -> Run:
        """A run. Raises RunUnknown."""
        row = await self._database.read(lambda connection: records.find_run(connection, run_id))
        if row is None:
            raise _no_run(run_id)
        return Run.read(row)

    async def list_artifacts(self, run_id: str, after: int, limit: int) -> list[records.Row]:
        """What became of the tags of a run, in order, behind the one with the id `after`. Raises RunUnknown."""
        await self.get_run(run_id)
        return await self._database.read(lambda connection: records.list_artifacts(connection, run_id, after, limit))

    async def count(self, subject: str, amounts: Mapping[str, int]) -> None:
        """Count what happened to `subject` (`source:NAME`), over all processes."""
        await self._database.write(lambda connection: records.add_totals(connection, subject, amounts))

    async def read_figures(self) -> Figures:
        """What is measured, over all processes."""
        return await self._database.read(records.read_figures)

    async def cancel(self, run_id: str, actor: Actor) -> Run:
        """End a run, on whatever machine it goes on. Raises RunUnknown, or RunFinished when it has ended."""

        def work(connection: sa.Connection) -> Run:
            now = self._clock()
            row = records.find_run(connection, run_id)
            if row is None:
                raise _no_run(run_id)
            if not cancel_run(connection, run_id, now):
                raise RunFinished(f"run {run_id} has ended already")
            records.add_totals(connection, f"rule:{row['rule']}", {"runs_cancelled": 1})
            note(connection, actor, "run.cancelled", row["rule"], now, run=run_id)
            return _get_run(connection, run_id)

        return await self._signals.commit(work)

    async def cancel_rule(self, name: str, actor: Actor) -> list[Run]:
        """End every unfinished run of a rule. Raises RuleUnknown."""
        await self._rulebook.get_rule(name)
        cancelled = []
        for run_id in await self._database.read(lambda connection: records.list_unfinished(connection, name)):
            with contextlib.suppress(RunFinished):
                cancelled.append(await self.cancel(run_id, actor))
        return cancelled

    async def claim(self, *, takes_whole: bool = True, takes_pushes: bool = True) -> Run | None:
        """A run that nobody works on, for `carry_out`: of a whole rule, or of pushes."""
        now = self._clock()
        silent_since = now - self.limits.silence

        def work(connection: sa.Connection) -> Run | None:
            room: dict[tuple[str, bool], bool] = {}
            for row in records.list_claimable(connection, now, silent_since):
                is_whole = row["scope"] is None
                if not (takes_whole if is_whole else takes_pushes) or not self._may_begin(connection, row, now):
                    continue
                source = row["source"]
                if source is not None and (source, is_whole) not in room:
                    room[source, is_whole] = self._has_room(connection, source, silent_since, is_whole=is_whole)
                if (source is None or room[source, is_whole]) and (run := self._take(connection, row, now)):
                    return run
            return None

        # Looked at without the writer's lock first: mostly there is nothing.
        if not await self._database.read(lambda found: records.has_claimable(found, now, silent_since)):
            return None
        return await self._database.write(work)

    def _may_begin(self, connection: sa.Connection, row: records.Row, now: datetime) -> bool:
        """Whether a run is to begin now: its window is open, and it was not begun too often."""
        if row["tries"] >= self.limits.tries:
            report = Report(before=row["report"])
            report.note_end(RunInterrupted(f"it was begun {row['tries']} times, and its process died each time"))
            values = {"status": "failed", "finished_at": now, "report": report.to_document()}
            records.update_run(connection, row["id"], [row["status"]], **values)
            records.add_totals(connection, f"rule:{row['rule']}", {"runs_failed": 1})
            return False
        due_at = now if row["document"] is None else Rule.parse(row["rule"], row["document"]).options.next_open(now)
        if due_at > now:
            values = {"status": unclaimed_status(row["scope"]), "runner": None, "due_at": due_at}
            records.update_run(connection, row["id"], [row["status"]], **values)
        return due_at <= now

    def _has_room(self, connection: sa.Connection, source: str, silent_since: datetime, *, is_whole: bool) -> bool:
        most = records.lock_source(connection, source).get("concurrent_runs") or self.limits.runs_per_source
        return records.count_running(connection, source, silent_since, is_whole=is_whole) < most

    def _take(self, connection: sa.Connection, row: records.Row, now: datetime) -> Run | None:
        is_taken = records.claim_run(connection, row, uuid.uuid4().hex, now)
        return _get_run(connection, row["id"]) if is_taken else None

    async def record(self, run: Run, report: Report, lag: Lag | None, values: dict[str, Any]) -> bool:
        """Change a claimed run, with all that it has found out; False when it is not ours any more."""
        artifacts = report.take_artifacts()
        now = self._clock()

        def work(connection: sa.Connection) -> bool:
            if not records.update_claimed_run(connection, run.id, run.runner, **values):
                return False
            dated = [{**artifact, "at": now} for artifact in artifacts]
            records.insert_artifacts(connection, run.id, run.tries, dated)
            if lag is not None and lag.is_listed:
                self._note_lag(connection, run, lag, now)
            if values.get("status") in records.FINISHED:
                self._note_end(connection, run, values, now)
            return True

        writing = asyncio.ensure_future(self._database.write(work))
        try:
            return await asyncio.shield(writing)
        finally:
            # What a cancelled caller no longer waits for is written all the same, or is not.
            await asyncio.wait({writing})
            if writing.cancelled() or writing.exception() is not None:
                report.give_back(artifacts)

    def _note_lag(self, connection: sa.Connection, run: Run, lag: Lag, now: datetime) -> None:
        known = records.lock_unreplicated(connection, run.rule)
        if known is None:  # the rule was deleted
            return
        values: dict[str, Any] = {"unreplicated": lag.update(known, now)}
        if run.scope is None:
            values["listed_at"] = now
        records.update_rule(connection, run.rule, **values)

    def _note_end(self, connection: sa.Connection, run: Run, values: dict[str, Any], now: datetime) -> None:
        report, status = values["report"], values["status"]
        counted = ("bytes", "tags_copied", "tags_deleted", "refused")
        amounts = {f"runs_{status}": 1} | {name: report[name] for name in counted}
        amounts["failed"] = report["failed"] - report["refused"]
        if records.find_rule(connection, run.rule) is not None:
            records.add_totals(connection, f"rule:{run.rule}", amounts)
            if status == "done" and run.cause != "pull":  # what one customer got says nothing of the rule
                records.update_rule(connection, run.rule, succeeded_at=now)
        records.delete_old_runs(connection, run.rule, self.limits.kept_runs, now - self.limits.kept)

    async def note_cancelled(self, run: Run, report: Report) -> None:
        """Keep how far a run had come that was cancelled while this process worked on it."""
        await self._database.write(
            lambda connection: records.update_cancelled_run(connection, run.id, run.runner, report.to_document())
        )

    async def why_not_ours(self, run: Run) -> RunInterrupted:
        """The error that says what became of a run that was claimed here."""
        with contextlib.suppress(DatabaseUnavailable, RunUnknown):
            if (await self.get_run(run.id)).status == "cancelled":
                return RunCancelled(f"run {run.id} of rule {run.rule!r} was cancelled")
        return RunInterrupted(f"run {run.id} of rule {run.rule!r} was taken over by another process")

    @contextmanager
    def watching(self, run: Run) -> Iterator[asyncio.Event]:
        """An event that is set when somebody else changes a run."""
        bell = _Bell()
        self._watched[run.id] = bell
        try:
            yield bell.event
        finally:
            del self._watched[run.id]

    @contextmanager
    def watching_work(self) -> Iterator[asyncio.Event]:
        """An event that is set when there may be something to claim, or sources and rules have changed."""
        bell = _Bell()
        self._workers.append(bell)
        try:
            yield bell.event
        finally:
            self._workers.remove(bell)

    def _ring_run(self, run_id: str) -> None:
        if (bell := self._watched.get(run_id)) is not None:
            bell.ring()

    def _ring_workers(self, _what: str) -> None:
        for bell in list(self._workers):
            bell.ring()


class _Bell:
    """An event that any thread can set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.event = asyncio.Event()

    def ring(self) -> None:
        """Set it."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.event.set)


def unclaimed_status(scope: object) -> str:
    """The status of a run that anybody may go on with.

    Of pushes there may be others queued by now, and there is one such run of a rule: so it waits.
    """
    return "queued" if scope is None else "waiting"


def _selects(rule: Rule, spot: Spot) -> bool:
    return rule.selects(RepositoryName(spot.repository)) and (not spot.tag or rule.selects_tag(Tag(spot.tag)))


def _new_row(rule: Rule, cause: str, now: datetime) -> records.Row:
    return {
        "id": str(uuid.uuid4()),
        "rule": rule.name,
        "status": "queued",
        "cause": cause,
        "queued_at": now,
        "due_at": rule.options.next_open(now),
        "priority": rule.options.priority,
        "scope": None,
        "report": {},
    }


def _get_run(connection: sa.Connection, run_id: str) -> Run:
    row = records.find_run(connection, run_id)
    if row is None:
        raise RuntimeError(f"run {run_id} vanished inside a transaction")
    return Run.read(row)


def _no_run(run_id: str) -> RunUnknown:
    return RunUnknown(f"there is no run {run_id[:80]!r}")
