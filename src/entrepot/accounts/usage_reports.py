"""What accounts did: usage over time, refusals, the funnel, and who is stuck. As of about a second ago."""

from datetime import timedelta

from entrepot.accounts import report_records, steps
from entrepot.accounts.report_records import AccountUsage, PeriodUsage, RefusalRow, UsageFilter
from entrepot.accounts.steps import FunnelFilter, Step, StepCount, StuckAccount
from entrepot.errors import RequestInvalid
from entrepot.storage.database import Database

MAX_FUNNEL = timedelta(days=2 * 366)


class UsageReports:
    """Answers from the roll-ups."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usage_of(self, account_id: int, wanted: UsageFilter | None = None) -> AccountUsage:
        """An account's counts, its hours or days as `wanted` says."""
        return await self._database.read(
            lambda connection: report_records.read_usage(connection, account_id, wanted or UsageFilter())
        )

    async def totals(self, wanted: UsageFilter) -> list[PeriodUsage]:
        """The counts of all accounts that fit, by hour or day, newest first."""
        return await self._database.read(lambda connection: report_records.read_totals(connection, wanted))

    async def refusals_of(self, account_id: int) -> list[RefusalRow]:
        """What an account was refused, newest first."""
        return await self._database.read(lambda connection: report_records.list_refusals(connection, account_id))

    async def funnel(self, wanted: FunnelFilter) -> list[StepCount]:
        """How far accounts got, by week of their sign-up and plan. Raises RequestInvalid for too many weeks."""
        if not timedelta(0) < wanted.until - wanted.since <= MAX_FUNNEL:
            raise RequestInvalid(f"since must lie before until, by at most {MAX_FUNNEL.days} days")
        return await self._database.read(lambda connection: steps.read_funnel(connection, wanted))

    async def stuck(self, step: Step, wanted: FunnelFilter, before_id: int | None, limit: int) -> list[StuckAccount]:
        """Up to `limit` accounts that never reached a step, and why as far as is known; newest first."""
        return await self._database.read(
            lambda connection: steps.list_stuck(connection, step, wanted, before_id, limit)
        )
