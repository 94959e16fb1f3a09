"""Bounded concurrency: so many at a time, and never a task per thing there is to do."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
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
        for _ in range(at_once):
            group.create_task(take_turns())
    if failures:
        raise failures[0]
