"""The keys that tokens are signed with: a new one every 30 days, known to every process without a word between them.

A key comes from the secret key and the number of its period, and periods count from one instant that the installation
agreed on. The key of the first period is the one that versions before rotation sign with, so that they may run beside
this one while it takes their place.

Source: RFC 8037 (Ed25519 in JOSE), RFC 7517 (JSON Web Key Sets).
"""

import base64
import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from entrepot.access.keys import Keys

PERIOD = timedelta(days=30)
# How long a key goes on being accepted: longer than any token lives and any two clocks differ.
OVERLAP = timedelta(hours=1)
ALGORITHM = "EdDSA"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key; `id` is the `kid` of what it signed."""

    id: str
    private: Ed25519PrivateKey
    public: Ed25519PublicKey

    @classmethod
    def of(cls, seed: bytes) -> Self:
        """The key that comes from 32 bytes."""
        private = Ed25519PrivateKey.from_private_bytes(seed)
        public = private.public_key()
        return cls(hashlib.sha256(_raw(public)).hexdigest()[:16], private, public)

    def describe(self) -> dict[str, str]:
        """The public half as a JSON Web Key."""
        encoded = base64.urlsafe_b64encode(_raw(self.public)).decode("ascii").rstrip("=")
        return {"kty": "OKP", "crv": "Ed25519", "x": encoded, "kid": self.id, "alg": ALGORITHM, "use": "sig"}


@dataclass(frozen=True, slots=True)
class _Ring:
    serials: tuple[int, int]
    current: SigningKey
    accepted: dict[str, SigningKey]


class SigningKeys:
    """What signs, and what is accepted. Instants are unix seconds; periods count from `since`."""

    def __init__(self, keys: Keys, since: float) -> None:
        self._keys = keys
        self._since = since
        self._ring = self._make_ring(self._serials(since))

    def current(self, now: float) -> SigningKey:
        """The key to sign with."""
        return self._ring_at(now).current

    def find(self, key_id: str, now: float) -> Ed25519PublicKey | None:
        """The key with this id, None when it is not one whose tokens can be valid now."""
        key = self._ring_at(now).accepted.get(key_id)
        return None if key is None else key.public

    def describe(self, now: float) -> dict[str, list[dict[str, str]]]:
        """All that is accepted, as a JSON Web Key Set: also the next key, long before it signs anything."""
        return {"keys": [key.describe() for key in self._ring_at(now).accepted.values()]}

    def _serials(self, now: float) -> tuple[int, int]:
        """The periods of the earliest token that may be valid still, and of one that is issued now."""
        period = PERIOD.total_seconds()
        age = max(now - self._since, 0)
        return int(max(age - OVERLAP.total_seconds(), 0) // period), int(age // period)

    def _ring_at(self, now: float) -> _Ring:
        serials = self._serials(now)
        if serials != self._ring.serials:
            self._ring = self._make_ring(serials)
        return self._ring

    def _make_ring(self, serials: tuple[int, int]) -> _Ring:
        earliest, current = serials
        # The next one, too: another process's clock may be ahead.
        found = [
            SigningKey.of(keys.signing(serial))
            for serial in (current, *range(earliest, current), current + 1)
            for keys in self._keys.trusted
        ]
        return _Ring(serials, found[0], {key.id: key for key in found})


def _raw(public: Ed25519PublicKey) -> bytes:
    return public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
