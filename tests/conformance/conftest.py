"""One application for all tests here, on each way to keep things in turn; each test has a repository of its own."""

import itertools
from collections.abc import AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.conformance.repository import Repository
from tests.conftest import VARIANTS, make_variant
from tests.support.served import RegistryClient, Served, serve

# Each holds for names that only its own tests use.
POLICIES = {
    "immutable_tags": ("frozen/**:v*",),
    "quotas": {"small/**": "2KB"},
    "sparse_manifests": ("sparse/**",),
}
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(section, sentence): what a test holds the registry to")


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("clause") is None:
        raise pytest.UsageError(f"{item.nodeid} names no clause")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        clauses = [
            f"{section}: {sentence}" for section, sentence in (mark.args for mark in item.iter_markers("clause"))
        ]
        report.sections.append(("clause", "\n".join(clauses)))
    return report


@dataclass(frozen=True)
class Way:
    """A folder and settings by which things are kept."""

    folder: Path
    settings: dict[str, Any]

    def serve(self, **changes: Any) -> AbstractAsyncContextManager[Served]:
        """The application over what is kept there, with settings on top; groups of settings are merged."""
        settings = dict(self.settings)
        for name, value in changes.items():
            before = settings.get(name)
            settings[name] = before | value if isinstance(before, dict) else value
        return serve(self.folder, **settings)


@pytest.fixture(scope="session", params=VARIANTS)
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Way:
    """Each way to keep things in turn."""
    return Way(tmp_path_factory.mktemp("conformance") / "data", make_variant(request))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def anywhere(way: Way) -> AsyncIterator[Served]:
    """The application, with POLICIES in force."""
    async with way.serve(repositories=POLICIES) as served:
        yield served


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def publisher(anywhere: Served) -> RegistryClient:
    """Whoever may do everything."""
    return await anywhere.client("publisher")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def outside() -> AsyncIterator[httpx.AsyncClient]:
    """A client of what is not the application."""
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture
def repository(publisher: RegistryClient, outside: httpx.AsyncClient) -> Repository:
    """A repository that nobody has used."""
    return Repository(publisher, f"smm/{next(_numbers)}", outside)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def direct_publisher(way: Way, anywhere: Served, publisher: RegistryClient) -> AsyncIterator[RegistryClient]:
    """The publisher, at an application that sends every byte itself."""
    if not anywhere.parts.blobs.can_sign:
        yield publisher
        return
    async with way.serve(storage={"redirect": False}) as served:
        yield RegistryClient(served.http, publisher.credential)


@pytest.fixture
def direct(direct_publisher: RegistryClient, repository: Repository, outside: httpx.AsyncClient) -> Repository:
    """The same repository, from an application that sends every byte itself."""
    return Repository(direct_publisher, repository.name, outside)
