"""Delivering events to webhooks: at least once, each attempt by one worker, whatever becomes of it.

A delivery is a row that says when it is due. A worker that takes it up moves that to when it may be taken for dead, so
that nobody else has it before, and somebody does after. Each webhook has a lane of its own, which no other waits for.

Source: Standard Webhooks 1.0.0, "Deliverability and reliability", for deadlines, retries and 410.
"""

import asyncio
import contextlib
import json
import random
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
import structlog
from prometheus_client import Counter
from yarl import URL

from entrepot.access.destinations import Destinations
from entrepot.access.signatures import sign
from entrepot.accounts import webhook_records as records
from entrepot.accounts.audit import Actor, note
from entrepot.accounts.events import give_numbers
from entrepot.accounts.webhook_answer import Answer, Deadlines
from entrepot.accounts.webhooks import Webhooks
from entrepot.errors import EntrepotError
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

if TYPE_CHECKING:
    from entrepot.accounts.webhook_sender import Sender

ATTEMPTS = Counter(
    "entrepot_webhook_attempts_total",
    "Attempts to deliver an event: delivered, failed (to be tried again), or given_up.",
    ["webhook", "outcome"],
)
# The waits after each failed attempt but the last, as the spec proposes them.
WAITS: Final = tuple(
    timedelta(seconds=seconds) for seconds in (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
)
# A wait is longer by up to this part of it, so that what failed together does not come back together.
_JITTER = 0.2
_MOST_ASKED = timedelta(days=1)
# A webhook that gives up a delivery after nothing but failures for so long is disabled.
FAILING_FOR: Final = timedelta(days=5)
_GONE = 410
# Longer than an attempt, with what the database needs around it.
_LEASE = timedelta(seconds=60)
_AT_ONCE = 4
_EVENTS_AT_ONCE = 500
_POLL_SECONDS = 1.0
# How long a worker that stops waits for attempts under way; what it leaves is taken up when its lease is over.
_STOP_SECONDS = 5.0
_JOBS = Actor("jobs")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt, as it was claimed. The delivery is ours until `until`."""

    webhook: str
    url: URL
    keys: list[bytes] = field(repr=False)
    row_id: int
    event_id: str
    number: int
    body: bytes
    until: datetime


class Deliveries:
    """Everything that is to be delivered."""

    def __init__(
        self,
        database: Database,
        webhooks: Webhooks,
        clock: Clock,
        destinations: Destinations,
        *,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._database = database
        self._webhooks = webhooks
        self._clock = clock
        self._destinations = destinations
        self._deadlines = deadlines or Deadlines()

    def open_sender(self) -> "AbstractAsyncContextManager[Sender]":
        """What sends, for `deliver_due`."""
        # Loaded here: the HTTP client takes long to load, and a server that leaves jobs to others delivers nothing.
        from entrepot.accounts.webhook_sender import open_sender  # noqa: PLC0415

        return open_sender(self._destinations, self._deadlines)

    async def find_due(self) -> list[str]:
        """The webhooks that something is to be delivered to now, after every event was given to those that want it."""
        await give_numbers(self._database)
        behind, due = await self._list_busy()
        if not behind:
            return due
        for name in behind:
            await self._give(name)
        return (await self._list_busy())[1]

    async def deliver_due(self, name: str, sender: "Sender") -> int:
        """Try a few deliveries to one webhook that are due, all at the same time; answers how many there were."""
        attempts = await self._database.write(lambda connection: self._claim(connection, name))
        ends = await asyncio.gather(*(self._carry_out(attempt, sender) for attempt in attempts), return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end
        return len(attempts)

    async def _give(self, name: str) -> None:
        await self._database.write(
            lambda connection: records.give_deliveries(connection, name, self._clock(), _EVENTS_AT_ONCE)
        )

    async def _list_busy(self) -> tuple[list[str], list[str]]:
        return await self._database.read(lambda connection: records.list_busy(connection, self._clock()))

    def _claim(self, connection: sa.Connection, name: str) -> list[_Attempt]:
        webhook = records.find_webhook(connection, name)
        if webhook is None or webhook["disabled_at"] is not None:
            return []
        now = self._clock()
        until = now + _LEASE
        keys = self._webhooks.open_keys(webhook, now)
        url = URL(webhook["url"], encoded=True)
        return [
            _Attempt(name, url, keys, row["row_id"], row["event_id"], row["attempt"], _body_of(row), until)
            for row in records.claim_deliveries(connection, name, now, until, _AT_ONCE)
        ]

    async def _carry_out(self, attempt: _Attempt, sender: "Sender") -> None:
        now = self._clock()
        if attempt.keys:
            headers = sign(attempt.keys, attempt.event_id, int(now.timestamp()), attempt.body)
            answer = await sender.post(attempt.url, headers, attempt.body, now)
        else:
            answer = Answer(None, "its secret cannot be read with this secret key; rotate it")
        outcome = await self._database.write(lambda connection: self._record(connection, attempt, answer))
        ATTEMPTS.labels(attempt.webhook, outcome).inc()
        if answer.problem is not None:
            log.info(
                "webhook_failed",
                webhook=attempt.webhook,
                event_id=attempt.event_id,
                attempt=attempt.number,
                problem=answer.problem,
            )

    def _record(self, connection: sa.Connection, attempt: _Attempt, answer: Answer) -> str:
        """Write down how an attempt ended; answers it in a word."""
        now = self._clock()
        if answer.problem is None:
            self._finish(connection, attempt, next_at=None, delivered_at=now, problem=None)
            records.note_success(connection, attempt.webhook)
            return "delivered"
        wait = plan_wait(attempt.number, answer)
        self._finish(connection, attempt, next_at=None if wait is None else now + wait, problem=answer.problem)
        failing_since = records.note_failure(connection, attempt.webhook, now)
        reason = None
        if answer.status == _GONE:
            reason = "the receiver answered 410: it wants no more"
        elif wait is None and now - failing_since >= FAILING_FOR:
            reason = f"every attempt failed since {failing_since:%Y-%m-%d %H:%M} UTC, lately: {answer.problem}"[:200]
        if reason is not None and records.disable_webhook(connection, attempt.webhook, now, reason):
            note(connection, _JOBS, "webhook.disabled", attempt.webhook, now, reason=reason)
        return "failed" if wait is not None else "given_up"

    @staticmethod
    def _finish(connection: sa.Connection, attempt: _Attempt, **values: Any) -> None:
        """Change the delivery, unless somebody else has it by now."""
        records.finish_attempt(connection, attempt.webhook, attempt.row_id, attempt.number, attempt.until, **values)


def plan_wait(attempts: int, answer: Answer) -> timedelta | None:
    """How long to wait after the last of so many failed attempts; None: no more are made.

    At least as long as the receiver asks for, up to a day.
    """
    if attempts > len(WAITS) or answer.status == _GONE:
        return None
    wait = WAITS[attempts - 1] * (1 + random.uniform(0, _JITTER))  # noqa: S311 - spreads load, guards nothing
    if answer.asked_seconds is None:
        return wait
    return max(wait, min(timedelta(seconds=answer.asked_seconds), _MOST_ASKED))


async def deliver_regularly(deliveries: Deliveries, stop: asyncio.Event) -> None:
    """Deliver what is due until `stop` is set."""
    lanes: dict[str, asyncio.Task[None]] = {}
    async with deliveries.open_sender() as sender:
        while not stop.is_set():
            lanes = {name: lane for name, lane in lanes.items() if not lane.done()}
            for name in await _find_due(deliveries):
                if name not in lanes:
                    lanes[name] = asyncio.create_task(_run_lane(deliveries, name, sender, stop), name=f"webhook {name}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _POLL_SECONDS)
        if lanes:
            _, late = await asyncio.wait(lanes.values(), timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


async def _find_due(deliveries: Deliveries) -> list[str]:
    try:
        return await deliveries.find_due()
    except EntrepotError as error:
        log.warning("webhooks_not_looked_for", problem=str(error))
        return []


async def _run_lane(deliveries: Deliveries, name: str, sender: "Sender", stop: asyncio.Event) -> None:
    """Deliver what is due to one webhook. What fails here is taken up again when its lease is over."""
    try:
        while not stop.is_set() and await deliveries.deliver_due(name, sender):
            pass
    except EntrepotError as error:
        log.warning("webhook_not_recorded", webhook=name, problem=str(error))
    except Exception:
        log.exception("webhook_broke", webhook=name)


def _body_of(row: records.Row) -> bytes:
    document = {"type": row["type"], "timestamp": row["at"].isoformat(), "data": row["data"]}
    return json.dumps(document, separators=(",", ":")).encode()
