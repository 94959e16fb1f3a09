"""Encryption of what must be read again: AES-256-GCM, a random nonce of 96 bits before the ciphertext.

Source: NIST SP 800-38D. Random nonces allow 2^32 messages under one key; here there are a few per webhook.
"""

import secrets
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


def seal(key: bytes, content: bytes, context: str) -> bytes:
    """`content`, encrypted; it opens only under the same `context`, so that it cannot be moved to another row."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, context.encode())


def unseal(keys: Iterable[bytes], sealed: bytes, context: str) -> bytes | None:
    """What was sealed with one of the `keys` under the same `context`; None when none of them opens it."""
    nonce, ciphertext = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    for key in keys:
        try:
            return AESGCM(key).decrypt(nonce, ciphertext, context.encode())
        except (InvalidTag, ValueError):  # ValueError: too short to have been sealed
            continue
    return None
