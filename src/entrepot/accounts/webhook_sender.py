"""Requests to the receivers of webhooks: the one place where aiohttp's errors become a reason.

A receiver is whatever a URL leads to. So an attempt has deadlines, a redirect is not followed, next to nothing is read
of the answer and nothing of it is shown, and every address is judged at the moment when it is connected to.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from ipaddress import ip_address
from typing import Any

import aiohttp
from yarl import URL

from entrepot import __version__
from entrepot.access.destinations import Destinations
from entrepot.accounts.webhook_answer import Answer, Deadlines
from entrepot.oci.retry_after import retry_after_seconds

_NOT_PUBLIC = "the host's address is not public; name its network in ENTREPOT_WEBHOOKS__NETWORKS to reach it"
# Read so that the connection can be used again. A longer answer ends it.
_ANSWER_BYTES = 16 * 1024
_HEADER_BYTES = 8190
_OK, _MULTIPLE_CHOICES, _BAD_REQUEST = 200, 300, 400


class Sender:
    """Posts to receivers, whose connections are used again."""

    def __init__(self, session: aiohttp.ClientSession, deadlines: Deadlines) -> None:
        self._session = session
        self._deadlines = deadlines

    async def post(self, url: URL, headers: Mapping[str, str], body: bytes, now: datetime) -> Answer:
        """Post `body` once. Never raises for what the receiver does."""
        answer = Answer(None, f"no answer came within {self._deadlines.total_seconds:g} seconds")
        try:
            async with (
                asyncio.timeout(self._deadlines.total_seconds),
                self._session.post(url, headers=headers, data=body, allow_redirects=False) as response,
            ):
                answer = _judge(response.status, response.headers.get("Retry-After"), now)
                await response.content.read(_ANSWER_BYTES)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            # An answer that has come counts, whatever becomes of its body.
            return answer if answer.status is not None else Answer(None, _explain(error) or answer.problem)
        return answer


@asynccontextmanager
async def open_sender(destinations: Destinations, deadlines: Deadlines) -> AsyncIterator[Sender]:
    """A sender that connects only to where `destinations` allow: no cookies, no proxies from the environment."""

    def open_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, place = address
        if not destinations.permit(ip_address(str(place[0]).partition("%")[0])):
            raise OSError(errno.EACCES, _NOT_PUBLIC)
        return socket.socket(family, kind, protocol)

    async with aiohttp.ClientSession(
        # The number of webhooks, and of their attempts at a time, is limited elsewhere.
        connector=aiohttp.TCPConnector(limit=0, socket_factory=open_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"entrepot/{__version__}", "Content-Type": "application/json"},
        auto_decompress=False,
        trust_env=False,
        max_line_size=_HEADER_BYTES,
        max_field_size=_HEADER_BYTES,
        timeout=aiohttp.ClientTimeout(total=None, connect=deadlines.connect_seconds),
    ) as session:
        yield Sender(session, deadlines)


def _judge(status: int, retry_after: str | None, now: datetime) -> Answer:
    if _OK <= status < _MULTIPLE_CHOICES:
        return Answer(status, None)
    asked = retry_after_seconds(retry_after, now)
    if _MULTIPLE_CHOICES <= status < _BAD_REQUEST:
        return Answer(status, f"answered {status}, and redirects are not followed", asked)
    return Answer(status, f"answered {status}", asked)


def _explain(error: BaseException) -> str | None:
    """What went wrong, without a word of the receiver's or its network's; None for the deadline of it all."""
    if _NOT_PUBLIC in str(error):
        return _NOT_PUBLIC
    return next((words for kind, words in _PROBLEMS if isinstance(error, kind)), None)


# The nearest class first.
_PROBLEMS: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ClientSSLError, "the host has no TLS certificate that is trusted here"),
    (ssl.SSLError, "the host has no TLS certificate that is trusted here"),
    (aiohttp.ClientConnectorDNSError, "the host's name has no address"),
    (aiohttp.ClientConnectorError, "the host refuses the connection, or cannot be reached"),
    (aiohttp.ServerTimeoutError, "no connection came about in time"),
    (aiohttp.ClientResponseError, "the host does not answer in HTTP"),
    (ValueError, "the host does not answer in HTTP"),
    (aiohttp.ClientError, "the host broke off the connection"),
    (ConnectionError, "the host broke off the connection"),
)
