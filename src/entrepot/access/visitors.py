"""Where a request comes from, as far as it is anybody's business: a truncated network, and the kind of client.

A customer's address is personal; the network that it belongs to is enough to tell one site from another, and to slow
down who guesses.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network

Address = IPv4Address | IPv6Address

_KEPT_BITS = {4: 24, 6: 48}
# The least that one customer of a provider is given (RFC 6177): below it, one attacker has addresses without end.
_SITE_BITS = {4: 32, 6: 64}

# The first product of a user agent, or what stands anywhere in it, and the client that sends it. Order matters: helm
# and oras are made of the same library, and name themselves first.
_CLIENTS = (
    (re.compile(r"^docker/", re.IGNORECASE), "docker"),
    (re.compile(r"^containerd/", re.IGNORECASE), "containerd"),
    (re.compile(r"^cri-o|^crio/", re.IGNORECASE), "cri-o"),
    (re.compile(r"^helm/", re.IGNORECASE), "helm"),
    (re.compile(r"^skopeo/", re.IGNORECASE), "skopeo"),
    (re.compile(r"^buildah/", re.IGNORECASE), "buildah"),
    (re.compile(r"^(?:podman|libpod)/", re.IGNORECASE), "podman"),
    (re.compile(r"^containers/", re.IGNORECASE), "podman"),
    (re.compile(r"^buildkit/", re.IGNORECASE), "buildkit"),
    (re.compile(r"^oras", re.IGNORECASE), "oras"),
    (re.compile(r"^(?:crane|ko)/", re.IGNORECASE), "crane"),
    (re.compile(r"^cosign/", re.IGNORECASE), "cosign"),
    (re.compile(r"^notation", re.IGNORECASE), "notation"),
    (re.compile(r"^regclient/", re.IGNORECASE), "regclient"),
    (re.compile(r"^(?:argocd|argo-cd)", re.IGNORECASE), "argocd"),
    (re.compile(r"^(?:flux|source-controller)", re.IGNORECASE), "flux"),
    (re.compile(r"^trivy", re.IGNORECASE), "trivy"),
    (re.compile(r"go-containerregistry/", re.IGNORECASE), "go-containerregistry"),
    (re.compile(r"^curl/", re.IGNORECASE), "curl"),
    (re.compile(r"^mozilla/", re.IGNORECASE), "browser"),
)
_OTHER = "other"
# Enough for every product that is looked for; what is longer is no client's.
_MAX_AGENT = 256


@dataclass(frozen=True, slots=True)
class Visitor:
    """Where a request came from: its network, truncated to /24 or /48, and the kind of client.

    Both are words of a few characters; the network is empty where no address is known.
    """

    network: str
    client: str


def truncate(address: Address | None) -> str:
    """The network that is kept of an address, `192.0.2.0/24` or `2001:db8::/48`; empty for none."""
    return "" if address is None else _network(address, _KEPT_BITS[address.version])


def site_of(address: Address | None) -> str:
    """What is taken for one sender when somebody guesses: an IPv4 address, or an IPv6 network of 64 bits."""
    return "unknown" if address is None else _network(address, _SITE_BITS[address.version])


def client_of(user_agent: str) -> str:
    """The kind of client that calls itself so, from a short list; `other` for what is not on it."""
    agent = user_agent[:_MAX_AGENT]
    return next((name for pattern, name in _CLIENTS if pattern.search(agent)), _OTHER)


def _network(address: Address, bits: int) -> str:
    return str(ip_network((address, bits), strict=False))
