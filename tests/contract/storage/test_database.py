"""What every database, and the signals through it, must do."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from entrepot.errors import DatabaseUnavailable, SettingsInvalid
from entrepot.storage import database as database_module
from entrepot.storage import signals as signals_module
from entrepot.storage.clock import utc_now
from entrepot.storage.database import SCHEMA, Database
from entrepot.storage.signals import CURRENT_SECONDS, POLL_SECONDS, Signals, publish
from entrepot.storage.statements import add_up, insert_missing, upsert
from entrepot.storage.tables import metadata, plans, repositories, usage


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/entrepot.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    database.migrate()
    yield database
    database.close()


def test_the_migrations_lead_to_the_tables_of_this_version(database: Database) -> None:
    def work(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        return list(compare_metadata(context, metadata))

    assert database.read_now(work) == []
    assert ScriptDirectory(str(Path(database_module.__file__).parent / "migrations")).get_current_head() == SCHEMA


def test_migrating_is_harmless_twice_and_at_once(url: str) -> None:
    def migrate(_: int) -> bool:
        database = Database(url)
        database.migrate()
        is_migrated = database.is_migrated()
        database.close()
        return is_migrated

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(migrate, range(8)))


def test_an_empty_database_is_not_migrated(url: str) -> None:
    database = Database(url)
    assert not database.is_migrated()
    database.close()


def test_a_database_of_a_later_version_is_refused_by_name(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.write_now(
        lambda connection: connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    )
    assert not database.is_migrated()
    with pytest.raises(SettingsInvalid, match="9999"):
        database.migrate()
    database.close()


@pytest.mark.parametrize("other", ["postgresql://x/y", "sqlite://", "mysql://x/y"])
def test_an_address_that_is_not_supported_is_refused_without_its_password(other: str) -> None:
    with pytest.raises(SettingsInvalid, match="ENTREPOT_DATABASE_URL"):
        Database(other)
    with pytest.raises(SettingsInvalid) as refusal:
        Database("postgresql://user:hidden-password@host/name")
    assert "hidden-password" not in str(refusal.value)


async def test_what_fails_leaves_nothing(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        insert_missing(connection, repositories, [{"name": "a", "created_at": utc_now()}])
        raise ValueError

    with pytest.raises(ValueError):
        await database.write(work)
    assert await database.read(lambda connection: connection.execute(sa.select(repositories)).all()) == []


def test_writers_in_two_processes_wait_for_each_other(url: str, database: Database) -> None:
    other = Database(url)
    begun = threading.Event()

    def slow(connection: sa.Connection) -> None:
        insert_missing(connection, repositories, [{"name": "slow", "created_at": utc_now()}])
        begun.set()
        time.sleep(0.5)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(database.write_now, slow)
        begun.wait()
        row = {"name": "second", "created_at": utc_now()}
        other.write_now(lambda connection: insert_missing(connection, repositories, [row]))
        first.result()
    names = other.read_now(lambda connection: set(connection.scalars(sa.select(repositories.c.name))))
    assert names == {"slow", "second"}
    other.close()


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/none/entrepot.db")
    with pytest.raises(DatabaseUnavailable, match="try again in a moment"):
        database.is_migrated()
    database.close()


def test_statements_say_what_happens_when_the_row_is_there(database: Database) -> None:
    now = utc_now()

    def work(connection: sa.Connection) -> None:
        row = {"name": "a", "document": {"v": 1}, "updated_at": now}
        assert insert_missing(connection, plans, [row]) == 1
        assert insert_missing(connection, plans, [row | {"document": {"v": 2}}]) == 0
        assert insert_missing(connection, plans, []) == 0
        assert connection.scalar(sa.select(plans.c.document)) == {"v": 1}
        upsert(connection, plans, row | {"document": {"v": 3}})
        assert connection.scalar(sa.select(plans.c.document)) == {"v": 3}

    database.write_now(work)


def test_counts_are_added_up_and_instants_kept(database: Database) -> None:
    early, late = utc_now(), utc_now()

    def count(connection: sa.Connection, pulls: int, first: object, last: object) -> None:
        row = {"account_id": 1, "repository": "a", "pulls": pulls, "bytes_served": 10}
        instants = {"first_pull_at": first, "last_pull_at": last}
        add_up(
            connection, usage, [row | instants], ["pulls", "bytes_served"], first="first_pull_at", last="last_pull_at"
        )

    def work(connection: sa.Connection) -> tuple[object, ...]:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        count(connection, 1, early, early)
        count(connection, 2, late, late)
        count(connection, 0, None, None)
        row = connection.execute(sa.select(usage)).one()
        connection.execute(usage.delete())
        return row.pulls, row.bytes_served, row.first_pull_at, row.last_pull_at

    assert database.write_now(work) == (3, 30, early, late)


class TestSignals:
    async def test_every_process_hears_of_a_committed_change(self, url: str, database: Database) -> None:
        other = Database(url)
        here, there = Signals(database, utc_now), Signals(other, utc_now)
        heard: list[tuple[str, str]] = []
        here.listen("plan", lambda key: heard.append(("here", key)))
        there.listen("plan", lambda key: heard.append(("there", key)))
        there.listen("other", lambda key: heard.append(("wrong", key)))
        here.start()
        there.start()
        await here.commit(lambda connection: publish(connection, "plan", "free", utc_now()))
        assert heard[0] == ("here", "free")  # at once, before `commit` returns
        await asyncio.sleep(POLL_SECONDS * 4)
        assert sorted(heard) == [("here", "free"), ("there", "free")]
        here.stop()
        there.stop()
        other.close()

    async def test_a_change_that_is_rolled_back_is_not_heard_of(self, database: Database) -> None:
        signals = Signals(database, utc_now)
        heard: list[str] = []
        signals.listen("plan", heard.append)
        signals.start()

        def work(connection: sa.Connection) -> None:
            publish(connection, "plan", "free", utc_now())
            raise ValueError

        with pytest.raises(ValueError):
            await signals.commit(work)
        await asyncio.sleep(POLL_SECONDS * 3)
        signals.stop()
        assert heard == []

    async def test_a_process_that_cannot_listen_knows_it(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        signals = Signals(database, utc_now)
        signals.start()
        assert signals.is_current()

        def fail(*_: object) -> None:
            raise DatabaseUnavailable("away")

        with monkeypatch.context() as away:
            away.setattr(signals_module, "_read_after", fail)
            await asyncio.sleep(CURRENT_SECONDS + POLL_SECONDS * 2)
            assert not signals.is_current()
        await asyncio.sleep(POLL_SECONDS * 3)
        assert signals.is_current()
        signals.stop()

    def test_old_notices_are_dropped_but_ids_go_on(self, database: Database) -> None:
        def work(connection: sa.Connection) -> None:
            for number in range(5):
                publish(connection, "plan", str(number), utc_now())
            signals_module._prune(connection, utc_now())

        database.write_now(work)
        before = database.read_now(signals_module._read_last_id)
        database.write_now(lambda connection: publish(connection, "plan", "new", utc_now()))
        assert [row[2] for row in database.read_now(lambda c: signals_module._read_after(c, 0))] == ["4", "new"]
        assert database.read_now(signals_module._read_last_id) == before + 1
