"""Keys that sign: in a file, as cosign or OpenSSL wrote it, or in AWS KMS.

Implements the encrypted key of cosign ("ENCRYPTED SIGSTORE PRIVATE KEY": scrypt, NaCl's secretbox). Signatures are of
the kinds that `cosign verify --key` takes: ECDSA P-256, RSA PKCS #1 v1.5, each with SHA-256, and Ed25519.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from entrepot.errors import RuleInvalid, SignatureBroken
from entrepot.replication.trust.files import read_file, read_password
from entrepot.replication.trust.keys import PublicKey, verify_usable
from entrepot.replication.trust.spec import SignSpec

_COSIGN_KEY: Final = re.compile(
    rb"-----BEGIN ENCRYPTED (?:SIGSTORE|COSIGN) PRIVATE KEY-----(.*?)-----END ENCRYPTED", re.DOTALL
)
# Four times what cosign uses: 256 MiB while the key is opened.
_MOST_SCRYPT_BYTES = 256 * 1024 * 1024


class Signer(Protocol):
    """A private key, wherever it is."""

    @property
    def public_key(self) -> PublicKey:
        """Its public half."""

    async def sign(self, message: bytes) -> bytes:
        """A signature over `message`. Raises SignerUnavailable or RuleInvalid."""


class FileSigner:
    """A private key in memory."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public_key(self) -> PublicKey:
        """Its public half."""
        return self._key.public_key()

    async def sign(self, message: bytes) -> bytes:
        """A signature over `message`."""
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(message)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


@asynccontextmanager
async def open_signer(spec: SignSpec, where: str) -> AsyncIterator[Signer]:
    """The key of `spec`. Raises RuleInvalid, whose message begins with the place, `where`, or SignerUnavailable."""
    if spec.kms is None:
        yield await asyncio.to_thread(_open_file, spec, where)
        return
    # The SDK takes half a second to load, which nobody should wait for who has no key there.
    from entrepot.replication.trust.kms import open_kms  # noqa: PLC0415

    where = f"{where}.kms"
    async with open_kms(spec.kms, spec.region, where) as signer:
        verify_signs(signer.public_key, where)
        yield signer


def _open_file(spec: SignSpec, where: str) -> FileSigner:
    path = spec.key_file or ""
    content = read_file(path, f"{where}.key_file")
    password = read_password(spec, where)
    where = f"{where}.key_file: {path}"
    encrypted = _COSIGN_KEY.search(content)
    try:
        if encrypted is not None:
            key = serialization.load_der_private_key(_decrypt(encrypted[1], password, where), password=None)
        else:
            key = serialization.load_pem_private_key(content, password or None)
    except TypeError as error:  # the library's word for a password too many or too few
        raise RuleInvalid(f"{where}: {error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RuleInvalid(f"{where} holds no private key in PEM, or its password is another") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey):
        raise RuleInvalid(f"{where} holds a key of a kind that does not sign")
    verify_signs(key.public_key(), where)
    return FileSigner(key)


def _decrypt(block: bytes, password: bytes, where: str) -> bytes:
    """What cosign encrypted. Raises RuleInvalid when the password is another, ValueError when it is not cosign's."""
    try:
        document = json.loads(base64.b64decode(block))
        derivation, cipher = document["kdf"], document["cipher"]
        names = derivation["name"], cipher["name"]
        cost, blocks, parallel = (int(derivation["params"][name]) for name in ("N", "r", "p"))
        salt, nonce, sealed = (
            base64.b64decode(text) for text in (derivation["salt"], cipher["nonce"], document["ciphertext"])
        )
    except (LookupError, TypeError) as error:
        raise ValueError("not as cosign writes it") from error
    if names != ("scrypt", "nacl/secretbox") or 128 * cost * blocks * parallel > _MOST_SCRYPT_BYTES:
        raise ValueError("not as cosign writes it")
    secret = hashlib.scrypt(
        password, salt=salt, n=cost, r=blocks, p=parallel, maxmem=2 * _MOST_SCRYPT_BYTES, dklen=SecretBox.KEY_SIZE
    )
    try:
        return bytes(SecretBox(secret).decrypt(sealed, nonce))
    except CryptoError as error:
        raise RuleInvalid(f"{where} is encrypted with another password; see password_file and password_env") from error


def verify_signs(key: object, where: str) -> None:
    """The key, if cosign verifies what it signs. Raises RuleInvalid."""
    try:
        usable = verify_usable(key)
    except SignatureBroken as error:
        raise RuleInvalid(f"{where} {error}") from error
    if isinstance(usable, ec.EllipticCurvePublicKey) and not isinstance(usable.curve, ec.SECP256R1):
        raise RuleInvalid(
            f"{where} is of curve {usable.curve.name}; take P-256, which every version of cosign verifies"
        )
