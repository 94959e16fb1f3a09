"""Reading `Authorization: Basic`. Source: RFC 7617."""

import base64
import binascii

from entrepot.access.secrets import Secret
from entrepot.errors import CredentialInvalid


def read_basic(value: str) -> tuple[str, Secret]:
    """(username, secret) of what follows `Basic`. Raises CredentialInvalid."""
    try:
        username, separator, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise CredentialInvalid("the Basic authorization cannot be read; it is base64 of username:secret") from error
    if "\x00" in username:  # section 2 forbids control characters; this one no database keeps
        raise CredentialInvalid("the username holds a NUL character")
    if not separator:
        raise CredentialInvalid("the Basic authorization has no colon; it is base64 of username:secret")
    return username, Secret(password)
