"""SQL of usage: what was counted in memory goes into roll-ups, from which every question is answered."""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from entrepot.accounts.events import EventType, emit
from entrepot.storage.statements import add_up, insert_missing
from entrepot.storage.tables import (
    account_fetches,
    account_steps,
    accounts,
    credentials,
    manifest_blobs,
    refusals,
    usage,
    usage_clients,
    usage_networks,
    usage_periods,
    usage_versions,
)

# How far an account can get, in order; the first two are noted when they happen (accounts/service.py).
STEPS = (
    "signed_up",
    "credential_issued",
    "first_login",
    "first_pull",
    "image_fetched",
    "second_version",
    "active_after_7_days",
    "active_after_30_days",
)
_LATER_STEPS = {"active_after_7_days": timedelta(days=7), "active_after_30_days": timedelta(days=30)}
_STEP_EVENTS = {"first_login": EventType.LOGIN_FIRST, "first_pull": EventType.PULL_FIRST}
_MAX_MESSAGE = 500
_REMEMBERED = 200_000
# Rows of a kind that one account's usage shows; the sums count all.
_LISTED = 1000
_REFUSALS_LISTED = 100
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Holder:
    """An account that did something; `created_at` is None where it does not matter."""

    account_id: int
    name: str
    created_at: datetime | None


@dataclass(slots=True)
class Pulls:
    """Counts; instants are unix seconds."""

    pulls: int
    bytes_served: int
    first_at: float
    last_at: float


@dataclass(slots=True)
class Refusal:
    """How often an account was refused something for one reason."""

    message: str
    times: int
    first_at: float
    last_at: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be written at once; see accounts/usage.py for the keys."""

    holders: dict[int, Holder]
    pulls: dict[tuple[int, str, str, str, str, str], Pulls]
    uses: dict[str, float]
    logins: dict[int, float]
    fetches: set[tuple[int, str]]
    refusals: dict[tuple[int, str, str], Refusal]


class Reached:
    """Which accounts are known to have done what, once and for all; forgets the oldest."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, str], None] = OrderedDict()

    def has(self, account_id: int, what: str) -> bool:
        """Whether that is known; False may also mean that it was forgotten."""
        return (account_id, what) in self._known

    def note(self, reached: Iterable[tuple[int, str]]) -> None:
        """Remember these."""
        for one in reached:
            self._known[one] = None
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which periods are shown; `since` is included, `until` is not. `plans` are those that an API key is limited to."""

    period: Literal["hour", "day"] = "day"
    since: datetime | None = None
    until: datetime | None = None
    plan: str | None = None
    plans: frozenset[str] | None = None
    created_by: str | None = None


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


def write(connection: sa.Connection, batch: Batch, known: Reached) -> set[tuple[int, str]]:
    """Write a batch down, with the steps and events that come of it; answers what is known to be reached now."""
    _add_pulls(connection, batch)
    for credential_id, at in sorted(batch.uses.items()):
        connection.execute(
            credentials.update().where(credentials.c.id == credential_id).values(last_used_at=_instant(at))
        )
    reached = _note_steps(connection, batch, known)
    reached |= _note_versions(connection, batch, known)
    reached |= _note_fetches(connection, batch, known)
    _note_refusals(connection, batch)
    return reached


def _add_pulls(connection: sa.Connection, batch: Batch) -> None:
    by_repository: dict[tuple[Any, ...], Pulls] = {}
    by_period: dict[tuple[Any, ...], Pulls] = {}
    by_version: dict[tuple[Any, ...], Pulls] = {}
    by_client: dict[tuple[Any, ...], Pulls] = {}
    by_network: dict[tuple[Any, ...], Pulls] = {}
    for (account_id, repository, tag, digest, network, client), pulls in batch.pulls.items():
        _sum(by_repository, (account_id, repository), pulls)
        at = _instant(pulls.last_at)
        for period, start in (("h", _hour_of(at)), ("d", _day_of(at))):
            _sum(by_period, (account_id, period, start, repository, tag), pulls)
        if pulls.pulls:
            _sum(by_version, (account_id, repository, digest), pulls)
            _sum(by_client, (account_id, client), pulls)
            if network:
                _sum(by_network, (account_id, network), pulls)
    # In one order each, so that two processes which write the same rows wait for each other instead of deadlocking.
    rows = [
        {
            "account_id": account_id,
            "repository": repository,
            "pulls": one.pulls,
            "bytes_served": one.bytes_served,
            "first_pull_at": _instant(one.first_at) if one.pulls else None,
            "last_pull_at": _instant(one.last_at) if one.pulls else None,
        }
        for (account_id, repository), one in sorted(by_repository.items())
    ]
    add_up(connection, usage, rows, ("pulls", "bytes_served"), first="first_pull_at", last="last_pull_at")
    rows = [
        dict(zip(("account_id", "period", "start", "repository", "tag"), key, strict=True))
        | {"pulls": one.pulls, "bytes_served": one.bytes_served}
        for key, one in sorted(by_period.items())
    ]
    add_up(connection, usage_periods, rows, ("pulls", "bytes_served"))
    for table, names, counts in (
        (usage_versions, ("account_id", "repository", "digest"), by_version),
        (usage_clients, ("account_id", "client"), by_client),
        (usage_networks, ("account_id", "network"), by_network),
    ):
        rows = [
            dict(zip(names, key, strict=True))
            | {"pulls": one.pulls, "first_at": _instant(one.first_at), "last_at": _instant(one.last_at)}
            for key, one in sorted(counts.items())
        ]
        add_up(connection, table, rows, ("pulls",), first="first_at", last="last_at")


def _note_steps(connection: sa.Connection, batch: Batch, known: Reached) -> set[tuple[int, str]]:
    """First login, first pull, and pulls long after the sign-up."""
    steps: dict[tuple[int, str], float] = {(one, "first_login"): at for one, at in batch.logins.items()}
    for (account_id, *_), pulls in batch.pulls.items():
        if not pulls.pulls:
            continue
        # Whoever pulls with the credential itself has logged in, too.
        for step in ("first_login", "first_pull"):
            steps[account_id, step] = min(steps.get((account_id, step), pulls.first_at), pulls.first_at)
        created_at = batch.holders[account_id].created_at
        for step, age in _LATER_STEPS.items():
            if created_at is not None and _instant(pulls.last_at) - created_at >= age:
                steps[account_id, step] = pulls.last_at
    reached = {key: at for key, at in steps.items() if not known.has(*key)}
    for (account_id, step), at in sorted(reached.items()):
        _reach(connection, batch.holders[account_id], step, _instant(at))
    return set(reached)


def _reach(connection: sa.Connection, holder: Holder, step: str, at: datetime) -> None:
    is_new = insert_missing(connection, account_steps, [{"account_id": holder.account_id, "step": step, "at": at}])
    if is_new and step in _STEP_EVENTS:
        emit(
            connection,
            _STEP_EVENTS[step],
            at,
            account_id=holder.account_id,
            account=holder.name,
            once=f"{step}:{holder.account_id}",
        )


def _note_versions(connection: sa.Connection, batch: Batch, known: Reached) -> set[tuple[int, str]]:
    """Versions that an account pulls for the first time, beyond its first one of a repository."""
    reached: set[tuple[int, str]] = set()
    for (account_id, repository, tag, digest, _, _), pulls in sorted(batch.pulls.items()):
        version = f"{repository}@{digest}"
        if not pulls.pulls or known.has(account_id, version):
            continue
        reached.add((account_id, version))
        count = connection.scalar(
            sa.select(sa.func.count())
            .select_from(usage_versions)
            .where(usage_versions.c.account_id == account_id, usage_versions.c.repository == repository)
        )
        if (count or 0) < 2:  # noqa: PLR2004 - the one just written
            continue
        holder, at = batch.holders[account_id], _instant(pulls.first_at)
        _reach(connection, holder, "second_version", at)
        emit(
            connection,
            EventType.VERSION_ADOPTED,
            at,
            account_id=account_id,
            account=holder.name,
            once=f"version:{account_id}:{version}",
            repository=repository,
            digest=digest,
            tag=tag or None,
        )
    return reached


def _note_fetches(connection: sa.Connection, batch: Batch, known: Reached) -> set[tuple[int, str]]:
    """Whether an account fetched a whole image: a manifest and every blob that it names, through whatever processes."""
    fetched: defaultdict[int, set[str]] = defaultdict(set)
    for account_id, digest in batch.fetches:
        if not known.has(account_id, "image_fetched"):
            fetched[account_id].add(digest)
    reached: set[tuple[int, str]] = set()
    for account_id, digests in sorted(fetched.items()):
        step = (account_steps.c.account_id == account_id) & (account_steps.c.step == "image_fetched")
        if connection.scalar(sa.select(account_steps.c.at).where(step)) is not None:
            reached.add((account_id, "image_fetched"))
            continue
        now = max((pulls.last_at for key, pulls in batch.pulls.items() if key[0] == account_id), default=0.0)
        if not now:  # their counts were dropped
            continue
        rows = [{"account_id": account_id, "digest": digest, "at": _instant(now)} for digest in sorted(digests)]
        insert_missing(connection, account_fetches, rows)
        if connection.scalar(_whole_image_of(account_id)) is not None:
            _reach(connection, batch.holders[account_id], "image_fetched", _instant(now))
            connection.execute(account_fetches.delete().where(account_fetches.c.account_id == account_id))
            reached.add((account_id, "image_fetched"))
    return reached


def _whole_image_of(account_id: int) -> sa.Select[Any]:
    """A manifest that the account fetched with all its blobs. What manifests name is the registry's to write."""
    mine = sa.select(account_fetches.c.digest).where(account_fetches.c.account_id == account_id)
    other = manifest_blobs.alias("other")
    missing = sa.select(other.c.blob).where(
        other.c.repository_id == manifest_blobs.c.repository_id,
        other.c.manifest == manifest_blobs.c.manifest,
        other.c.blob.not_in(mine),
    )
    return (
        sa.select(manifest_blobs.c.manifest)
        .where(manifest_blobs.c.manifest.in_(mine), manifest_blobs.c.blob.in_(mine), ~sa.exists(missing))
        .limit(1)
    )


def _note_refusals(connection: sa.Connection, batch: Batch) -> None:
    rows = []
    for (account_id, reason, repository), refusal in sorted(batch.refusals.items()):
        first, last = _instant(refusal.first_at), _instant(refusal.last_at)
        rows.append(
            {
                "account_id": account_id,
                "day": _day_of(last),
                "reason": reason,
                "repository": repository,
                "message": refusal.message[:_MAX_MESSAGE],
                "times": refusal.times,
                "first_at": first,
                "last_at": last,
            }
        )
        emit(
            connection,
            EventType.PULL_REFUSED,
            last,
            account_id=account_id,
            account=batch.holders[account_id].name,
            once=f"refused:{account_id}:{reason}:{repository[:80]}:{last:%Y-%m-%d}",
            reason=reason,
            repository=repository or None,
            message=refusal.message[:_MAX_MESSAGE],
        )
    add_up(connection, refusals, rows, ("times",), first="first_at", last="last_at")


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
    if wanted.plan is not None or wanted.plans is not None or wanted.created_by is not None:
        query = query.join(accounts, accounts.c.id == usage_periods.c.account_id)
    if wanted.plan is not None:
        query = query.where(accounts.c.plan == wanted.plan)
    if wanted.plans is not None:
        query = query.where(accounts.c.plan.in_(sorted(wanted.plans)))
    if wanted.created_by is not None:
        query = query.where(accounts.c.created_by == wanted.created_by)
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


def list_refusals(connection: sa.Connection, account_ids: Collection[int]) -> list[RefusalRow]:
    """What these accounts were refused, newest first."""
    query = (
        sa.select(refusals)
        .where(refusals.c.account_id.in_(list(account_ids)))
        .order_by(refusals.c.last_at.desc())
        .limit(_REFUSALS_LISTED * max(1, len(account_ids)))
    )
    return [RefusalRow(**row) for row in connection.execute(query).mappings()]


def drop_old(
    connection: sa.Connection,
    *,
    hours_before: datetime,
    days_before: datetime,
    networks_before: datetime,
    refusals_before: datetime,
    fetches_before: datetime,
) -> int:
    """Drop what is older; answers how many rows. One call drops a bounded number, so ask again until it is none."""
    dropped = 0
    period = usage_periods.c
    for table, condition in (
        (usage_periods, (period.period == "h") & (period.start < hours_before)),
        (usage_periods, (period.period == "d") & (period.start < days_before)),
        (usage_networks, usage_networks.c.last_at < networks_before),
        (refusals, refusals.c.day < refusals_before),
        (account_fetches, account_fetches.c.at < fetches_before),
    ):
        key = list(table.primary_key)
        old = connection.execute(sa.select(*key).where(condition).limit(_BATCH)).all()
        if old:
            connection.execute(table.delete().where(sa.tuple_(*key).in_([tuple(row) for row in old])))
        dropped += len(old)
    return dropped


def _sum(into: dict[tuple[Any, ...], Pulls], key: tuple[Any, ...], pulls: Pulls) -> None:
    found = into.get(key)
    if found is None:
        into[key] = Pulls(pulls.pulls, pulls.bytes_served, pulls.first_at, pulls.last_at)
        return
    if pulls.pulls:
        found.first_at = min(found.first_at, pulls.first_at) if found.pulls else pulls.first_at
        found.last_at = max(found.last_at, pulls.last_at) if found.pulls else pulls.last_at
    found.pulls += pulls.pulls
    found.bytes_served += pulls.bytes_served


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _day_of(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)
