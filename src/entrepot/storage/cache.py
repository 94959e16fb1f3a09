"""A bounded cache in this process, kept true by signals.

The rule that makes it safe: take a `mark` before reading the database, and `keep` the result under that mark. If its
key was forgotten in between, the result may be old, so it is not kept.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


# Forgettings that are remembered by key; a read during which there were more is not kept, whatever its key.
_REMEMBERED = 4096


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
        # When each key was last forgotten, oldest first; complete for every mark from `_floor` on.
        self._forgotten: OrderedDict[K, int] = OrderedDict()
        self._floor = 0
        self._lock = threading.Lock()

    def find(self, key: K) -> V | None:
        """The entry, None when it is not here or may be out of date."""
        entry = self._entries.get(key)
        return entry[0] if entry is not None and self._is_current() else None

    def mark(self) -> int:
        """A point in time, in forgettings; take it before reading what is to be kept."""
        return self._mark

    def keep(self, key: K, value: V, mark: int, *, weight: int = 1) -> None:
        """Remember `value`, unless its key was forgotten since `mark`, or it would fill a tenth of the cache."""
        with self._lock:
            if mark < self._floor or self._forgotten.get(key, 0) > mark or weight * 10 > self._capacity:
                return
            self._drop(key)
            self._entries[key] = (value, weight)
            self._weight += weight
            while self._weight > self._capacity:
                self._drop(next(iter(self._entries)))

    def forget(self, key: K) -> None:
        """Drop one entry, and the result of a read of it that is under way."""
        with self._lock:
            self._mark += 1
            self._forgotten[key] = self._mark
            self._forgotten.move_to_end(key)
            if len(self._forgotten) > _REMEMBERED:
                self._floor = self._forgotten.popitem(last=False)[1]
            self._drop(key)

    def clear(self) -> None:
        """Drop all, and the result of every read under way."""
        with self._lock:
            self._mark += 1
            self._floor = self._mark
            self._forgotten.clear()
            self._entries.clear()
            self._weight = 0

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._weight -= entry[1]
