"""How often an API key may ask: a number of requests in each minute of the clock, over all processes.

What other processes counted is heard of a moment later, so a key that asks several of them at once gets a little more
than its share of that moment; a limiter that can tell nothing lets requests through.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from entrepot.access.limits import minute_of
from entrepot.accounts.api_keys import ApiKey
from entrepot.storage.counters import Counters


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a key's minute, and when the next one begins; `is_granted` is whether this request fits in."""

    limit: int
    remaining: int
    reset_seconds: int
    is_granted: bool


class KeyRates:
    """Counts the requests of keys that have a rate."""

    def __init__(self, counters: Counters, clock: Callable[[], float] = time.time) -> None:
        self._counters = counters
        self._clock = clock

    def start(self) -> None:
        """Begin to exchange counts with other processes, on the running loop."""
        self._counters.start()

    async def stop(self) -> None:
        """Tell what is left, and end."""
        await self._counters.stop()

    def close(self) -> None:
        """Let go of where counts are exchanged."""
        self._counters.close()

    def take(self, key: ApiKey) -> Allowance | None:
        """Count one request of a key, if it fits in; None for a key without a rate.

        All keys of one workload share its rate, or asking for more of them would raise it.
        """
        limit = key.requests_per_minute
        if limit is None:
            return None
        now = self._clock()
        window = minute_of(now)
        tally = self._counters.tally(f"api:{key.owner}", *window)
        used = tally.amount()
        is_granted = used < limit
        if is_granted:
            tally.add(1)
        remaining = max(0, limit - used - 1)
        return Allowance(limit, remaining, math.ceil(window.until - now), is_granted)
