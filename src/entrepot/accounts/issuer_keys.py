"""The keys that an issuer of workloads' tokens signs with: fetched when needed, and kept.

Source: RFC 7517 (JWK Set); RFC 8725 (JWT best current practices), 3.1 and 3.2: the algorithm is the key's, never the
token's choice, and `none` and shared secrets are none that we know.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from entrepot.accounts.issuers import Issuer
from entrepot.errors import IssuerUnavailable, WorkloadTokenInvalid

_MAX_KEYS = 100
_DEADLINE_SECONDS = 5.0
# Keys are fetched anew this often, and go on being used this long when that fails.
_FRESH_SECONDS = 3600.0
_USABLE_SECONDS = 86400.0
# Between two fetches, whatever tokens name: an unknown key costs the issuer no more.
_FLOOR_SECONDS = 30.0
_FLOOR_SECONDS_AFTER_FAILURE = 5.0
_MIN_RSA_BITS = 2048
# (key type, curve) and the one algorithm that such a key signs with here.
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key, and the algorithm that it signs with."""

    algorithm: str
    key: Any


class IssuerKeys:
    """The keys of one issuer, as far as this process knows them."""

    def __init__(
        self,
        issuer: Issuer,
        *,
        clock: Callable[[], float] = time.monotonic,
        deadline_seconds: float = _DEADLINE_SECONDS,
    ) -> None:
        self._issuer = issuer
        self._clock = clock
        self._deadline_seconds = deadline_seconds
        self._keys: dict[str | None, SigningKey] = {}
        self._fetched_at = float("-inf")
        self._next_at = float("-inf")
        self._lock = asyncio.Lock()

    async def get(self, key_id: str | None) -> SigningKey:
        """The key of this id; without an id, the only one. Raises WorkloadTokenInvalid or IssuerUnavailable."""
        if self._find(key_id) is None or self._clock() - self._fetched_at > _FRESH_SECONDS:
            async with self._lock:
                # Whoever waited here may find that another fetched them meanwhile.
                if self._clock() >= self._next_at:
                    await self._fetch()
        key = self._find(key_id)
        if key is not None and self._clock() - self._fetched_at <= _USABLE_SECONDS:
            return key
        if not self._keys or self._clock() - self._fetched_at > _USABLE_SECONDS:
            raise IssuerUnavailable(f"the keys of {self._issuer.url} cannot be fetched; try again in a moment")
        raise WorkloadTokenInvalid(f"the token is signed with a key that {self._issuer.url} does not list")

    def _find(self, key_id: str | None) -> SigningKey | None:
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    async def _fetch(self) -> None:
        self._next_at = self._clock() + _FLOOR_SECONDS_AFTER_FAILURE
        # Loaded here, so that a server whose platform has no such tokens does not wait for the library.
        from entrepot.accounts.issuer_documents import fetch_keys  # noqa: PLC0415

        try:
            document = await fetch_keys(self._issuer, self._deadline_seconds)
        except IssuerUnavailable as error:
            log.warning("issuer_keys_not_fetched", issuer=self._issuer.url, error=str(error))
            return
        self._keys = read_keys(document)
        self._fetched_at = self._clock()
        self._next_at = self._fetched_at + _FLOOR_SECONDS
        log.info("issuer_keys_fetched", issuer=self._issuer.url, keys=len(self._keys))


def read_keys(document: Mapping[str, Any]) -> dict[str | None, SigningKey]:
    """The keys of a JWK set that may sign here, by id; others are passed over."""
    listed = document.get("keys")
    keys: dict[str | None, SigningKey] = {}
    for entry in listed[:_MAX_KEYS] if isinstance(listed, list) else []:
        if isinstance(entry, dict) and entry.get("use", "sig") == "sig":
            key = _read_key(entry)
            if key is not None:
                key_id = entry.get("kid")
                keys[key_id if isinstance(key_id, str) else None] = key
    return keys


def _read_key(entry: dict[str, Any]) -> SigningKey | None:
    kind, curve = entry.get("kty"), entry.get("crv")
    algorithm = _ALGORITHMS.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str | None) else None
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(entry, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        return None
    # A private key in a public list is no secret of anybody's any more.
    return None if hasattr(key, "private_numbers") or hasattr(key, "private_bytes") else SigningKey(algorithm, key)
