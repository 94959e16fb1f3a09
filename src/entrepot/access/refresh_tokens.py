"""Refresh tokens: what a client may store instead of a credential's secret.

One names its credential and proves that whoever made it knew the credential's stored hash and a key of ours, so it is
worth as much as the secret to the token service, nothing anywhere else, and ends with the credential. It is no JSON
Web Token, so that neither kind of token can be taken for the other.

Form: `entr_`, base64url of proof, credential id and account name, 6 characters of checksum (see `access/secrets.py`).
Source: "Docker Registry v2 authentication using OAuth2", "Refresh token format".
"""

import base64
import binascii
import hmac
import re
from dataclasses import dataclass
from typing import Final, Self

from entrepot.access.secrets import CHECKSUM_CHARACTERS, Secret, checksum

REFRESH_PREFIX: Final = "entr"
_FORM = re.compile(rf"({REFRESH_PREFIX}_([0-9A-Za-z_-]{{50,400}}))([0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}})", re.ASCII)
_PROOF_BYTES = 32


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What a refresh token says, which nobody need believe before `is_proven`."""

    account: str
    credential_id: str
    proof: bytes

    @classmethod
    def make(cls, key: bytes, service: str, account: str, credential_id: str, secret_hash: bytes) -> Self:
        """The token for a credential, at the one `service`; always the same."""
        # Names hold no NUL, and a hash has 32 bytes, so no two lists of them are the same bytes.
        said = b"\0".join((service.encode(), account.encode(), credential_id.encode(), secret_hash))
        return cls(account, credential_id, hmac.digest(key, said, "sha256"))

    @classmethod
    def parse(cls, unverified: Secret) -> Self | None:
        """What a text says, None when it has not the form; says nothing of whether anybody issued it."""
        match = _FORM.fullmatch(unverified.reveal())
        if match is None or not hmac.compare_digest(match[3], checksum(match[1])):
            return None
        try:
            content = base64.urlsafe_b64decode(match[2] + "=" * (-len(match[2]) % 4))
            credential_id, _, account = content[_PROOF_BYTES:].decode("utf-8").partition("/")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not credential_id.isprintable() or not account.isprintable():
            return None
        return cls(account, credential_id, content[:_PROOF_BYTES])

    def is_proven(self, key: bytes, service: str, secret_hash: bytes) -> bool:
        """Whether it was made with this key for this service, from the credential with this hash."""
        real = self.make(key, service, self.account, self.credential_id, secret_hash)
        return hmac.compare_digest(real.proof, self.proof)

    def write(self) -> Secret:
        """The token as clients keep it."""
        content = self.proof + f"{self.credential_id}/{self.account}".encode()
        body = f"{REFRESH_PREFIX}_{base64.urlsafe_b64encode(content).decode('ascii').rstrip('=')}"
        return Secret(body + checksum(body))
