"""How long to wait for a source, how often to ask again, and how often to ask at all."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from entrepot.errors import SourceUnreachable

T = TypeVar("T")


class TryLater(SourceUnreachable):
    """A failure that may pass; `asked_seconds` is the wait that the source asks for."""

    def __init__(self, message: str, *, asked_seconds: float | None = None) -> None:
        super().__init__(message)
        self.asked_seconds = asked_seconds


class Throttled(TryLater):
    """The source is well, but asked too often."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Time limits of one request, in seconds: to connect, between two pieces, and for a whole small answer."""

    connect_seconds: float = 10
    idle_seconds: float = 60
    answer_seconds: float = 60


@dataclass(frozen=True, slots=True)
class Backoff:
    """At most `attempts` tries; the wait doubles from `first_seconds` and never exceeds `most_seconds`.

    A source that says it is asked too often is no failed try: it is waited for `patience_seconds` in all.
    """

    attempts: int = 5
    first_seconds: float = 0.5
    most_seconds: float = 20
    patience_seconds: float = 300

    def wait_seconds(self, failures: int, asked_seconds: float | None = None) -> float:
        """The wait after `failures` failed tries (1 or more); `asked_seconds` is what the source asks for.

        Half of it is random, so that many clients do not come back at the same moment (AWS Architecture Blog,
        "Exponential Backoff And Jitter", 2015).
        """
        if asked_seconds is not None:
            return min(asked_seconds, self.most_seconds)
        # No higher power than it takes to reach any limit: a patient client may fail a thousand times.
        full = min(self.first_seconds * 2.0 ** min(failures - 1, 30), self.most_seconds)
        return full / 2 + random.uniform(0, full / 2)  # noqa: S311 - spreads load, guards nothing

    async def retry(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` answers, tried again after temporary failures."""
        tries = Tries(self)
        while True:
            try:
                return await work()
            except SourceUnreachable as error:
                await tries.wait(error)


class Tries:
    """The failed tries of one piece of work, in a row."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self.forget()

    def forget(self) -> None:
        """The work has got on: what failed before does not count any more."""
        self._failures = self._throttled = 0
        self._waited_seconds = 0.0

    async def wait(self, error: SourceUnreachable) -> None:
        """Wait as long as is due after one more failure; raise `error` when there were too many."""
        asked = error.asked_seconds if isinstance(error, TryLater) else None
        if isinstance(error, Throttled):
            self._throttled += 1
            seconds = self._backoff.wait_seconds(self._throttled) if asked is None else asked
            if self._waited_seconds + seconds > self._backoff.patience_seconds:
                raise type(error)(
                    f"{error} (waited {self._waited_seconds:.0f} seconds, {seconds:.0f} more are due)"
                ) from error
            self._waited_seconds += seconds
        else:
            self._failures += 1
            if self._failures >= self._backoff.attempts:
                raise type(error)(f"{error} (tried {self._failures} times)") from error
            seconds = self._backoff.wait_seconds(self._failures, asked)
        await asyncio.sleep(seconds)


class Pace:
    """Lets through so many a second, one after the other."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._next_at = 0.0

    async def turn(self) -> None:
        """Wait until it is our turn."""
        now = time.monotonic()
        at = max(self._next_at, now)
        self._next_at = at + self._interval
        await asyncio.sleep(at - now)
