"""Where webhooks may lead, so that whoever can set one up cannot look around in our network with it.

A URL is judged when it is given; the address that its host has is judged each time that it is connected to, since a
name may have another one by then.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from entrepot.access.addresses import Address, Place, place_of
from entrepot.errors import WebhookInvalid

MAX_URL_CHARACTERS: Final = 2000
_MAX_PORT = 65535
# Narrower than RFC 3986, so that no two programs can read it in different ways.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
    r"(?:[/?][!\"$-\[\]-~]*)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Destinations:
    """Public addresses, by https; `networks` may be reached besides, and by http with `plain_http`."""

    networks: Sequence[IPv4Network | IPv6Network] = ()
    plain_http: bool = False

    def verify_url(self, text: str) -> None:
        """Raises WebhookInvalid unless webhooks may lead there, as far as that can be told before connecting."""
        if len(text) > MAX_URL_CHARACTERS:
            raise WebhookInvalid(f"url: has {len(text)} characters; at most {MAX_URL_CHARACTERS} are kept")
        match = _URL.fullmatch(text)
        if match is None:
            raise WebhookInvalid(
                "url: use https://HOST/PATH in plain ASCII, without user, password or fragment; deliveries are signed"
            )
        if match["port"] is not None and not 0 < int(match["port"]) <= _MAX_PORT:
            raise WebhookInvalid("url: the port must be 1 to 65535")
        host = match["host"].strip("[]").lower()
        address = _find_address(host)
        if "[" in match["host"] and not isinstance(address, IPv6Address):
            raise WebhookInvalid("url: what stands in brackets is no IPv6 address")
        is_here = host == "localhost" if address is None else address.is_loopback
        if match["scheme"] == "http" and not (self.plain_http or is_here):
            raise WebhookInvalid("url: use https; plain http to another host needs ENTREPOT_WEBHOOKS__PLAIN_HTTP")
        if address is not None and not self.permit(address):
            raise WebhookInvalid(
                f"url: {address} is no public address; name its network in ENTREPOT_WEBHOOKS__NETWORKS to reach it"
            )

    def permit(self, address: Address) -> bool:
        """Whether a webhook may connect to an address."""
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self.networks):
            return True
        return place_of(address) is Place.PUBLIC


def _find_address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
