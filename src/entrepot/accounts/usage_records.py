"""SQL of usage: what was counted in memory goes into roll-ups, from which every question is answered."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from entrepot.accounts import steps
from entrepot.accounts.events import EventType, emit
from entrepot.accounts.steps import LATER_STEPS, Step
from entrepot.storage.statements import add_up, delete_some, insert_missing
from entrepot.storage.tables import (
    account_fetches,
    account_steps,
    credentials,
    manifest_blobs,
    refusals,
    usage,
    usage_clients,
    usage_networks,
    usage_periods,
    usage_versions,
)

_STEP_EVENTS = {Step.FIRST_LOGIN: EventType.LOGIN_FIRST, Step.FIRST_PULL: EventType.PULL_FIRST}
_MAX_MESSAGE = 500
_REMEMBERED = 200_000
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
    found: dict[tuple[int, Step], float] = {(one, Step.FIRST_LOGIN): at for one, at in batch.logins.items()}
    for (account_id, *_), pulls in batch.pulls.items():
        if not pulls.pulls:
            continue
        # Whoever pulls with the credential itself has logged in, too.
        for step in (Step.FIRST_LOGIN, Step.FIRST_PULL):
            found[account_id, step] = min(found.get((account_id, step), pulls.first_at), pulls.first_at)
        created_at = batch.holders[account_id].created_at
        for step, age in LATER_STEPS.items():
            if created_at is not None and _instant(pulls.last_at) - created_at >= age:
                found[account_id, step] = pulls.last_at
    reached = {key: at for key, at in found.items() if not known.has(*key)}
    for (account_id, step), at in sorted(reached.items(), key=lambda one: (one[0][0], one[1])):
        _reach(connection, batch.holders[account_id], step, _instant(at))
    return set(reached)


def _reach(connection: sa.Connection, holder: Holder, step: Step, at: datetime) -> None:
    if steps.reach(connection, holder.account_id, step, at) and step in _STEP_EVENTS:
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
        holder, at = batch.holders[account_id], _instant(pulls.first_at)
        mine = (usage_versions.c.account_id == account_id) & (usage_versions.c.repository == repository)
        count = connection.scalar(sa.select(sa.func.count()).select_from(usage_versions).where(mine))
        if (count or 0) < 2:  # noqa: PLR2004 - the one just written
            continue
        first_at = connection.scalar(
            sa.select(usage_versions.c.first_at).where(mine, usage_versions.c.digest == digest)
        )
        if first_at is not None and first_at < at:
            continue  # told of then; the event itself is not kept for ever
        _reach(connection, holder, Step.SECOND_VERSION, at)
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
        if not known.has(account_id, Step.IMAGE_FETCHED):
            fetched[account_id].add(digest)
    reached: set[tuple[int, str]] = set()
    for account_id, digests in sorted(fetched.items()):
        step = (account_steps.c.account_id == account_id) & (account_steps.c.step == Step.IMAGE_FETCHED)
        if connection.scalar(sa.select(account_steps.c.at).where(step)) is not None:
            reached.add((account_id, Step.IMAGE_FETCHED))
            continue
        now = max((pulls.last_at for key, pulls in batch.pulls.items() if key[0] == account_id), default=0.0)
        if not now:  # their counts were dropped
            continue
        rows = [{"account_id": account_id, "digest": digest, "at": _instant(now)} for digest in sorted(digests)]
        insert_missing(connection, account_fetches, rows)
        if connection.scalar(_whole_image_of(account_id)) is not None:
            _reach(connection, batch.holders[account_id], Step.IMAGE_FETCHED, _instant(now))
            connection.execute(account_fetches.delete().where(account_fetches.c.account_id == account_id))
            reached.add((account_id, Step.IMAGE_FETCHED))
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
        dropped += delete_some(connection, table, condition, _BATCH)
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
