"""Upkeep: warnings of what is about to end, and dropping what was kept for long enough.

Every step is a row of small transactions, so that nothing waits for it, and does no harm when several workers take it
at the same time or when one dies in the middle.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

import sqlalchemy as sa
import structlog

from entrepot.accounts import records, upkeep_records, usage_records
from entrepot.accounts.answers import KEPT_FOR
from entrepot.errors import EntrepotError
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

PAUSE_SECONDS: Final = 60.0
# Of one step in a row, before the others have their turn.
_BATCHES: Final = 200

log = structlog.get_logger(__name__)

Step = Callable[[sa.Connection], int]
"""One batch; answers 0 when nothing is left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long things are kept."""

    hourly_usage: timedelta
    daily_usage: timedelta
    networks: timedelta
    refusals: timedelta
    audit: timedelta
    events: timedelta
    idempotent_answers: timedelta = KEPT_FOR
    # Of accounts that never got to a whole image.
    fetches: timedelta = timedelta(days=30)


class Upkeep:
    """What has to be done from time to time."""

    def __init__(self, database: Database, clock: Clock, retention: Retention) -> None:
        self._database = database
        self._clock = clock
        self._retention = retention

    async def run(self, stop: asyncio.Event | None = None) -> dict[str, int]:
        """Do what is due, until `stop` is set; answers the rows that each step had to do with, where there were any."""
        done: dict[str, int] = {}
        for name, step in self._steps().items():
            for _ in range(_BATCHES):
                if stop is not None and stop.is_set():
                    return done
                count = await self._database.write(step)
                if not count:
                    break
                done[name] = done.get(name, 0) + count
        return done

    def _steps(self) -> dict[str, Step]:
        now, kept = self._clock(), self._retention
        return {
            "warnings": partial(upkeep_records.warn_of_ends, now=now),
            "dormancy": partial(upkeep_records.tell_dormant, now=now),
            "usage": partial(
                usage_records.drop_old,
                hours_before=now - kept.hourly_usage,
                days_before=now - kept.daily_usage,
                networks_before=now - kept.networks,
                refusals_before=now - kept.refusals,
                fetches_before=now - kept.fetches,
            ),
            "audit": partial(records.drop_audit, before=now - kept.audit, limit=upkeep_records.BATCH),
            "events": partial(upkeep_records.drop_events, before=now - kept.events),
            "answers": partial(upkeep_records.drop_answers, before=now - kept.idempotent_answers),
        }


async def keep_up(upkeep: Upkeep, stop: asyncio.Event) -> None:
    """Do what is due every minute, until `stop` is set."""
    while not stop.is_set():
        try:
            done = await upkeep.run(stop)
        except EntrepotError as error:
            log.warning("upkeep_failed", problem=str(error))
        else:
            if done:
                log.info("upkeep", **done)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), PAUSE_SECONDS)
