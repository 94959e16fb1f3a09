import asyncio
import time

from entrepot.replication.bandwidth import Bandwidth


async def test_no_more_passes_than_is_allowed_whoever_takes_it() -> None:
    bandwidth = Bandwidth(1_000_000)

    async def take() -> None:
        for _ in range(5):
            await bandwidth.take(100_000)

    begun = time.monotonic()
    await asyncio.gather(take(), take())
    # A megabyte at a megabyte a second, of which half a second's worth may come at once.
    assert time.monotonic() - begun >= 0.45


async def test_without_a_limit_nobody_waits() -> None:
    begun = time.monotonic()
    await Bandwidth(None).take(10**12)
    assert time.monotonic() - begun < 5
