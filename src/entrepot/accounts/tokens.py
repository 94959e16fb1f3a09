"""Tokens: Ed25519 JSON Web Tokens of five minutes.

Source: docker token spec, "Token Authentication Implementation"; RFC 7519; RFC 8037 for the algorithm. Other
algorithms, `none` first of all, are never looked at.
"""

import secrets
from datetime import timedelta

import jwt

from entrepot.access.claims import Claims
from entrepot.access.scopes import Scope
from entrepot.accounts.signing import ALGORITHM, SigningKeys
from entrepot.errors import TokenInvalid
from entrepot.storage.cache import Cache
from entrepot.storage.clock import Clock

LIFETIME = timedelta(minutes=5)
ISSUER = "entrepot"
# A token with MAX_SCOPES scopes of the longest names stays below.
_MAX_TOKEN_CHARACTERS = 24_000
# Clocks of two servers may differ by this.
_LEEWAY_SECONDS = 10
_CACHE_CHARACTERS = 16 * 1024 * 1024


class Tokens:
    """Issues tokens for `service`, and verifies them."""

    def __init__(self, keys: SigningKeys, clock: Clock, *, service: str) -> None:
        self._keys = keys
        self._clock = clock
        self._service = service
        # What a signature proves never changes, so this cache needs no signals; times are checked on every use.
        self._verified: Cache[str, Claims] = Cache(_CACHE_CHARACTERS, lambda: True)

    def issue(self, account: str, credential_id: str, scopes: tuple[Scope, ...]) -> str:
        """A token that lets the holder use these scopes in the account's name."""
        now = int(self._clock().timestamp())
        payload = {
            "iss": ISSUER,
            "aud": self._service,
            "sub": account,
            "cid": credential_id,
            "iat": now,
            "nbf": now,
            "exp": now + int(LIFETIME.total_seconds()),
            "jti": secrets.token_hex(8),
            "access": Claims.access(scopes),
        }
        key = self._keys.current(now)
        return jwt.encode(payload, key.private, algorithm=ALGORITHM, headers={"kid": key.id})

    def describe_keys(self) -> dict[str, list[dict[str, str]]]:
        """The keys by which others can verify tokens, as a JSON Web Key Set."""
        return self._keys.describe(self._clock().timestamp())

    def find_verified(self, unverified_token: str) -> Claims | None:
        """The claims of a token that was verified here before and has not expired since."""
        claims = self._verified.find(unverified_token)
        if claims is None or claims.expires_at + _LEEWAY_SECONDS <= self._clock().timestamp():
            return None
        return claims

    def verify(self, unverified_token: str) -> Claims:
        """The claims of a token. Raises TokenInvalid when it is not one of ours, or not valid now."""
        if len(unverified_token) > _MAX_TOKEN_CHARACTERS:
            raise TokenInvalid("the token is longer than any of ours; get a new one")
        now = self._clock().timestamp()
        try:
            key = self._keys.find(str(jwt.get_unverified_header(unverified_token).get("kid")), now)
            if key is None:
                raise TokenInvalid("the token was signed with no key that holds here now; get a new one")
            payload = jwt.decode(
                unverified_token,
                key,
                algorithms=[ALGORITHM],
                audience=self._service,
                issuer=ISSUER,
                options={
                    "require": ["exp", "nbf", "iss", "aud", "sub"],
                    # The library reads its own clock; ours decides below.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError) as error:
            raise TokenInvalid("the token was not issued here; get a new one") from error
        claims = Claims.read(payload)
        if claims.expires_at + _LEEWAY_SECONDS <= now:
            raise TokenInvalid("the token has expired; get a new one")
        if _not_before(payload) - _LEEWAY_SECONDS > now:
            raise TokenInvalid("the token is not valid yet; check this server's clock")
        self._verified.keep(unverified_token, claims, self._verified.mark(), weight=len(unverified_token))
        return claims


def _not_before(payload: dict[str, object]) -> float:
    value = payload["nbf"]
    if not isinstance(value, int | float):
        raise TokenInvalid("the token has not the claims of one of ours; get a new one")
    return float(value)
