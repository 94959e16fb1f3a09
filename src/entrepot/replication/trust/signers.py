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
from typing import Any, Final, Protocol

import aiobotocore.session
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from entrepot.errors import RuleInvalid, SignatureInvalid, SignerUnavailable
from entrepot.replication.trust.files import read_file, read_password
from entrepot.replication.trust.keys import PublicKey, verify_usable
from entrepot.replication.trust.spec import SignSpec

_COSIGN_KEY: Final = re.compile(
    rb"-----BEGIN ENCRYPTED (?:SIGSTORE|COSIGN) PRIVATE KEY-----(.*?)-----END ENCRYPTED", re.DOTALL
)
# Four times what cosign uses: 256 MiB while the key is opened.
_MOST_SCRYPT_BYTES = 256 * 1024 * 1024
_CONNECT_SECONDS, _ANSWER_SECONDS, _ATTEMPTS = 5, 10, 4
_TEMPORARY = frozenset(
    {"ThrottlingException", "KMSInternalException", "DependencyTimeoutException", "KeyUnavailableException"}
)
_SERVER_ERROR = 500


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


class KmsSigner:
    """A private key that never leaves AWS KMS."""

    def __init__(self, client: Any, key_id: str, public_key: PublicKey, where: str) -> None:
        self._client = client
        self._key_id = key_id
        self._public_key = public_key
        self._where = where
        self._algorithm = "RSASSA_PKCS1_V1_5_SHA_256" if isinstance(public_key, rsa.RSAPublicKey) else "ECDSA_SHA_256"

    @property
    def public_key(self) -> PublicKey:
        """Its public half."""
        return self._public_key

    async def sign(self, message: bytes) -> bytes:
        """A signature over `message`, of which KMS sees the digest alone. Raises SignerUnavailable or RuleInvalid."""
        answer = await _ask(
            self._client,
            "sign",
            self._where,
            KeyId=self._key_id,
            Message=hashlib.sha256(message).digest(),
            MessageType="DIGEST",
            SigningAlgorithm=self._algorithm,
        )
        return bytes(answer["Signature"])


@asynccontextmanager
async def open_signer(spec: SignSpec, where: str) -> AsyncIterator[Signer]:
    """The key of `spec`. Raises RuleInvalid, whose message begins with the place, `where`, or SignerUnavailable."""
    if spec.kms is None:
        yield await asyncio.to_thread(_open_file, spec, where)
        return
    config = AioConfig(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_ANSWER_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    session = aiobotocore.session.get_session()
    async with session.create_client("kms", region_name=spec.region, config=config) as client:
        where = f"{where}.kms"
        answer = await _ask(client, "get_public_key", where, KeyId=spec.kms)
        key = serialization.load_der_public_key(answer["PublicKey"])
        yield KmsSigner(client, spec.kms, _verify_signs(key, where), where)


async def _ask(client: Any, method: str, where: str, **arguments: object) -> dict[str, Any]:
    """What KMS answers. The one place where the library's errors become ours."""
    try:
        answer: dict[str, Any] = await getattr(client, method)(**arguments)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _TEMPORARY or status >= _SERVER_ERROR:
            raise SignerUnavailable(f"{where}: KMS answered {code}; try again later") from error
        raise RuleInvalid(
            f"{where}: KMS refused {method} with {code}; the role needs kms:GetPublicKey and kms:Sign on the key, "
            "and its usage must be SIGN_VERIFY"
        ) from error
    except NoCredentialsError as error:
        raise RuleInvalid(f"{where}: there are no AWS credentials here; give the process a role") from error
    except (BotoCoreError, OSError) as error:
        raise SignerUnavailable(f"{where}: KMS cannot be reached ({type(error).__name__})") from error
    return answer


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
    _verify_signs(key.public_key(), where)
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


def _verify_signs(key: object, where: str) -> PublicKey:
    """The key, if cosign verifies what it signs. Raises RuleInvalid."""
    try:
        usable = verify_usable(key)
    except SignatureInvalid as error:
        raise RuleInvalid(f"{where} {error}") from error
    if isinstance(usable, ec.EllipticCurvePublicKey) and not isinstance(usable.curve, ec.SECP256R1):
        raise RuleInvalid(
            f"{where} is of curve {usable.curve.name}; take P-256, which every version of cosign verifies"
        )
    return usable
