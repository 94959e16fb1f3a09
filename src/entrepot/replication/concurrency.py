"""Bounded concurrency: so many at a time, and never a task per thing there is to do."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def for_each(entries: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do `work` on every entry, on at most `at_once` at a time. The first error ends the rest, and is raised."""
    remaining = iter(entries)

    async def take_turns() -> None:
        for entry in remaining:
            await work(entry)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(take_turns())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
