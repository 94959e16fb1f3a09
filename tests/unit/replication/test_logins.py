"""A password that is renewed: kept while it is good, and never fetched in a loop."""

import asyncio

import pytest

from entrepot.errors import SourceUnreachable
from entrepot.replication.logins import FetchedPassword, FixedLogin, RenewedLogin

HOUR = 3600


class Fetches:
    """Numbered passwords of one life, fetched at a clock that the test turns."""

    def __init__(self, life_seconds: float) -> None:
        self.now = 1000.0
        self.count = 0
        self.fails = False
        self._life_seconds = life_seconds
        self.login = RenewedLogin("AWS", self.fetch, lambda: self.now)

    async def fetch(self) -> FetchedPassword:
        await asyncio.sleep(0)
        if self.fails:
            raise SourceUnreachable("AWS is away")
        self.count += 1
        return FetchedPassword(f"password-{self.count}", self._life_seconds)


async def test_it_is_fetched_once_however_many_ask() -> None:
    fetches = Fetches(12 * HOUR)
    headers = await asyncio.gather(*(fetches.login.find_header() for _ in range(20)))
    assert len(set(headers)) == fetches.count == 1


@pytest.mark.parametrize(("hours", "count"), [(0, 1), (5.9, 1), (6.1, 2), (13, 2)])
async def test_it_is_renewed_at_half_its_life(hours: float, count: int) -> None:
    fetches = Fetches(12 * HOUR)
    first = await fetches.login.find_header()
    fetches.now += hours * HOUR
    assert (await fetches.login.find_header() == first) is (count == 1)
    assert fetches.count == count


async def test_one_that_was_refused_is_renewed_once_for_all_who_had_it() -> None:
    fetches = Fetches(12 * HOUR)
    old = await fetches.login.find_header()
    fetches.now += HOUR
    renewed = await asyncio.gather(*(fetches.login.find_header(old) for _ in range(20)))
    assert set(renewed) == {await fetches.login.find_header()}
    assert old not in renewed
    assert fetches.count == 2


async def test_one_that_is_refused_at_once_is_not_fetched_again() -> None:
    fetches = Fetches(12 * HOUR)
    header = await fetches.login.find_header()
    assert [await fetches.login.find_header(header) for _ in range(5)] == [None] * 5
    assert fetches.count == 1


async def test_one_whose_end_has_passed_already_is_kept_for_a_minute() -> None:
    fetches = Fetches(-5 * HOUR)
    for _ in range(5):
        await fetches.login.find_header()
    assert fetches.count == 1
    fetches.now += 61
    await fetches.login.find_header()
    assert fetches.count == 2


async def test_while_it_lives_a_failed_renewal_does_no_harm() -> None:
    fetches = Fetches(12 * HOUR)
    header = await fetches.login.find_header()
    fetches.fails = True
    fetches.now += 7 * HOUR
    assert await fetches.login.find_header() == header
    fetches.now += 6 * HOUR
    with pytest.raises(SourceUnreachable):
        await fetches.login.find_header()
    fetches.fails = False
    assert await fetches.login.find_header() != header


async def test_a_fixed_one_has_no_other() -> None:
    login = FixedLogin("reader", "secret")
    header = await login.find_header()
    assert header == "Basic cmVhZGVyOnNlY3JldA=="
    assert await login.find_header(header) is None
    assert "secret" not in repr(login)
