"""What accounts pulled, what they were refused, and how far they got."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query

from entrepot.accounts.report_records import UsageFilter
from entrepot.accounts.steps import FunnelFilter, Step
from entrepot.web.api import usage_models as bodies
from entrepot.web.api.cursors import read_cursor, write_cursor
from entrepot.web.api.guard import ReadsUsage
from entrepot.web.api.models import Instant

router = APIRouter(tags=["usage"])

_FUNNEL_SINCE = timedelta(weeks=12)
# Whoever signed up less long ago is not stuck yet.
_STUCK_AFTER = timedelta(hours=1)


def _read_filter(
    caller: ReadsUsage,
    period: Literal["hour", "day"] = "day",
    since: Instant | None = None,
    until: Instant | None = None,
    plan: str | None = None,
) -> UsageFilter:
    return UsageFilter(period, since, until, plan, caller.reach)


Wanted = Annotated[UsageFilter, Depends(_read_filter)]


@router.get("/usage", response_model_exclude_none=True)
async def get_totals(caller: ReadsUsage, wanted: Wanted) -> bodies.UsageTotals:
    """What all accounts pulled, by hour or day, newest first."""
    totals = await caller.services.reports.totals(wanted)
    return bodies.UsageTotals.model_validate({"period": wanted.period, "totals": totals}, from_attributes=True)


@router.get("/accounts/{name}/usage")
async def get_usage(
    name: str,
    caller: ReadsUsage,
    period: Literal["hour", "day"] = "day",
    since: Instant | None = None,
    until: Instant | None = None,
) -> bodies.Usage:
    """What an account pulled: in all, by version, client and network, and by hour or day."""
    account = await caller.get_account(name)
    usage = await caller.services.reports.usage_of(account.id, UsageFilter(period, since, until))
    return bodies.Usage.of(account.name, usage)


@router.get("/accounts/{name}/refusals")
async def get_refusals(name: str, caller: ReadsUsage) -> bodies.Refusals:
    """What an account was refused, and why."""
    account = await caller.get_account(name)
    rows = await caller.services.reports.refusals_of(account.id)
    return bodies.Refusals.of(account.name, rows)


def _read_sign_ups(
    caller: ReadsUsage, since: Instant | None = None, until: Instant | None = None, plan: str | None = None
) -> FunnelFilter:
    end = until or datetime.now(UTC)
    return FunnelFilter(since or end - _FUNNEL_SINCE, end, plan, caller.reach)


SignUps = Annotated[FunnelFilter, Depends(_read_sign_ups)]


@router.get("/funnel")
async def get_funnel(caller: ReadsUsage, wanted: SignUps) -> bodies.Funnel:
    """How far accounts got, by week of their sign-up and plan; the last 12 weeks unless told otherwise."""
    return bodies.Funnel.model_validate({"steps": await caller.services.reports.funnel(wanted)}, from_attributes=True)


@router.get("/funnel/stuck")
async def get_stuck(
    caller: ReadsUsage,
    wanted: SignUps,
    step: Step = Step.FIRST_LOGIN,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> bodies.StuckPage:
    """Accounts that signed up more than an hour ago and never reached a step, and what they were refused last."""
    patient = FunnelFilter(wanted.since, min(wanted.until, datetime.now(UTC) - _STUCK_AFTER), wanted.plan, wanted.reach)
    found = await caller.services.reports.stuck(step, patient, read_cursor(cursor), limit + 1)
    return bodies.StuckPage(
        step=step,
        stuck=[bodies.StuckBody.of(account) for account in found[:limit]],
        next_cursor=write_cursor(found[limit - 1].id) if len(found) > limit else None,
    )
