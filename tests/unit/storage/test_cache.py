import threading

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from entrepot.storage.cache import Cache


def yes() -> bool:
    return True


def test_an_entry_is_found_while_it_is_current() -> None:
    current = [True]
    cache: Cache[str, int] = Cache(100, lambda: current[0])
    cache.keep("a", 1, cache.mark())
    assert cache.find("a") == 1
    current[0] = False
    assert cache.find("a") is None


def test_what_was_read_before_a_change_is_not_kept() -> None:
    cache: Cache[str, int] = Cache(100, yes)
    mark = cache.mark()
    cache.forget("a")  # another process changed it between our read and now
    cache.keep("a", 1, mark)
    assert cache.find("a") is None


def test_what_would_fill_a_tenth_of_the_cache_is_not_kept() -> None:
    cache: Cache[str, int] = Cache(100, yes)
    cache.keep("large", 1, cache.mark(), weight=11)
    assert cache.find("large") is None


def test_an_empty_cache_is_empty() -> None:
    cache: Cache[str, int] = Cache(100, yes)
    cache.keep("a", 1, cache.mark())
    cache.clear()
    assert cache.find("a") is None


class CacheMachine(RuleBasedStateMachine):
    """Whatever is done to it, a cache never answers what was forgotten, and never outgrows its capacity."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Cache[int, int] = Cache(50, yes)
        self.truth: dict[int, int] = {}
        self.version = 0

    @rule(key=st.integers(0, 20), weight=st.integers(1, 8))
    def read_and_keep(self, key: int, weight: int) -> None:
        mark = self.cache.mark()
        self.cache.keep(key, self.truth.get(key, 0), mark, weight=weight)

    @rule(key=st.integers(0, 20))
    def change(self, key: int) -> None:
        self.version += 1
        self.truth[key] = self.version
        self.cache.forget(key)

    @rule(key=st.integers(0, 20), changed=st.integers(0, 20))
    def change_during_read(self, key: int, changed: int) -> None:
        mark = self.cache.mark()
        value = self.truth.get(key, 0)
        self.change(changed)
        self.cache.keep(key, value, mark)

    @rule(key=st.integers(0, 20))
    def look_up(self, key: int) -> None:
        assert self.cache.find(key) in {None, self.truth.get(key, 0)}

    @invariant()
    def stays_small(self) -> None:
        assert self.cache._weight == sum(weight for _, weight in self.cache._entries.values()) <= 50


TestCache = CacheMachine.TestCase


def test_threads_may_forget_while_others_keep() -> None:
    cache: Cache[int, int] = Cache(500, yes)
    stop = threading.Event()

    def forget() -> None:
        while not stop.is_set():
            for key in range(50):
                cache.forget(key)

    thread = threading.Thread(target=forget)
    thread.start()
    for number in range(20_000):
        cache.keep(number % 50, number, cache.mark())
        cache.find(number % 50)
    stop.set()
    thread.join()
    assert cache._weight == len(cache._entries)
