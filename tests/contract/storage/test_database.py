"""What every database must do."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from entrepot.errors import DatabaseUnavailable, SettingsInvalid
from entrepot.storage import database as database_module
from entrepot.storage.clock import utc_now
from entrepot.storage.database import SCHEMA, Database
from entrepot.storage.statements import add_up, insert_missing, upsert
from entrepot.storage.tables import installation, metadata, plans, repositories, tags, usage

MIGRATIONS = Path(database_module.__file__).parent / "migrations"


def test_the_migrations_lead_to_the_tables_of_this_version(database: Database) -> None:
    def work(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        return list(compare_metadata(context, metadata))

    assert database.read_now(work) == []
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == SCHEMA


def test_migrating_is_harmless_twice_and_at_once(url: str) -> None:
    def migrate(_: int) -> bool:
        database = Database(url)
        database.migrate()
        is_usable = database.schema().is_usable
        database.close()
        return is_usable

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(migrate, range(8)))


def test_an_empty_database_must_be_migrated(url: str) -> None:
    database = Database(url)
    assert database.schema().version is None
    with pytest.raises(SettingsInvalid, match="entrepot migrate"):
        database.verify_migrated()
    database.close()


def set_schema(database: Database, version: str, floor: str) -> None:
    def work(connection: sa.Connection) -> None:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version})
        connection.execute(installation.update().where(installation.c.name == "schema_floor").values(value=floor))

    database.write_now(work)


def test_a_later_schema_is_used_as_long_as_it_carries_this_version(database: Database) -> None:
    set_schema(database, "9999", SCHEMA)
    database.verify_migrated()
    database.migrate()
    set_schema(database, "9999", "9998")
    for use in (database.verify_migrated, database.migrate):
        with pytest.raises(SettingsInvalid, match=r"9999.*9998.*newer version of entrepot"):
            use()


@pytest.mark.parametrize("other", ["mysql://user:hidden-password@x/y", "sqlite://", "nonsense", ""])
def test_an_address_that_is_not_supported_is_refused_without_its_password(other: str) -> None:
    with pytest.raises(SettingsInvalid, match="ENTREPOT_DATABASE_URL") as refusal:
        Database(other)
    assert "hidden-password" not in str(refusal.value)


async def test_what_fails_leaves_nothing(database: Database) -> None:
    def work(connection: sa.Connection) -> None:
        insert_missing(connection, repositories, [{"name": "a", "created_at": utc_now()}])
        raise ValueError

    with pytest.raises(ValueError):
        await database.write(work)
    assert await database.read(lambda connection: connection.execute(sa.select(repositories)).all()) == []


def test_a_read_sees_one_view_of_the_data(database: Database) -> None:
    row = {"name": "second", "created_at": utc_now()}

    def work(connection: sa.Connection) -> tuple[int, int]:
        query = sa.select(sa.func.count()).select_from(repositories)
        before = connection.scalar(query) or 0
        with ThreadPoolExecutor(1) as pool:
            pool.submit(database.write_now, lambda other: insert_missing(other, repositories, [row])).result()
        return before, connection.scalar(query) or 0

    assert database.read_now(work) == (0, 0)


def test_writers_in_two_processes_lose_nothing(url: str, database: Database) -> None:
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


def test_transactions_that_meet_begin_again(database: Database) -> None:
    """Two that lock two rows in opposite order: one is ended by the database, and must not notice."""
    for name in ("a", "b"):
        row = {"name": name, "created_at": utc_now()}
        database.write_now(lambda connection, row=row: insert_missing(connection, repositories, [row]))
    barrier = threading.Barrier(2, timeout=0.3)

    def grow(first: str, second: str) -> None:
        def work(connection: sa.Connection) -> None:
            for name in (first, second):
                is_it = repositories.c.name == name
                size = repositories.c.size_bytes + 1
                connection.execute(repositories.update().where(is_it).values(size_bytes=size))
                try:
                    barrier.wait()
                except threading.BrokenBarrierError:
                    continue

        database.write_now(work)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(grow, "a", "b"), pool.submit(grow, "b", "a")]:
            done.result()
    sizes = database.read_now(lambda connection: list(connection.scalars(sa.select(repositories.c.size_bytes))))
    assert sizes == [2, 2]


def test_a_reference_that_goes_away_meanwhile_is_met_again(database: Database) -> None:
    """A transaction that builds on a row which another deletes begins again, and finds it gone."""
    plan = {"name": "p", "document": {}, "updated_at": utc_now()}
    database.write_now(lambda connection: insert_missing(connection, plans, [plan]))
    seen: list[bool] = []

    def work(connection: sa.Connection) -> None:
        is_there = connection.scalar(sa.select(plans.c.name)) is not None
        seen.append(is_there)
        if not is_there:
            return
        if not database.is_embedded:  # where a writer is alone, nobody can interfere
            with ThreadPoolExecutor(1) as pool:
                pool.submit(database.write_now, lambda other: other.execute(plans.delete())).result()
        row = {"name": "n", "plan": "p", "status": "active", "identity": {}, "created_at": utc_now()}
        connection.execute(metadata.tables["accounts"].insert().values(row))

    database.write_now(work)
    assert seen == ([True] if database.is_embedded else [True, False])


def test_names_are_in_the_order_of_their_bytes(database: Database) -> None:
    names = ["0.1.2", "0.1.20", "0.1.3", "Beta", "_x", "alpha", "alpha-1", "alpha.1", "alpha_1", "beta"]

    def work(connection: sa.Connection) -> list[str]:
        insert_missing(connection, repositories, [{"id": 1, "name": "r", "created_at": utc_now()}])
        manifest = {"repository_id": 1, "digest": "d", "media_type": "m", "content": b"", "created_at": utc_now()}
        insert_missing(connection, metadata.tables["manifests"], [manifest])
        rows = [{"repository_id": 1, "name": name, "digest": "d", "updated_at": utc_now()} for name in names]
        insert_missing(connection, tags, rows)
        after = sa.select(tags.c.name).where(tags.c.name > "0.1.2").order_by(tags.c.name)
        return list(connection.scalars(after))

    assert database.write_now(work) == sorted(names)[1:]


def test_a_database_that_is_not_there_is_unavailable(url: str, tmp_path: Path) -> None:
    away = f"sqlite:///{tmp_path}/none/entrepot.db" if "sqlite" in url else "postgresql://x:y@127.0.0.1:1/z"
    database = Database(away)
    with pytest.raises(DatabaseUnavailable, match=r"cannot be opened|try again in a moment"):
        database.schema()
    database.close()


def test_processes_agree_on_the_first_proposal(url: str, database: Database) -> None:
    other = Database(url)
    assert database.agree_on("colour", "green") == "green"
    assert other.agree_on("colour", "red") == "green"
    assert database.agree_on("colour", "green") == "green"
    other.close()


def test_statements_say_what_happens_when_the_row_is_there(database: Database) -> None:
    now = utc_now()

    def work(connection: sa.Connection) -> None:
        row = {"name": "a", "document": {"v": 1}, "updated_at": now}
        assert insert_missing(connection, plans, [row]) == 1
        assert insert_missing(connection, plans, [row | {"document": {"v": 2}}]) == 0
        assert insert_missing(connection, plans, []) == 0
        assert insert_missing(connection, plans, [row | {"name": name} for name in ("b", "a", "c")]) == 2
        connection.execute(plans.delete().where(plans.c.name != "a"))
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
        insert_missing(connection, plans, [{"name": "p", "document": {}, "updated_at": early}])
        account = {"id": 1, "name": "n", "plan": "p", "status": "active", "identity": {}, "created_at": early}
        insert_missing(connection, metadata.tables["accounts"], [account])
        count(connection, 1, early, early)
        count(connection, 2, late, late)
        count(connection, 0, None, None)
        row = connection.execute(sa.select(usage)).one()
        return row.pulls, row.bytes_served, row.first_pull_at, row.last_pull_at

    assert database.write_now(work) == (3, 30, early, late)
