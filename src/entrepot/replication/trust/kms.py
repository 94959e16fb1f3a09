"""Keys in AWS KMS.

Importing this takes half a second and 20 MB, for the SDK: only what opens such a key does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from entrepot.errors import RuleInvalid, SignatureBroken, SignerUnavailable
from entrepot.replication.trust.keys import PublicKey, is_signed, verify_usable

_CONNECT_SECONDS, _ANSWER_SECONDS, _ATTEMPTS = 5, 10, 4
# KMS API Reference, "Common Errors", and the errors of Sign.
_TEMPORARY = frozenset(
    {
        "DependencyTimeoutException",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestExpired",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
    }
)
_SERVER_ERROR = 500


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
        """A signature over `message` of at most 4,096 bytes, KMS's limit. Raises SignerUnavailable or RuleInvalid."""
        answer = await _ask(
            self._client,
            "sign",
            self._where,
            KeyId=self._key_id,
            Message=message,
            MessageType="RAW",
            SigningAlgorithm=self._algorithm,
        )
        signature = bytes(answer["Signature"])
        if not is_signed(self._public_key, signature, message):
            raise SignerUnavailable(f"{self._where}: KMS answered with a signature that does not hold; try again")
        return signature


@asynccontextmanager
async def open_kms(key_id: str, region: str, where: str) -> AsyncIterator[KmsSigner]:
    """A key by its ARN, with the SDK's default credentials. Raises RuleInvalid or SignerUnavailable."""
    config = AioConfig(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_ANSWER_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    async with get_session().create_client("kms", region_name=region, config=config) as client:
        answer = await _ask(client, "get_public_key", where, KeyId=key_id)
        try:
            key = verify_usable(serialization.load_der_public_key(answer["PublicKey"]))
        except (SignatureBroken, ValueError) as error:
            raise RuleInvalid(f"{where}: the key {error}") from error
        yield KmsSigner(client, key_id, key, where)


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
