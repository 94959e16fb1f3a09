"""How the database is kept in PostgreSQL: many processes on many machines, and every wait is bounded."""

from contextlib import AbstractContextManager, nullcontext

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from entrepot.errors import DatabaseUnavailable, EntrepotError, StorageFull

_CONNECT_SECONDS = 5
# Transactions are milliseconds long. One that takes this long waits for something that will not come.
_STATEMENT_SECONDS = 15
_LOCK_SECONDS = 10
_POOL_SECONDS = 10
# Any number will do, so long as every version takes the same.
_SCHEMA_LOCK = 0x656E7472

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_SERIALIZATION_FAILURE, _DEADLOCK, _FOREIGN_KEY_VIOLATION = "40001", "40P01", "23503"
_DISK_FULL = "53100"
_READ_ONLY = "25006"
_AWAY = {
    "55P03",  # lock_not_available
    "57014",  # query_canceled, by statement_timeout
    "25P03",  # idle_in_transaction_session_timeout
    _READ_ONLY,
}


class PostgreSql:
    """The part of `Database` that knows PostgreSQL 15 and later. `connections` is the most that this process opens."""

    def __init__(self, url: sa.URL, connections: int) -> None:
        # One is left for signals and counts, which have threads of their own.
        self.writers = max(2, connections * 3 // 10)
        self.readers = max(2, connections - self.writers - 1)
        limits = (
            f"-c statement_timeout={_STATEMENT_SECONDS}s -c lock_timeout={_LOCK_SECONDS}s "
            f"-c idle_in_transaction_session_timeout={_STATEMENT_SECONDS}s"
        )
        self.engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=connections,
            max_overflow=0,
            pool_timeout=_POOL_SECONDS,
            # Idle connections stay idle, so that a server behind a balancer may close them.
            pool_use_lifo=True,
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "tcp_user_timeout": _STATEMENT_SECONDS * 1000,
                "keepalives_idle": 30,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "application_name": "entrepot",
                "options": limits,
            },
        )

    def prepare(self) -> None:
        """Nothing to do: the database is made by whoever runs the server."""

    def connect(self, *, is_write: bool) -> sa.Connection:
        """A connection for reading, in one view of the data, or for writing."""
        if is_write:
            return self.engine.connect().execution_options(isolation_level="READ COMMITTED", postgresql_readonly=False)
        return self.engine.connect().execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def turn(self) -> AbstractContextManager[None]:
        """Nobody waits: writers go on side by side."""
        return nullcontext()

    def lock_schema(self, connection: sa.Connection) -> None:
        """Let one process migrate at a time; the lock ends with the transaction."""
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))

    def is_conflict(self, error: DBAPIError) -> bool:
        """Whether a transaction lost against another, and would see its outcome if it began again.

        A foreign key that breaks is one, too: what the transaction had found was deleted before it was done.
        """
        return _code(error) in {_SERIALIZATION_FAILURE, _DEADLOCK, _FOREIGN_KEY_VIOLATION}

    def translate(self, error: DBAPIError) -> EntrepotError | None:
        """Our error for one of the library's; None for a mistake of ours."""
        code = _code(error)
        if code == _DISK_FULL:
            return StorageFull("the database's disk is full; nothing was written")
        if code == _READ_ONLY:
            # What was the writer until a failover: every connection leads to it.
            self.engine.dispose()
        if code in _AWAY or isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
            return DatabaseUnavailable("the database does not answer; try again in a moment")
        return None


def _code(error: DBAPIError) -> str | None:
    code: str | None = getattr(error.orig, "sqlstate", None)
    return code
