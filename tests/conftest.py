from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from tests.support.aws import Moto, moto_server
from tests.support.served import RegistryClient, Served, serve
from tests.support.servers import ObjectStore, PostgreSql, Redis, postgresql, redis, seaweedfs

# How long an example takes says more of the machine than of the program.
hypothesis_settings.register_profile("patient", hypothesis_settings.default, deadline=None)
hypothesis_settings.load_profile("patient")

VARIANTS = ["folder-sqlite", "folder-postgresql", "s3-postgresql-redis"]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSql]:
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    with moto_server(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of each way to keep things, with nothing in it yet."""
    return make_variant(request)


def make_variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of the way that `request` names."""
    parts = request.param.split("-")
    settings: dict[str, Any] = {"secret_key": "0123456789abcdef" * 2}
    if "postgresql" in parts:
        database: PostgreSql = request.getfixturevalue("postgresql_server")
        settings["database_url"] = database.create_migrated()
    if "redis" in parts:
        settings["redis_url"] = request.getfixturevalue("redis_server").url
    if "s3" in parts:
        store: ObjectStore = request.getfixturevalue("object_store")
        settings |= {"storage_url": store.url(), "storage": {"endpoint": store.endpoint}}
    return settings


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path / "data") as application:
        yield application


@pytest.fixture
async def anywhere(tmp_path: Path, variant: dict[str, Any]) -> AsyncIterator[Served]:
    """The application, on each way to keep things in turn."""
    async with serve(tmp_path / "data", **variant) as application:
        yield application


@pytest.fixture
async def publisher(served: Served) -> RegistryClient:
    return await served.client("publisher")


@pytest.fixture
async def customer(served: Served) -> RegistryClient:
    return await served.client("free")
