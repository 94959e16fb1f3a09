"""Whose address a request has, and what is kept of it."""

from ipaddress import ip_address, ip_network

import pytest

from entrepot.access.visitors import client_of, site_of, truncate
from entrepot.web.asgi import client_address

PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        pytest.param("192.0.2.1", ["198.51.100.7"], "192.0.2.1", id="from no proxy of ours, whatever it says"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="a proxy that forwards nothing"),
        pytest.param("10.0.0.1", ["198.51.100.7"], "198.51.100.7", id="one proxy"),
        pytest.param("10.0.0.1", ["198.51.100.7, 10.0.0.2"], "198.51.100.7", id="two proxies"),
        pytest.param("10.0.0.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7", id="the client made one up"),
        pytest.param("10.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7", id="two headers"),
        pytest.param("10.0.0.1", ["198.51.100.7, nonsense"], "10.0.0.1", id="unreadable"),
        pytest.param("fd00::1", ["2001:db8::5"], "2001:db8::5", id="IPv6"),
        pytest.param("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7", id="IPv4 on a socket for both"),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, forwarded: list[str], found: str) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    address = client_address({"client": (peer, 1234), "headers": headers}, PROXIES)
    assert address == ip_address(found)
    assert client_address({"client": None, "headers": headers}, PROXIES) is None


@pytest.mark.parametrize(
    ("address", "network", "site"),
    [
        ("198.51.100.7", "198.51.100.0/24", "198.51.100.7/32"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::/48", "2001:db8:1:2::/64"),
    ],
)
def test_addresses_are_truncated(address: str, network: str, site: str) -> None:
    assert truncate(ip_address(address)) == network
    assert site_of(ip_address(address)) == site
    assert truncate(None) == ""


@pytest.mark.parametrize(
    ("agent", "client"),
    [
        ("docker/20.10.24+dfsg1 go/go1.19.8 UpstreamClient(Docker-Client/20.10.24 (linux))", "docker"),
        ("containerd/1.6.20", "containerd"),
        ("Helm/3.17.0", "helm"),
        ("skopeo/1.9.3", "skopeo"),
        ("Buildah/1.28.2", "buildah"),
        ("containers/5.23.1 (github.com/containers/image)", "podman"),
        ("cri-o/1.29.1 go/go1.21 os/linux arch/amd64", "cri-o"),
        ("crane/v0.20 go-containerregistry/v0.20", "crane"),
        ("cosign/v2.5.0 (linux; amd64) go-containerregistry/v0.20", "cosign"),
        ("mine go-containerregistry/v0.20", "go-containerregistry"),
        ("oras/1.2.0", "oras"),
        ("curl/7.88.1", "curl"),
        ("", "other"),
        ("x" * 10_000 + " docker/1", "other"),
    ],
)
def test_clients_are_told_by_their_user_agents(agent: str, client: str) -> None:
    assert client_of(agent) == client
