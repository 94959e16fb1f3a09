"""The database: where statements run, transactions, migrations.

Statements live in each feature's `records.py` and take a connection; this module decides how they run, and
`storage/sqlite.py` and `storage/postgresql.py` what differs between the two. A statement never runs on the event loop:
reads and writes have threads of their own.
"""

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from entrepot.errors import DatabaseUnavailable, EntrepotError, SettingsInvalid
from entrepot.storage.statements import insert_missing, upsert
from entrepot.storage.tables import installation
from entrepot.storage.together import Together

T = TypeVar("T")
Work = Callable[[sa.Connection], T]
"""Statements of one transaction. It may run more than once, so what it decides must come from what it reads."""

# The latest migration. Kept here as well, so that only a process that has to migrate loads the library for it.
SCHEMA = "0006"
_VERSION_TABLE = "alembic_version"
_FLOOR = "schema_floor"
# PostgreSQL gives up a statement after 15 seconds by itself; a server that hangs gives up nothing.
_ANSWER_SECONDS = 20
# Tries of a transaction that loses against others.
_TRIES = 6
_CONNECTIONS = 10


class Dialect(Protocol):
    """What differs between databases."""

    engine: sa.Engine
    readers: int
    writers: int

    def prepare(self) -> None:
        """Make what must be there before a first connection."""

    def connect(self, *, is_write: bool) -> sa.Connection:
        """A connection whose transaction is not begun yet."""

    def turn(self) -> AbstractContextManager[None]:
        """Wait until this process may write, and let others wait until the end."""

    def lock_schema(self, connection: sa.Connection) -> None:
        """Keep other processes from migrating until the transaction ends."""

    def is_conflict(self, error: DBAPIError) -> bool:
        """Whether the transaction lost against another, and may succeed when it begins again."""

    def translate(self, error: DBAPIError) -> EntrepotError | None:
        """Our error for one of the library's; None for a mistake of ours."""


@dataclass(frozen=True, slots=True)
class Schema:
    """The latest migration that a database has seen, None when it is empty.

    `floor` is the oldest schema whose programs can still use it.
    """

    version: str | None
    floor: str

    @property
    def is_usable(self) -> bool:
        """Whether this program can use it: migrated at least as far, and not beyond what this program can read."""
        return self.version is not None and self.floor <= SCHEMA <= self.version


class Database:
    """One database, shared by every feature of this process. `connections` limits those to PostgreSQL."""

    def __init__(self, url: str | sa.URL, *, connections: int = _CONNECTIONS) -> None:
        self.url = _parse_url(url)
        self._dialect = _find_dialect(self.url, connections)
        self._readers = ThreadPoolExecutor(self._dialect.readers, thread_name_prefix="db-read")
        self._writers = ThreadPoolExecutor(self._dialect.writers, thread_name_prefix="db-write")
        self._together = Together(self.write_now, self._writers) if self._dialect.writers == 1 else None

    @property
    def is_embedded(self) -> bool:
        """Whether it belongs to this installation alone, so that whoever opens it may migrate it."""
        return self.url.get_backend_name() == "sqlite"

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    async def read(self, work: Work[T]) -> T:
        """What `work` answers, in one consistent view of the data. Raises DatabaseUnavailable."""
        return await self._answer(self._readers.submit(self.read_now, work))

    async def write(self, work: Work[T]) -> T:
        """What `work` answers, in one transaction that is durable once this returns.

        Raises DatabaseUnavailable, StorageFull, or what `work` raises; then nothing of it is kept, except that nobody
        knows what a database still does that did not answer in time.
        """
        if self._together is not None:
            return await self._answer(self._together.submit(work))
        return await self._answer(self._writers.submit(self.write_now, work))

    async def _answer(self, answer: "Future[T]") -> T:
        """What a thread answers, in bounded time. What no thread has taken up by then is forgotten."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await asyncio.wrap_future(answer)
        except TimeoutError as error:
            raise DatabaseUnavailable("the database does not answer; try again in a moment") from error

    def read_now(self, work: Work[T]) -> T:
        """`read`, for threads."""
        return self._run(work, is_write=False)

    def write_now(self, work: Work[T]) -> T:
        """`write`, for threads."""
        return self._run(work, is_write=True)

    def _run(self, work: Work[T], *, is_write: bool) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return self._run_once(work, is_write=is_write)
            except _Again as again:
                error = again.error
                if tries < _TRIES:
                    # A little apart, or the same transactions meet again.
                    time.sleep(random.uniform(0, 0.01 * 2**tries))  # noqa: S311 - spreads load, guards nothing
                    continue
            except DBAPIError as raised:
                error = raised
            except PoolTimeout as raised:
                raise DatabaseUnavailable("too many requests wait for the database; try again in a moment") from raised
            translated = self._dialect.translate(error)
            raise translated or error from error

    def _run_once(self, work: Work[T], *, is_write: bool) -> T:
        """One try. Raises _Again when nothing of it was kept, and another may succeed."""
        is_done = False
        turn = self._dialect.turn() if is_write else nullcontext()
        with turn, self._dialect.connect(is_write=is_write) as connection:
            try:
                with connection.begin():
                    answer = work(connection)
                    is_done = True
            except DBAPIError as error:
                # A connection that breaks during the commit leaves open whether it happened.
                is_stale = error.connection_invalidated and not is_done
                if is_stale or self._dialect.is_conflict(error):
                    raise _Again(error) from error
                raise
            return answer

    def migrate(self) -> None:
        """Bring the schema to this version. Running it twice, or on two processes at once, is harmless.

        Raises SettingsInvalid when the database is of a version that this program cannot use.
        """
        self._dialect.prepare()
        if self._is_migrated(self.schema()):
            return
        from alembic import command  # noqa: PLC0415 - see SCHEMA
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))

        def work(connection: sa.Connection) -> None:
            self._dialect.lock_schema(connection)
            if not self._is_migrated(_read_schema(connection)):
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

        self.write_now(work)

    def _is_migrated(self, schema: Schema) -> bool:
        if schema.is_usable:
            return True
        if schema.version is not None and schema.version >= SCHEMA:
            raise SettingsInvalid(
                f"the database {self} has schema {schema.version}, for programs of schema {schema.floor} or later; "
                f"this one is of {SCHEMA}: use a newer version of entrepot"
            )
        return False

    def exists(self) -> bool:
        """Whether an embedded database has its file."""
        return self.url.database is not None and Path(self.url.database).exists()

    def schema(self) -> Schema:
        """How far the database is migrated. Raises DatabaseUnavailable."""
        return self.read_now(_read_schema)

    async def verify_usable(self) -> None:
        """Raises DatabaseUnavailable unless the database answers with a schema that this program can use."""
        if not (await self.read(_read_schema)).is_usable:
            raise DatabaseUnavailable("the database has another version's schema; run: entrepot migrate")

    def verify_migrated(self) -> None:
        """Raises SettingsInvalid unless the schema is one that this program can use."""
        schema = self.schema()
        if not self._is_migrated(schema):
            has = "has no schema yet" if schema.version is None else f"has schema {schema.version}, not {SCHEMA}"
            raise SettingsInvalid(f"the database {self} {has}; run: entrepot migrate")

    def recall(self, name: str) -> str | None:
        """The value that the installation has for `name`."""
        query = sa.select(installation.c.value).where(installation.c.name == name)
        found: str | None = self.read_now(lambda connection: connection.scalar(query))
        return found

    def remember(self, name: str, value: str) -> None:
        """Give `name` a value, for every process from now on."""
        self.write_now(lambda connection: upsert(connection, installation, {"name": name, "value": value}))

    def agree_on(self, name: str, value: str) -> str:
        """The value that the installation has for `name`: the first that any process proposed."""
        found = self.recall(name)
        if found is None:
            self.write_now(
                lambda connection: insert_missing(connection, installation, [{"name": name, "value": value}])
            )
            found = self.recall(name)
        return found or value

    def close(self) -> None:
        """Wait for what is under way, then let go of every connection."""
        self._readers.shutdown()
        self._writers.shutdown()
        self._dialect.engine.dispose()


class _Again(Exception):
    def __init__(self, error: DBAPIError) -> None:
        super().__init__(str(error))
        self.error = error


def _parse_url(given: str | sa.URL) -> sa.URL:
    url: sa.URL | None
    try:
        url = sa.make_url(given)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in {"sqlite", "postgresql"}:
        shown = "" if url is None else f" {url.render_as_string(hide_password=True)!r}"
        raise SettingsInvalid(
            f"ENTREPOT_DATABASE_URL{shown}: use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
        )
    return url


def _find_dialect(url: sa.URL, connections: int) -> Dialect:
    # Loaded here, so that nobody waits for the driver of a database that they do not use.
    if url.get_backend_name() == "postgresql":
        from entrepot.storage.postgresql import PostgreSql  # noqa: PLC0415

        return PostgreSql(url, connections)
    from entrepot.storage.sqlite import Sqlite  # noqa: PLC0415

    return Sqlite(url)


def _read_schema(connection: sa.Connection) -> Schema:
    tables = set(sa.inspect(connection).get_table_names())
    version: str | None = None
    if _VERSION_TABLE in tables:
        version = connection.scalar(sa.select(sa.column("version_num")).select_from(sa.table(_VERSION_TABLE)))
    floor: str | None = None
    if installation.name in tables:
        floor = connection.scalar(sa.select(installation.c.value).where(installation.c.name == _FLOOR))
    return Schema(version, floor or version or SCHEMA)
