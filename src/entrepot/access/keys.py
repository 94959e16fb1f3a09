"""Keys for different purposes out of one secret.

Source: RFC 5869 (HKDF), with SHA-256; the purposes are its `info`.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

_SALT = b"entrepot"


@dataclass(frozen=True, slots=True)
class Keys:
    """32 bytes for each purpose; knowing one says nothing of the others.

    `earlier` are those of secret keys that were in force before this one, or are about to be: what they signed and
    stored still holds. `leaked` are those that somebody else may know, too: what they stored holds, being random, and
    what they signed does not.
    """

    names: bytes = field(repr=False)
    secrets: bytes = field(repr=False)
    refresh: bytes = field(repr=False)
    webhooks: bytes = field(repr=False)
    _root: bytes = field(repr=False)
    earlier: tuple[Self, ...] = field(default=(), repr=False)
    leaked: tuple[Self, ...] = field(default=(), repr=False)

    @classmethod
    def derive(cls, secret_key: bytes, *, earlier: Iterable[bytes] = (), leaked: Iterable[bytes] = ()) -> Self:
        """The keys that come from `secret_key`, always the same."""
        root = hmac.digest(_SALT, secret_key, "sha256")
        return cls(
            names=_expand(root, b"account names"),
            secrets=_expand(root, b"secret hashes"),
            refresh=_expand(root, b"refresh tokens"),
            webhooks=_expand(root, b"webhook secrets"),
            _root=root,
            earlier=tuple(cls.derive(one) for one in earlier),
            leaked=tuple(cls.derive(one) for one in leaked),
        )

    def signing(self, serial: int) -> bytes:
        """The key that signs tokens in the period `serial`, which counts from 0."""
        return _expand(self._root, b"token signing %d" % serial if serial else b"token signing")

    @property
    def trusted(self) -> tuple[Self, ...]:
        """All whose signatures hold, the one in force first."""
        return (self, *self.earlier)

    @property
    def hashing(self) -> tuple[bytes, ...]:
        """The keys under which secrets may be stored, the one in force first."""
        return tuple(keys.secrets for keys in self.trusted + self.leaked)

    @property
    def sealing(self) -> tuple[bytes, ...]:
        """The keys that webhook secrets may be encrypted with, the one in force first."""
        return tuple(keys.webhooks for keys in self.trusted + self.leaked)


def _expand(root: bytes, purpose: bytes) -> bytes:
    return hmac.digest(root, purpose + b"\x01", "sha256")
