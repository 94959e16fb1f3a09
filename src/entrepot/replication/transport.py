"""Requests to one source registry: login, redirects, limits.

The one place where aiohttp's errors become ours. Every answer has a size limit and a time limit. Redirects are followed
by hand, so that a credential never leaves the registry's own origin, whatever the registry says.
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from entrepot.errors import (
    SourceDenied,
    SourceError,
    SourceLied,
    SourceMissing,
    SourceUnreachable,
    SourceUntrusted,
)
from entrepot.oci.media_types import bare
from entrepot.oci.retry_after import retry_after_seconds
from entrepot.replication.authorization import Authorization
from entrepot.replication.backoff import Backoff, Deadlines, Throttled, Tries, TryLater
from entrepot.replication.connections import PIECE_BYTES, AddressRefused, Connections
from entrepot.replication.headers import parse_challenges
from entrepot.replication.logins import Login

MAX_REDIRECTS = 5
_TOKEN_BYTES = 1024 * 1024
_REASON_BYTES = 16 * 1024
_REASON_LENGTH = 200
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# RFC 9110 for 408, 429 and 5xx; RFC 8470 for 425.
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
_OK, _PARTIAL, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_MANY = 200, 206, 401, 403, 404, 429


class NotUnderstood(SourceLied):
    """A status of 4xx or 5xx that is no answer to what was asked, as from a server that does not know the request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole small answer with a good status."""

    url: URL
    headers: CIMultiDictProxy[str]
    body: bytes


class Transport:
    """The way to one registry."""

    def __init__(
        self,
        name: str,
        connections: Connections,
        origin: URL,
        login: Login | None,
        deadlines: Deadlines,
        backoff: Backoff,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.origin = origin
        self._connections = connections
        self._deadlines = deadlines
        self._backoff = backoff
        self._authorization = Authorization(name, origin, login, self._fetch_token, monotonic)

    async def read(
        self, method: str, url: URL, *, scope: str, limit: int, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A whole answer of at most `limit` bytes; asked again while that can help. Raises SourceError."""

        async def once() -> Answer:
            async with self._answer_deadline(url), self.open(method, url, scope=scope, headers=headers) as response:
                body = await self._read_body(response, limit)
                return Answer(response.url, response.headers, body)

        return await self._backoff.retry(once)

    def begin_tries(self) -> Tries:
        """To count the failed tries of one piece of work."""
        return Tries(self._backoff)

    @asynccontextmanager
    async def open(
        self, method: str, url: URL, *, scope: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with a good status, its body still to be read. One try. Raises SourceError."""
        with self._library_errors(url):
            response = await self._send(method, url, scope, headers or {})
            try:
                await self._verify_status(method, response)
                yield response
            finally:
                response.release()

    async def _send(self, method: str, url: URL, scope: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """The answer after redirects, and after showing who we are when asked to."""
        authorization = await self._authorization.find(scope)
        response = await self._follow(method, url, headers, authorization)
        if response.url.origin() != self.origin:
            return response
        if response.status == _UNAUTHORIZED:
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            response.release()
            authorization = await self._authorization.renew(challenges, scope, authorization)
        elif response.status == _FORBIDDEN and (newer := await self._authorization.find_newer(authorization)):
            response.release()
            authorization = newer
        else:
            return response
        return await self._follow(method, url, headers, authorization)

    async def _follow(
        self, method: str, url: URL, headers: Mapping[str, str], authorization: str | None
    ) -> aiohttp.ClientResponse:
        """The first answer that is no redirect. `authorization` is shown to the registry's own origin alone."""
        for _ in range(MAX_REDIRECTS + 1):
            own = {"Authorization": authorization} if authorization and url.origin() == self.origin else {}
            response = await self._request(method, url, {**headers, **own})
            if response.status not in _REDIRECTS:
                return response
            response.release()
            url = self._verify_redirect(url, response.headers.get("Location", ""))
        raise SourceLied(f"source {self.name} redirects {self.origin} more than {MAX_REDIRECTS} times")

    async def _request(self, method: str, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """One answer, its body still to be read."""
        with self._library_errors(url):
            async with self._answer_deadline(url):
                return await self._connections.request(method, url, headers)

    def _verify_redirect(self, url: URL, location: str) -> URL:
        try:
            # The query of a presigned URL is signed as it stands: it must not be quoted anew.
            target = url.join(URL(location, encoded=True))
            is_server = target.scheme in {"http", "https"} and bool(target.host and target.port)
        except ValueError:  # also when its port is looked at for the first time
            is_server = False
        if not is_server:
            raise SourceLied(f"source {self.name} redirects {visible(url)} to something that is no URL")
        if url.scheme == "https" and target.scheme != "https":
            raise SourceLied(
                f"source {self.name} redirects {visible(url)} from https to {target.origin()}; it was not followed"
            )
        return target

    async def _verify_status(self, method: str, response: aiohttp.ClientResponse) -> None:
        """Raises the SourceError that fits the status, unless it is a good one."""
        status = response.status
        if status in {_OK, _PARTIAL}:
            return
        asked = f"source {self.name}: {method} {visible(response.url)}"
        reason = await self._read_reason(response)
        if status in _TEMPORARY:
            wait = retry_after_seconds(response.headers.get("Retry-After"), datetime.now(UTC))
            kind = Throttled if status == _TOO_MANY else TryLater
            raise kind(f"{asked} answered {status}{reason}; try again later", asked_seconds=wait)
        if status in {_UNAUTHORIZED, _FORBIDDEN}:
            raise SourceDenied(f"{asked} was refused with {status}{reason}; check the login and what it may read")
        if status == _NOT_FOUND:
            hint = "" if _is_json(response) else "; it does not answer as a registry does, check the source's url"
            raise SourceMissing(f"{asked} answered 404{reason}{hint}")
        raise NotUnderstood(f"{asked} answered {status}{reason}, which no registry should")

    async def _read_reason(self, response: aiohttp.ClientResponse) -> str:
        """` (CODE: message)` out of a registry's error body (distribution-spec 1.1, "Error Codes"), or nothing."""
        if not _is_json(response):
            return ""
        try:
            body = await self._read_body(response, _REASON_BYTES)
            error = json.loads(body)["errors"][0]
            text = f"{error['code']}: {error['message']}"
        except (SourceError, ValueError, LookupError, TypeError, RecursionError):
            return ""
        return " (" + re.sub(r"[^ -~]", "?", text)[:_REASON_LENGTH] + ")"

    async def _read_body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        body = bytearray()
        with self._library_errors(response.url):
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                body += piece
                if len(body) > limit:
                    raise SourceLied(
                        f"source {self.name}: {visible(response.url)} sent more than the {limit} bytes allowed for it"
                    )
        return bytes(body)

    async def _fetch_token(self, url: URL, authorization: str | None) -> bytes:
        """The body of a token service's answer; a redirect is not followed."""
        headers = {"Authorization": authorization} if authorization else {}
        async with self._answer_deadline(url), await self._request("GET", url, headers) as response:
            await self._verify_status("GET", response)
            return await self._read_body(response, _TOKEN_BYTES)

    @asynccontextmanager
    async def _answer_deadline(self, url: URL) -> AsyncIterator[None]:
        seconds = self._deadlines.answer_seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise SourceUnreachable(
                f"source {self.name}: {visible(url)} did not answer within {seconds:g} seconds"
            ) from error

    @contextmanager
    def _library_errors(self, url: URL) -> Iterator[None]:
        """The one place where aiohttp's errors become ours."""
        asked = f"source {self.name}: {visible(url)}"
        try:
            yield
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise SourceUntrusted(
                f"{asked} has no TLS certificate that is trusted here ({_first_line(error)}); "
                "give the source a ca_file when it has its own authority"
            ) from error
        except (AddressRefused, aiohttp.ClientConnectorError) as error:
            if isinstance(getattr(error, "os_error", error), AddressRefused):
                raise SourceLied(
                    f"source {self.name} leads to {visible(url)}, whose address is none that a source may lead to; "
                    "if that is meant, give the source private_redirects: allow"
                ) from error
            raise SourceUnreachable(f"{asked} cannot be reached ({_first_line(error)})") from error
        except aiohttp.ClientHttpProxyError as error:
            raise SourceUnreachable(f"{asked} cannot be reached: the proxy answers {error.status}") from error
        except (aiohttp.ClientResponseError, aiohttp.InvalidURL) as error:
            raise SourceLied(
                f"{asked} does not answer in HTTP; check the scheme and port of the source's url"
            ) from error
        except TimeoutError as error:
            raise SourceUnreachable(f"{asked} stopped answering") from error
        except aiohttp.ClientPayloadError as error:
            raise SourceUnreachable(f"{asked} broke off in the middle of its answer") from error
        except (aiohttp.ClientError, OSError) as error:
            raise SourceUnreachable(f"{asked} cannot be reached ({_first_line(error)})") from error


def visible(url: URL) -> str:
    """`url` as it may be shown: without user, password, query and fragment, where secrets live."""
    return str(url.with_user(None).with_query(None).with_fragment(None))


def _is_json(response: aiohttp.ClientResponse) -> bool:
    media_type = bare(response.headers.get("Content-Type", ""))
    return media_type == "application/json" or media_type.endswith("+json")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:_REASON_LENGTH]
