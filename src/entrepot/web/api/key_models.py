"""Bodies of the platform API that have to do with API keys."""

from datetime import datetime

from pydantic import BaseModel, Field

from entrepot.access.secrets import Secret
from entrepot.accounts.api_keys import DEFAULT_OVERLAP, ApiKey
from entrepot.web.api.models import Instant, RequestBody, Seconds, Whole


class ApiKeyRequest(RequestBody):
    """A new API key; what is left out does not restrict it."""

    name: str = Field(examples=["platform"])
    scopes: list[str] = Field(examples=[["accounts:write"]])
    plans: list[str] | None = Field(None, description="Limits the key to accounts on these plans.")
    networks: list[str] | None = Field(
        None, description="Where it may be used from, by CIDR.", examples=[["10.20.0.0/16", "2001:db8::/32"]]
    )
    expires_at: Instant | None = Field(None, description="When the key ends by itself.")
    requests_per_minute: Whole | None = Field(None, examples=[600])
    own_accounts_only: bool = Field(
        False, strict=True, description="Limits the key to accounts that it created itself."
    )


class RotationRequest(RequestBody):
    """How long the secret that the key has still holds beside the new one."""

    overlap_seconds: Seconds = Field(
        int(DEFAULT_OVERLAP.total_seconds()), description="0: the old one dies now. At most 30 days."
    )


class ExchangeRequest(RequestBody):
    """A token of a workload's platform."""

    token: str = Field(
        description="A JWT of an issuer in this server's settings, such as a Kubernetes service account's."
    )


class ApiKeyBody(BaseModel):
    """An API key without its secret; null does not restrict."""

    name: str
    scopes: list[str]
    plans: list[str] | None
    networks: list[str] | None
    expires_at: datetime | None
    requests_per_minute: int | None
    own_accounts_only: bool
    created_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    previous_until: datetime | None = Field(description="Until when the secret before the last rotation holds.")
    workload: str | None = Field(description="The program that got it by a token of its platform.")

    @classmethod
    def of(cls, key: ApiKey) -> "ApiKeyBody":
        """The body for an API key."""
        return cls(
            name=key.name,
            scopes=sorted(key.scopes),
            plans=None if key.plans is None else sorted(key.plans),
            networks=None if key.networks is None else [str(network) for network in key.networks],
            expires_at=key.expires_at,
            requests_per_minute=key.requests_per_minute,
            own_accounts_only=key.own_accounts_only,
            created_at=key.created_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
            previous_until=key.previous_until,
            workload=key.workload,
        )


class CreatedApiKey(BaseModel):
    """An API key with its secret, which is shown this once."""

    api_key: ApiKeyBody
    secret: str | None = Field(default=None, description="Not there in the answer to a request that was sent again.")

    @classmethod
    def of(cls, key: ApiKey, secret: Secret) -> "CreatedApiKey":
        """The body for a key that has just been given this secret."""
        return cls(api_key=ApiKeyBody.of(key), secret=secret.reveal())


class ApiKeyList(BaseModel):
    """Every API key."""

    api_keys: list[ApiKeyBody]
