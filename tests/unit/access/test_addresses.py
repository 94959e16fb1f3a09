import pytest

from entrepot.access.addresses import Place, find_place

PUBLIC, PRIVATE, FORBIDDEN = Place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("93.184.215.14", PUBLIC),
        ("2606:4700::1111", PUBLIC),
        ("10.1.2.3", PRIVATE),
        ("172.16.0.1", PRIVATE),
        ("192.168.1.1", PRIVATE),
        ("100.64.0.1", PRIVATE),
        ("127.0.0.1", PRIVATE),
        ("::1", PRIVATE),
        ("fd00::1", PRIVATE),
        ("4000::1", PRIVATE),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", PRIVATE),
        ("::ffff:10.1.2.3", PRIVATE),
        ("64:ff9b::7f00:1", PRIVATE),
        ("2002:a01:203::", PRIVATE),
        ("169.254.169.254", FORBIDDEN),
        ("169.254.170.2", FORBIDDEN),
        ("::ffff:169.254.169.254", FORBIDDEN),
        ("64:ff9b::a9fe:a9fe", FORBIDDEN),
        ("2002:a9fe:a9fe::", FORBIDDEN),
        ("fe80::1%eth0", FORBIDDEN),
        ("fd00:ec2::254", FORBIDDEN),
        ("168.63.129.16", FORBIDDEN),
        ("100.100.100.200", FORBIDDEN),
        ("0.0.0.0", FORBIDDEN),
        ("::", FORBIDDEN),
        ("224.0.0.1", FORBIDDEN),
        ("ff02::1", FORBIDDEN),
    ],
)
def test_an_address_is_somewhere(text: str, place: Place) -> None:
    assert find_place(text) is place


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "2130706433", "::g"])
def test_what_is_no_address_is_nowhere(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        find_place(text)
