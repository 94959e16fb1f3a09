"""Durations as people write them in plans and rules: `90d`, `12h`."""

import re
from datetime import timedelta

_DURATION = re.compile(r"([1-9]\d{0,9})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MAX_DURATION = timedelta(days=3660)


def parse_duration(value: object) -> timedelta:
    """The duration that a text spells. Raises ValueError."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("use a number with s, m, h or d, such as 90d")
    duration = timedelta(**{_UNITS[match[2]]: int(match[1])}) if int(match[1]) < 10**9 else MAX_DURATION * 2
    if duration > MAX_DURATION:
        raise ValueError(f"at most {MAX_DURATION.days} days")
    return duration
