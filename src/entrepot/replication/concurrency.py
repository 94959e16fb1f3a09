"""Bounded concurrency: so many at a time, and never a task per thing there is to do."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from operator import length_hint
from typing import TypeVar

T = TypeVar("T")


async def for_each(entries: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do `work` on every entry, on at most `at_once` at a time.

    After an error no further entry is begun; what is under way comes to its end, and the first error is raised.
    """
    remaining = iter(entries)
    failures: list[Exception] = []

    async def take_turns() -> None:
        for entry in remaining:
            try:
                await work(entry)
            except Exception as error:  # noqa: BLE001 - raised below, whatever it is
                failures.append(error)
            if failures:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(min(at_once, length_hint(entries, at_once))):
            group.create_task(take_turns())
    if failures:
        raise failures[0]


class Turns:
    """So many at a time, in the order in which they came; as many again of what is hurried."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._taken = 0
        self._hurried: set[Hashable] = set()
        self._waiting: OrderedDict[Hashable, asyncio.Future[None]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Hold a turn. There must be none of this key at the moment."""
        if not self._has_room(key):
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
            try:
                await waiting
            except asyncio.CancelledError:
                if waiting.done() and not waiting.cancelled():
                    self._leave()
                raise
            finally:
                self._waiting.pop(key, None)
        else:
            self._taken += 1
        try:
            yield
        finally:
            self._hurried.discard(key)
            self._leave()

    def hurry(self, key: Hashable) -> None:
        """Let what waits for its turn, or is about to, go before all others."""
        self._hurried.add(key)
        self._let_through()

    def _leave(self) -> None:
        self._taken -= 1
        self._let_through()

    def _let_through(self) -> None:
        for key in sorted(self._waiting, key=lambda one: one not in self._hurried):
            waiting = self._waiting[key]
            if waiting.done():
                continue
            if not self._has_room(key):
                return
            self._taken += 1
            waiting.set_result(None)

    def _has_room(self, key: Hashable) -> bool:
        return self._taken < self._at_once * (2 if key in self._hurried else 1)


class Shares:
    """So many places. Whoever holds some gets no more than are left, so that there is always one for somebody else."""

    def __init__(self, places: int) -> None:
        self._left = places
        self._held: Counter[Hashable] = Counter()

    def has_room(self, holder: Hashable) -> bool:
        """Whether there is a place for whoever asks."""
        return self._held[holder] < self._left

    @contextmanager
    def hold(self, holder: Hashable) -> Iterator[None]:
        """Hold a place. There must be room."""
        self._held[holder] += 1
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
