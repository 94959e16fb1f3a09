"""A bounded cache in this process, kept true by signals.

The rule that makes it safe: take a `mark` before reading the database, and `keep` the result under that mark. If
anything was forgotten in between, the result may be old, so it is not kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """The most recently used entries, at most `capacity`; it answers only while `is_current` says that it may."""

    def __init__(self, capacity: int, is_current: Callable[[], bool]) -> None:
        self._capacity = capacity
        self._is_current = is_current
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._mark = 0

    def find(self, key: K) -> V | None:
        """The entry, None when it is not here or may be out of date."""
        value = self._entries.get(key)
        return value if value is not None and self._is_current() else None

    def mark(self) -> int:
        """A point in time, in forgettings; take it before reading what is to be kept."""
        return self._mark

    def keep(self, key: K, value: V, mark: int) -> None:
        """Remember `value`, unless something was forgotten since `mark`."""
        if mark != self._mark:
            return
        self._entries[key] = value
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def forget(self, key: K) -> None:
        """Drop one entry, and every read under way."""
        self._mark += 1
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Drop all."""
        self._mark += 1
        self._entries.clear()
