"""A bounded cache in this process, kept true by signals.

The rule that makes it safe: take a `mark` before reading the database, and `keep` the result under that mark. If
anything was forgotten in between, the result may be old, so it is not kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Entries up to a total weight of `capacity`; it answers only while `is_current` says that it may.

    The oldest entry leaves first. Signals forget on their own thread, so changes take a lock; looking up takes none.
    """

    def __init__(self, capacity: int, is_current: Callable[[], bool]) -> None:
        self._capacity = capacity
        self._is_current = is_current
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0
        self._mark = 0
        self._lock = threading.Lock()

    def find(self, key: K) -> V | None:
        """The entry, None when it is not here or may be out of date."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and self._is_current() else None

    def mark(self) -> int:
        """A point in time, in forgettings; take it before reading what is to be kept."""
        return self._mark

    def keep(self, key: K, value: V, mark: int, *, weight: int = 1) -> None:
        """Remember `value`, unless something was forgotten since `mark`, or it would fill a tenth of the cache."""
        with self._lock:
            if mark != self._mark or weight * 10 > self._capacity:
                return
            self._drop(key)
            self._entries[key] = (value, weight)
            self._weight += weight
            while self._weight > self._capacity:
                self._drop(next(iter(self._entries)))

    def forget(self, key: K) -> None:
        """Drop one entry, and the result of every read under way."""
        with self._lock:
            self._mark += 1
            self._drop(key)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._mark += 1
            self._entries.clear()
            self._weight = 0

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry[1]
