"""SQL of accounts, credentials, plans and audit: one function per question.

What every sign-up runs stands ready as a statement: making one costs more than running it does.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from entrepot.accounts.reach import EVERYONE, AccountReach
from entrepot.storage.statements import delete_some, insert_new, upsert
from entrepot.storage.tables import accounts, audit, credentials, plans, usage_networks

Row = sa.RowMapping

_PLAN = sa.select(plans).where(plans.c.name == sa.bindparam("name"))
_ACCOUNT = sa.select(accounts).where(accounts.c.name == sa.bindparam("name"))
_ACCOUNT_OF = sa.select(accounts).where(accounts.c.external_id == sa.bindparam("external_id"))
_INSERT_CREDENTIAL = credentials.insert()
_INSERT_AUDIT = audit.insert()


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which accounts a list shows; None does not restrict. `reach` is whom the asker may see."""

    external_id: str | None = None
    plan: str | None = None
    status: str | None = None
    # Part of its name, of its external id, or of a word in its identity.
    text: str | None = None
    reach: AccountReach = EVERYONE


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which changes a list shows; None does not restrict. `since` is included, `until` is not.

    `only_by` is who asks, where they may see nothing but what they did themselves.
    """

    target: str | None = None
    actor: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    only_by: str | None = None


def find_plan(connection: sa.Connection, name: str) -> Row | None:
    """A plan."""
    return connection.execute(_PLAN, {"name": name}).mappings().first()


def list_plans(connection: sa.Connection) -> list[Row]:
    """Every plan, by name."""
    return list(connection.execute(sa.select(plans).order_by(plans.c.name)).mappings())


def put_plan(connection: sa.Connection, name: str, document: Mapping[str, Any], now: datetime) -> None:
    """Give a plan this document."""
    upsert(connection, plans, {"name": name, "document": dict(document), "updated_at": now})


def delete_plan(connection: sa.Connection, name: str) -> bool:
    """Drop a plan; answers whether it was there."""
    return connection.execute(plans.delete().where(plans.c.name == name)).rowcount > 0


def count_accounts_on(connection: sa.Connection, plan: str) -> int:
    """How many accounts a plan has, deleted ones included, since they keep naming it."""
    return connection.scalar(sa.select(sa.func.count()).where(accounts.c.plan == plan)) or 0


def find_account(connection: sa.Connection, name: str) -> Row | None:
    """An account by name."""
    return connection.execute(_ACCOUNT, {"name": name}).mappings().first()


def find_account_by_external_id(connection: sa.Connection, external_id: str) -> Row | None:
    """An account by the platform's id."""
    return connection.execute(_ACCOUNT_OF, {"external_id": external_id}).mappings().first()


def insert_account(connection: sa.Connection, row: dict[str, Any]) -> Row | None:
    """Add an account; answers it, or None when its name or external id is taken."""
    return insert_new(connection, accounts, row)


def update_account(connection: sa.Connection, account_id: int, **values: Any) -> None:
    """Change an account's columns."""
    connection.execute(accounts.update().where(accounts.c.id == account_id).values(**values))


def list_accounts(connection: sa.Connection, wanted: AccountFilter, after_id: int, limit: int) -> list[Row]:
    """Accounts that fit, oldest first, from the one after `after_id`; deleted ones are shown only by their status."""
    query = sa.select(accounts).where(accounts.c.id > after_id).order_by(accounts.c.id).limit(limit)
    if wanted.external_id is not None:
        query = query.where(accounts.c.external_id == wanted.external_id)
    if wanted.plan is not None:
        query = query.where(accounts.c.plan == wanted.plan)
    if wanted.text is not None:
        query = query.where(_holds(wanted.text))
    query = query.where(*wanted.reach.conditions(accounts))
    status = accounts.c.status != "deleted" if wanted.status is None else accounts.c.status == wanted.status
    return list(connection.execute(query.where(status)).mappings())


def erase_traces(connection: sa.Connection, account_id: int) -> None:
    """Drop the networks that an account pulled from."""
    connection.execute(usage_networks.delete().where(usage_networks.c.account_id == account_id))


def _holds(text: str) -> sa.ColumnElement[bool]:
    """Whether an account has a text somewhere, in whatever case, as far as its letters are those of ASCII."""
    # As JSON spells it: what is not ASCII is kept escaped.
    escaped = json.dumps(text)[1:-1]
    return sa.or_(
        accounts.c.name.icontains(text, autoescape=True),
        accounts.c.external_id.icontains(text, autoescape=True),
        sa.cast(accounts.c.identity, sa.Text).icontains(escaped, autoescape=True),
    )


def insert_credential(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Add a credential."""
    connection.execute(_INSERT_CREDENTIAL, row)


def list_credentials(connection: sa.Connection, account_id: int, limit: int) -> list[Row]:
    """The newest credentials of an account, newest first."""
    query = (
        sa.select(credentials)
        .where(credentials.c.account_id == account_id)
        .order_by(credentials.c.created_at.desc(), credentials.c.id)
        .limit(limit)
    )
    return list(connection.execute(query).mappings())


def list_live_credentials(connection: sa.Connection, account_id: int, now: datetime) -> list[Row]:
    """The credentials of an account that are neither revoked nor expired, newest first."""
    query = (
        sa.select(credentials)
        .where(
            credentials.c.account_id == account_id,
            credentials.c.is_revoked.is_(False),
            sa.or_(credentials.c.revoked_at.is_(None), credentials.c.revoked_at > now),
            sa.or_(credentials.c.expires_at.is_(None), credentials.c.expires_at > now),
        )
        .order_by(credentials.c.created_at.desc(), credentials.c.id)
    )
    return list(connection.execute(query).mappings())


def revoke_credentials(connection: sa.Connection, ids: Iterable[str], at: datetime, now: datetime) -> int:
    """Let credentials die at an instant, unless they die earlier anyway; answers how many do so now.

    What dies now is dead for good.
    """
    revoked_at = credentials.c.revoked_at
    statement = credentials.update().where(credentials.c.id.in_(list(ids)), credentials.c.is_revoked.is_(False))
    if at <= now:
        earlier = sa.case((revoked_at < at, revoked_at), else_=at)
        statement = statement.values(revoked_at=earlier, is_revoked=True)
    else:
        statement = statement.where(sa.or_(revoked_at.is_(None), revoked_at > at)).values(revoked_at=at)
    return connection.execute(statement).rowcount


def insert_audit(connection: sa.Connection, row: dict[str, Any]) -> None:
    """Add a row to the audit log."""
    connection.execute(_INSERT_AUDIT, row)


def list_audit(connection: sa.Connection, wanted: AuditFilter, before_id: int | None, limit: int) -> list[Row]:
    """Audit rows that fit, newest first."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    for column, value in (
        (audit.c.target, wanted.target),
        (audit.c.actor, wanted.actor),
        (audit.c.actor, wanted.only_by),
        (audit.c.action, wanted.action),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.since is not None:
        query = query.where(audit.c.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(audit.c.at < wanted.until)
    if before_id is not None:
        query = query.where(audit.c.id < before_id)
    return list(connection.execute(query).mappings())


def drop_audit(connection: sa.Connection, before: datetime, limit: int) -> int:
    """Drop up to `limit` audit rows from before an instant; answers how many."""
    return delete_some(connection, audit, audit.c.at < before, limit)
