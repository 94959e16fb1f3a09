"""Where webhooks may lead, so that whoever can set one up cannot look around in our network with it.

A URL is judged when it is given; the address that its host has is judged each time that it is connected to, since a name
may have another one by then.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from yarl import URL

from entrepot.errors import WebhookInvalid

Address = IPv4Address | IPv6Address

MAX_URL_CHARACTERS: Final = 2000
_MAX_PORT = 65535
# The only part of IPv6 that is in use for public addresses (IANA, "IPv6 Global Unicast Address Assignments").
_PUBLIC_6: Final = IPv6Network("2000::/3")
# RFC 6052: IPv6 addresses through which a NAT64 reaches the IPv4 address in their last 32 bits.
_NAT64: Final = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Destinations:
    """Public addresses, by https; `networks` may be reached besides, and by http with `plain_http`."""

    networks: Sequence[IPv4Network | IPv6Network] = ()
    plain_http: bool = False

    def parse(self, text: str) -> URL:
        """The URL in `text`. Raises WebhookInvalid when nothing may be sent there."""
        if len(text) > MAX_URL_CHARACTERS:
            raise WebhookInvalid(f"url: has {len(text)} characters; at most {MAX_URL_CHARACTERS} are kept")
        try:
            url = URL(text)
            host, port = url.host, url.port
        except ValueError as error:
            raise WebhookInvalid("url: is no URL; use https://HOST/PATH") from error
        if url.scheme not in {"http", "https"} or not host:
            raise WebhookInvalid("url: use https://HOST/PATH")
        if url.user is not None or url.password is not None or url.raw_fragment:
            raise WebhookInvalid("url: must have no user, password or fragment; deliveries are signed instead")
        if port is None or not 0 < port <= _MAX_PORT:
            raise WebhookInvalid("url: the port must be 1 to 65535")
        if url.scheme == "http" and not (self.plain_http or _is_loopback(host)):
            raise WebhookInvalid("url: use https; plain http needs ENTREPOT_WEBHOOKS__PLAIN_HTTP")
        address = _find_address(host)
        if address is not None and not self.permit(address):
            raise WebhookInvalid(
                f"url: {address} is no public address; name its network in ENTREPOT_WEBHOOKS__NETWORKS to reach it"
            )
        return url

    def permit(self, address: Address) -> bool:
        """Whether a webhook may connect to an address."""
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self.networks):
            return True
        return _is_public(address)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    if address in _NAT64:
        return _is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None:
        return _is_public(address.sixtofour)
    return address in _PUBLIC_6 and address.is_global and address.teredo is None


def _is_loopback(host: str) -> bool:
    address = _find_address(host)
    return host == "localhost" if address is None else address.is_loopback


def _find_address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
