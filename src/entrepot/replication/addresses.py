"""Which network addresses a source may lead us to. Pure.

A registry names other servers: where a blob is stored, who issues its tokens. One that was broken into could name a
server of ours that only listens inside, or the one that hands out a machine's credentials. Follows RFC 6890 (which
addresses are special) and RFC 6052 (IPv4 addresses inside IPv6 ones).
"""

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

_NAT64 = IPv6Network("64:ff9b::/96")
# Where AWS, Azure and Alibaba hand out a machine's credentials, beside the link-local 169.254.169.254 of most clouds.
_METADATA = frozenset({ip_address("fd00:ec2::254"), ip_address("168.63.129.16"), ip_address("100.100.100.200")})


class Place(IntEnum):
    """Where an address is: anywhere, inside a network of ours, or where no registry is."""

    PUBLIC = 0
    PRIVATE = 1
    FORBIDDEN = 2


def find_place(text: str) -> Place:
    """Where the IP address that `text` spells is. Raises ValueError when it spells none."""
    address = _innermost(ip_address(text.partition("%")[0]))
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
        return Place.FORBIDDEN
    return Place.PUBLIC if address.is_global else Place.PRIVATE


def _innermost(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or address
