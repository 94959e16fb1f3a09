"""Keys for different purposes out of one secret.

Source: RFC 5869 (HKDF), with SHA-256; the purposes are its `info`.
"""

import hmac
from dataclasses import dataclass, field
from typing import Self

_SALT = b"entrepot"


@dataclass(frozen=True, slots=True)
class Keys:
    """32 bytes for each purpose; knowing one says nothing of the others."""

    names: bytes = field(repr=False)
    secrets: bytes = field(repr=False)
    signing: bytes = field(repr=False)
    webhooks: bytes = field(repr=False)

    @classmethod
    def derive(cls, secret_key: bytes) -> Self:
        """The keys that come from `secret_key`, always the same."""
        extracted = hmac.digest(_SALT, secret_key, "sha256")

        def expand(purpose: bytes) -> bytes:
            return hmac.digest(extracted, purpose + b"\x01", "sha256")

        return cls(
            names=expand(b"account names"),
            secrets=expand(b"secret hashes"),
            signing=expand(b"token signing"),
            webhooks=expand(b"webhook secrets"),
        )

    @property
    def sealing(self) -> tuple[bytes, ...]:
        """The keys that webhook secrets may be encrypted with, the one in force first."""
        return (self.webhooks,)
