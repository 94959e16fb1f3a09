"""SQLite's one writer at a time: in turns between processes, and together within one."""

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from entrepot.errors import AccountUnknown, DatabaseUnavailable
from entrepot.storage import database as database_module
from entrepot.storage.database import Database
from entrepot.storage.tables import installation
from entrepot.storage.turns import Turns


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/entrepot.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    opened.migrate()
    yield opened
    opened.close()


def put(connection: sa.Connection, name: str) -> str:
    connection.execute(installation.insert().values(name=name, value="x"))
    return name


def names(database: Database) -> set[str]:
    query = sa.select(installation.c.name).where(installation.c.name.like("test-%"))
    return set(database.read_now(lambda connection: connection.scalars(query).all()))


def write_without_pause(url: str, begun: Event, stop: Event) -> None:
    """What a process does that has always more to write."""
    database = Database(url)
    number = 0
    while not stop.is_set():
        number += 1

        def work(connection: sa.Connection, number: int = number) -> None:
            put(connection, f"other-{number}")
            time.sleep(0.02)

        database.write_now(work)
        begun.set()
    database.close()


def test_a_process_that_writes_all_the_time_lets_others_write(url: str, database: Database) -> None:
    context = multiprocessing.get_context("spawn")
    begun, stop = context.Event(), context.Event()
    other = context.Process(target=write_without_pause, args=(url, begun, stop))
    other.start()
    try:
        assert begun.wait(60)
        waits = []
        for number in range(10):
            time.sleep(0.1)  # the other is at it again
            asked_at = time.monotonic()
            database.write_now(lambda connection, number=number: put(connection, f"test-{number}"))
            waits.append(time.monotonic() - asked_at)
        # Each comes after one or two transactions of the other; the rest is for a slow machine. It would be tens of
        # seconds if whoever asks first when the lock is free got it.
        assert sum(waits) < 4
    finally:
        stop.set()
        other.join()


def test_who_waits_too_long_for_a_turn_goes_on(tmp_path: Path) -> None:
    """A process that was stopped in its turn keeps it; SQLite's own lock then decides."""
    with Turns(tmp_path / "x", 10).take():
        asked_at = time.monotonic()
        with Turns(tmp_path / "x", 0.2).take():
            assert time.monotonic() - asked_at >= 0.2


def test_turns_are_no_must(url: str, database: Database, tmp_path: Path) -> None:
    """Who may not make the files of the line writes all the same."""
    for name in ("entrepot.db-line", "entrepot.db-turn"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
    database.write_now(lambda connection: put(connection, "test-1"))
    assert names(database) == {"test-1"}


class Held:
    """The writer's thread, kept busy until it is let go, while others come up."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._go = threading.Event()
        self._is_held = threading.Event()
        self.commits = 0
        event.listen(database._dialect.engine, "commit", self._count)

    def _count(self, _connection: sa.Connection) -> None:
        self.commits += 1

    async def hold(self) -> "asyncio.Task[None]":
        def wait(_connection: sa.Connection) -> None:
            self._is_held.set()
            assert self._go.wait(30)

        task = asyncio.create_task(self._database.write(wait))
        await asyncio.to_thread(self._is_held.wait, 30)
        return task

    def let_go(self) -> None:
        self.commits = 0
        self._go.set()


async def come_up(database: Database, *works: object) -> "list[asyncio.Task[str]]":
    tasks = [asyncio.create_task(database.write(work)) for work in works]  # type: ignore[arg-type]
    await asyncio.sleep(0.05)  # each has come as far as the line
    return tasks


async def test_what_waits_together_is_committed_together(database: Database) -> None:
    held = Held(database)
    first = await held.hold()
    wanted = [f"test-{number}" for number in range(30)]
    tasks = await come_up(database, *(lambda connection, name=name: put(connection, name) for name in wanted))
    held.let_go()
    # Each gets its own answer, and by then it is there for everybody.
    assert await asyncio.gather(*tasks) == wanted
    assert held.commits == 2  # of the one that was held, and of all that waited
    assert names(database) == set(wanted)
    await first


async def test_one_that_is_refused_takes_nothing_of_the_others(database: Database) -> None:
    held = Held(database)
    first = await held.hold()

    def refused(connection: sa.Connection) -> str:
        put(connection, "test-refused")
        raise AccountUnknown("no")

    def broken(connection: sa.Connection) -> str:
        put(connection, "test-broken")
        raise ZeroDivisionError

    tasks = await come_up(
        database,
        lambda connection: put(connection, "test-1"),
        refused,
        broken,
        lambda connection: put(connection, "test-2"),
    )
    held.let_go()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    assert [done[0], done[3]] == ["test-1", "test-2"]
    assert isinstance(done[1], AccountUnknown)
    assert isinstance(done[2], ZeroDivisionError)
    assert held.commits == 2
    assert names(database) == {"test-1", "test-2"}


async def test_one_that_breaks_the_transaction_leaves_the_others_to_themselves(database: Database) -> None:
    held = Held(database)
    first = await held.hold()
    tasks = await come_up(
        database,
        lambda connection: put(connection, "test-1"),
        lambda connection: put(connection, "test-1"),  # the same once more: the database refuses
        lambda connection: put(connection, "test-2"),
    )
    held.let_go()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    assert [done[0], done[2]] == ["test-1", "test-2"]
    assert isinstance(done[1], sa.exc.IntegrityError)
    assert names(database) == {"test-1", "test-2"}


async def test_what_waited_too_long_is_never_written(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(database)
    first = await held.hold()
    with monkeypatch.context() as hasty:
        hasty.setattr(database_module, "_ANSWER_SECONDS", 0.1)
        with pytest.raises(DatabaseUnavailable):
            await database.write(lambda connection: put(connection, "test-late"))
    held.let_go()
    await first
    await database.write(lambda connection: put(connection, "test-after"))
    assert names(database) == {"test-after"}
