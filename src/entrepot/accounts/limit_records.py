"""SQL of limits: what an account used before this process counted, and the events of what is nearly used up."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from entrepot.access.limits import MAX_NETWORKS, LimitName, Use, Window
from entrepot.accounts.events import EventType, emit
from entrepot.storage.counters import Amounts
from entrepot.storage.tables import usage_networks, usage_periods

# Events, by the percentage that must be used; the largest last.
QUOTAS = {80: EventType.QUOTA_80, 100: EventType.QUOTA_100}


@dataclass(frozen=True, slots=True)
class Crossing:
    """An account that has used so much of a limit."""

    account_id: int
    account: str
    percent: int
    use: Use

    @property
    def once(self) -> str:
        """The words that make its event happen once in a window."""
        return f"quota:{self.account_id}:{self.use.name}:{self.percent}:{self.use.window.start}"


def read_used(
    connection: sa.Connection, account_id: int, windows: Iterable[tuple[LimitName, Window]]
) -> dict[LimitName, Amounts]:
    """What the roll-ups of usage say that an account used in these windows."""
    return {name: _read_amounts(connection, account_id, name, window) for name, window in windows}


def _read_amounts(connection: sa.Connection, account_id: int, name: LimitName, window: Window) -> Amounts:
    start = datetime.fromtimestamp(window.start, UTC)
    if name is LimitName.NETWORKS_PER_HOUR:
        networks = usage_networks.c
        query = sa.select(networks.network).where(networks.account_id == account_id, networks.last_at >= start)
        return dict.fromkeys(connection.scalars(query.limit(MAX_NETWORKS)), 1)
    is_hour = name is LimitName.PULLS_PER_HOUR
    column = usage_periods.c.bytes_served if name is LimitName.BYTES_PER_MONTH else usage_periods.c.pulls
    total = connection.scalar(
        sa.select(sa.func.sum(column)).where(
            usage_periods.c.account_id == account_id,
            usage_periods.c.period == ("h" if is_hour else "d"),
            usage_periods.c.start >= start,
            usage_periods.c.start < datetime.fromtimestamp(window.until, UTC),
        )
    )
    return {"": int(total or 0)}


def note_crossings(connection: sa.Connection, crossings: Iterable[Crossing], now: datetime) -> None:
    """Let the events happen, each once in its window whatever process saw it."""
    for crossing in crossings:
        use = crossing.use
        emit(
            connection,
            QUOTAS[crossing.percent],
            now,
            account_id=crossing.account_id,
            account=crossing.account,
            once=crossing.once,
            limit=use.name.value,
            allowed=use.allowed,
            used=use.used,
            resets_at=datetime.fromtimestamp(use.window.until, UTC).isoformat(),
        )
