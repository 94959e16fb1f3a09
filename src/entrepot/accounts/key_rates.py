"""How often an API key may ask: a number of requests in each minute of the clock, over all processes.

What other processes counted is heard of a moment later, so a key that asks several of them at once gets a little more
than its share of that moment; a limiter that can tell nothing lets requests through.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from entrepot.accounts.api_keys import ApiKey

WINDOW_SECONDS = 60


class Tally(Protocol):
    """What is counted under one name in one window."""

    def amount(self) -> int:
        """The total, as far as it is known here."""

    def add(self, amount: int) -> None:
        """Count."""


class Tallies(Protocol):
    """Amounts that several processes count together; instants are unix seconds."""

    def tally(self, name: str, start: int, until: int) -> Tally:
        """The tally of a name in a window."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a key's minute, and when the next one begins; `is_granted` is whether this request fits in."""

    limit: int
    remaining: int
    reset_seconds: int
    is_granted: bool


class KeyRates:
    """Counts the requests of keys that have a rate."""

    def __init__(self, tallies: Tallies, clock: Callable[[], float]) -> None:
        self._tallies = tallies
        self._clock = clock

    def take(self, key: ApiKey) -> Allowance | None:
        """Count one request of a key, if it fits in; None for a key without a rate.

        All keys of one workload share its rate, or asking for more of them would raise it.
        """
        limit = key.requests_per_minute
        if limit is None:
            return None
        now = int(self._clock())
        start = now - now % WINDOW_SECONDS
        tally = self._tallies.tally(f"api:{key.owner}", start, start + WINDOW_SECONDS)
        used = tally.amount()
        is_granted = used < limit
        if is_granted:
            tally.add(1)
        remaining = max(0, limit - used - 1)
        return Allowance(limit, remaining, start + WINDOW_SECONDS - now, is_granted)


class LocalTallies:
    """Amounts of this process alone; of each name only its latest window."""

    def __init__(self) -> None:
        self._tallies: dict[str, _LocalTally] = {}

    def tally(self, name: str, start: int, until: int) -> Tally:  # noqa: ARG002
        """The tally of a name in a window."""
        tally = self._tallies.get(name)
        if tally is None or tally.start != start:
            tally = self._tallies[name] = _LocalTally(start)
        return tally


class _LocalTally:
    def __init__(self, start: int) -> None:
        self.start = start
        self._amount = 0

    def amount(self) -> int:
        return self._amount

    def add(self, amount: int) -> None:
        self._amount += amount
