"""When the runs of a rule happen, and how much each may take: the fields of a rule that say nothing of its content."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from entrepot.access.quantities import parse_bytes
from entrepot.errors import RuleInvalid
from entrepot.replication.schedule import Schedule, Window

OPTION_FIELDS = frozenset({"schedule", "window", "time_zone", "priority", "concurrency", "bandwidth"})
MAX_CONCURRENCY = 64
# So that as many blobs as may be copied at once each get more than a source must send at least.
MIN_BANDWIDTH = 500_000
_MAX_PRIORITY = 1000
_MAX_TEXT = 100
_UTC = "UTC"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The fields; `concurrency` is in blobs at a time, `bandwidth` in bytes a second as text such as `50MB`."""

    schedule: Schedule | None = None
    window: Window | None = None
    time_zone: str = _UTC
    priority: int = 0
    concurrency: int | None = None
    bandwidth: str | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], where: str) -> Self:
        """The options among the fields of a rule. Raises RuleInvalid, whose message begins with the place."""
        zone = _parse_zone(fields.get("time_zone", _UTC), f"{where}.time_zone")
        return cls(
            schedule=_parse_timing(Schedule, fields.get("schedule"), zone, f"{where}.schedule"),
            window=_parse_timing(Window, fields.get("window"), zone, f"{where}.window"),
            time_zone=zone.key,
            priority=_parse_number(fields.get("priority", 0), -_MAX_PRIORITY, _MAX_PRIORITY, f"{where}.priority"),
            concurrency=(
                _parse_number(fields["concurrency"], 1, MAX_CONCURRENCY, f"{where}.concurrency")
                if fields.get("concurrency") is not None
                else None
            ),
            bandwidth=_parse_bandwidth(fields.get("bandwidth"), f"{where}.bandwidth"),
        )

    @property
    def bytes_per_second(self) -> int | None:
        """The bandwidth as a number."""
        return None if self.bandwidth is None else parse_bytes(self.bandwidth)

    def next_open(self, at: datetime) -> datetime:
        """When a run may begin that is wanted for `at`."""
        return at if self.window is None else self.window.next_open(at)

    def next_scheduled(self, at: datetime) -> datetime | None:
        """When the schedule wants a run again after `at`; None when there is no schedule."""
        return None if self.schedule is None else self.schedule.next_after(at)

    def to_document(self) -> dict[str, Any]:
        """The same fields, without those that say nothing."""
        document = {
            "schedule": None if self.schedule is None else self.schedule.text,
            "window": None if self.window is None else str(self.window),
            "time_zone": None if self.time_zone == _UTC else self.time_zone,
            "priority": self.priority or None,
            "concurrency": self.concurrency,
            "bandwidth": self.bandwidth,
        }
        return {name: value for name, value in document.items() if value is not None}


def _parse_zone(value: object, where: str) -> ZoneInfo:
    try:
        # Also for names that would lead out of the folder of time zones.
        return ZoneInfo(value) if isinstance(value, str) and value else ZoneInfo("")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise RuleInvalid(f"{where}: must be a time zone such as Europe/Berlin") from error


def _parse_timing(kind: type[Schedule] | type[Window], value: object, zone: ZoneInfo, where: str) -> Any:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RuleInvalid(f"{where}: must be text; put it in quotes")
    try:
        return kind.parse(value, zone)
    except ValueError as error:
        raise RuleInvalid(f"{where}: {value[:_MAX_TEXT]!r}: {error}") from error


def _parse_number(value: object, least: int, most: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RuleInvalid(f"{where}: must be a whole number from {least} to {most}")
    return value


def _parse_bandwidth(value: object, where: str) -> str | None:
    if value is None:
        return None
    try:
        amount = parse_bytes(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else 0
    except ValueError as error:
        raise RuleInvalid(f"{where}: {error}") from error
    if amount < MIN_BANDWIDTH:
        raise RuleInvalid(f"{where}: must be bytes a second such as 50MB, and no less than {MIN_BANDWIDTH}")
    return str(value)
