"""What shared counters must do, in the database alone and with Redis beside it."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from entrepot.errors import DatabaseUnavailable
from entrepot.storage import counters as counters_module
from entrepot.storage.counters import FAILURES, Amounts, Change, Counters, CounterStore
from entrepot.storage.database import Database
from entrepot.storage.database_counters import DatabaseCounters
from entrepot.storage.redis_counters import RedisCounters
from entrepot.storage.tables import counters as table
from tests.support.servers import Redis
from tests.support.servers import redis as serve_redis

START = int(time.time()) // 3600 * 3600
HOUR = (START, START + 3600)
OpenCounters = Callable[..., Counters]


class Processes:
    """Opens the counters of one process after another, on the same stores."""

    def __init__(self, url: str, redis_url: str | None) -> None:
        self.url = url
        self.redis_url = redis_url
        self._space = os.urandom(8).hex()
        self._opened: list[tuple[Counters, Database]] = []

    def open(self, *, least: int = 1) -> Counters:
        database = Database(self.url)
        stores: list[CounterStore] = [DatabaseCounters(database)]
        if self.redis_url is not None:
            stores.insert(0, RedisCounters(self.redis_url, space=self._space))
        counters = Counters(stores, capacity=1000, least=least)
        self._opened.append((counters, database))
        return counters

    def forget(self) -> None:
        """Let the stores lose all that they have."""
        self._opened[0][1].write_now(lambda connection: connection.execute(table.delete()))
        if self.redis_url is not None:
            redis.Redis.from_url(self.redis_url).flushall()

    async def close(self) -> None:
        for counters, database in self._opened:
            await counters.stop()
            counters.close()
            database.close()


@pytest.fixture(params=["database", "redis"])
async def processes(request: pytest.FixtureRequest, url: str, database: Database) -> AsyncIterator[Processes]:
    redis_url = request.getfixturevalue("redis_server").url if request.param == "redis" else None
    processes = Processes(url, redis_url)
    yield processes
    await processes.close()


async def settle(*counters: Counters) -> None:
    for one in counters:
        assert await one.settle()


def failures(store: str) -> float:
    return FAILURES.labels(store)._value.get()


async def test_every_process_hears_what_all_have_together(processes: Processes) -> None:
    here, there = processes.open(), processes.open()
    here.tally("pulls:1", *HOUR).add(3)
    there.tally("pulls:1", *HOUR).add(4)
    assert here.tally("pulls:1", *HOUR).amount() == 3  # at once, without asking
    await settle(here, there)
    assert there.tally("pulls:1", *HOUR).amount() == 7
    here.tally("pulls:1", *HOUR).ask()
    await settle(here)
    assert here.tally("pulls:1", *HOUR).amount() == 7
    here.tally("pulls:1", *HOUR).add(1)
    assert (here.tally("pulls:1", *HOUR).known(), here.tally("pulls:1", *HOUR).unshared()) == (7, 1)


async def test_names_windows_and_members_are_apart(processes: Processes) -> None:
    here, there = processes.open(), processes.open()
    here.tally("pulls:1", *HOUR).add(1)
    here.tally("pulls:2", *HOUR).add(2)
    here.tally("pulls:1", START - 3600, START).add(3)
    here.tally("networks:1", *HOUR).add(1, "192.0.2.0/24")
    here.tally("networks:1", *HOUR).add(5, "2001:db8::/48")
    await settle(here)
    there.tally("networks:1", *HOUR).add(1, "")
    for name in ("pulls:1", "pulls:2"):
        there.tally(name, *HOUR).ask()
    there.tally("pulls:1", START - 3600, START).ask()
    await settle(there)
    assert there.tally("pulls:1", *HOUR).amount() == 1
    assert there.tally("pulls:2", *HOUR).amount() == 2
    assert there.tally("pulls:1", START - 3600, START).amount() == 3
    networks = there.tally("networks:1", *HOUR)
    assert networks.count_members() == 3
    assert [networks.amount(member) for member in ("", "192.0.2.0/24", "2001:db8::/48", "x")] == [1, 1, 5, 0]


async def test_what_is_taken_back_is_gone(processes: Processes) -> None:
    here, there = processes.open(), processes.open()
    tally = here.tally("pulls:1", *HOUR)
    tally.add(6)
    await settle(here)
    tally.add(-1)
    assert tally.amount() == 5
    await settle(here)
    there.tally("pulls:1", *HOUR).ask()
    await settle(here, there)
    assert (tally.amount(), there.tally("pulls:1", *HOUR).amount()) == (5, 5)


async def test_large_amounts_stay_exact(processes: Processes) -> None:
    here, there = processes.open(), processes.open()
    here.tally("bytes:1", *HOUR).add(10**15)
    there.tally("bytes:1", *HOUR).add(7)
    await settle(here, there)
    assert there.tally("bytes:1", *HOUR).amount() == 10**15 + 7


async def test_a_store_that_lost_its_memory_has_it_back(processes: Processes) -> None:
    here, there = processes.open(), processes.open()
    here.tally("pulls:1", *HOUR).add(100)
    here.tally("pulls:2", *HOUR).add(10)
    await settle(here)
    processes.forget()
    there.tally("pulls:1", *HOUR).add(1)
    await settle(there)  # which knows of nothing else yet
    here.tally("pulls:1", *HOUR).add(1)
    here.tally("pulls:2", *HOUR).ask()
    await settle(here)
    await settle(here)  # what was only asked for is told the time after
    there.tally("pulls:1", *HOUR).ask()
    there.tally("pulls:2", *HOUR).ask()
    await settle(there)
    assert there.tally("pulls:1", *HOUR).amount() == 101
    assert there.tally("pulls:2", *HOUR).amount() == 10


async def test_what_was_learned_elsewhere_is_counted_once(processes: Processes) -> None:
    """Two processes that find the same in the database tell the store of it, not each of its own."""
    here, there = processes.open(), processes.open()
    for counters in (here, there):
        counters.tally("pulls:1", *HOUR).learn({"": 50})
        counters.tally("pulls:1", *HOUR).add(1)
    await settle(here, there)
    assert there.tally("pulls:1", *HOUR).amount() == 52


async def test_everybody_who_waits_shares_one_exchange(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    here = processes.open()
    exchanged: list[int] = []
    store = here._stores[0].store
    exchange = store.exchange

    async def noting(changes: Sequence[Change]) -> list[Amounts]:
        exchanged.append(len(changes))
        return await exchange(changes)

    monkeypatch.setattr(store, "exchange", noting)

    async def add(number: int) -> int:
        tally = here.tally(f"pulls:{number % 10}", *HOUR)
        tally.add(1)
        assert await here.settle()
        return tally.known()

    assert await asyncio.gather(*(add(number) for number in range(200))) == [20] * 200
    assert exchanged == [10]


async def test_processes_that_count_at_the_same_time_lose_nothing(processes: Processes) -> None:
    everybody = [processes.open() for _ in range(4)]

    async def count(counters: Counters) -> None:
        for _ in range(10):
            for number in range(20):
                counters.tally(f"pulls:{number}", *HOUR).add(1)
            assert await counters.settle()

    await asyncio.gather(*map(count, everybody))
    last = processes.open()
    for number in range(20):
        last.tally(f"pulls:{number}", *HOUR).ask()
    await settle(last)
    assert {last.tally(f"pulls:{number}", *HOUR).amount() for number in range(20)} == {40}


async def test_little_is_kept_for_oneself(processes: Processes) -> None:
    here, there = processes.open(least=4), processes.open()
    here.tally("failures:1", *HOUR).add(3)
    here.tally("failures:2", *HOUR).add(4)
    await settle(here)
    for name in ("failures:1", "failures:2"):
        there.tally(name, *HOUR).ask()
    await settle(there)
    assert [there.tally(name, *HOUR).amount() for name in ("failures:1", "failures:2")] == [0, 4]
    here.tally("failures:1", *HOUR).add(1)
    there.tally("failures:1", *HOUR).ask()
    await settle(here, there)
    assert there.tally("failures:1", *HOUR).amount() == 4


async def test_it_exchanges_by_itself_and_before_it_stops(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters_module, "FLUSH_SECONDS", 0.05)
    here, there = processes.open(), processes.open()
    here.start()
    here.tally("pulls:1", *HOUR).add(1)
    deadline = time.monotonic() + 10
    while not here.tally("pulls:1", *HOUR).known():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    here.tally("pulls:1", *HOUR).add(1)
    await here.stop()
    there.tally("pulls:1", *HOUR).ask()
    await settle(there)
    assert there.tally("pulls:1", *HOUR).amount() == 2


async def test_it_remembers_a_bounded_number_and_loses_nothing_by_it(processes: Processes) -> None:
    here, there = processes.open(), processes.open()
    for number in range(1200):
        here.tally(f"pulls:{number}", *HOUR).add(1)
    assert here.find("pulls:0", START) is None
    await settle(here)
    there.tally("pulls:0", *HOUR).ask()
    await settle(there)
    assert there.tally("pulls:0", *HOUR).amount() == 1


@pytest.mark.parametrize("processes", ["database"], indirect=True)
async def test_what_has_ended_is_dropped_from_the_database(processes: Processes, database: Database) -> None:
    here = processes.open()
    here.tally("pulls:old", START - 7200, START - 3600).add(1)
    here.tally("pulls:new", *HOUR).add(1)
    await settle(here)
    await DatabaseCounters(database).prune(datetime.fromtimestamp(START, UTC) - timedelta(minutes=10))
    names = database.read_now(lambda connection: connection.scalars(sa.select(table.c.name)).all())
    assert names == ["pulls:new"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
class TestRedis:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Redis]:
        """A Redis of its own, that may be killed."""
        with serve_redis(tmp_path) as server:
            yield server

    @pytest.fixture
    async def processes(self, url: str, database: Database, server: Redis) -> AsyncIterator[Processes]:
        processes = Processes(url, server.url)
        yield processes
        await processes.close()

    async def test_what_it_has_ends_by_itself(self, processes: Processes, server: Redis) -> None:
        here = processes.open()
        here.tally("pulls:1", *HOUR).add(1)
        await settle(here)
        client = redis.Redis.from_url(server.url)
        (key,) = client.keys("entrepot:*:count:pulls:1:*")
        assert 3600 < client.ttl(key) <= 2 * 3600

    async def test_killing_it_loses_nothing_that_all_had_heard(
        self, processes: Processes, server: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The database takes its place, and when it is back it hears how far things are."""
        monkeypatch.setattr(counters_module, "_REST_SECONDS", 0.2)
        here, there = processes.open(), processes.open()
        tally, other = here.tally("pulls:1", *HOUR), there.tally("pulls:1", *HOUR)
        tally.add(10)
        other.add(5)
        await settle(here, there)
        tally.ask()
        await settle(here)
        there.tally("pulls:2", *HOUR).add(7)
        await settle(there)
        before = failures("redis")
        server.process.kill()
        tally.add(1)
        other.add(1)
        await settle(here, there, there)
        tally.ask()
        here.tally("pulls:2", *HOUR).ask()
        await settle(here)
        assert here.tally("pulls:2", *HOUR).amount() == 7  # nobody counted in it since
        assert (tally.amount(), other.amount()) == (17, 17)
        assert failures("redis") > before
        server.restart()
        await asyncio.sleep(0.5)
        after = failures("redis")
        other.add(1)
        tally.add(1)
        await settle(there, here)
        assert failures("redis") == after
        assert tally.amount() == 19
        client = redis.Redis.from_url(server.url)
        (key,) = client.keys("entrepot:*:count:pulls:1:*")
        assert client.hget(key, "") == b"19"

    async def test_one_that_hangs_is_left_alone_soon(self, processes: Processes, server: Redis) -> None:
        here, there = processes.open(), processes.open()
        tally = here.tally("pulls:1", *HOUR)
        tally.add(1)
        await settle(here)
        os.kill(server.process.popen.pid, signal.SIGSTOP)
        try:
            tally.add(1)
            begun = time.monotonic()
            await here.settle()
            assert time.monotonic() - begun < 3
            tally.add(1)
            begun = time.monotonic()
            await settle(here)  # in the database, at once
            assert time.monotonic() - begun < 1
            there.tally("pulls:1", *HOUR).ask()
            await there.settle()
            there.tally("pulls:1", *HOUR).ask()
            await settle(there)
            assert there.tally("pulls:1", *HOUR).amount() == 3
        finally:
            os.kill(server.process.popen.pid, signal.SIGCONT)

    async def test_nonsense_from_it_is_a_failure(self, processes: Processes, server: Redis) -> None:
        here = processes.open()
        here.tally("pulls:1", *HOUR).add(1)
        await settle(here)
        client = redis.Redis.from_url(server.url)
        (key,) = client.keys("entrepot:*:count:pulls:1:*")
        client.delete(key)
        client.set(key, "x")
        before = failures("redis")
        here.tally("pulls:1", *HOUR).add(1)
        await settle(here)
        assert failures("redis") == before + 1
        assert here.tally("pulls:1", *HOUR).amount() == 2


class Faulty:
    """A store that takes in what it is told, and then fails."""

    name = "faulty"

    def __init__(self, store: CounterStore) -> None:
        self.store = store
        self.error: Exception | None = None
        self.is_lost = False

    async def exchange(self, changes: Sequence[Change]) -> list[Amounts]:
        answer = [] if self.is_lost else await self.store.exchange(changes)
        if self.error is not None:
            raise self.error
        return answer

    async def prune(self, before: datetime) -> None:
        raise AssertionError

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        pytest.param(DatabaseUnavailable("away"), True, id="certainly-not-taken"),
        pytest.param(TimeoutError(), False, id="taken-but-not-answered"),
        pytest.param(TimeoutError(), True, id="neither-taken-nor-answered"),
        pytest.param(RuntimeError("a mistake"), True, id="mistake"),
    ],
)
async def test_where_nobody_answers_nothing_is_lost_or_counted_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception, is_lost: bool
) -> None:
    monkeypatch.setattr(counters_module, "_REST_SECONDS", 0.05)
    store = Faulty(DatabaseCounters(database))
    counters = Counters([store], capacity=10)
    tally = counters.tally("pulls:1", *HOUR)
    tally.add(2)
    await settle(counters)
    before = failures("faulty")
    store.error, store.is_lost = error, is_lost
    tally.add(3)
    assert not await counters.settle()
    assert not await counters.settle()  # not even asked again, for now
    assert failures("faulty") == before + 1
    assert tally.amount() == 5
    store.error, store.is_lost = None, False
    await asyncio.sleep(0.1)
    tally.add(1)
    await settle(counters)
    assert tally.amount() == 6
    assert (tally.known(), tally.unshared()) == (6, 0)
    await counters.stop()
