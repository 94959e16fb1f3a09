"""What a pull counts, and what asking again for the same does, whatever becomes of the database in between."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from entrepot.access.visitors import Visitor
from entrepot.accounts.authentication import Principal
from entrepot.accounts.rechecks import RECHECK_SECONDS, Rechecks
from entrepot.accounts.usage import UsageCounter
from entrepot.accounts.usage_reports import UsageReports
from entrepot.errors import DatabaseUnavailable
from tests.support.served import Served, serve

HERE, ELSEWHERE = Visitor("10.0.0.0/24", "docker"), Visitor("10.0.1.0/24", "docker")
ONE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64
SIZE = 100


@dataclass
class Counted:
    """A counter with a clock of its own."""

    served: Served
    principal: Principal
    counter: UsageCounter
    now: float = 1_800_000_000.0

    def pull(self, times: int = 1, digest: str = ONE, visitor: Visitor = HERE) -> None:
        for _ in range(times):
            self.counter.count_pull(self.principal, "smm/api", "v1", digest, visitor, SIZE)

    async def written(self) -> tuple[int, int]:
        """(pulls, bytes) in the database."""
        await self.counter.flush()
        usage = await UsageReports(self.served.parts.database).usage_of(self.principal.account_id)
        return (usage.repositories[0].pulls, usage.repositories[0].bytes_served) if usage.repositories else (0, 0)


async def counted(served: Served) -> Counted:
    issued = await served.issue("free")
    principal = await served.parts.authenticator.authenticate_basic(issued.username, issued.secret)
    parts = served.parts
    counter = UsageCounter(parts.database, Rechecks(), parts.limiter, clock=lambda: made.now)
    made = Counted(served, principal, counter)
    return made


async def test_asking_again_adds_bytes_and_no_pull(tmp_path: Path) -> None:
    async with serve(tmp_path / "data") as served:
        it = await counted(served)
        it.pull(5)
        assert await it.written() == (1, 5 * SIZE)
        it.now += RECHECK_SECONDS - 1
        it.pull(5)  # in another batch, still the same pull
        assert await it.written() == (1, 10 * SIZE)
        it.now += 2
        it.pull(5)
        assert await it.written() == (2, 15 * SIZE)
        it.pull(3, digest=OTHER)
        it.pull(3, visitor=ELSEWHERE)
        assert await it.written() == (4, 21 * SIZE)


async def test_nothing_is_lost_while_the_database_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(tmp_path / "data") as served:
        it = await counted(served)

        async def fail(_work: object) -> None:
            it.pull(2)  # while it is being written
            raise DatabaseUnavailable("away")

        for _ in range(3):
            it.pull(3)
            with monkeypatch.context() as away:
                away.setattr(served.parts.database, "write", fail)
                await it.counter.flush()
            it.pull(1)
            it.pull(1, digest=OTHER)
        assert await it.written() == (2, 3 * 7 * SIZE)


async def test_a_clock_that_is_set_back_begins_anew(tmp_path: Path) -> None:
    async with serve(tmp_path / "data") as served:
        it = await counted(served)
        it.pull(2)
        it.now -= 3600
        it.pull(2)
        assert await it.written() == (2, 4 * SIZE)
