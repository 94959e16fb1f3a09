"""The database: engine, transactions, migrations.

Statements live in each feature's `records.py` and take a connection; this module decides where and how they run. A
statement never runs on the event loop: reads share a small pool of threads, writes have their own.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from entrepot.errors import DatabaseUnavailable, SettingsInvalid, StorageFull

T = TypeVar("T")
Work = Callable[[sa.Connection], T]

READERS = 8
# The latest migration. Kept here as well, so that only a process that has to migrate loads the library for it.
SCHEMA = "0001"
_VERSION_TABLE = "alembic_version"
# How long a writer waits for another process's transaction before it gives up. Transactions are milliseconds long.
_LOCK_TIMEOUT_SECONDS = 15


class Database:
    """One database, shared by every feature of this process."""

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        if self.url.get_backend_name() != "sqlite" or not self.url.database:
            raise SettingsInvalid(
                f"ENTREPOT_DATABASE_URL {self.url.render_as_string(hide_password=True)!r}: "
                "this version keeps its data in SQLite; use sqlite:///PATH"
            )
        self._engine = sa.create_engine(
            self.url, pool_size=READERS + 2, max_overflow=0, connect_args={"check_same_thread": False}
        )
        event.listen(self._engine, "connect", _prepare_sqlite)
        event.listen(self._engine, "begin", _begin_sqlite)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="db-read")
        # SQLite has one writer at a time: a queue in front of it is cheaper than its lock.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="db-write")

    async def read(self, work: Work[T]) -> T:
        """What `work` answers, in one consistent view of the data. Raises DatabaseUnavailable."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, work)

    async def write(self, work: Work[T]) -> T:
        """What `work` answers, in one transaction that is durable once this returns.

        Raises DatabaseUnavailable, StorageFull, or what `work` raises; then nothing of it is kept.
        """
        return await asyncio.get_running_loop().run_in_executor(self._writer, self.write_now, work)

    def read_now(self, work: Work[T]) -> T:
        """`read`, for threads."""
        return self._run(work, is_write=False)

    def write_now(self, work: Work[T]) -> T:
        """`write`, for threads."""
        return self._run(work, is_write=True)

    def _run(self, work: Work[T], *, is_write: bool) -> T:
        try:
            with (
                self._engine.connect().execution_options(entrepot_write=is_write) as connection,
                connection.begin(),
            ):
                return work(connection)
        except (OperationalError, PoolTimeout) as error:
            if "disk is full" in str(error):
                raise StorageFull("the database's disk is full; nothing was written") from error
            raise DatabaseUnavailable("the database does not answer; try again in a moment") from error
        except DBAPIError as error:
            if error.connection_invalidated:
                raise DatabaseUnavailable("the database broke off; try again in a moment") from error
            raise

    def migrate(self) -> None:
        """Bring the schema to this version. Running it twice, or on two processes at once, is harmless."""
        if self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        if self.is_migrated():
            return
        from alembic import command  # noqa: PLC0415 - see SCHEMA
        from alembic.config import Config  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._engine.connect().execution_options(entrepot_write=True) as connection, connection.begin():
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise SettingsInvalid(f"this version of entrepot cannot use the database: {error}") from error

    def is_migrated(self) -> bool:
        """Whether the schema is that of this version."""
        return self.read_now(_read_schema) == SCHEMA

    def close(self) -> None:
        """Wait for what is under way, then let go of every connection."""
        self._readers.shutdown()
        self._writer.shutdown()
        self._engine.dispose()


def _read_schema(connection: sa.Connection) -> str | None:
    """The latest migration that the database has seen; None when it is empty."""
    if not sa.inspect(connection).has_table(_VERSION_TABLE):
        return None
    version: str | None = connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table(_VERSION_TABLE)))
    return version


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """WAL lets readers go on while one process writes; FULL makes a commit survive a power cut."""
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in (
        f"busy_timeout = {_LOCK_TIMEOUT_SECONDS * 1000}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "foreign_keys = ON",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """Take the write lock at once: a read that becomes a write fails with SQLITE_BUSY without waiting."""
    is_write = connection.get_execution_options().get("entrepot_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
