"""What this process knows of accounts without asking the database: the hot path's view.

An entry holds all that a request needs: the account's state, its plan, its credentials. Signals forget an entry when
anything of it changes, in whichever process, and a change of a plan forgets all.

How long that takes is measured here, for every process: a revocation holds once its notice is heard.
"""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from prometheus_client import Histogram

from entrepot.access.plans import Plan
from entrepot.accounts import records
from entrepot.storage.cache import Cache
from entrepot.storage.database import Database
from entrepot.storage.signals import Signals

ACCOUNTS = 20_000
# Names that do not exist are remembered apart, so that guessing them pushes no customer out.
UNKNOWN_NAMES = 2_000
# Two at most are alive; the others are here to be told what became of them.
CREDENTIALS = 10

REVOCATION_LAG = Histogram(
    "entrepot_revocation_lag_seconds",
    "Time from a change of an account, credential or plan to when a process heard of it, in seconds.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 2.5, 10, 60),
)


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential's state; `dies_at` is the earlier of revocation and expiry, in unix seconds, None for never.

    One that is revoked is dead whatever the clock says; one whose grace goes on dies at `revoked_at`.
    """

    id: str
    secret_hash: bytes
    expires_at: datetime | None
    revoked_at: datetime | None
    is_revoked: bool
    dies_at: float | None

    def is_alive(self, now: float) -> bool:
        """Whether it still holds at `now`, in unix seconds."""
        return self.dies_at is None or now < self.dies_at


@dataclass(frozen=True, slots=True)
class Standing:
    """An account as a request sees it."""

    account_id: int
    name: str
    status: str
    expires_at: datetime | None
    ends_at: float | None
    created_at: datetime
    plan: Plan
    credentials: dict[str, Credential]

    def is_active(self, now: float) -> bool:
        """Whether the account may do anything at `now`, in unix seconds."""
        return self.status == "active" and (self.ends_at is None or now < self.ends_at)


class Directory:
    """Standings by account name."""

    def __init__(self, database: Database, signals: Signals) -> None:
        self._database = database
        self._standings: Cache[str, Standing] = Cache(ACCOUNTS, signals.is_current)
        self._unknown: Cache[str, bool] = Cache(UNKNOWN_NAMES, signals.is_current)
        signals.listen("account", self._forget)
        signals.listen("plan", lambda _name: self._standings.clear())
        for topic in ("account", "plan"):
            signals.measure(topic, REVOCATION_LAG.observe)

    def find_cached(self, name: str) -> Standing | None:
        """The account, when this process knows it."""
        return self._standings.find(name)

    async def find(self, name: str) -> Standing | None:
        """The account, None when there is none of this name."""
        standing = self._standings.find(name)
        if standing is not None or self._unknown.find(name) or "\0" in name:  # which no database keeps
            return standing
        return await self.find_anew(name)

    async def find_anew(self, name: str) -> Standing | None:
        """The account as the database has it now, whatever this process remembers of it."""
        mark, unknown_mark = self._standings.mark(), self._unknown.mark()
        standing = await self._database.read(lambda connection: _read(connection, name))
        if standing is None:
            self._unknown.keep(name, True, unknown_mark)
        else:
            self._standings.keep(name, standing, mark)
        return standing

    def is_remembered(self, name: str) -> bool:
        """Whether this process answers for the name without asking, be it that there is no such account."""
        return self._standings.find(name) is not None or bool(self._unknown.find(name))

    def _forget(self, name: str) -> None:
        self._standings.forget(name)
        self._unknown.forget(name)


def _read(connection: sa.Connection, name: str) -> Standing | None:
    account = records.find_account(connection, name)
    if account is None:
        return None
    plan = records.find_plan(connection, account["plan"])
    if plan is None:
        return None
    rows = records.list_credentials(connection, account["id"], CREDENTIALS)
    return Standing(
        account_id=account["id"],
        name=account["name"],
        status=account["status"],
        expires_at=account["expires_at"],
        ends_at=_seconds(account["expires_at"]),
        created_at=account["created_at"],
        plan=Plan.parse(plan["name"], plan["document"]),
        credentials={row["id"]: _credential(row) for row in rows},
    )


def _credential(row: records.Row) -> Credential:
    ends = [_seconds(row[key]) for key in ("expires_at", "revoked_at") if row[key] is not None]
    return Credential(
        id=row["id"],
        secret_hash=bytes(row["secret_hash"]),
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        is_revoked=row["is_revoked"],
        dies_at=float("-inf") if row["is_revoked"] else min((end for end in ends if end is not None), default=None),
    )


def _seconds(instant: datetime | None) -> float | None:
    return None if instant is None else instant.timestamp()
