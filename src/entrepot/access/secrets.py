"""Secrets of credentials and API keys: `entp_` or `entk_`, 30 random characters, 6 of checksum.

The form follows GitHub's tokens ("Behind GitHub's new authentication token formats", 2021): a prefix for scanners, base
62, a CRC-32 so that a typo is known for one without a look-up. A secret carries 178 random bits, so a keyed SHA-256 is
all that storing it takes; slow password hashes are for what people can remember.
"""

import hmac
import re
import secrets
import string
import zlib
from typing import Final, Self, final

_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_CHARACTERS: Final = 30
CHECKSUM_CHARACTERS: Final = 6
_FORM = re.compile(rf"(ent[kp])_([0-9A-Za-z]{{{_RANDOM_CHARACTERS}}})([0-9A-Za-z]{{{CHECKSUM_CHARACTERS}}})", re.ASCII)

CREDENTIAL_PREFIX: Final = "entp"
API_KEY_PREFIX: Final = "entk"


@final
class Secret:
    """Text that must not be shown; `reveal` is the only way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def generate(cls, prefix: str) -> Self:
        """A new random secret."""
        body = "".join(secrets.choice(_DIGITS) for _ in range(_RANDOM_CHARACTERS))
        return cls(f"{prefix}_{body}{checksum(f'{prefix}_{body}')}")

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def is_wellformed(self, prefix: str) -> bool:
        """Whether it has the form, and a checksum that fits; says nothing of whether anybody issued it."""
        match = _FORM.fullmatch(self._text)
        if match is None or match[1] != prefix:
            return False
        return hmac.compare_digest(match[3], checksum(f"{match[1]}_{match[2]}"))

    def hash(self, key: bytes) -> bytes:
        """The keyed hash by which it is stored, 32 bytes."""
        return hmac.digest(key, self._text.encode("utf-8", "surrogatepass"), "sha256")

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


def is_same_hash(one: bytes, other: bytes) -> bool:
    """Whether two hashes are equal, in time that does not depend on where they differ."""
    return hmac.compare_digest(one, other)


def checksum(text: str) -> str:
    """Six characters by which a typo in `text` is known."""
    number = zlib.crc32(text.encode())
    characters = ""
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, len(_DIGITS))
        characters = _DIGITS[digit] + characters
    return characters
