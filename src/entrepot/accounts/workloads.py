"""API keys for programs that hold no secret: a token of their platform in, a short-lived key out.

Everything behind the exchange, scopes, rates, revocation and the audit log, is as for any other key. A token may be
exchanged again while it holds, which is logged: several replicas of a program share one file.

Source: RFC 7523, section 3, for what is verified of a token; RFC 8693 for the idea of the exchange.
"""

import hashlib
import math
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import sqlalchemy as sa
import structlog

from entrepot.access.secrets import API_KEY_PREFIX, Secret
from entrepot.access.workloads import Workload
from entrepot.accounts import key_records
from entrepot.accounts.api_keys import ApiKey, ApiKeys
from entrepot.accounts.audit import Actor
from entrepot.accounts.issuer_keys import IssuerKeys
from entrepot.accounts.issuers import Issuer
from entrepot.errors import RateExceeded, WorkloadDenied, WorkloadTokenInvalid
from entrepot.storage.clock import Clock
from entrepot.storage.database import Database

_MAX_TOKEN_CHARACTERS = 16 * 1024
_MAX_LIFETIME_SECONDS = 86400
# Clocks of the issuer and of this server may differ by this.
_LEEWAY_SECONDS = 30
_MAX_SUBJECT_CHARACTERS = 255
# Keys of one workload that have not expired; a program that asks for one per request would fill the table.
_MAX_ALIVE = 1000
# Expired ones stay listed for this long.
_LISTED_FOR = timedelta(days=1)

_WRONG_FORM = "this is no token with an issuer and an audience (a JWT of at most 16 KiB)"

log = structlog.get_logger(__name__)


class Workloads:
    """Every program that may get a key by a token of its platform."""

    def __init__(self, database: Database, clock: Clock, api_keys: ApiKeys, issuers: Sequence[Issuer]) -> None:
        self._database = database
        self._clock = clock
        self._api_keys = api_keys
        # One URL may vouch for several audiences.
        self._issuers = [(issuer, IssuerKeys(issuer)) for issuer in issuers]

    async def exchange(self, unverified_token: str, request_id: str, address: str | None) -> tuple[ApiKey, Secret]:
        """A key, which lives no longer than the token, and its secret.

        Raises WorkloadTokenInvalid, WorkloadDenied, RateExceeded or IssuerUnavailable.
        """
        issuer, claims = await self._verify(unverified_token)
        workload = next((one for one in issuer.workloads if one.matches(claims)), None)
        subject = str(claims["sub"])
        if workload is None:
            log.warning("workload_unknown", issuer=issuer.url, subject=subject, address=address)
            raise WorkloadDenied("no workload in this server's settings has the claims of this token")
        now = self._clock()
        key = _key_of(workload, now, datetime.fromtimestamp(claims["exp"], UTC))
        secret = Secret.generate(API_KEY_PREFIX)
        actor = Actor(key.owner, request_id, address)
        token_hash = hashlib.sha256(unverified_token.encode()).digest()

        def work(connection: sa.Connection) -> int:
            key_records.drop_keys_of_workloads(connection, now - _LISTED_FOR)
            alive, by_token = key_records.count_keys_of(connection, workload.name, token_hash, now)
            if alive >= _MAX_ALIVE:
                raise RateExceeded(
                    f"workload '{workload.name}' has {alive} keys that still hold; use each until it expires",
                    retry_seconds=60,
                )
            self._api_keys.add(
                connection,
                key,
                secret,
                actor,
                token_hash=token_hash,
                issuer=issuer.url,
                subject=subject,
                times=by_token,
            )
            return by_token

        times = await self._database.write(work)
        if times:
            log.warning("workload_token_again", workload=workload.name, subject=subject, address=address, times=times)
        return key, secret

    async def _verify(self, unverified_token: str) -> tuple[Issuer, Mapping[str, Any]]:
        """Who issued a token, and what it says. Raises WorkloadTokenInvalid or IssuerUnavailable."""
        if not self._issuers:
            raise WorkloadTokenInvalid("no issuer of tokens is set up here; see ENTREPOT_OIDC__ISSUERS")
        key_id, url, audiences = _peek(unverified_token)
        found = [(one, keys) for one, keys in self._issuers if one.url == url]
        if not found:
            raise WorkloadTokenInvalid("the token's issuer is not one that this server's settings name")
        issuer, keys = next(((one, keys) for one, keys in found if one.audience in audiences), found[0])
        if issuer.audience not in audiences:
            raise WorkloadTokenInvalid(
                "the token is for another audience; ask its platform for one that is for this server"
            )
        key = await keys.get(key_id)
        try:
            claims: dict[str, Any] = jwt.decode(
                unverified_token,
                key.key,
                algorithms=[key.algorithm],
                audience=issuer.audience,
                issuer=issuer.url,
                # The library reads its own clock; ours decides below.
                options={
                    "require": ["exp", "iat", "iss", "aud", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise WorkloadTokenInvalid("the token's signature or form does not hold") from error
        _verify_times(claims, self._clock().timestamp())
        if not 1 <= len(claims["sub"]) <= _MAX_SUBJECT_CHARACTERS or not claims["sub"].isprintable():
            raise WorkloadTokenInvalid("the token's subject is not one that this server can note down")
        return issuer, claims


def _peek(unverified_token: str) -> tuple[str | None, str, list[object]]:
    """The key id, issuer and audiences that a token names, to know who would have to have signed it."""
    try:
        # A byte more than is allowed is enough to be refused.
        token = unverified_token[: _MAX_TOKEN_CHARACTERS + 1]
        key_id = jwt.get_unverified_header(token).get("kid")
        claims = jwt.decode(token, options={"verify_signature": False})
        url, audience = claims["iss"], claims["aud"]
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise WorkloadTokenInvalid(_WRONG_FORM) from error
    if len(token) > _MAX_TOKEN_CHARACTERS or not isinstance(url, str) or not isinstance(key_id, str | None):
        raise WorkloadTokenInvalid(_WRONG_FORM)
    return key_id, url, audience if isinstance(audience, list) else [audience]


def _verify_times(claims: Mapping[str, Any], now: float) -> None:
    for name in ("exp", "iat", "nbf"):
        value = claims.get(name, 0)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or abs(value) > 2**40
        ):
            raise WorkloadTokenInvalid(f"the token's {name} is no time")
    if claims["exp"] <= now:
        raise WorkloadTokenInvalid("the token has expired; ask its platform for a new one")
    if max(claims["iat"], claims.get("nbf", 0)) - _LEEWAY_SECONDS > now:
        raise WorkloadTokenInvalid("the token is not valid yet; check the clocks of its issuer and of this server")
    if claims["exp"] - claims["iat"] > _MAX_LIFETIME_SECONDS:
        raise WorkloadTokenInvalid("the token lives for more than a day; ask its platform for one that lives an hour")


def _key_of(workload: Workload, now: datetime, token_expires_at: datetime) -> ApiKey:
    return ApiKey(
        id=str(uuid.uuid4()),
        name=f"{workload.name}-{uuid.uuid4().hex[:12]}",
        scopes=workload.scopes,
        plans=workload.plans,
        created_at=now,
        expires_at=min(now + workload.lifetime, token_expires_at),
        requests_per_minute=workload.requests_per_minute,
        own_accounts_only=workload.own_accounts_only,
        workload=workload.name,
    )
