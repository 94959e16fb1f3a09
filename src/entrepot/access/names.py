"""Account names: the same for the same external id, and no way back without the key."""

import base64
import hmac
import unicodedata

from entrepot.errors import IdentityInvalid

_MAX_EXTERNAL_ID = 255
# 100 bits: a second id with the same name will not be met by chance.
_NAME_CHARACTERS = 20


def normal_form(text: str) -> str:
    """A text in the one form in which external ids are kept and compared (Unicode NFC)."""
    return unicodedata.normalize("NFC", text) if len(text) <= _MAX_EXTERNAL_ID else text


def parse_external_id(text: str) -> str:
    """An external id in its normal form. Raises IdentityInvalid."""
    normal = normal_form(text)
    if not 1 <= len(normal) <= _MAX_EXTERNAL_ID:
        raise IdentityInvalid(f"external_id has {len(normal)} characters; use 1 to {_MAX_EXTERNAL_ID}")
    if any(unicodedata.category(character) in {"Cc", "Cs", "Co", "Cn"} for character in normal):
        raise IdentityInvalid("external_id holds characters that cannot be printed")
    if normal != normal.strip():
        raise IdentityInvalid("external_id begins or ends with white space")
    return normal


def account_name(key: bytes, external_id: str) -> str:
    """`ft-` and a keyed hash: valid as a user name for Docker, a name in Kubernetes, and a robot's name in Harbor."""
    digest = hmac.digest(key, external_id.encode(), "sha256")
    return "ft-" + base64.b32encode(digest).decode("ascii").lower()[:_NAME_CHARACTERS]
