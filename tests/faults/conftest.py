import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from entrepot.replication.backoff import Backoff, Deadlines
from entrepot.replication.rules import parse_rule_file
from entrepot.replication.runs import Replications, Run
from entrepot.replication.sources import Sources
from entrepot.storage.clock import utc_now
from tests.support.hostile import HostileRegistry, serving
from tests.support.served import TESTER, Served

RULE = "all"
# For sources that answer, however busy the machine; and for those of whose silence a test is about.
PATIENT = Deadlines(connect_seconds=30, idle_seconds=30, answer_seconds=30)
IMPATIENT = Deadlines(connect_seconds=5, idle_seconds=1, answer_seconds=2)
HASTY = Backoff(attempts=3, first_seconds=0.01, most_seconds=0.05, patience_seconds=0.2)


class Replicating:
    """Replication from a hostile registry into the served application."""

    def __init__(
        self,
        served: Served,
        deadlines: Deadlines = PATIENT,
        backoff: Backoff = HASTY,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.served = served
        self.deadlines = deadlines
        self.replications = Replications(
            served.parts.database,
            served.parts.registry,
            utc_now,
            concurrency=4,
            open_source=lambda spec: Sources(deadlines=self.deadlines, backoff=backoff, monotonic=monotonic).open(spec),
        )

    async def apply(self, url: str, **login: str) -> None:
        """Apply a rule that copies everything below smm/."""
        document = {
            "sources": {"hostile": {"type": "oci", "url": url, **login}},
            "rules": {RULE: {"source": "hostile", "repositories": ["smm/*"], "tags": {"include": ["*"]}}},
        }
        await self.replications.apply(parse_rule_file(document), TESTER)

    async def apply_rule(self, **fields: Any) -> None:
        """Apply the rule with other fields."""
        rule = {"source": "hostile", "repositories": ["smm/*"], "tags": {"include": ["*"]}} | fields
        await self.replications.apply(parse_rule_file({"rules": {RULE: rule}}), TESTER)

    async def run(self) -> Run:
        """Run it."""
        return await self.replications.run(RULE, TESTER)


@pytest.fixture
async def hostile() -> AsyncIterator[HostileRegistry]:
    async with serving() as registry:
        yield registry


@pytest.fixture
async def replicating(served: Served, hostile: HostileRegistry) -> Replicating:
    replicating = Replicating(served)
    await replicating.apply(hostile.url)
    return replicating
