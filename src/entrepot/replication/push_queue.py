"""Pushes as they happen: an SQS queue that EventBridge fills, read by every worker.

A message is deleted once the run that it asks for is queued. A worker that dies before lets it come again, and copying
is idempotent, so a push may be looked at twice, but is not lost. What is no push is dropped, so that it blocks nothing.
"""

import asyncio
import dataclasses
import time
from collections import Counter
from typing import Any

import structlog

from entrepot.errors import EntrepotError
from entrepot.replication.backoff import Backoff, Deadlines
from entrepot.replication.listing import Spot
from entrepot.replication.push_events import NotAPush, parse_push
from entrepot.replication.rulebook import Rulebook
from entrepot.replication.runs import Runs
from entrepot.replication.source_specs import EcrSpec, PushQueue

# A call waits for messages this long; the most that SQS takes.
_WAIT_SECONDS = 20
_MESSAGES_AT_ONCE = 10
# A message that was read is not shown to others for this long, nor to us where it could not be dealt with.
_HIDDEN_SECONDS = 30
# How often sources are looked at anew, beside when they are said to have changed.
_LOOK_SECONDS = 30.0
_CALLS_PER_SECOND = 50
# A queue that was read for so long before it failed was well.
_WELL_SECONDS = 60.0
_FULL_SECONDS = 5.0

_log = structlog.stdlib.get_logger(__name__)


class PushQueues:
    """Reads the queue of every source that has one."""

    def __init__(
        self, rulebook: Rulebook, runs: Runs, deadlines: Deadlines | None = None, backoff: Backoff | None = None
    ) -> None:
        self._rulebook = rulebook
        self._runs = runs
        self._deadlines = deadlines or Deadlines()
        self._backoff = backoff or Backoff()
        # Between failures of a queue that no try at once could help.
        self._pause = Backoff(first_seconds=2, most_seconds=60)

    async def consume(self, stop: asyncio.Event) -> None:
        """Queue runs for what is pushed, until `stop` is set. Sources may come and go."""
        going: dict[EcrSpec, asyncio.Task[None]] = {}
        with self._runs.watching_work() as bell:
            stopping = asyncio.create_task(stop.wait())
            while not stop.is_set():
                wanted = await self._find_sources(set(going))
                for spec in set(going) - wanted:
                    going.pop(spec).cancel()
                for spec in wanted - set(going):
                    going[spec] = asyncio.create_task(self._read_for_ever(spec))
                ringing = asyncio.create_task(bell.wait())
                await asyncio.wait({ringing, stopping}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                ringing.cancel()
                bell.clear()
            stopping.cancel()
        for task in going.values():
            task.cancel()
        await asyncio.gather(*going.values(), return_exceptions=True)

    async def _find_sources(self, known: set[EcrSpec]) -> set[EcrSpec]:
        try:
            specs = await self._rulebook.list_sources()
        except EntrepotError as error:
            _log.warning("cannot look for queues of pushes", problem=str(error))
            return known
        return {spec for spec in specs if isinstance(spec, EcrSpec) and spec.events is not None}

    async def _read_for_ever(self, spec: EcrSpec) -> None:
        failures = 0
        while True:
            begun = time.monotonic()
            try:
                if spec.events is not None:
                    await self._read(spec, spec.events)
            except EntrepotError as error:
                _log.warning("queue of pushes cannot be read", source=spec.name, problem=str(error))
            except Exception:  # noqa: BLE001 - reason below
                # A mistake of ours must not end it for good.
                _log.exception("reading a queue of pushes failed unexpectedly", source=spec.name)
            failures = 1 if time.monotonic() - begun > _WELL_SECONDS else min(failures + 1, 10)
            await asyncio.sleep(self._pause.wait_seconds(failures))

    async def _read(self, spec: EcrSpec, queue: PushQueue) -> None:
        # The SDK takes half a second to load, which nobody should wait for who has no source in AWS.
        from entrepot.replication.aws import open_aws  # noqa: PLC0415

        access = dataclasses.replace(spec.access, region=queue.region or spec.access.region)
        async with open_aws(
            spec.name,
            "sqs",
            access,
            endpoint=queue.endpoint,
            network=spec.network,
            deadlines=self._deadlines,
            backoff=self._backoff,
            calls_per_second=_CALLS_PER_SECOND,
        ) as api:
            while True:
                answer = await api.call(
                    "receive_message",
                    QueueUrl=queue.url,
                    MaxNumberOfMessages=_MESSAGES_AT_ONCE,
                    WaitTimeSeconds=_WAIT_SECONDS,
                    VisibilityTimeout=_HIDDEN_SECONDS,
                )
                messages: list[dict[str, Any]] = answer.get("Messages", [])
                if not await self._take(spec, messages):
                    await asyncio.sleep(_FULL_SECONDS)
                elif messages:
                    entries = [
                        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                        for number, message in enumerate(messages)
                    ]
                    await api.call("delete_message_batch", QueueUrl=queue.url, Entries=entries)

    async def _take(self, spec: EcrSpec, messages: list[dict[str, Any]]) -> bool:
        """Queue what messages ask for; False when they must come again, since enough waits already."""
        spots: list[Spot] = []
        emptied: list[Spot] = []
        outcomes: Counter[str] = Counter()
        for message in messages:
            try:
                push = parse_push(str(message.get("Body", "")))
                if (push.account, push.region) != (spec.account, spec.access.region):
                    raise NotAPush("foreign", f"it is about {push.account} in {push.region}")  # noqa: TRY301
            except NotAPush as error:
                outcomes[error.outcome] += 1
                if error.outcome != "ignored":
                    _log.warning("message about a push dropped", source=spec.name, reason=str(error))
            else:
                outcomes["deletion" if push.is_deletion else "push"] += 1
                (emptied if push.is_deletion else spots).append(push.spot)
        if (spots or emptied) and not await self._runs.queue_pushes(spec.name, spots, emptied):
            _log.warning("pushes wait in their queue", source=spec.name, reason="as many as allowed wait here already")
            return False
        if outcomes:
            await self._runs.count(f"source:{spec.name}", outcomes)
        return True
