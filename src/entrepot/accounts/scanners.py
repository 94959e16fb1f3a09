"""Who reports leaked secrets: a scanner that signs what it sends.

Source: GitHub Docs, "Secret scanning partner program": the body's ECDSA signature (NIST P-256, SHA-256, DER in base64)
stands in a header, beside the identifier of its key; the public keys are at an address, as JSON.
"""

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping

import structlog
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from entrepot import __version__
from entrepot.errors import ScannerUnavailable, SettingsInvalid, SignatureInvalid

PublicKey = ec.EllipticCurvePublicKey

_ANSWER_SECONDS = 10
_MAX_ANSWER_BYTES = 256 * 1024
_MAX_KEYS = 100
_MAX_SIGNATURE_CHARACTERS = 200
# A key that the scanner takes back is believed no longer than this.
_FRESH_SECONDS = 3600.0
# Whoever makes up identifiers must not make us ask more often; GitHub answers strangers 60 times an hour.
_PAUSE_SECONDS = 120.0
_OK = 200

log = structlog.get_logger(__name__)


class Scanner:
    """Tells what one scanner signed. `pinned` are public keys (PEM) by identifier; others are fetched from `url`.

    Raises SettingsInvalid for a pinned key that is none.
    """

    def __init__(self, url: str, pinned: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._pinned = {name: _read_pinned(name, pem) for name, pem in pinned.items()}
        self._clock = clock
        self._fetched: dict[str, PublicKey] = {}
        self._fetched_at = self._asked_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def verify(self, body: bytes, key_id: str, signature: str) -> None:
        """Raises SignatureInvalid unless the scanner signed `body`, or ScannerUnavailable where that cannot be told."""
        if not key_id or not signature:
            raise SignatureInvalid("the report is not signed; send Github-Public-Key-Identifier and -Signature")
        key = self._pinned.get(key_id) or await self._find_fetched(key_id)
        if key is None:
            raise SignatureInvalid("the report is signed with a key that the scanner does not have")
        try:
            if len(signature) > _MAX_SIGNATURE_CHARACTERS:
                raise SignatureInvalid("the report's signature is longer than any of P-256")
            key.verify(base64.b64decode(signature, validate=True), body, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, binascii.Error, ValueError) as error:
            raise SignatureInvalid("the report's signature does not fit its body") from error

    async def _find_fetched(self, key_id: str) -> PublicKey | None:
        if not self._url:
            return None
        async with self._fetching:
            now = self._clock()
            is_fresh = now - self._fetched_at < _FRESH_SECONDS
            if (key_id not in self._fetched or not is_fresh) and now - self._asked_at >= _PAUSE_SECONDS:
                self._asked_at = now
                self._fetched = await self._fetch()
                self._fetched_at = now
                is_fresh = True
            if not is_fresh:
                raise ScannerUnavailable("the scanner's public keys could not be fetched; send the report again later")
            return self._fetched.get(key_id)

    async def _fetch(self) -> dict[str, PublicKey]:
        # The HTTP client takes long to load, and most servers are never told of a leak.
        import aiohttp  # noqa: PLC0415

        try:
            async with (
                asyncio.timeout(_ANSWER_SECONDS),
                aiohttp.ClientSession(trust_env=True, headers={"User-Agent": f"entrepot/{__version__}"}) as session,
                session.get(self._url, allow_redirects=False) as answer,
            ):
                if answer.status != _OK:
                    raise ScannerUnavailable(f"the scanner's public keys cannot be fetched: status {answer.status}")
                body = bytearray()
                async for piece in answer.content.iter_chunked(16 * 1024):
                    body += piece
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise ScannerUnavailable("the scanner's list of public keys is longer than it can be")
            return _read_list(bytes(body))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            log.warning("scanner_keys_not_fetched", url=self._url, error=type(error).__name__)
            raise ScannerUnavailable(
                "the scanner's public keys could not be fetched; send the report again later"
            ) from error


def _read_list(body: bytes) -> dict[str, PublicKey]:
    """The usable keys of a list. Raises ValueError when it is none."""
    try:
        listed = [(str(one["key_identifier"]), str(one["key"])) for one in json.loads(body)["public_keys"][:_MAX_KEYS]]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("no list of keys") from error
    read = {name: _read_key(pem) for name, pem in listed}
    return {name: key for name, key in read.items() if key is not None}


def _read_pinned(name: str, pem: str) -> PublicKey:
    key = _read_key(pem)
    if key is None:
        raise SettingsInvalid(f"ENTREPOT_SECRET_SCANNING__PUBLIC_KEYS: {name[:80]!r} is no P-256 public key in PEM")
    return key


def _read_key(pem: str) -> PublicKey | None:
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, PublicKey) and isinstance(key.curve, ec.SECP256R1) else None
