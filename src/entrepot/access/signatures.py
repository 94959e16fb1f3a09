"""Secrets and signatures of webhooks.

Source: Standard Webhooks, https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md,
"Signature scheme" (symmetric) and "Webhook headers".
"""

import base64
import hmac
import secrets
from collections.abc import Iterable

from entrepot.access.secrets import Secret

_PREFIX = "whsec_"
# The spec asks for 24 to 64.
_SECRET_BYTES = 32


def generate_key() -> bytes:
    """A new random key to sign with."""
    return secrets.token_bytes(_SECRET_BYTES)


def show_key(key: bytes) -> Secret:
    """A key as its receiver is given it, `whsec_...`."""
    return Secret(_PREFIX + base64.b64encode(key).decode())


def sign(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of one attempt, begun at `timestamp` (unix seconds), signed with each of the keys."""
    content = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
