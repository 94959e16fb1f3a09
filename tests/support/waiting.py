"""Waiting for what comes true by itself, however slow the machine is."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def eventually(ask: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Return once `ask` answers true."""
    deadline = time.monotonic() + seconds
    while not await ask():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)
