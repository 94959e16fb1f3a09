"""Events: what happened to accounts, for whoever wants to act on it.

An event is a row in the transaction of what it tells of, so that neither is ever without the other.
"""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from entrepot.accounts import records


class EventType(StrEnum):
    """What can happen."""

    ACCOUNT_CREATED = "account.created"
    CREDENTIAL_ISSUED = "credential.issued"
    CREDENTIAL_ROTATED = "credential.rotated"
    CREDENTIAL_EXPIRING = "credential.expiring"
    CREDENTIAL_REVOKED = "credential.revoked"
    CREDENTIAL_LEAKED = "credential.leaked"
    LOGIN_FIRST = "login.first"
    PULL_FIRST = "pull.first"
    PULL_REFUSED = "pull.refused"
    QUOTA_80 = "quota.80"
    QUOTA_100 = "quota.100"
    ACCOUNT_DORMANT = "account.dormant"
    VERSION_ADOPTED = "version.adopted"


def emit(
    connection: sa.Connection,
    kind: EventType,
    now: datetime,
    *,
    account_id: int | None = None,
    account: str | None = None,
    once: str | None = None,
    **detail: Any,
) -> None:
    """Let an event happen; one that happens `once` does nothing the second time that these words are given.

    `account` is the account's name. `detail` must be JSON, and holds no secret and nothing of an identity.
    """
    data = detail if account is None else {"account": account, **detail}
    records.insert_event(
        connection,
        {
            "event_id": f"evt_{uuid.uuid4().hex}",
            "type": kind.value,
            "at": now,
            "account_id": account_id,
            "data": data,
            "once": once,
        },
    )
