"""Accounts and their credentials: issue, revoke, suspend, delete.

Every change is one transaction with its audit row, its signal and its event. The database's constraints decide when two
ask at once.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa

from entrepot.access.keys import Keys
from entrepot.access.lifetimes import next_warning
from entrepot.access.names import account_name, normal_form, parse_external_id
from entrepot.access.plans import MAX_LIFETIME, Plan
from entrepot.access.secrets import CREDENTIAL_PREFIX, Secret
from entrepot.accounts import key_records, records, steps
from entrepot.accounts.answers import Once, once_only
from entrepot.accounts.audit import Actor, note
from entrepot.accounts.events import EventType, emit
from entrepot.accounts.identity import describe, verify_identity, verify_labels
from entrepot.accounts.reach import EVERYONE, AccountReach
from entrepot.accounts.records import AccountFilter
from entrepot.errors import (
    AccountClosed,
    AccountUnknown,
    CredentialUnknown,
    ExternalIdTaken,
    IdentityInvalid,
    PlanMissing,
    RequestInvalid,
)
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals, publish

MAX_GRACE = timedelta(days=30)
DEFAULT_GRACE = timedelta(days=1)
# A cluster that pulls with it does so at least this often, more or less.
_STILL_IN_USE = timedelta(days=2)
# Alive at a time: the one in use, and the one that is about to take its place.
MAX_ALIVE = 2
# Past credentials that a list shows.
_LISTED_CREDENTIALS = 100


@dataclass(frozen=True, slots=True)
class Account:
    """One customer."""

    id: int
    name: str
    external_id: str | None
    plan: str
    status: str
    identity: dict[str, Any]
    created_at: datetime
    expires_at: datetime | None
    deleted_at: datetime | None
    labels: dict[str, str]
    created_by: str | None

    @property
    def description(self) -> str:
        """Who it is, as people read it, and as JSON."""
        return describe(self.external_id, self.identity)


@dataclass(frozen=True, slots=True)
class IssuedCredential:
    """A credential at the only moment when its secret is known."""

    id: str
    username: str
    secret: Secret
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class CredentialState:
    """A credential without its secret, which nobody has but its holder.

    `last_used_at` is to the minute. `status` is what holds now; one that is `ending` has a newer one beside it, and
    `warning` says so while it is still in use.
    """

    id: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    status: Literal["active", "ending", "revoked", "expired"]
    warning: str | None


class Accounts:
    """Every account."""

    def __init__(self, database: Database, signals: Signals, clock: Clock, keys: Keys) -> None:
        self._database = database
        self._signals = signals
        self._clock = clock
        self._keys = keys

    async def create(
        self,
        external_id: str,
        plan: str,
        identity: dict[str, Any],
        expires_at: datetime | None,
        actor: Actor,
        *,
        labels: dict[str, str] | None = None,
        lifetime: timedelta | None = None,
        reach: AccountReach = EVERYONE,
        once: Once[tuple[Account, IssuedCredential | None]] | None = None,
    ) -> tuple[Account, IssuedCredential | None]:
        """The account of an external id, and its first credential, which lives no longer than `lifetime`.

        When the account exists already it is answered as it is, with no credential: never a second account, never the
        old secret. Raises PlanMissing, IdentityInvalid, RequestInvalid, or ExternalIdTaken when it is beyond `reach`.
        """
        external_id = parse_external_id(external_id)
        verify_identity(identity)
        verify_labels(labels or {})
        _verify_lifetime(lifetime)
        now = self._clock()
        if expires_at is not None and expires_at <= now:
            raise IdentityInvalid("expires_at lies in the past")
        name = account_name(self._keys.names, external_id)

        def work(connection: sa.Connection) -> tuple[Account, IssuedCredential | None]:
            found = records.find_account_by_external_id(connection, external_id)
            if found is not None:
                return _verify_within(reach, _read(found)), None
            granted = _get_plan(connection, plan)
            row = {
                "name": name,
                "external_id": external_id,
                "plan": granted.name,
                "status": "active",
                "identity": identity,
                "created_at": now,
                "expires_at": expires_at,
                "deleted_at": None,
                "labels": labels or {},
                "created_by": actor.api_key,
            }
            new = records.insert_account(connection, row)
            if new is None:
                return _verify_within(reach, _read(_get_account(connection, name))), None
            account = _read(new)
            steps.begin(connection, account.id, plan, account.created_by, now)
            ends = {} if expires_at is None else {"expires_at": expires_at.isoformat()}
            note(connection, actor, "account.created", name, now, plan=plan, labels=sorted(labels or {}), **ends)
            _tell(connection, EventType.ACCOUNT_CREATED, account, actor, now, plan=plan, expires_at=expires_at)
            issued = self._issue(connection, account, granted, actor, now, lifetime)
            _tell(connection, EventType.CREDENTIAL_ISSUED, account, actor, now, **_describe(account, issued))
            return account, issued

        return await self._signals.commit(once_only(work, once, now))

    async def get(self, name: str) -> Account:
        """One account. Raises AccountUnknown."""
        return _read(await self._database.read(lambda connection: _get_account(connection, name)))

    async def list_accounts(self, wanted: AccountFilter, after_id: int, limit: int) -> list[Account]:
        """Accounts that fit, oldest first, from the one after `after_id`."""
        if wanted.external_id is not None:
            wanted = replace(wanted, external_id=normal_form(wanted.external_id))
        rows = await self._database.read(lambda connection: records.list_accounts(connection, wanted, after_id, limit))
        return [_read(row) for row in rows]

    async def issue_credential(
        self,
        name: str,
        grace: timedelta,
        actor: Actor,
        *,
        lifetime: timedelta | None = None,
        once: Once[IssuedCredential] | None = None,
    ) -> IssuedCredential:
        """A new credential; those that the account had die after `grace`, and the oldest at once if two would be left.

        The new one lives no longer than `lifetime`, nor than the plan allows. Raises AccountUnknown, AccountClosed, or
        RequestInvalid for a grace or lifetime that is negative or too long.
        """
        _verify_lifetime(lifetime)
        if not timedelta(0) <= grace <= MAX_GRACE:
            raise RequestInvalid(f"the grace must be 0 to {int(MAX_GRACE.total_seconds())} seconds")

        def work(connection: sa.Connection) -> IssuedCredential:
            now = self._clock()
            account = _read(_get_account(connection, name))
            if account.status != "active":
                raise AccountClosed(f"account {name} is {account.status}; resume it before issuing a credential")
            replaced = _retire(connection, account, now, grace)
            seconds = int(grace.total_seconds())
            issued = self._issue(
                connection, account, _get_plan(connection, account.plan), actor, now, lifetime, grace_seconds=seconds
            )
            detail = _describe(account, issued) | {"replaced": replaced}
            _tell(connection, EventType.CREDENTIAL_ROTATED, account, actor, now, **detail)
            return issued

        return await self._signals.commit(once_only(work, once, self._clock()))

    async def list_credentials(self, name: str) -> list[CredentialState]:
        """The newest credentials of an account, newest first. Raises AccountUnknown."""

        def work(connection: sa.Connection) -> list[records.Row]:
            account = _get_account(connection, name)
            return records.list_credentials(connection, account["id"], _LISTED_CREDENTIALS)

        rows = await self._database.read(work)
        now = self._clock()
        return [_read_credential(row, now, is_newest=number == 0) for number, row in enumerate(rows)]

    async def revoke_credential(self, name: str, credential_id: str, actor: Actor) -> None:
        """Let a credential and every token that it was used for be refused from now on; once is enough.

        Raises AccountUnknown or CredentialUnknown.
        """

        def work(connection: sa.Connection, account: Account, now: datetime) -> None:
            known = records.list_credentials(connection, account.id, _LISTED_CREDENTIALS)
            if credential_id not in {row["id"] for row in known}:
                raise CredentialUnknown(f"account {name} has no credential {credential_id[:40]!r}")
            is_alive = credential_id in {
                row["id"] for row in records.list_live_credentials(connection, account.id, now)
            }
            is_new = records.revoke_credentials(connection, [credential_id], now, now) > 0
            note(connection, actor, "credential.revoked", name, now, credential=credential_id)
            if is_alive and is_new:
                detail = {"credential": credential_id, "reason": "revoked"}
                _tell(connection, EventType.CREDENTIAL_REVOKED, account, actor, now, **detail)

        await self._change(name, work)

    async def suspend(self, name: str, actor: Actor) -> Account:
        """Stop an account's pulls, keeping its credentials for `resume`. Raises AccountUnknown."""
        return await self._set_status(name, "suspended", "account.suspended", actor)

    async def resume(self, name: str, actor: Actor) -> Account:
        """Let a suspended account go on with the credentials it had. Raises AccountUnknown."""
        return await self._set_status(name, "active", "account.resumed", actor)

    async def change_plan(self, name: str, plan: str, actor: Actor) -> Account:
        """Put an account on another plan, for tokens already issued, too. Raises AccountUnknown or PlanMissing."""

        def work(connection: sa.Connection, account: Account, now: datetime) -> None:
            _get_plan(connection, plan)
            if account.plan != plan:
                records.update_account(connection, account.id, plan=plan)
                note(connection, actor, "account.plan_changed", name, now, before=account.plan, after=plan)

        return await self._change(name, work)

    async def relabel(self, name: str, labels: dict[str, str], actor: Actor) -> Account:
        """Give an account these labels in place of those that it had. Raises AccountUnknown or IdentityInvalid."""
        verify_labels(labels)

        def work(connection: sa.Connection, account: Account, now: datetime) -> None:
            if account.labels != labels:
                records.update_account(connection, account.id, labels=labels)
                # Labels may tell who somebody is, so the log has their names only.
                note(
                    connection,
                    actor,
                    "account.relabelled",
                    name,
                    now,
                    before=sorted(account.labels),
                    after=sorted(labels),
                )

        return await self._change(name, work)

    async def set_expiry(self, name: str, expires_at: datetime | None, actor: Actor) -> Account:
        """Let an account end then, or never. Raises AccountUnknown, or IdentityInvalid for an instant that is past."""
        if expires_at is not None and expires_at <= self._clock():
            raise IdentityInvalid("expires_at lies in the past; to stop an account now, suspend it")

        def work(connection: sa.Connection, account: Account, now: datetime) -> None:
            if account.expires_at != expires_at:
                records.update_account(connection, account.id, expires_at=expires_at)
                before, after = (None if one is None else one.isoformat() for one in (account.expires_at, expires_at))
                note(connection, actor, "account.expiry_changed", name, now, before=before, after=after)

        return await self._change(name, work)

    async def delete(self, name: str, actor: Actor) -> None:
        """Erase who an account was, and revoke its credentials; its counts stay under a name that says nothing.

        The external id may sign up again, and gets the same name with a new account behind it. Raises AccountUnknown.
        """

        def work(connection: sa.Connection, account: Account, now: datetime) -> None:
            alive = [row["id"] for row in records.list_live_credentials(connection, account.id, now)]
            records.revoke_credentials(connection, alive, now, now)
            for credential_id in alive:
                detail = {"credential": credential_id, "reason": "account_deleted"}
                _tell(connection, EventType.CREDENTIAL_REVOKED, account, actor, now, **detail)
            records.erase_traces(connection, account.id)
            key_records.erase_answers(connection, name)
            tombstone = f"deleted-{account.id}"
            records.update_account(
                connection,
                account.id,
                name=tombstone,
                external_id=None,
                identity={},
                labels={},
                status="deleted",
                deleted_at=now,
            )
            before = {"status": account.status, "plan": account.plan}
            note(connection, actor, "account.deleted", name, now, before=before, now_named=tombstone)

        await self._change(name, work)

    async def _set_status(self, name: str, status: str, action: str, actor: Actor) -> Account:
        def work(connection: sa.Connection, account: Account, now: datetime) -> None:
            if account.status != status:
                records.update_account(connection, account.id, status=status)
                note(connection, actor, action, name, now, before=account.status, after=status)

        return await self._change(name, work)

    async def _change(self, name: str, change: Callable[[sa.Connection, Account, datetime], None]) -> Account:
        """Change an account that is not deleted, and tell every process; answers it as it is then."""

        def work(connection: sa.Connection) -> Account:
            now = self._clock()
            before = _read(_get_account(connection, name))
            change(connection, before, now)
            publish(connection, "account", name, now)
            after = records.find_account(connection, name)
            return before if after is None else _read(after)

        return await self._signals.commit(work)

    def _issue(
        self,
        connection: sa.Connection,
        account: Account,
        plan: Plan,
        actor: Actor,
        now: datetime,
        wanted: timedelta | None,
        **detail: Any,
    ) -> IssuedCredential:
        lifetimes = [one for one in (wanted, plan.credential_lifetime) if one is not None]
        expires_at = now + min(lifetimes) if lifetimes else None
        issued = IssuedCredential(
            id=str(uuid.uuid4()),
            username=account.name,
            secret=Secret.generate(CREDENTIAL_PREFIX),
            created_at=now,
            expires_at=expires_at,
        )
        records.insert_credential(
            connection,
            {
                "id": issued.id,
                "account_id": account.id,
                "secret_hash": issued.secret.hash(self._keys.secrets),
                "created_at": now,
                "expires_at": expires_at,
                "revoked_at": None,
                "warn_at": next_warning(now, expires_at, now),
            },
        )
        note(connection, actor, "credential.issued", account.name, now, credential=issued.id, **detail)
        publish(connection, "account", account.name, now)
        return issued


def _tell(
    connection: sa.Connection, kind: EventType, account: Account, actor: Actor, now: datetime, **detail: Any
) -> None:
    emit(connection, kind, now, account_id=account.id, account=account.name, **detail, actor=actor.name)


def _describe(account: Account, issued: IssuedCredential) -> dict[str, Any]:
    return {"plan": account.plan, "credential": issued.id, "expires_at": issued.expires_at}


def _retire(connection: sa.Connection, account: Account, now: datetime, grace: timedelta) -> list[dict[str, str]]:
    """Let the credentials that an account has end, to make room for a new one; answers when each does."""
    retired = []
    for place, row in enumerate(records.list_live_credentials(connection, account.id, now)):
        end = now + grace if place < MAX_ALIVE - 1 else now
        records.revoke_credentials(connection, [row["id"]], end, now)
        ends_at = min(one for one in (row["revoked_at"], row["expires_at"], end) if one is not None)
        retired.append({"credential": row["id"], "ends_at": ends_at.isoformat()})
    return retired


def _get_account(connection: sa.Connection, name: str) -> records.Row:
    row = records.find_account(connection, name)
    if row is None or row["status"] == "deleted":
        raise AccountUnknown(f"there is no account {name[:80]!r}")
    return row


def _verify_within(reach: AccountReach, account: Account) -> Account:
    """The account. Raises ExternalIdTaken, which tells nothing of it but that it is there, when it is beyond reach."""
    if not reach.covers(account):
        raise ExternalIdTaken("this external_id has an account that this API key may not see")
    return account


def _get_plan(connection: sa.Connection, name: str) -> Plan:
    row = records.find_plan(connection, name)
    if row is None:
        raise PlanMissing(f"there is no plan {name[:80]!r}; apply it first: entrepot plan apply FILE")
    return Plan.parse(row["name"], row["document"])


def _verify_lifetime(lifetime: timedelta | None) -> None:
    if lifetime is not None and not timedelta(0) < lifetime <= MAX_LIFETIME:
        raise RequestInvalid(f"the lifetime must be 1 to {int(MAX_LIFETIME.total_seconds())} seconds")


def _read_credential(row: records.Row, now: datetime, *, is_newest: bool) -> CredentialState:
    revoked_at, expires_at, used_at = row["revoked_at"], row["expires_at"], row["last_used_at"]
    status: Literal["active", "ending", "revoked", "expired"] = "active"
    if row["is_revoked"] or (revoked_at is not None and revoked_at <= now):
        status = "revoked"
    elif expires_at is not None and expires_at <= now:
        status = "expired"
    elif revoked_at is not None or not is_newest:
        status = "ending"
    warning = None
    if status == "ending" and used_at is not None and now - used_at < _STILL_IN_USE:
        ends = [one for one in (revoked_at, expires_at) if one is not None]
        until = f"ends on {min(ends):%Y-%m-%d %H:%M} UTC" if ends else "has no end"
        warning = f"still in use, last on {used_at:%Y-%m-%d %H:%M} UTC, and {until}: its holders need the new one"
    return CredentialState(row["id"], row["created_at"], expires_at, revoked_at, used_at, status, warning)


def _read(row: records.Row) -> Account:
    return Account(
        id=row["id"],
        name=row["name"],
        external_id=row["external_id"],
        plan=row["plan"],
        status=row["status"],
        identity=dict(row["identity"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        deleted_at=row["deleted_at"],
        labels=dict(row["labels"]),
        created_by=row["created_by"],
    )
