from datetime import UTC, datetime

import pytest

from entrepot.oci.retry_after import retry_after_seconds
from entrepot.replication.headers import Challenge, find_next_page, parse_challenges

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        pytest.param([], [], id="none"),
        pytest.param(
            ['Bearer realm="https://a/token",service="r",scope="repository:a/b:pull,push"'],
            [Challenge("bearer", {"realm": "https://a/token", "service": "r", "scope": "repository:a/b:pull,push"})],
            id="bearer",
        ),
        pytest.param(['Basic realm="say \\"hi\\""'], [Challenge("basic", {"realm": 'say "hi"'})], id="quoted"),
        pytest.param(
            ['Bearer realm="x", Basic realm="y"'],
            [Challenge("bearer", {"realm": "x"}), Challenge("basic", {"realm": "y"})],
            id="two-in-one",
        ),
        pytest.param(
            ["Negotiate", "BASIC realm=plain"],
            [Challenge("negotiate", {}), Challenge("basic", {"realm": "plain"})],
            id="two-headers",
        ),
        pytest.param(['realm="no scheme"'], [], id="no-scheme"),
        pytest.param(["\x00,,,=\"'"], [], id="rubbish"),
    ],
)
def test_challenges_are_read(headers: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(headers) == challenges


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ('</v2/_catalog?last=a&n=1>; rel="next"', "/v2/_catalog?last=a&n=1"),
        ("</a>; rel=next", "/a"),
        ('</a>; rel="prev", </b>; rel="next"', "/b"),
        ('</a>; rel="last"', None),
        ("", None),
    ],
)
def test_the_next_page_is_found(header: str, target: str | None) -> None:
    assert find_next_page([header]) == target


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("9" * 400, None),
    ],
)
def test_the_wait_that_a_server_asks_for_is_read(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW) == seconds
