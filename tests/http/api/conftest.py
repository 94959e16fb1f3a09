import pytest

from tests.conftest import make_variant
from tests.support.served import Served


@pytest.fixture(params=["folder-sqlite", "s3-postgresql-redis"])
def variant(request: pytest.FixtureRequest) -> dict[str, object]:
    return make_variant(request)


@pytest.fixture
def served(anywhere: Served) -> Served:
    return anywhere
