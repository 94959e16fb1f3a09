from collections.abc import Iterator
from pathlib import Path

import pytest

from entrepot.storage.database import Database
from tests.support.servers import PostgreSql


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/entrepot.db"
    server: PostgreSql = request.getfixturevalue("postgresql_server")
    return server.create()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A database with this version's schema."""
    database = Database(url)
    database.migrate()
    yield database
    database.close()
