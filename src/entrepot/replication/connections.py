"""Connections to a source, and to the servers that it sends us to.

Two kinds: those to the source's own origin, and those to anywhere else, which may not lead where the source has no
business. An address is judged at the moment when it is connected to, so that a name cannot point elsewhere between the
look-up and the connection.
"""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
from yarl import URL

from entrepot import __version__
from entrepot.access.addresses import Place, find_place
from entrepot.errors import SourceLoginMissing
from entrepot.replication.backoff import Deadlines
from entrepot.replication.source_specs import Network

PIECE_BYTES = 2 * 1024 * 1024
_CONNECTIONS = 64


class AddressRefused(OSError):
    """A server at an address that may not be connected to. Its text is the same for every address of a server."""

    def __init__(self) -> None:
        super().__init__("its address is not one that this source may lead to")


class Connections:
    """The ways to a source at `origin`, and from there."""

    def __init__(
        self, origin: URL, network: Network, own: aiohttp.ClientSession, away: aiohttp.ClientSession, guard: "_Guard"
    ) -> None:
        self._origin = origin
        self._network = network
        self._own = own
        self._away = away
        self._guard = guard

    async def request(self, method: str, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Send a request; a redirect is not followed. Raises aiohttp's errors and AddressRefused."""
        session = self._own if url.origin() == self._origin else self._away
        if session is self._away and self._network.proxy is not None:
            self._guard.verify_named(url.host or "")
        return await session.request(method, url, headers=headers, proxy=self._network.proxy, allow_redirects=False)


class _Guard:
    """Judges addresses. What the source's own address is like is seen when it is connected to."""

    def __init__(self, origin: URL, network: Network) -> None:
        self._network = network
        # Through a proxy, the source's own address is seen only where its URL has it.
        self._origin_place = _place_of_host(origin.host or "")

    def make_own_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for a connection to the source itself."""
        place = find_place(address[4][0])
        if place is Place.FORBIDDEN:
            raise AddressRefused
        self._origin_place = place
        return socket.socket(*address[:3])

    def make_away_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for a connection to anywhere else."""
        self._verify(find_place(address[4][0]))
        return socket.socket(*address[:3])

    def verify_named(self, host: str) -> None:
        """Judge a host that a proxy is to connect to: by its name alone, since the proxy looks it up."""
        self._verify(_place_of_host(host))

    def _verify(self, place: Place) -> None:
        allows_private = self._network.allows_private_redirects
        if allows_private is None:
            allows_private = self._origin_place is not Place.PUBLIC
        if place > (Place.PRIVATE if allows_private else Place.PUBLIC):
            raise AddressRefused


def _place_of_host(host: str) -> Place:
    try:
        return find_place(host)
    except ValueError:
        return Place.PRIVATE if host == "localhost" or host.endswith(".localhost") else Place.PUBLIC


@asynccontextmanager
async def open_connections(
    name: str, origin: URL, network: Network, deadlines: Deadlines
) -> AsyncIterator[Connections]:
    """The connections of source `name`. Raises SourceLoginMissing when its authorities cannot be read."""
    tls = make_tls(network.ca_file, name)
    guard = _Guard(origin, network)
    # A proxy is ours to name, wherever it is.
    factories = (None, None) if network.proxy is not None else (guard.make_own_socket, guard.make_away_socket)
    async with AsyncExitStack() as stack:
        own, away = [await stack.enter_async_context(_open_session(tls, factory, deadlines)) for factory in factories]
        yield Connections(origin, network, own, away, guard)


def _open_session(
    tls: ssl.SSLContext | bool,  # noqa: FBT001 - aiohttp's own type
    socket_factory: Any,
    deadlines: Deadlines,
) -> aiohttp.ClientSession:
    """An HTTP session: no cookies, no proxies and netrc from the environment, no decompression.

    Content is read as it was sent: what a registry compresses on the way has another digest anyway, and what is not
    unpacked cannot be a bomb.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=tls, socket_factory=socket_factory),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"entrepot/{__version__}", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
        read_bufsize=PIECE_BYTES,
        timeout=aiohttp.ClientTimeout(
            total=None,
            connect=None,
            sock_connect=deadlines.connect_seconds,
            sock_read=deadlines.idle_seconds,
        ),
    )


def make_tls(ca_file: str | None, source: str) -> ssl.SSLContext | bool:
    """What to trust: the authorities in a file, or the system's. Raises SourceLoginMissing."""
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SourceLoginMissing(f"source {source}: ca_file {ca_file} holds no certificates") from error
