"""From what a request carries to who sent it.

Every request is judged by the state of the credential behind it, tokens included: what was revoked a moment ago is
refused now. That costs a look into memory, not a query.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from entrepot.access.claims import Claims
from entrepot.access.keys import Keys
from entrepot.access.plans import Plan
from entrepot.access.refresh_tokens import RefreshToken
from entrepot.access.scopes import Scope
from entrepot.access.secrets import CREDENTIAL_PREFIX, Secret, is_same_hash
from entrepot.accounts.directory import Credential, Directory, Standing
from entrepot.accounts.throttle import Throttle
from entrepot.accounts.tokens import Tokens
from entrepot.errors import CredentialInvalid, TokenInvalid
from entrepot.storage.clock import Clock

WRONG_SECRET = "wrong_secret"  # noqa: S105 - a reason, no secret
# One sentence for an unknown account and for a wrong secret, so that neither tells of the other.
_WRONG = "the username and secret do not belong together; copy both from where you got your credential"
# What a client stored long ago has no username that could be wrong.
_STALE = "what this client stored at its last login does not hold; log in again with your credential"
# How old a token is whose credential every process must have heard of; clocks may differ by some of it.
_NEWS_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request. `scopes` are the token's, None when the credential itself came with the request.

    `standing` is what was known of the account, and `until`, in unix seconds, when token, credential or account ends.
    """

    account_id: int
    account: str
    credential_id: str
    plan: Plan
    scopes: tuple[Scope, ...] | None
    standing: Standing
    until: float


class Authenticator:
    """Knows the holders of credentials and tokens of `service`."""

    def __init__(
        self, directory: Directory, tokens: Tokens, keys: Keys, clock: Clock, throttle: Throttle, *, service: str
    ) -> None:
        self._directory = directory
        self._throttle = throttle
        self._tokens = tokens
        self._keys = keys
        self._clock = clock
        self._service = service

    def is_still(self, principal: Principal) -> bool:
        """Whether all that was found out of the sender of an earlier request holds for this one, too.

        False may also mean that it takes a closer look.
        """
        return (
            self._directory.find_cached(principal.account) is principal.standing
            and self._clock().timestamp() < principal.until
        )

    async def authenticate_token(self, unverified_token: str) -> Principal:
        """The holder of a token. Raises TokenInvalid."""
        claims: Claims = self._tokens.find_verified(unverified_token) or self._tokens.verify(unverified_token)
        standing = await self._directory.find(claims.account)
        if not _has(standing, claims.credential_id) and claims.issued_at > self._clock().timestamp() - _NEWS_SECONDS:
            standing = await self._directory.find_anew(claims.account)
        credential = None if standing is None else standing.credentials.get(claims.credential_id)
        if standing is None or credential is None:
            raise TokenInvalid("the credential behind this token is gone; ask for a new one")
        _verify_alive(standing, credential, self._clock(), TokenInvalid)
        return _principal(standing, credential, claims)

    async def log_in(self, username: str, secret: Secret, site: str) -> Principal:
        """The holder of a credential, who asks from a site. Raises CredentialInvalid, or TooManyFailures in its place.

        Whoever has the secret gets in, whatever others tried.
        """
        is_possible = secret.is_wellformed(CREDENTIAL_PREFIX)
        return await self._judge(
            site, username, lambda: self.authenticate_basic(username, secret), is_possible=is_possible
        )

    async def log_in_again(self, unverified: Secret, site: str) -> Principal:
        """The holder of the credential that a refresh token stands for. Raises like `log_in`."""
        claimed = RefreshToken.parse(unverified)
        name = "" if claimed is None else claimed.account
        return await self._judge(
            site, name, lambda: self._authenticate_refresh(claimed), is_possible=claimed is not None
        )

    async def _judge(
        self, site: str, name: str, login: Callable[[], Awaitable[Principal]], *, is_possible: bool
    ) -> Principal:
        """Who logs in, by what this process knows; and if that refuses it, by what the database knows by now.

        Another process may have issued the credential a moment ago.
        """
        if is_possible and self._directory.find_cached(name) is None:
            self._throttle.verify_may_look_up(site, name)
        may_be_news = is_possible and self._directory.is_remembered(name)
        try:
            try:
                principal = await login()
            except CredentialInvalid as error:
                if error.reason != WRONG_SECRET or not may_be_news or not self._throttle.may_look_up(site):
                    raise
                await self._directory.find_anew(name)
                principal = await login()
        except CredentialInvalid as error:
            if error.reason == WRONG_SECRET:
                self._throttle.count_failure(site, name)
            raise
        self._throttle.trust(principal.account)
        return principal

    async def authenticate_basic(self, username: str, secret: Secret) -> Principal:
        """The holder of a credential. Raises CredentialInvalid.

        Only who has proven the secret is told that it has expired or was revoked.
        """
        if not secret.is_wellformed(CREDENTIAL_PREFIX):
            raise CredentialInvalid(_WRONG, reason=WRONG_SECRET)
        standing = await self._directory.find(username)
        if standing is None:
            raise CredentialInvalid(_WRONG, reason=WRONG_SECRET)
        credential = self._find_credential(standing, secret)
        if credential is None:
            raise CredentialInvalid(_WRONG, account=(standing.account_id, standing.name), reason=WRONG_SECRET)
        _verify_alive(standing, credential, self._clock(), CredentialInvalid)
        return _principal(standing, credential, None)

    async def _authenticate_refresh(self, claimed: RefreshToken | None) -> Principal:
        standing = None if claimed is None else await self._directory.find(claimed.account)
        if claimed is None or standing is None:
            raise CredentialInvalid(_STALE, reason=WRONG_SECRET)
        credential = standing.credentials.get(claimed.credential_id)
        if credential is None or not any(
            claimed.is_proven(keys.refresh, self._service, credential.secret_hash) for keys in self._keys.trusted
        ):
            raise CredentialInvalid(_STALE, account=(standing.account_id, standing.name), reason=WRONG_SECRET)
        _verify_alive(standing, credential, self._clock(), CredentialInvalid)
        return _principal(standing, credential, None)

    def refresh_token(self, principal: Principal) -> Secret:
        """The refresh token of the credential that somebody just logged in with; it lives as long as that does."""
        secret_hash = principal.standing.credentials[principal.credential_id].secret_hash
        made = RefreshToken.make(
            self._keys.refresh, self._service, principal.account, principal.credential_id, secret_hash
        )
        return made.write()

    def _find_credential(self, standing: Standing, secret: Secret) -> Credential | None:
        for key in self._keys.hashing:
            hashed = secret.hash(key)
            for credential in standing.credentials.values():
                if is_same_hash(credential.secret_hash, hashed):
                    return credential
        return None


def _has(standing: Standing | None, credential_id: str) -> bool:
    return standing is not None and credential_id in standing.credentials


def _principal(standing: Standing, credential: Credential, claims: Claims | None) -> Principal:
    ends = [standing.ends_at, credential.dies_at, None if claims is None else claims.expires_at]
    return Principal(
        account_id=standing.account_id,
        account=standing.name,
        credential_id=credential.id,
        plan=standing.plan,
        scopes=None if claims is None else claims.scopes,
        standing=standing,
        until=min((end for end in ends if end is not None), default=float("inf")),
    )


def _verify_alive(standing: Standing, credential: Credential, now: datetime, refusal: type[CredentialInvalid]) -> None:
    """Raises `refusal` unless the credential holds now."""
    seconds = now.timestamp()
    if standing.status != "active":
        reason, message = standing.status, f"the account is {standing.status}; ask your vendor"
    elif not standing.is_active(seconds):
        reason, message = "account_expired", f"the account expired on {standing.expires_at:%Y-%m-%d}; ask your vendor"
    elif credential.revoked_at is not None and (credential.is_revoked or credential.revoked_at <= now):
        reason = "revoked"
        message = f"this credential was revoked on {credential.revoked_at:%Y-%m-%d}; get a new one from your vendor"
    elif not credential.is_alive(seconds):
        reason = "expired"
        message = f"this credential expired on {credential.expires_at:%Y-%m-%d}; get a new one from your vendor"
    else:
        return
    raise refusal(message, account=(standing.account_id, standing.name), reason=reason)
