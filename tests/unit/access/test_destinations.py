from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from entrepot.access.destinations import Destinations
from entrepot.errors import WebhookInvalid

ANYWHERE_PUBLIC = Destinations()


@pytest.mark.parametrize(
    "url",
    [
        "https://platform.example.com/hooks?key=a%20b",
        "https://platform.example.com",
        "https://platform.example.com:8443/",
        "https://93.184.215.14/x",
        "https://[2606:4700::1111]/x",
    ],
)
def test_public_hosts_by_https_are_accepted(url: str) -> None:
    ANYWHERE_PUBLIC.verify_url(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://platform.example.com/", "use https"),
        ("ftp://platform.example.com/", "use https://HOST"),
        ("https:///x", "use https://HOST"),
        ("platform.example.com", "use https://HOST"),
        ("", "use https://HOST"),
        ("https://user:secret@platform.example.com/", "without user"),
        ("https://platform.example.com/#x", "fragment"),
        ("https://platform.example.com\\@127.0.0.1/", "plain ASCII"),
        ("https://platform.example.com/a b", "plain ASCII"),
        ("https://platform.example.com/\r\nX: y", "plain ASCII"),
        ("https://plätform.example.com/", "plain ASCII"),
        ("https://platform.example.com:0/", "port"),
        ("https://platform.example.com:99999/", "port"),
        ("https://[1.2.3.4]/", "brackets"),
        ("https://platform.example.com/" + "x" * 2000, "at most 2000"),
        ("https://169.254.169.254/latest/meta-data", "no public address"),
        ("https://10.0.0.1/", "no public address"),
        ("https://[::1]/", "no public address"),
        ("http://127.0.0.1/", "no public address"),
    ],
)
def test_other_urls_are_refused_with_a_reason(url: str, words: str) -> None:
    with pytest.raises(WebhookInvalid, match=words):
        ANYWHERE_PUBLIC.verify_url(url)


def test_settings_open_networks_and_plain_http() -> None:
    inside = Destinations([ip_network("10.0.0.0/8"), ip_network("127.0.0.0/8")])
    inside.verify_url("https://10.0.0.1/")
    inside.verify_url("http://127.0.0.1:9000/")
    inside.verify_url("http://localhost:9000/")
    with pytest.raises(WebhookInvalid, match="use https"):
        inside.verify_url("http://10.0.0.1/")
    Destinations([ip_network("10.0.0.0/8")], plain_http=True).verify_url("http://10.0.0.1/")


@pytest.mark.parametrize(
    ("address", "is_permitted"),
    [
        ("93.184.215.14", True),
        ("2606:4700::1111", True),
        ("64:ff9b::5db8:d70e", True),  # 93.184.215.14 behind a NAT64
        ("2002:5db8:d70e::1", True),  # 93.184.215.14 by 6to4
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),  # Teredo
        ("2001:db8::1", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
    ],
)
def test_only_public_addresses_are_connected_to(address: str, *, is_permitted: bool) -> None:
    assert ANYWHERE_PUBLIC.permit(ip_address(address)) == is_permitted


def test_a_mapped_address_is_what_it_is_mapped_from() -> None:
    assert Destinations([ip_network("10.0.0.0/8")]).permit(ip_address("::ffff:10.0.0.1"))


@given(st.from_regex(r"https?://[A-Za-z0-9.\[\]:_-]{1,20}[/?]?[ -~]{0,10}", fullmatch=True))
def test_what_is_accepted_is_read_by_the_client_as_it_was_judged(text: str) -> None:
    try:
        Destinations(plain_http=True).verify_url(text)
    except WebhookInvalid:
        return
    url = URL(text, encoded=True)
    assert url.scheme == text.partition(":")[0]
    assert url.raw_host is not None
    assert text.removeprefix(f"{url.scheme}://").lower().strip("[").startswith(url.raw_host.lower())
    assert (url.user, url.password, url.fragment) == (None, None, "")
