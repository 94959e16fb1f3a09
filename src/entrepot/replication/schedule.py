"""When runs happen: schedules in cron's five fields, and windows of the day, both on a wall clock somewhere.

Schedules are read as Debian's cron reads them (cronsim), also when clocks are put forward or back: what falls into the
hour that is skipped happens right after it, what falls into the hour that comes twice happens once.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_FIELDS = 5
_MAX_CHARACTERS = 200
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)
_DAY = timedelta(days=1)
# Any instant will do to find out whether a schedule has a next one.
_PROBE = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Instants that come again and again."""

    text: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str, zone: ZoneInfo) -> Self:
        """The schedule that cron's five fields spell. Raises ValueError."""
        if len(text) > _MAX_CHARACTERS or len(text.split()) != _FIELDS:
            raise ValueError("write five fields: minute, hour, day of the month, month, day of the week")
        schedule = cls(text, zone)
        try:
            schedule.next_after(_PROBE)
        except CronSimError as error:
            raise ValueError(str(error).lower()) from error
        except StopIteration as error:
            raise ValueError("such a day never comes") from error
        return schedule

    def next_after(self, at: datetime) -> datetime:
        """The first instant after `at`, in UTC."""
        return next(CronSim(self.text, at.astimezone(self.zone))).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of every day, which may reach over midnight."""

    start: time
    end: time
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str, zone: ZoneInfo) -> Self:
        """The window that `22:00-06:00` spells. Raises ValueError."""
        match = _WINDOW.fullmatch(text)
        if match is None:
            raise ValueError("write HH:MM-HH:MM, such as 22:00-06:00")
        numbers = [int(part) for part in match.groups()]
        window = cls(time(numbers[0], numbers[1]), time(numbers[2], numbers[3]), zone)
        if window.start == window.end:
            raise ValueError("it begins when it ends")
        return window

    def is_open(self, at: datetime) -> bool:
        """Whether `at` lies within."""
        local = at.astimezone(self.zone).time()
        if self.start < self.end:
            return self.start <= local < self.end
        return local >= self.start or local < self.end

    def next_open(self, at: datetime) -> datetime:
        """The first instant from `at` on that lies within, in UTC."""
        if self.is_open(at):
            return at
        day = at.astimezone(self.zone).date()
        start = datetime.combine(day, self.start, self.zone).astimezone(UTC)
        return start if start >= at else datetime.combine(day + _DAY, self.start, self.zone).astimezone(UTC)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"
