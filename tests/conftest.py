from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.served import RegistryClient, Served, serve


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path / "data") as application:
        yield application


@pytest.fixture
async def publisher(served: Served) -> RegistryClient:
    return await served.client("publisher")


@pytest.fixture
async def customer(served: Served) -> RegistryClient:
    return await served.client("free")
