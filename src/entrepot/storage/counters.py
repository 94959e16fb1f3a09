"""Amounts that several processes count together: pulls of an hour, failures of a minute.

Each process adds in memory. Once a second, and whenever somebody needs to know at once, it sends what it added to a
store that all processes share, and hears the totals. Adding and looking never wait.

A process never forgets a total that it has heard, and tells it to a store that has less. So a store that lost its
memory, or that takes the place of another, has back what was heard as long as one process is alive; at that moment,
what some processes had not heard of yet may be missed.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol

import structlog
from prometheus_client import Counter

from entrepot.errors import EntrepotError

FLUSH_SECONDS = 1.0
# A store that does not answer within this is taken for away, and left alone for a while.
_ANSWER_SECONDS = 1.0
_REST_SECONDS = 2.0
# How long anybody waits for an exchange; the one under way may have to end first.
_PATIENCE_SECONDS = 1.5
_MOST_AT_ONCE = 5_000
_PRUNE_SECONDS = 300.0
# Clocks of two machines may differ.
_KEPT = timedelta(minutes=10)

FAILURES = Counter("entrepot_limiter_failures_total", "Exchanges of counts between processes that failed.", ["store"])

log = structlog.get_logger(__name__)

Amounts = Mapping[str, int]
"""Amount by member; what has only one amount has it under the empty name."""


class Share(NamedTuple):
    """What a process added to one member, and the total that it had heard before."""

    member: str
    known: int
    added: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a process tells of one name in one window, in unix seconds; with no shares it only asks."""

    name: str
    start: int
    until: int
    shares: tuple[Share, ...]

    @property
    def start_at(self) -> datetime:
        """When the window began."""
        return datetime.fromtimestamp(self.start, UTC)


class CounterStore(Protocol):
    """Keeps the totals of all processes."""

    name: str

    async def exchange(self, changes: Sequence[Change]) -> list[Amounts]:
        """Raise each total to what is known of it, add what was added, and answer all totals of each name and window.

        Raises Unavailable when it certainly did nothing, TimeoutError when nobody knows.
        """

    async def prune(self, before: datetime) -> None:
        """Drop what ended before. Raises Unavailable."""

    def close(self) -> None:
        """Let go of what it holds."""


class Tally:
    """The amounts of one name in one window, as far as this process knows them."""

    __slots__ = ("_added", "_behind", "_known", "_touched", "is_learned", "name", "start", "until")

    def __init__(self, name: str, start: int, until: int, touched: "dict[Tally, None]") -> None:
        self.name = name
        self.start = start
        self.until = until
        # Whether `learn` was called: for whoever can tell from elsewhere how it was before this process counted.
        self.is_learned = False
        self._known: dict[str, int] = {}
        # Since the last exchange.
        self._added: dict[str, int] = {}
        # Members of which the store has less than is known.
        self._behind: set[str] = set()
        self._touched = touched

    def amount(self, member: str = "") -> int:
        """The total, as far as it is known here."""
        return self._known.get(member, 0) + self._added.get(member, 0)

    def known(self, member: str = "") -> int:
        """The total of all processes at the last exchange."""
        return self._known.get(member, 0)

    def unshared(self, member: str = "") -> int:
        """What was added here since."""
        return self._added.get(member, 0)

    def count_members(self) -> int:
        """How many members have an amount."""
        members = self._known.keys() | self._added.keys()
        return sum(1 for member in members if self.amount(member) > 0)

    def add(self, amount: int, member: str = "") -> None:
        """Count."""
        self._added[member] = self._added.get(member, 0) + amount
        self._touched[self] = None

    def ask(self) -> None:
        """Take part in the next exchange, whether or not something is added until then."""
        self._touched[self] = None

    def tell_again(self) -> None:
        """Tell the store in the next exchange all that is known."""
        if self._known:
            self._behind |= self._known.keys()
            self._touched[self] = None

    def learn(self, amounts: Amounts) -> None:
        """Hear that there were at least these."""
        for member, amount in amounts.items():
            self._known[member] = max(amount, self._known.get(member, 0))
        self.is_learned = True

    def change(self) -> Change:
        """What to tell the store."""
        members = sorted(self._added.keys() | self._behind)
        shares = (Share(member, self._known.get(member, 0), self._added.get(member, 0)) for member in members)
        return Change(self.name, self.start, self.until, tuple(shares))

    def settle(self, change: Change, totals: Amounts) -> None:
        """Note that the store took a change in, and what it has now."""
        self._take_as_known(change)
        for member, total in totals.items():
            self._known[member] = max(total, self._known.get(member, 0))
        self._behind = {member for member, known in self._known.items() if totals.get(member, 0) < known}
        if self._behind:
            self._touched[self] = None

    def presume(self, change: Change) -> None:
        """Note that the store may have taken a change in: telling it as known, not as added, adds nothing twice."""
        self._take_as_known(change)
        self._behind |= {share.member for share in change.shares}
        self._touched[self] = None

    def _take_as_known(self, change: Change) -> None:
        for share in change.shares:
            self._known[share.member] = self._known.get(share.member, 0) + share.added
            left = self._added.pop(share.member, 0) - share.added
            if left:
                self._added[share.member] = left


@dataclass(slots=True)
class _Rested:
    """A store, and until when it is left alone."""

    store: CounterStore
    away_until: float = float("-inf")


class Counters:
    """The tallies of this process. `stores` in order of preference: while one is away, the next takes its place.

    What adds up to less than `least` is not worth an exchange. Beyond `capacity` the oldest tallies are forgotten.
    """

    def __init__(self, stores: Sequence[CounterStore], *, capacity: int, least: int = 1) -> None:
        self._stores = [_Rested(store) for store in stores]
        self._capacity = capacity
        self._least = least
        self._tallies: OrderedDict[tuple[str, int], Tally] = OrderedDict()
        self._touched: dict[Tally, None] = {}
        # The exchange that has not begun yet, and all that have not ended.
        self._queued: asyncio.Task[bool] | None = None
        self._exchanges: set[asyncio.Task[bool]] = set()
        self._lock = asyncio.Lock()
        self._last_store: str | None = None
        self._task: asyncio.Task[None] | None = None

    def tally(self, name: str, start: int, until: int) -> Tally:
        """The tally of a name in a window."""
        key = (name, start)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(name, start, until, self._touched)
            if len(self._tallies) > self._capacity:
                self._tallies.popitem(last=False)
        return tally

    def find(self, name: str, start: int) -> Tally | None:
        """The tally of a name in a window, None when nothing was counted under it."""
        return self._tallies.get((name, start))

    def start(self) -> None:
        """Begin to exchange, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="counters")

    async def stop(self) -> None:
        """Share what is left, and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.settle()
        await asyncio.gather(*self._exchanges)

    def close(self) -> None:
        """Let go of the stores."""
        for one in self._stores:
            one.store.close()

    async def settle(self) -> bool:
        """Share all that was added, and hear the totals; False when no store answers. Never waits long."""
        if not self._touched and not self._exchanges:
            return True
        if not self._open_stores():
            return False
        if self._queued is None:
            self._queued = asyncio.create_task(self._exchange_next(), name="counters-exchange")
            self._exchanges.add(self._queued)
            self._queued.add_done_callback(self._exchanges.discard)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(self._queued)
        except TimeoutError:
            return False

    async def _exchange_next(self) -> bool:
        """One exchange, for everybody who asks until it begins."""
        async with self._lock:
            self._queued = None
            return await self._exchange()

    async def _exchange(self) -> bool:
        taken: list[tuple[Tally, Change]] = []
        # The latest first: somebody may wait for them.
        while self._touched and len(taken) < _MOST_AT_ONCE:
            tally, _ = self._touched.popitem()
            change = tally.change()
            if self._least <= 1 or sum(share.known + share.added for share in change.shares) >= self._least:
                taken.append((tally, change))
        if not taken:
            return True
        is_sure = True
        for one in self._open_stores():
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    totals = await one.store.exchange([change for _, change in taken])
            except (EntrepotError, TimeoutError) as error:
                is_sure = not isinstance(error, TimeoutError)
                self._note_failure(one, error)
                continue
            except Exception as error:
                log.exception("counters_broke", store=one.store.name)
                self._note_failure(one, error)
                continue
            for (tally, change), amounts in zip(taken, totals, strict=True):
                tally.settle(change, amounts)
            self._tell_all_to(one)
            return True
        for tally, change in taken:
            if is_sure:
                tally.ask()
            else:
                tally.presume(change)
        return False

    def _tell_all_to(self, one: _Rested) -> None:
        """See to it that a store which takes the place of another hears all that is known."""
        if self._last_store not in {None, one.store.name}:
            for tally in self._tallies.values():
                tally.tell_again()
        self._last_store = one.store.name

    def _open_stores(self) -> list[_Rested]:
        now = time.monotonic()
        return [one for one in self._stores if one.away_until <= now]

    def _note_failure(self, one: _Rested, error: Exception) -> None:
        FAILURES.labels(one.store.name).inc()
        if one.away_until == float("-inf") or time.monotonic() - one.away_until > _REST_SECONDS * 2:
            reason = str(error) or "it does not answer in time"
            log.warning("counters_unshared", store=one.store.name, error=reason, effect="limits are looser for now")
        one.away_until = time.monotonic() + _REST_SECONDS

    async def _run(self) -> None:
        prune_at = time.monotonic() + _PRUNE_SECONDS
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.settle()
            if time.monotonic() > prune_at:
                prune_at = time.monotonic() + _PRUNE_SECONDS
                await self._prune()

    async def _prune(self) -> None:
        now = datetime.now(UTC)
        for key in [key for key, tally in self._tallies.items() if tally.until < now.timestamp()]:
            del self._tallies[key]
        for one in self._open_stores():
            with contextlib.suppress(EntrepotError):
                await one.store.prune(now - _KEPT)
