import pytest

from tests.conftest import make_variant
from tests.support.api import Api, key
from tests.support.served import Served


@pytest.fixture(params=["folder-sqlite", "s3-postgresql-redis"])
def variant(request: pytest.FixtureRequest) -> dict[str, object]:
    return make_variant(request)


@pytest.fixture
def served(anywhere: Served) -> Served:
    return anywhere


@pytest.fixture
async def admin(served: Served) -> Api:
    return await key(served, "root", "admin")


@pytest.fixture
async def platform(served: Served) -> Api:
    return await key(served, "platform", "accounts:write", plans=["free"])
