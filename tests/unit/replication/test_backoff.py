import asyncio
import time

import pytest

from entrepot.errors import SourceUnreachable
from entrepot.replication.backoff import Backoff, Pace, Throttled, Tries, TryLater


@pytest.mark.parametrize(("failures", "most"), [(1, 0.5), (2, 1), (5, 8), (6, 16), (7, 20), (5000, 20)])
def test_waits_double_up_to_a_limit_and_half_is_chance(failures: int, most: float) -> None:
    waits = [Backoff().wait_seconds(failures) for _ in range(100)]
    assert most / 2 <= min(waits) < max(waits) <= most


async def fail(tries: Tries, error: SourceUnreachable, most: int = 1000) -> int:
    """How many failures were waited for before it was enough."""
    for count in range(most):
        try:
            await tries.wait(error)
        except SourceUnreachable:
            return count
    return most


async def test_failed_tries_are_counted_in_a_row() -> None:
    tries = Tries(Backoff(attempts=3, first_seconds=0.001))
    assert await fail(tries, SourceUnreachable("away"), most=2) == 2
    tries.forget()
    assert await fail(tries, SourceUnreachable("away")) == 2


async def test_the_last_error_is_of_the_class_of_the_first_and_says_how_often() -> None:
    tries = Tries(Backoff(attempts=2))
    await tries.wait(TryLater("later", asked_seconds=0))
    with pytest.raises(TryLater, match=r"^later \(tried 2 times\)$"):
        await tries.wait(TryLater("later", asked_seconds=0))


async def test_throttling_is_waited_for_until_patience_ends() -> None:
    tries = Tries(Backoff(attempts=2, first_seconds=0.001, most_seconds=0.002, patience_seconds=0.05))
    # Each wait is one to two milliseconds, but for the first.
    assert 25 <= await fail(tries, Throttled("slowly")) <= 51


async def test_a_longer_wait_that_is_asked_for_is_kept() -> None:
    tries = Tries(Backoff(first_seconds=0.001, most_seconds=0.01, patience_seconds=0.3))
    begun = time.monotonic()
    await tries.wait(Throttled("slowly", asked_seconds=0.2))
    assert time.monotonic() - begun >= 0.2
    with pytest.raises(Throttled, match=r"^slowly \(waited 0 seconds, 200 more are due\)$"):
        await tries.wait(Throttled("slowly", asked_seconds=200))


async def test_a_pace_is_kept_however_many_come_at_once() -> None:
    pace = Pace(100)
    begun = time.monotonic()
    await asyncio.gather(*(pace.turn() for _ in range(21)))
    assert time.monotonic() - begun >= 0.2
