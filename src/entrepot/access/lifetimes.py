"""When the holder of a credential is warned that it is about to end."""

from datetime import datetime, timedelta
from typing import Final

_AHEAD: Final = (timedelta(days=14), timedelta(days=1))


def warning_times(created_at: datetime, expires_at: datetime) -> list[datetime]:
    """The instants of the warnings, in order: 14 days and a day before the end.

    What would come before half of the life is over is left out; where that is all, there is one warning, when three
    quarters are over.
    """
    life = expires_at - created_at
    ahead = [one for one in _AHEAD if one <= life / 2] or [life / 4]
    return [expires_at - one for one in ahead]


def next_warning(created_at: datetime, expires_at: datetime | None, after: datetime) -> datetime | None:
    """The first warning that comes after an instant; None when there is none."""
    if expires_at is None:
        return None
    return next((at for at in warning_times(created_at, expires_at) if at > after), None)
