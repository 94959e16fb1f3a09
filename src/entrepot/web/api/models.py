"""Bodies of the platform API; together with the routes they make the OpenAPI document."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from entrepot.accounts.audit import AuditRow
from entrepot.accounts.events import EventType
from entrepot.accounts.service import DEFAULT_GRACE, Account, CredentialState, IssuedCredential
from entrepot.accounts.webhooks import DEFAULT_GRACE as WEBHOOK_GRACE


class RequestBody(BaseModel):
    """A request body: unknown fields are refused and named, and so is text that no database keeps."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        _verify_text(value)
        return value


def _verify_text(value: object) -> None:
    """JSON can spell half a surrogate pair, which UTF-8 cannot write, and NUL, which PostgreSQL cannot."""
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("text must not hold NUL or half of a surrogate pair")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _verify_text(key)
            _verify_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _verify_text(inner)


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("lies too far away") from error


def _is_written_out(value: object) -> object:
    """Of a mere number nobody knows whether it counts seconds, and from when."""
    if not isinstance(value, datetime | str) or (isinstance(value, str) and not _DATE.match(value)):
        raise ValueError("write it as in RFC 3339, such as 2026-11-01T00:00:00Z")
    return value


_DATE = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]", re.ASCII)

Instant = Annotated[AwareDatetime, BeforeValidator(_is_written_out), AfterValidator(_to_utc)]


# Beyond what any use of them allows, so that the refusal says what would be right.
Whole = Annotated[int, Field(ge=-(10**9), le=10**9, strict=True)]
Seconds = Whole


class AccountRequest(RequestBody):
    """Who signed up, and for what."""

    external_id: str = Field(description="The platform's own id of the customer.", examples=["user-4711"])
    plan: str = Field(examples=["free"])
    identity: dict[str, Any] = Field(
        default_factory=dict,
        description="What is known of the customer, at most 4 KiB of JSON.",
        examples=[{"email": "ada@example.com", "company": "Analytical Engines"}],
    )
    expires_at: Instant | None = Field(None, description="When the account ends by itself.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="The platform's own words for it, up to 32.", examples=[{"cohort": "2026-11"}]
    )
    lifetime_seconds: Seconds | None = Field(
        None, description="How long the first credential lives, if the plan allows no less."
    )


class AccountChange(RequestBody):
    """What to change of an account; what is left out stays."""

    status: Literal["active", "suspended"] | None = None
    plan: str | None = None
    labels: dict[str, str] | None = Field(None, description="In place of all labels that it has.")
    expires_at: Instant | None = Field(None, description="When the account ends by itself; null: never.")


class CredentialRequest(RequestBody):
    """How long the new credential lives, and those that the account has stay alive beside it."""

    grace_seconds: Seconds = Field(
        int(DEFAULT_GRACE.total_seconds()), description="0: the old ones die now. At most 30 days."
    )
    lifetime_seconds: Seconds | None = Field(None, description="At most what the plan allows.")


class PlanRequest(RequestBody):
    """A plan as in plans.yaml."""

    grants: list[dict[str, Any]]
    limits: dict[str, Any] | None = Field(None, examples=[{"pulls_per_hour": 200, "bytes_per_month": "500GB"}])
    credential_lifetime: str | None = None


class WebhookRequest(RequestBody):
    """Where events are to be delivered to."""

    url: str = Field(examples=["https://platform.example.com/entrepot"])
    types: list[EventType] | None = Field(
        None, min_length=1, description="The events that are wanted; null: all.", examples=[["pull.first"]]
    )
    enabled: StrictBool = True


class WebhookSecretRequest(RequestBody):
    """How long deliveries are signed with the old secret, too."""

    grace_seconds: Seconds = Field(
        int(WEBHOOK_GRACE.total_seconds()), description="0: the old one signs no more. At most 30 days."
    )


class ReplayRequest(RequestBody):
    """What to deliver once more: one event, or all from an instant on."""

    event_id: str | None = Field(None, examples=["evt_5f1d0c4b3a2e4d6f8a9b0c1d2e3f4a5b"])
    since: Instant | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "ReplayRequest":
        if (self.event_id is None) == (self.since is None):
            raise ValueError("give either event_id or since")
        return self


class AccountBody(BaseModel):
    """One customer."""

    name: str
    external_id: str | None
    plan: str
    status: str
    identity: dict[str, Any]
    description: str = Field(description="Who it is, on one line of at most 1024 characters that is JSON as well.")
    created_at: datetime
    expires_at: datetime | None
    labels: dict[str, str]

    @classmethod
    def of(cls, account: Account) -> "AccountBody":
        """The body for an account."""
        return cls.model_validate(account, from_attributes=True)


class CredentialBody(BaseModel):
    """A credential with its secret, which is shown this once."""

    id: str
    username: str
    secret: str | None = Field(default=None, description="Not there in the answer to a request that was sent again.")
    created_at: datetime
    expires_at: datetime | None

    @classmethod
    def of(cls, issued: IssuedCredential) -> "CredentialBody":
        """The body for a credential just issued."""
        return cls(
            id=issued.id,
            username=issued.username,
            secret=issued.secret.reveal(),
            created_at=issued.created_at,
            expires_at=issued.expires_at,
        )


class CredentialStateBody(BaseModel):
    """A credential without its secret."""

    id: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    status: Literal["active", "ending", "revoked", "expired"]
    warning: str | None

    @classmethod
    def of(cls, state: CredentialState) -> "CredentialStateBody":
        """The body for a credential."""
        return cls.model_validate(state, from_attributes=True)


class CreatedAccount(BaseModel):
    """An account, and what its holder needs to begin; only `account` when it existed already."""

    account: AccountBody
    credential: CredentialBody | None = None
    login: dict[str, str] | None = None


class CreatedCredential(BaseModel):
    """A new credential, and what its holder needs to use it; no `login` for a request that was sent again."""

    credential: CredentialBody
    login: dict[str, str] | None = None


class Accounts(BaseModel):
    """A page of accounts; `next_cursor` gets the next one."""

    accounts: list[AccountBody]
    next_cursor: str | None


class Credentials(BaseModel):
    """The newest credentials of an account."""

    credentials: list[CredentialStateBody]


class PlanBody(BaseModel):
    """A plan."""

    name: str
    grants: list[dict[str, Any]]
    limits: dict[str, Any] | None = None
    credential_lifetime: str | None = None


class PlanList(BaseModel):
    """Every plan."""

    plans: list[PlanBody]


class AuditRowBody(BaseModel):
    """One change."""

    at: datetime
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    request_id: str | None
    address: str | None = Field(description="Whence the request came; null: not from the network.")

    @classmethod
    def of(cls, row: AuditRow) -> "AuditRowBody":
        """The body for an audit row."""
        return cls.model_validate(row, from_attributes=True)


class AuditPage(BaseModel):
    """A page of the audit log, newest first."""

    audit: list[AuditRowBody]
    next_cursor: str | None
