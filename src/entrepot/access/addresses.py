"""Where a network address is, for whatever lets others choose what we connect to.

A source that was broken into, or somebody who may set up a webhook, could name a server of ours that only listens
inside, or the one that hands out a machine's credentials. Follows RFC 6890 (which addresses are special) and RFC 6052
(IPv4 addresses inside IPv6 ones).
"""

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final

Address = IPv4Address | IPv6Address

# The only part of IPv6 that is in use for public addresses (IANA, "IPv6 Global Unicast Address Assignments").
_PUBLIC_6: Final = IPv6Network("2000::/3")
# RFC 6052: IPv6 addresses through which a NAT64 reaches the IPv4 address in their last 32 bits.
_NAT64: Final = IPv6Network("64:ff9b::/96")
# Where AWS, Azure and Alibaba hand out a machine's credentials, beside the link-local 169.254.169.254 of most clouds.
_METADATA: Final = frozenset(map(ip_address, ("fd00:ec2::254", "168.63.129.16", "100.100.100.200")))


class Place(IntEnum):
    """Where an address is: anywhere, inside a network of ours, or where nothing is that others may choose."""

    PUBLIC = 0
    PRIVATE = 1
    FORBIDDEN = 2


def place_of(address: Address) -> Place:
    """Where an address is."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return place_of(inner)
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
        return Place.FORBIDDEN
    is_public = address.is_global and (isinstance(address, IPv4Address) or address in _PUBLIC_6)
    return Place.PUBLIC if is_public else Place.PRIVATE


def find_place(text: str) -> Place:
    """Where the IP address that `text` spells is, with or without a zone. Raises ValueError when it spells none."""
    return place_of(ip_address(text.partition("%")[0]))
