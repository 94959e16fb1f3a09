"""How the database is kept in SQLite: one file, many readers, one writer at a time."""

import sqlite3
import time
from contextlib import AbstractContextManager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from entrepot.errors import DatabaseUnavailable, EntrepotError, SettingsInvalid, StorageFull
from entrepot.storage.turns import Turns

_READERS = 8
# How long a writer waits for another process's transaction before it gives up. Transactions are milliseconds long.
_LOCK_TIMEOUT_SECONDS = 15


class Sqlite:
    """The part of `Database` that knows SQLite."""

    readers = _READERS
    # A queue in front of the one writer is cheaper than SQLite's lock.
    writers = 1

    def __init__(self, url: sa.URL) -> None:
        if not url.database or url.database == ":memory:":
            raise SettingsInvalid("ENTREPOT_DATABASE_URL: SQLite needs a file; use sqlite:///PATH")
        self._path = Path(url.database)
        self._turns = Turns(self._path, _LOCK_TIMEOUT_SECONDS)
        # Two more than readers: for signals and counts, which have threads of their own.
        self.engine = sa.create_engine(
            url, pool_size=_READERS + 3, max_overflow=0, connect_args={"check_same_thread": False}
        )
        event.listen(self.engine, "connect", _prepare)
        event.listen(self.engine, "begin", _begin)

    def prepare(self) -> None:
        """Make the folder of a database that is not there yet."""
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def connect(self, *, is_write: bool) -> sa.Connection:
        """A connection for reading, or for writing."""
        return self.engine.connect().execution_options(entrepot_write=is_write)

    def turn(self) -> AbstractContextManager[None]:
        """Stand in line with other processes, lest one of them waits for as long as this one writes."""
        return self._turns.take()

    def lock_schema(self, connection: sa.Connection) -> None:
        """Nothing to do: a writer is alone."""

    def is_conflict(self, error: DBAPIError) -> bool:  # noqa: ARG002
        """Never: a writer is alone, so that no transaction can lose against another."""
        return False

    def translate(self, error: DBAPIError) -> EntrepotError | None:
        """Our error for one of the library's; None for a mistake of ours."""
        if "disk is full" in str(error.orig):
            return StorageFull("the database's disk is full; nothing was written")
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return DatabaseUnavailable(f"{self._path} is damaged, or no SQLite database; restore it from a backup")
        if code == sqlite3.SQLITE_CANTOPEN:
            return DatabaseUnavailable(f"{self._path} cannot be opened; check the path and its permissions")
        if isinstance(error.orig, sqlite3.OperationalError) or error.connection_invalidated:
            return DatabaseUnavailable("the database does not answer; try again in a moment")
        return None


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    """WAL lets readers go on while one process writes; FULL makes a commit survive a power cut."""
    connection.isolation_level = None  # transactions are begun below, not by the driver
    connection.execute(f"PRAGMA busy_timeout = {_LOCK_TIMEOUT_SECONDS * 1000}")
    _use_wal(connection)
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        # 4 MB a connection instead of 2, for the upper levels of the indexes over a million rows.
        "cache_size = -4000",
        "temp_store = MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn WAL on, which stays on: SQLite does not wait for its lock when several processes do so at once."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin(connection: sa.Connection) -> None:
    """Take the write lock at once: a read that becomes a write fails with SQLITE_BUSY without waiting."""
    is_write = connection.get_execution_options().get("entrepot_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
