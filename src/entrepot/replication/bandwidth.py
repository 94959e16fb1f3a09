"""A limit to how many bytes pass in a second."""

import asyncio
import time

# Unused time that may be made up for.
_BURST_SECONDS = 0.5


class Bandwidth:
    """Lets `bytes_per_second` pass on average, whoever takes them; None: as many as come."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._rate = bytes_per_second
        # When all that was let through so far has had its time.
        self._paid_until = 0.0

    async def take(self, size: int) -> None:
        """Wait until `size` more bytes may have passed."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now - _BURST_SECONDS) + size / self._rate
        if self._paid_until > now:
            await asyncio.sleep(self._paid_until - now)
