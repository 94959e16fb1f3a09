"""From what a request carries to who sent it.

Every request is judged by the state of the credential behind it, tokens included: what was revoked a moment ago is
refused now. That costs a look into memory, not a query.
"""

from dataclasses import dataclass
from datetime import datetime

from entrepot.access.claims import Claims
from entrepot.access.keys import Keys
from entrepot.access.plans import Plan
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
    """Knows the holders of credentials and tokens."""

    def __init__(self, directory: Directory, tokens: Tokens, keys: Keys, clock: Clock, throttle: Throttle) -> None:
        self._directory = directory
        self._throttle = throttle
        self._tokens = tokens
        self._hash_key = keys.secrets
        self._clock = clock

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
        credential = None if standing is None else standing.credentials.get(claims.credential_id)
        if standing is None or credential is None:
            raise TokenInvalid("the credential behind this token is gone; ask for a new one")
        _verify_alive(standing, credential, self._clock(), TokenInvalid)
        return _principal(standing, credential, claims)

    async def log_in(self, username: str, secret: Secret, site: str) -> Principal:
        """The holder of a credential, who asks from a site. Raises CredentialInvalid, or TooManyFailures in its place.

        Whoever has the secret gets in, whatever others tried.
        """
        if secret.is_wellformed(CREDENTIAL_PREFIX) and self._directory.find_cached(username) is None:
            self._throttle.verify_may_look_up(site, username)
        try:
            principal = await self.authenticate_basic(username, secret)
        except CredentialInvalid as error:
            if error.reason == WRONG_SECRET:
                self._throttle.count_failure(site, username)
            raise
        self._throttle.trust(username)
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
        hashed = secret.hash(self._hash_key)
        credential = next((one for one in standing.credentials.values() if is_same_hash(one.secret_hash, hashed)), None)
        if credential is None:
            raise CredentialInvalid(_WRONG, account=(standing.account_id, standing.name), reason=WRONG_SECRET)
        _verify_alive(standing, credential, self._clock(), CredentialInvalid)
        return _principal(standing, credential, None)


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
