"""How much a plan lets an account take: windows of time, and what is left of them.

Windows are fixed and in UTC: the hour, the day, the calendar month. Everybody can tell when the next one begins, and no
process has to remember when each pull was.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple, Self

from entrepot.access.quantities import format_bytes, parse_bytes
from entrepot.errors import PlanInvalid, PullLimitExceeded

_HOUR, _DAY = 3600, 86400
_DECEMBER = 12
_MAX_PULLS = 10**9
_MAX_BYTES = 10**18
MAX_NETWORKS = 1000


class LimitName(StrEnum):
    """What is limited; also the word under which a refusal is counted."""

    PULLS_PER_HOUR = "pulls_per_hour"
    PULLS_PER_DAY = "pulls_per_day"
    BYTES_PER_MONTH = "bytes_per_month"
    NETWORKS_PER_HOUR = "networks_per_hour"


OF_PULLS = frozenset({LimitName.PULLS_PER_HOUR, LimitName.PULLS_PER_DAY})


class Window(NamedTuple):
    """A stretch of time in unix seconds, `until` not included."""

    start: int
    until: int

    @property
    def seconds(self) -> int:
        """Its length."""
        return self.until - self.start


def minute_of(now: float) -> Window:
    """The minute that `now` lies in."""
    return _aligned(now, 60)


def window_of(name: LimitName, now: float) -> Window:
    """The window of a limit that `now` lies in."""
    if name is LimitName.BYTES_PER_MONTH:
        return _month_of(now)
    return _aligned(now, _DAY if name is LimitName.PULLS_PER_DAY else _HOUR)


def _aligned(now: float, seconds: int) -> Window:
    start = int(now // seconds) * seconds
    return Window(start, start + seconds)


def _month_of(now: float) -> Window:
    at = datetime.fromtimestamp(now, UTC)
    start = datetime(at.year, at.month, 1, tzinfo=UTC)
    year, month = (at.year + 1, 1) if at.month == _DECEMBER else (at.year, at.month + 1)
    return Window(int(start.timestamp()), int(datetime(year, month, 1, tzinfo=UTC).timestamp()))


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that an account of a plan may take, None for as much as it likes."""

    pulls_per_hour: int | None = None
    pulls_per_day: int | None = None
    bytes_per_month: int | None = None
    networks_per_hour: int | None = None

    @classmethod
    def parse(cls, document: object, where: str) -> Self:
        """The limits in a plan's document. Raises PlanInvalid, whose message names the place."""
        known = ", ".join(LimitName)
        if not isinstance(document, Mapping) or not document:
            raise PlanInvalid(f"{where}: must be a mapping with {known}")
        amounts = {}
        for name, value in document.items():
            if name not in list(LimitName):
                raise PlanInvalid(f"{where}.{name}: not a field here; known are {known}")
            amounts[str(name)] = _parse_amount(LimitName(name), value, f"{where}.{name}")
        return cls(**amounts)

    def items(self) -> list[tuple[LimitName, int]]:
        """The limits that there are."""
        pairs = [(name, getattr(self, name)) for name in LimitName]
        return [(name, allowed) for name, allowed in pairs if allowed is not None]

    def to_document(self) -> dict[str, Any]:
        """As in plans.yaml."""
        return {
            name.value: format_bytes(allowed) if name is LimitName.BYTES_PER_MONTH else allowed
            for name, allowed in self.items()
        }

    def __str__(self) -> str:
        return ", ".join(_spell(name, allowed) for name, allowed in self.items())


class Use(NamedTuple):
    """How much of one limit is used in the window that is open now."""

    name: LimitName
    allowed: int
    used: int
    window: Window

    @property
    def remaining(self) -> int:
        """What may still be taken."""
        return max(0, self.allowed - self.used)

    @property
    def is_used_up(self) -> bool:
        """Whether every pull is refused; where networks are limited, those that are counted may go on."""
        return self.name is not LimitName.NETWORKS_PER_HOUR and self.used >= self.allowed

    def seconds_left(self, now: float) -> int:
        """Until the next window begins, at least 1."""
        return max(1, math.ceil(self.window.until - now))

    def __str__(self) -> str:
        used = format_bytes(self.used) if self.name is LimitName.BYTES_PER_MONTH else self.used
        return f"{_spell(self.name, self.allowed)}: {used} used"


class Allowance(NamedTuple):
    """What an account is told of the limit of pulls that it will meet first."""

    account: str
    allowed: int
    remaining: int
    window_seconds: int
    reset_seconds: int


def find_allowance(account: str, uses: Iterable[Use], now: float) -> Allowance | None:
    """What to tell of limits of pulls, None when there are none."""
    # Of two that are used up the one that opens later: before that nothing can be pulled.
    use = min(uses, key=lambda one: (one.remaining, -one.window.until), default=None)
    if use is None:
        return None
    return Allowance(account, use.allowed, use.remaining, use.window.seconds, use.seconds_left(now))


def find_refusal(plan: str, account: str, used_up: Iterable[Use], now: float) -> PullLimitExceeded | None:
    """The refusal of a pull for the limits that leave no room for it, None when there are none."""
    use = max(used_up, key=lambda one: one.window.until, default=None)
    if use is None:
        return None
    opens_at = datetime.fromtimestamp(use.window.until, UTC)
    rest = "and no other ones" if use.name is LimitName.NETWORKS_PER_HOUR else "and nothing is left of that"
    return PullLimitExceeded(
        f"plan '{plan}' allows {_spell(use.name, use.allowed)}, {rest} until {opens_at:%Y-%m-%d %H:%M} UTC; wait, or "
        "ask your vendor for a larger plan",
        account=account,
        limit=use.name.value,
        pulls=(use.allowed, use.window.seconds) if use.name in OF_PULLS else None,
        retry_seconds=use.seconds_left(now),
    )


def _spell(name: LimitName, allowed: int) -> str:
    match name:
        case LimitName.BYTES_PER_MONTH:
            return f"{format_bytes(allowed)} per month"
        case LimitName.NETWORKS_PER_HOUR:
            return f"pulls from {allowed} {'network' if allowed == 1 else 'networks'} per hour"
        case _:
            return f"{allowed} {'pull' if allowed == 1 else 'pulls'} per {name.rpartition('_')[2]}"


def _parse_amount(name: LimitName, value: object, where: str) -> int:
    if name is LimitName.BYTES_PER_MONTH and isinstance(value, str):
        try:
            value = parse_bytes(value)
        except ValueError as error:
            raise PlanInvalid(f"{where}: {error}") from error
    most = {LimitName.BYTES_PER_MONTH: _MAX_BYTES, LimitName.NETWORKS_PER_HOUR: MAX_NETWORKS}.get(name, _MAX_PULLS)
    # A truth value is a number to the language, but not to whoever wrote the plan.
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        example = ", or an amount such as 500GB" if name is LimitName.BYTES_PER_MONTH else ""
        raise PlanInvalid(f"{where}: use a number from 1 to {most}{example}")
    return value
