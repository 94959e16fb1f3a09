"""How far accounts get, from signing up to still pulling a month later: each step once, at its first time.

A step's row carries all that the funnel groups by, so that the funnel is one pass over one index, and no row is written
by two sign-ups at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from entrepot.accounts.reach import EVERYONE, AccountReach
from entrepot.storage.statements import insert_missing
from entrepot.storage.tables import account_steps, accounts, refusals


class Step(StrEnum):
    """How far an account can get, in order."""

    SIGNED_UP = "signed_up"
    CREDENTIAL_ISSUED = "credential_issued"
    FIRST_LOGIN = "first_login"
    FIRST_PULL = "first_pull"
    IMAGE_FETCHED = "image_fetched"
    SECOND_VERSION = "second_version"
    ACTIVE_AFTER_7_DAYS = "active_after_7_days"
    ACTIVE_AFTER_30_DAYS = "active_after_30_days"


LATER_STEPS = {Step.ACTIVE_AFTER_7_DAYS: timedelta(days=7), Step.ACTIVE_AFTER_30_DAYS: timedelta(days=30)}
# How long a step took since the one before, at most, in words.
TOOK = {
    "1m": timedelta(minutes=1),
    "10m": timedelta(minutes=10),
    "1h": timedelta(hours=1),
    "1d": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "longer": timedelta.max,
}
_TOOK_NAMES = tuple(TOOK)


@dataclass(frozen=True, slots=True)
class StepCount:
    """How many accounts of a plan, among those that signed up in a week (from Monday, UTC), got so far.

    `took` counts them by how long it was since their step before, at most.
    """

    week: datetime
    plan: str
    step: Step
    accounts: int
    took: dict[str, int]


@dataclass(frozen=True, slots=True)
class StuckAccount:
    """An account that did not get on, and what it was refused last, None when it was refused nothing."""

    id: int
    name: str
    external_id: str | None
    plan: str
    created_at: datetime
    reason: str | None
    message: str | None
    refused_at: datetime | None


@dataclass(frozen=True, slots=True)
class FunnelFilter:
    """Whose sign-ups are looked at: `since` is included, `until` is not; `reach` is whom the asker may see."""

    since: datetime
    until: datetime
    plan: str | None = None
    reach: AccountReach = EVERYONE


def begin(connection: sa.Connection, account_id: int, plan: str, created_by: str | None, now: datetime) -> None:
    """Note that an account signed up just now, and was issued its first credential."""
    row = {"account_id": account_id, "at": now, "week": week_of(now), "plan": plan, "created_by": created_by, "took": 0}
    insert_missing(connection, account_steps, [row | {"step": step.value} for step in _BEGINNING])


_BEGINNING = (Step.SIGNED_UP, Step.CREDENTIAL_ISSUED)


def reach(connection: sa.Connection, account_id: int, step: Step, at: datetime) -> bool:
    """Note that an account got so far; answers whether it had not before."""
    rows = list(connection.execute(sa.select(account_steps).where(account_steps.c.account_id == account_id)))
    if any(row.step == step for row in rows):
        return False
    if rows:
        order = list(Step)
        begun = min(rows, key=lambda row: row.at)
        before = max((row.at for row in rows if order.index(row.step) < order.index(step)), default=begun.at)
        origin = {"week": begun.week, "plan": begun.plan, "created_by": begun.created_by}
    else:  # it signed up with an earlier version of this program
        found = connection.execute(sa.select(accounts).where(accounts.c.id == account_id)).one()
        before = found.created_at
        origin = {"week": week_of(before), "plan": found.plan, "created_by": found.created_by}
    row = {"account_id": account_id, "step": step.value, "at": at, "took": _took(at - before), **origin}
    return insert_missing(connection, account_steps, [row]) == 1


def read_funnel(connection: sa.Connection, wanted: FunnelFilter) -> list[StepCount]:
    """How far the accounts got, by week of their sign-up, newest first, and by plan."""
    table = account_steps.c
    query = (
        sa.select(table.week, table.plan, table.step, table.took, sa.func.count().label("accounts"))
        .where(table.week >= week_of(wanted.since), table.week < wanted.until, *wanted.reach.conditions(account_steps))
        .group_by(table.week, table.plan, table.step, table.took)
    )
    if wanted.plan is not None:
        query = query.where(table.plan == wanted.plan)
    counts: dict[tuple[datetime, str, Step], dict[str, int]] = {}
    for row in connection.execute(query):
        took = counts.setdefault((row.week, row.plan, Step(row.step)), dict.fromkeys(_TOOK_NAMES, 0))
        took[_TOOK_NAMES[row.took]] += row.accounts
    order = list(Step)
    keys = sorted(counts, key=lambda key: (-key[0].timestamp(), key[1], order.index(key[2])))
    return [StepCount(*key, accounts=sum(counts[key].values()), took=counts[key]) for key in keys]


def list_stuck(
    connection: sa.Connection, step: Step, wanted: FunnelFilter, before_id: int | None, limit: int
) -> list[StuckAccount]:
    """Up to `limit` accounts that signed up, are not deleted, and never reached a step; newest first."""
    reached = sa.exists().where(account_steps.c.account_id == accounts.c.id, account_steps.c.step == step.value)
    query = (
        sa.select(accounts)
        .where(
            accounts.c.created_at >= wanted.since,
            accounts.c.created_at < wanted.until,
            accounts.c.status != "deleted",
            ~reached,
            *wanted.reach.conditions(accounts),
        )
        .order_by(accounts.c.id.desc())
        .limit(limit)
    )
    if wanted.plan is not None:
        query = query.where(accounts.c.plan == wanted.plan)
    if before_id is not None:
        query = query.where(accounts.c.id < before_id)
    rows = list(connection.execute(query))
    why = _last_refusals(connection, [row.id for row in rows])
    return [
        StuckAccount(row.id, row.name, row.external_id, row.plan, row.created_at, *why.get(row.id, (None, None, None)))
        for row in rows
    ]


def _last_refusals(connection: sa.Connection, account_ids: Sequence[int]) -> dict[int, tuple[Any, Any, Any]]:
    """(reason, message, when) of what each account was refused last."""
    query = sa.select(refusals).where(refusals.c.account_id.in_(account_ids)).order_by(refusals.c.last_at)
    return {row.account_id: (row.reason, row.message, row.last_at) for row in connection.execute(query)}


def week_of(at: datetime) -> datetime:
    """The Monday on which a week begins."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())


def _took(duration: timedelta) -> int:
    # Nothing takes less than no time, but a clock may be set back.
    return next(number for number, most in enumerate(TOOK.values()) if duration <= most)
