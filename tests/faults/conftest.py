import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from entrepot.replication.backoff import Backoff, Deadlines
from entrepot.replication.records import RunFilter
from entrepot.replication.replications import Replications
from entrepot.replication.rulebook import Rulebook
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Run, RunLimits, Runs
from entrepot.replication.sources import Sources
from entrepot.replication.worker import work
from entrepot.storage.clock import Clock, utc_now
from tests.support.hostile import HostileRegistry, serving
from tests.support.served import TESTER, Served
from tests.support.whole import verify_explained, verify_whole

RULE = "all"
# For sources that answer, however busy the machine; and for those of whose silence a test is about.
PATIENT = Deadlines(connect_seconds=30, idle_seconds=30, answer_seconds=30)
IMPATIENT = Deadlines(connect_seconds=5, idle_seconds=1, answer_seconds=2)
HASTY = Backoff(attempts=3, first_seconds=0.01, most_seconds=0.05, patience_seconds=0.2)
LIMITS = RunLimits(beat_seconds=0.05, tries=4, backoff=HASTY, concurrency=4)


class FakeClock:
    """An instant that moves when it is told to."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


class Replicating:
    """Replication from a hostile registry into the served application. Each one is as another process would be."""

    def __init__(
        self,
        served: Served,
        deadlines: Deadlines = PATIENT,
        backoff: Backoff = HASTY,
        monotonic: Callable[[], float] = time.monotonic,
        limits: RunLimits = LIMITS,
        clock: Clock = utc_now,
    ) -> None:
        self.served = served
        self.deadlines = deadlines
        self._backoff = backoff
        self._monotonic = monotonic
        self._opened: tuple[Deadlines, Sources] | None = None
        self.clock = clock
        parts = served.parts
        self.rulebook = Rulebook(parts.database, parts.signals, clock)
        self.runs = Runs(parts.database, parts.signals, self.rulebook, clock, limits)
        self.replications = Replications(
            parts.database,
            self.runs,
            self.rulebook,
            parts.registry,
            parts.uploads,
            clock,
            open_source=lambda spec: self._sources().open(spec),
        )

    def _sources(self) -> Sources:
        """What opens sources with the deadlines that hold now; it keeps the logins of ECR, as in the program."""
        if self._opened is None or self._opened[0] != self.deadlines:
            sources = Sources(deadlines=self.deadlines, backoff=self._backoff, monotonic=self._monotonic)
            self._opened = (self.deadlines, sources)
        return self._opened[1]

    def beside(self, **limits: Any) -> "Replicating":
        """Another process, with other limits."""
        return Replicating(
            self.served, self.deadlines, self._backoff, self._monotonic, replace(LIMITS, **limits), self.clock
        )

    async def apply(self, url: str, **fields: Any) -> None:
        """Apply a rule that copies everything below smm/, from a source with these fields."""
        document = {
            "sources": {"hostile": {"type": "oci", "url": url, **fields}},
            "rules": {RULE: rule_of("smm/*")},
        }
        await self.rulebook.apply(parse_rule_file(document), TESTER)

    async def apply_other(self, name: str, repository: str, **fields: Any) -> None:
        """Apply another rule, that copies everything of a repository, or of those that a glob means."""
        document = {"rules": {name: rule_of(repository, **fields)}}
        await self.rulebook.apply(parse_rule_file(document), TESTER)

    async def apply_rule(self, **fields: Any) -> None:
        """Apply the rule with other fields."""
        await self.apply_other(RULE, "smm/*", **fields)

    async def run(self) -> Run:
        """Run it; whatever happens, it is explained."""
        run = await self.replications.run(RULE, TESTER)
        await verify_explained(self.served, run)
        return run

    async def latest(self, rule: str = RULE) -> Run:
        """The latest run of a rule."""
        return (await self.runs.list_runs(RunFilter(rule), 1))[0]

    async def status(self) -> str:
        """The status of the latest run."""
        return (await self.latest()).status


def rule_of(repository: str, **fields: Any) -> dict[str, Any]:
    """A rule that copies everything of a repository, or of those that a glob means."""
    return {"source": "hostile", "repositories": [repository], "tags": {"include": ["*"]}} | fields


@asynccontextmanager
async def working(*some: Replicating) -> AsyncIterator[asyncio.Event]:
    """Workers, which end when the event is set, or the context."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(work(one.runs, one.replications, stop)) for one in some]
    try:
        yield stop
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def eventually(ask: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Return once `ask` answers True."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await ask():
        assert asyncio.get_running_loop().time() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


@pytest.fixture
async def hostile() -> AsyncIterator[HostileRegistry]:
    async with serving() as registry:
        yield registry


@pytest.fixture
async def replicating(served: Served, hostile: HostileRegistry) -> AsyncIterator[Replicating]:
    """Replication of all that is below smm/; whatever a test does to it, nothing is half visible in the end."""
    replicating = Replicating(served)
    await replicating.apply(hostile.url)
    yield replicating
    await verify_whole(served)
