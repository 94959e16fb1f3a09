"""Bodies of what is told of usage, refusals and the funnel."""

from dataclasses import asdict
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from entrepot.accounts.report_records import AccountUsage, RefusalRow
from entrepot.accounts.steps import Step, StuckAccount


class RepositoryUsageBody(BaseModel):
    """What an account took from one repository."""

    repository: str
    pulls: int
    bytes_served: int
    first_pull_at: datetime | None
    last_pull_at: datetime | None


class SeenBody(BaseModel):
    """A version (`repository@digest`), client or network, and the pulls that had it."""

    name: str
    pulls: int
    first_at: datetime | None
    last_at: datetime | None


class PeriodBody(BaseModel):
    """An hour or a day, in UTC; of one repository and tag, where the answer is about one account."""

    start: datetime
    pulls: int
    bytes_served: int
    repository: str | None = None
    tag: str | None = Field(None, description="null: pulled by digest, or bytes that are no pull.")
    accounts: int | None = None


class Usage(BaseModel):
    """What an account took; as of about a second ago.

    Lists show the most recent 1000; `version_count` and `network_count` count all.
    """

    account: str
    pulls: int
    bytes_served: int
    first_pull_at: datetime | None
    last_pull_at: datetime | None
    repositories: list[RepositoryUsageBody]
    versions: list[SeenBody]
    version_count: int
    clients: list[SeenBody]
    networks: list[SeenBody] = Field(description="Truncated to /24 and /48.")
    network_count: int
    periods: list[PeriodBody]
    steps: dict[str, datetime] = Field(description="How far the account got, and when.")

    @classmethod
    def of(cls, account: str, usage: AccountUsage) -> "Usage":
        """The body for an account's counts."""
        parts = usage.repositories
        first = [part.first_pull_at for part in parts if part.first_pull_at is not None]
        last = [part.last_pull_at for part in parts if part.last_pull_at is not None]
        totals = {
            "account": account,
            "pulls": sum(part.pulls for part in parts),
            "bytes_served": sum(part.bytes_served for part in parts),
            "first_pull_at": min(first, default=None),
            "last_pull_at": max(last, default=None),
        }
        return cls.model_validate(asdict(usage) | totals)


class UsageTotals(BaseModel):
    """What all accounts took, newest first, at most 1000 periods."""

    period: Literal["hour", "day"]
    totals: list[PeriodBody]


class RefusalBody(BaseModel):
    """What an account was refused on a day (UTC), for one reason, in one repository."""

    day: datetime
    reason: str = Field(description="plan, limit, wrong_secret, suspended, account_expired, revoked, expired ...")
    repository: str | None
    message: str = Field(description="What the customer was told.")
    times: int
    first_at: datetime | None
    last_at: datetime | None


class Refusals(BaseModel):
    """What an account was refused, newest first, at most 100."""

    account: str
    refusals: list[RefusalBody]

    @classmethod
    def of(cls, account: str, rows: list[RefusalRow]) -> "Refusals":
        """The body for what an account was refused."""
        return cls(
            account=account,
            refusals=[RefusalBody.model_validate(asdict(row) | {"repository": row.repository or None}) for row in rows],
        )


class StepBody(BaseModel):
    """How many accounts of a plan, among those that signed up in a week, got so far."""

    week: datetime = Field(description="The Monday of the sign-ups, UTC.")
    plan: str = Field(description="The plan that they signed up for.")
    step: Step
    accounts: int
    took: dict[str, int] = Field(description="Of these, by how long it was since their step before, at most.")


class Funnel(BaseModel):
    """How far sign-ups got, newest week first."""

    steps: list[StepBody]


class StuckBody(BaseModel):
    """An account that did not get on; `reason` and `message` are of what it was refused last."""

    account: str
    external_id: str | None
    plan: str
    created_at: datetime
    reason: str | None
    message: str | None
    refused_at: datetime | None

    @classmethod
    def of(cls, stuck: StuckAccount) -> "StuckBody":
        """The body for a stuck account."""
        return cls.model_validate(asdict(stuck) | {"account": stuck.name})


class StuckPage(BaseModel):
    """A page of accounts that never reached a step, newest first."""

    step: Step
    stuck: list[StuckBody]
    next_cursor: str | None
