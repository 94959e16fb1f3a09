"""Limits of plans: whether there is room for one more pull, over all processes.

A pull is judged by what this process knows: the totals that it heard, and what it added since. That costs no question,
except where a wrong answer would matter: the first time that an account is seen in an hour, and when what is left is so
little, beside what others may have added in the last second, that it could be used up. The nearer the limit the fewer
pulls go without a question; the last ones are counted first and judged by the total that comes back, so that of many
processes together none lets one too many through.

Whatever goes wrong with counting, the pull goes through, and a metric says so.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from prometheus_client import Counter

from entrepot.access.limits import (
    OF_PULLS,
    Allowance,
    LimitName,
    Limits,
    Use,
    find_allowance,
    find_refusal,
    window_of,
)
from entrepot.accounts import limit_records
from entrepot.accounts.authentication import Principal
from entrepot.accounts.limit_records import QUOTAS, Crossing
from entrepot.accounts.rechecks import Check, Rechecks
from entrepot.accounts.usage_records import Reached
from entrepot.errors import EntrepotError
from entrepot.storage.counters import Amounts, Counters
from entrepot.storage.database import Database

# Of what is left, a process takes up to this part between two exchanges without asking: so much may all processes but
# one let through too many, if all is used up within a second. Limits below it are exact.
_PART = 50
# A process knows the use of so many accounts at a time.
_ACCOUNTS = 10_000
_LEARN_SECONDS = 1.0
# Events that wait while the database is away.
_MOST_CROSSINGS = 10_000

UNCHECKED = Counter(
    "entrepot_limiter_unchecked_pulls_total", "Pulls let through although nobody could tell how many there had been."
)
REFUSED = Counter("entrepot_limiter_refused_pulls_total", "Pulls refused because a limit was used up.", ["limit"])

log = structlog.get_logger(__name__)


class _Gauge:
    """One limit of an account, and what is used of it in one window."""

    __slots__ = ("allowed", "is_of_pulls", "is_set", "name", "tally", "window")

    def __init__(self, account_id: int, name: LimitName, allowed: int, counters: Counters, now: float) -> None:
        self.name = name
        self.allowed = allowed
        self.window = window_of(name, now)
        self.tally = counters.tally(f"{name}:{account_id}", *self.window)
        self.is_of_pulls = name in OF_PULLS
        self.is_set = name is LimitName.NETWORKS_PER_HOUR

    def use(self) -> Use:
        """How much of it is used, as far as it is known here."""
        used = self.tally.count_members() if self.is_set else self.tally.amount()
        return Use(self.name, self.allowed, used, self.window)

    def has_room(self, network: str, *, counted: int = 0) -> bool:
        """Whether one more pull from a network fits, `counted` 1 where it is counted already."""
        if self.is_set:
            return self.tally.amount(network) > 0 or self.tally.count_members() < self.allowed
        # Of bytes nobody knows how many it will be: the pull that passes the limit is the last.
        return self.tally.amount() < self.allowed + (counted if self.is_of_pulls else 0)

    def is_surely_free(self, network: str) -> bool:
        """Whether one more pull fits, whatever other processes may have added in the meantime."""
        if self.is_set:
            return self.tally.amount(network) > 0
        part = (self.allowed - self.tally.known()) // _PART
        return self.tally.unshared() + (1 if self.is_of_pulls else 0) <= part and self.has_room(network)


class _Account:
    """What is known of one account's use in the present hour."""

    def __init__(self, principal: Principal, limits: Limits, counters: Counters, now: float) -> None:
        self.account_id = principal.account_id
        self.name = principal.account
        self.limits = limits
        self.hour = window_of(LimitName.PULLS_PER_HOUR, now)
        self.gauges = [_Gauge(self.account_id, name, allowed, counters, now) for name, allowed in limits.items()]
        self.of_pulls = [gauge for gauge in self.gauges if gauge.is_of_pulls]
        self.is_learned = all(gauge.tally.is_learned for gauge in self.gauges)
        # One pull at a time asks; the others find out what it heard.
        self.lock = asyncio.Lock()
        self._told_state: tuple[int, int] | None = None
        self._told: Allowance | None = None

    def is_of(self, limits: Limits, now: float) -> bool:
        """Whether it holds for these limits at this moment."""
        return self.hour.start <= now < self.hour.until and (self.limits is limits or self.limits == limits)

    def count_pull(self, pulls: int) -> None:
        """Add pulls, or take them back."""
        for gauge in self.of_pulls:
            gauge.tally.add(pulls)

    def count_bytes(self, size: int) -> None:
        """Add bytes."""
        for gauge in self.gauges:
            if gauge.name is LimitName.BYTES_PER_MONTH:
                gauge.tally.add(size)

    def count_network(self, network: str) -> None:
        """Add a network that is not counted yet."""
        for gauge in self.gauges:
            if gauge.is_set and gauge.tally.amount(network) == 0:
                gauge.tally.add(1, network)

    def ask(self) -> None:
        """Hear of what others counted with the next exchange."""
        for gauge in self.gauges:
            gauge.tally.ask()

    def allowance(self, now: float) -> Allowance | None:
        """What to tell of it; whoever is told hears more with the next exchange."""
        # Most requests are re-checks, and the same as the one before.
        state = (int(now), sum([gauge.tally.amount() for gauge in self.of_pulls]))
        if state != self._told_state:
            self._told_state = state
            self._told = find_allowance(self.name, [gauge.use() for gauge in self.of_pulls], now)
            self.ask()
        return self._told


class Limiter:
    """Lets pulls begin, or not. Accounts whose plan has no limits are none of its business."""

    def __init__(
        self, database: Database, counters: Counters, rechecks: Rechecks, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._counters = counters
        self._rechecks = rechecks
        self._clock = clock
        self._accounts: OrderedDict[int, _Account] = OrderedDict()
        # Accounts that used something since the last flush.
        self._active: dict[int, _Account] = {}
        self._crossings: list[Crossing] = []
        self._told = Reached()

    def start(self) -> None:
        """Begin to exchange counts with other processes, on the running loop."""
        self._counters.start()

    async def stop(self) -> None:
        """Tell what is left, and end."""
        await self.flush()
        await self._counters.stop()

    def close(self) -> None:
        """Let go of where counts are exchanged."""
        self._counters.close()

    async def flush(self) -> None:
        """Tell other processes what was counted here, and let the events of quotas happen. Raises nothing."""
        await self._counters.settle()
        self._find_crossings()
        crossings, self._crossings = self._crossings, []
        if not crossings:
            return
        now = datetime.fromtimestamp(self._clock(), UTC)
        try:
            await asyncio.shield(
                self._database.write(lambda connection: limit_records.note_crossings(connection, crossings, now))
            )
        except EntrepotError as error:
            log.warning("quotas_not_told", error=str(error))
            self._crossings = (crossings + self._crossings)[:_MOST_CROSSINGS]

    async def look(self, principal: Principal) -> Allowance | None:
        """What an account may still pull, None where pulls are not limited."""
        limits = principal.plan.limits
        if limits is None:
            return None
        now = self._clock()
        account = self._find(principal, limits, now)
        if not account.is_learned:
            await self._learn(account)
        return account.allowance(now)

    async def admit(self, principal: Principal, repository: str, digest: str, network: str) -> Allowance | None:
        """Let one pull begin, and count it unless it is a re-check; answers what `look` does then.

        The caller counts its use (accounts/usage.py) before anything else may run, so that the two agree. Raises
        PullLimitExceeded.
        """
        limits = principal.plan.limits
        if limits is None:
            return None
        now = self._clock()
        account = self._find(principal, limits, now)
        if not account.is_learned:
            await self._learn(account)
        check = (principal.account_id, repository, digest, network)
        if not self._rechecks.is_recheck(check, now):
            self._active[account.account_id] = account
            if all(gauge.is_surely_free(network) for gauge in account.gauges):
                account.count_pull(1)
            else:
                await self._count_asking(account, principal, check)
        return account.allowance(now)

    async def verify_room(self, principal: Principal, network: str) -> None:
        """Raises PullLimitExceeded when an account could not begin another pull now; counts none."""
        limits = principal.plan.limits
        if limits is None:
            return
        account = self._find(principal, limits, self._clock())
        if not account.is_learned:
            await self._learn(account)
        if all(gauge.is_surely_free(network) for gauge in account.gauges):
            return
        async with account.lock:
            self._verify_room(account, principal, network)
            account.ask()
            if not await self._counters.settle():
                UNCHECKED.inc()
            self._verify_room(account, principal, network)

    def note_bytes(self, principal: Principal, size: int) -> None:
        """Count bytes that an account was sent."""
        limits = principal.plan.limits
        if limits is not None and limits.bytes_per_month is not None:
            account = self._find(principal, limits, self._clock())
            account.count_bytes(size)
            self._active[account.account_id] = account

    async def _count_asking(self, account: _Account, principal: Principal, check: Check) -> None:
        """Count a pull, then judge it by what all processes together have. Raises PullLimitExceeded."""
        network = check[-1]
        async with account.lock:
            # Whoever asked before may have been the same pull, from another node of the same cluster, or the last one.
            if self._rechecks.is_recheck(check, self._clock()):
                return
            self._verify_room(account, principal, network)
            account.count_pull(1)
            account.ask()
            try:
                if not await self._counters.settle():
                    UNCHECKED.inc()
                self._verify_room(account, principal, network, counted=1)
            except BaseException:
                account.count_pull(-1)
                raise
            if self._rechecks.is_recheck(check, self._clock()):  # the answer made room for the same pull meanwhile
                account.count_pull(-1)
            account.count_network(network)

    def _verify_room(self, account: _Account, principal: Principal, network: str, *, counted: int = 0) -> None:
        used_up = [gauge.use() for gauge in account.gauges if not gauge.has_room(network, counted=counted)]
        error = find_refusal(principal.plan.name, account.name, used_up, self._clock())
        if error is not None:
            REFUSED.labels(error.reason).inc()
            raise error

    def _find(self, principal: Principal, limits: Limits, now: float) -> _Account:
        account = self._accounts.get(principal.account_id)
        if account is None or not account.is_of(limits, now):
            account = _Account(principal, limits, self._counters, now)
            self._accounts[principal.account_id] = account
            self._accounts.move_to_end(principal.account_id)
            if len(self._accounts) > _ACCOUNTS:
                self._accounts.popitem(last=False)
        return account

    async def _learn(self, account: _Account) -> None:
        """Look up what was used before this process counted: by other processes, or when the plan had no limits."""
        async with account.lock:
            gauges = [gauge for gauge in account.gauges if not gauge.tally.is_learned]
            windows = [(gauge.name, gauge.window) for gauge in gauges]
            used: dict[LimitName, Amounts] = {}
            if windows:
                try:
                    async with asyncio.timeout(_LEARN_SECONDS):
                        used = await self._database.read(
                            lambda connection: limit_records.read_used(connection, account.account_id, windows)
                        )
                except (EntrepotError, TimeoutError):
                    UNCHECKED.inc()
            for gauge in gauges:
                gauge.tally.learn(used.get(gauge.name, {}))
                gauge.tally.ask()
            account.is_learned = True

    def _find_crossings(self) -> None:
        """Note which accounts have come so far that somebody may want to know."""
        active, self._active = self._active, {}
        for account in active.values():
            for use in (gauge.use() for gauge in account.gauges if not gauge.is_set):
                for percent in QUOTAS:
                    crossing = Crossing(account.account_id, account.name, percent, use)
                    is_reached = use.used * 100 >= use.allowed * percent
                    if is_reached and not self._told.has(account.account_id, crossing.once):
                        self._told.note([(account.account_id, crossing.once)])
                        self._crossings.append(crossing)
