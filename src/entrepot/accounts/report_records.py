"""SQL of what is asked of usage: from the roll-ups that usage_records.py writes."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa

from entrepot.accounts.reach import EVERYONE, AccountReach
from entrepot.storage.tables import (
    account_steps,
    accounts,
    refusals,
    usage,
    usage_clients,
    usage_networks,
    usage_periods,
    usage_versions,
)

# Rows of a kind that one answer shows; the sums count all.
_LISTED = 1000
_REFUSALS_LISTED = 100


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which periods are shown, and of whom; `since` is included, `until` is not."""

    period: Literal["hour", "day"] = "day"
    since: datetime | None = None
    until: datetime | None = None
    plan: str | None = None
    reach: AccountReach = EVERYONE


@dataclass(frozen=True, slots=True)
class RepositoryUsage:
    """What one account took from one repository; `bytes_served` are those of answers begun, redirects included."""

    repository: str
    pulls: int
    bytes_served: int
    first_pull_at: datetime | None
    last_pull_at: datetime | None


@dataclass(frozen=True, slots=True)
class PeriodUsage:
    """An hour or a day (UTC). `repository` and `tag` None: of all; `accounts` None: of one."""

    start: datetime
    pulls: int
    bytes_served: int
    repository: str | None = None
    tag: str | None = None
    accounts: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """Something that pulls came from or went to: a version, a client, a network."""

    name: str
    pulls: int
    first_at: datetime | None
    last_at: datetime | None


@dataclass(frozen=True, slots=True)
class AccountUsage:
    """All counts of one account; lists show the most recent, `version_count` and `network_count` count all."""

    repositories: list[RepositoryUsage]
    versions: list[Seen]
    version_count: int
    clients: list[Seen]
    networks: list[Seen]
    network_count: int
    periods: list[PeriodUsage]
    steps: dict[str, datetime]


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """What an account was refused on a day, for one reason."""

    account_id: int
    day: datetime
    reason: str
    repository: str
    message: str
    times: int
    first_at: datetime | None
    last_at: datetime | None


def read_usage(connection: sa.Connection, account_id: int, wanted: UsageFilter) -> AccountUsage:
    """An account's counts."""
    query = sa.select(usage).where(usage.c.account_id == account_id).order_by(usage.c.repository)
    version = (usage_versions.c.repository + sa.literal("@") + usage_versions.c.digest).label("name")
    versions = _seen(connection, usage_versions, version, account_id)
    networks = _seen(connection, usage_networks, usage_networks.c.network, account_id)
    steps = sa.select(account_steps.c.step, account_steps.c.at).where(account_steps.c.account_id == account_id)
    return AccountUsage(
        repositories=[
            RepositoryUsage(row.repository, row.pulls, row.bytes_served, row.first_pull_at, row.last_pull_at)
            for row in connection.execute(query)
        ],
        versions=versions,
        version_count=_count(connection, usage_versions, account_id),
        clients=_seen(connection, usage_clients, usage_clients.c.client, account_id),
        networks=networks,
        network_count=_count(connection, usage_networks, account_id),
        periods=_read_periods(connection, account_id, wanted),
        steps={row.step: row.at for row in connection.execute(steps)},
    )


def _seen(connection: sa.Connection, table: sa.Table, name: sa.ColumnElement[str], account_id: int) -> list[Seen]:
    query = (
        sa.select(name.label("name"), table.c.pulls, table.c.first_at, table.c.last_at)
        .where(table.c.account_id == account_id)
        .order_by(table.c.last_at.desc(), name)
        .limit(_LISTED)
    )
    return [Seen(row.name, row.pulls, row.first_at, row.last_at) for row in connection.execute(query)]


def _count(connection: sa.Connection, table: sa.Table, account_id: int) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(table.c.account_id == account_id)
    return connection.scalar(query) or 0


def _read_periods(connection: sa.Connection, account_id: int, wanted: UsageFilter) -> list[PeriodUsage]:
    query = (
        sa.select(usage_periods)
        .where(usage_periods.c.account_id == account_id, *_within(wanted))
        .order_by(usage_periods.c.start.desc(), usage_periods.c.repository, usage_periods.c.tag)
        .limit(_LISTED)
    )
    return [
        PeriodUsage(row.start, row.pulls, row.bytes_served, row.repository, row.tag or None)
        for row in connection.execute(query)
    ]


def read_totals(connection: sa.Connection, wanted: UsageFilter) -> list[PeriodUsage]:
    """The counts of all accounts that fit, by period, newest first."""
    query = (
        sa.select(
            usage_periods.c.start,
            sa.func.sum(usage_periods.c.pulls).label("pulls"),
            sa.func.sum(usage_periods.c.bytes_served).label("bytes_served"),
            sa.func.count(usage_periods.c.account_id.distinct()).label("accounts"),
        )
        .where(*_within(wanted))
        .group_by(usage_periods.c.start)
        .order_by(usage_periods.c.start.desc())
        .limit(_LISTED)
    )
    if wanted.plan is not None or wanted.reach.is_limited:
        query = query.join(accounts, accounts.c.id == usage_periods.c.account_id)
        query = query.where(*wanted.reach.conditions(accounts))
    if wanted.plan is not None:
        query = query.where(accounts.c.plan == wanted.plan)
    return [
        PeriodUsage(row.start, int(row.pulls), int(row.bytes_served), accounts=row.accounts)
        for row in connection.execute(query)
    ]


def _within(wanted: UsageFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = [usage_periods.c.period == wanted.period[0]]
    if wanted.since is not None:
        conditions.append(usage_periods.c.start >= wanted.since)
    if wanted.until is not None:
        conditions.append(usage_periods.c.start < wanted.until)
    return conditions


def list_refusals(connection: sa.Connection, account_id: int) -> list[RefusalRow]:
    """What an account was refused, newest first."""
    query = (
        sa.select(refusals)
        .where(refusals.c.account_id == account_id)
        .order_by(refusals.c.last_at.desc())
        .limit(_REFUSALS_LISTED)
    )
    return [RefusalRow(**row) for row in connection.execute(query).mappings()]
