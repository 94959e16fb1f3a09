"""Wall-clock time for services. Pure code takes the time as an argument instead."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Answers the present instant, in UTC."""


def utc_now() -> datetime:
    """The present instant."""
    return datetime.now(UTC)
