"""AWS's APIs: who we are there, one call at a time, and their errors made ours.

Importing this takes half a second and 20 MB, for the SDK: only what opens a source in AWS does.
"""

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioCredentials,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import exceptions as sdk
from yarl import URL

from entrepot import __version__
from entrepot.errors import (
    SourceDenied,
    SourceError,
    SourceLied,
    SourceLoginMissing,
    SourceMissing,
    SourceUnreachable,
    SourceUntrusted,
)
from entrepot.replication.backoff import Backoff, Deadlines, Pace, Throttled, TryLater
from entrepot.replication.connections import PIECE_BYTES, make_tls
from entrepot.replication.logins import read_secret
from entrepot.replication.source_specs import AwsAccess, Network

# The largest answer that is asked for: 1,000 images, each with all its tags.
_ANSWER_BYTES = 16 * 1024 * 1024
_REASON_LENGTH = 400
_SESSION_NAME = "entrepot"
# "Retry behavior" of the AWS SDKs and Tools Reference Guide, "Throttling errors".
_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "InvalidSignatureException",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_TOO_MANY, _UNAUTHORIZED, _FORBIDDEN, _SERVER_ERROR = 429, 401, 403, 500


class AwsApi:
    """The API of one service, asked at a pace, and again while that can help."""

    def __init__(self, name: str, client: Any, deadlines: Deadlines, backoff: Backoff, pace: Pace) -> None:
        self._name = name
        self._client = client
        self._deadlines = deadlines
        self._backoff = backoff
        self._pace = pace

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """What AWS answers to an operation, named as the SDK for Python does. Raises SourceError."""

        async def once() -> dict[str, Any]:
            await self._pace.turn()
            with _sdk_errors(self._name):
                async with asyncio.timeout(self._deadlines.answer_seconds):
                    answer: dict[str, Any] = await getattr(self._client, operation)(**arguments)
            return answer

        return await self._backoff.retry(once)


@asynccontextmanager
async def open_aws(
    name: str,
    service: str,
    access: AwsAccess,
    *,
    endpoint: URL | None,
    network: Network,
    deadlines: Deadlines,
    backoff: Backoff,
    calls_per_second: float,
) -> AsyncIterator[AwsApi]:
    """The API of a service, for source `name`. Raises SourceError."""
    config = AioConfig(
        region_name=access.region,
        connect_timeout=deadlines.connect_seconds,
        read_timeout=deadlines.idle_seconds,
        # Proxies from the environment would not hold for the content, either.
        proxies={} if network.proxy is None else dict.fromkeys(("http", "https"), str(network.proxy)),
        # Tried again by us, for every kind of source in one way.
        retries={"total_max_attempts": 1, "mode": "standard"},
        user_agent_extra=f"entrepot/{__version__}",
        http_session_cls=_LimitedSession,
        warm_up_loader_caches=True,
    )
    # The SDK reads the file when it first connects, and says less.
    if network.ca_file is not None:
        make_tls(network.ca_file, name)
    with _sdk_errors(name):
        session = AioSession()
        session.set_default_client_config(config)
        async with asyncio.timeout(deadlines.answer_seconds):
            credentials = await _find_credentials(name, session, access, network)
        # The SDK itself has no other way to give a session credentials that renew themselves.
        session._credentials = credentials  # noqa: SLF001 - reason above
        context = session.create_client(
            service,
            region_name=access.region,
            endpoint_url=None if endpoint is None else str(endpoint),
            verify=network.ca_file,
        )
        client = await context.__aenter__()
    try:
        yield AwsApi(name, client, deadlines, backoff, Pace(calls_per_second))
    finally:
        await context.__aexit__(None, None, None)


async def _find_credentials(name: str, session: AioSession, access: AwsAccess, network: Network) -> Any:
    """The credentials of the last role, or those that the roles are assumed with."""
    if access.access_key_id is not None and access.secret_access_key is not None:
        secret = read_secret(access.secret_access_key, "secret_access_key", name)
        credentials: Any = AioCredentials(access.access_key_id, secret)
    else:
        credentials = await session.get_credentials()
    if credentials is None:
        raise SourceLoginMissing(
            f"source {name}: no AWS credentials are found here; run where a role is bound (web identity, instance or "
            "task role), or name an access key"
        )
    for role in access.roles:
        fetcher = AioAssumeRoleCredentialFetcher(
            functools.partial(
                session.create_client,
                region_name=access.region,
                endpoint_url=None if access.sts_endpoint is None else str(access.sts_endpoint),
                verify=network.ca_file,
            ),
            credentials,
            role.arn,
            extra_args={"RoleSessionName": _SESSION_NAME}
            | ({"ExternalId": role.external_id} if role.external_id else {}),
        )
        credentials = AioDeferredRefreshableCredentials(fetcher.fetch_credentials, method="assume-role")
    return credentials


class _AnswerTooLong(Exception):
    """AWS sent more than it is allowed to."""


class _LimitedSession(AIOHTTPSession):  # type: ignore[misc] # the SDK has no types
    """The SDK's HTTP session, which otherwise reads answers of any length."""

    async def send(self, request: Any) -> Any:
        """Send a request; its answer was read when this returns."""
        request.stream_output = True
        response = await super().send(request)
        body = bytearray()
        try:
            async for piece in response.raw.content.iter_chunked(PIECE_BYTES):
                body += piece
                if len(body) > _ANSWER_BYTES:
                    raise _AnswerTooLong
        finally:
            response.raw.release()
        response._content = bytes(body)  # noqa: SLF001 - where the SDK keeps what was read
        return response


@contextmanager
def _sdk_errors(name: str) -> Iterator[None]:
    """The one place where the SDK's errors become ours."""
    asked = f"source {name}: AWS"
    try:
        yield
    except sdk.ClientError as error:
        raise _translate(name, error) from error
    except (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.CredentialRetrievalError, sdk.ProfileNotFound,
            sdk.InvalidConfigError, sdk.TokenRetrievalError, sdk.UnauthorizedSSOTokenError) as error:  # fmt: skip
        raise SourceLoginMissing(f"source {name}: no AWS credentials can be had here: {_visible(error)}") from error
    except _AnswerTooLong as error:
        raise SourceLied(f"{asked} sent more than the {_ANSWER_BYTES} bytes allowed for an answer") from error
    except sdk.SSLError as error:
        raise SourceUntrusted(
            f"{asked} has no TLS certificate that is trusted here ({_visible(error)}); "
            "give the source a ca_file when it has its own authority"
        ) from error
    except (sdk.HTTPClientError, TimeoutError, OSError) as error:
        raise SourceUnreachable(f"{asked} cannot be reached ({_visible(error)})") from error
    except sdk.BotoCoreError as error:
        raise SourceLied(f"{asked}: {_visible(error)}") from error


def _translate(name: str, error: Any) -> SourceError:
    """The error that fits an answer of AWS's."""
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), str(details.get("Message", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = f"source {name}: AWS answers {error.operation_name} with {_visible(f'{code}: {message}')}"
    if code in _THROTTLED or status == _TOO_MANY:
        return Throttled(f"{said}; try again later")
    if code.endswith("NotFoundException"):
        return SourceMissing(said)
    if code in _DENIED or status in {_UNAUTHORIZED, _FORBIDDEN}:
        return SourceDenied(f"{said}; check what the role may do, and who may assume it")
    if status >= _SERVER_ERROR:
        return TryLater(f"{said}; try again later")
    return SourceLied(said)


def _visible(error: object) -> str:
    """What the SDK says, in one line."""
    return re.sub(r"[^ -~]+", " ", str(error) or type(error).__name__)[:_REASON_LENGTH]
