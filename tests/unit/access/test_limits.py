from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.access.limits import (
    LimitName,
    Limits,
    Use,
    Window,
    find_allowance,
    find_refusal,
    minute_of,
    window_of,
)
from entrepot.access.quantities import format_bytes, parse_bytes
from entrepot.errors import PlanInvalid

HOUR, DAY, MONTH, NETWORKS = (
    LimitName.PULLS_PER_HOUR,
    LimitName.PULLS_PER_DAY,
    LimitName.BYTES_PER_MONTH,
    LimitName.NETWORKS_PER_HOUR,
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("name", "now", "start", "until"),
    [
        (HOUR, "2026-11-23T14:59:59.999", "2026-11-23T14:00:00", "2026-11-23T15:00:00"),
        (HOUR, "2026-11-23T15:00:00", "2026-11-23T15:00:00", "2026-11-23T16:00:00"),
        (NETWORKS, "2026-12-31T23:30:00", "2026-12-31T23:00:00", "2027-01-01T00:00:00"),
        (DAY, "2026-11-23T23:59:59", "2026-11-23T00:00:00", "2026-11-24T00:00:00"),
        (DAY, "2028-02-29T00:00:00", "2028-02-29T00:00:00", "2028-03-01T00:00:00"),
        (MONTH, "2026-11-23T12:00:00", "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
        (MONTH, "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        (MONTH, "2028-02-01T00:00:00", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
    ],
)
def test_windows_are_the_hour_the_day_and_the_calendar_month(name: LimitName, now: str, start: str, until: str) -> None:
    assert window_of(name, at(now)) == Window(int(at(start)), int(at(until)))


@given(st.floats(min_value=0, max_value=4e9))
def test_every_moment_lies_in_its_windows(now: float) -> None:
    for window in (minute_of(now), *(window_of(name, now) for name in LimitName)):
        assert window.start <= now < window.until


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param(None, "x: must be a mapping", id="nothing"),
        pytest.param({}, "x: must be a mapping", id="empty"),
        pytest.param({"pulls": 5}, "x.pulls: not a field here", id="unknown"),
        pytest.param({5: 5}, "x.5: not a field here", id="number"),
        pytest.param({HOUR: 0}, "x.pulls_per_hour: use a number from 1", id="none"),
        pytest.param({HOUR: -1}, "x.pulls_per_hour: use a number from 1", id="negative"),
        pytest.param({HOUR: 10**9 + 1}, "x.pulls_per_hour: use a number from 1 to", id="huge"),
        pytest.param({HOUR: True}, "x.pulls_per_hour: use a number", id="truth"),
        pytest.param({HOUR: "200"}, "x.pulls_per_hour: use a number", id="text"),
        pytest.param({DAY: 1.5}, "x.pulls_per_day: use a number", id="fraction"),
        pytest.param({MONTH: "5 apples"}, "x.bytes_per_month: '5 apples' is no amount", id="apples"),
        pytest.param({MONTH: "0GB"}, "x.bytes_per_month: use a number from 1", id="no-bytes"),
        pytest.param({MONTH: None}, "x.bytes_per_month: use a number from 1", id="null"),
        pytest.param({NETWORKS: 1001}, "x.networks_per_hour: use a number from 1 to 1000", id="networks"),
    ],
)
def test_malformed_limits_are_refused_with_their_place(document: Any, problem: str) -> None:
    with pytest.raises(PlanInvalid) as refusal:
        Limits.parse(document, "x")
    assert str(refusal.value).startswith(problem)


@given(
    st.builds(
        Limits,
        *(st.none() | st.integers(1, 10**9),) * 2,
        st.none() | st.integers(1, 10**18),
        st.none() | st.integers(1, 1000),
    ).filter(lambda limits: limits.items() != [])
)
def test_limits_read_back_as_they_were_written(limits: Limits) -> None:
    assert Limits.parse(limits.to_document(), "x") == limits


@pytest.mark.parametrize(
    ("amount", "text"),
    [(1, "1B"), (1000, "1KB"), (1024, "1KiB"), (5 * 10**11, "500GB"), (2**40, "1TiB"), (1536, "1536B")],
)
def test_amounts_are_written_as_people_do(amount: int, text: str) -> None:
    assert format_bytes(amount) == text
    assert parse_bytes(text) == amount


@given(st.integers(1, 10**15))
def test_amounts_read_back_as_they_were_written(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == amount


def use(name: LimitName, allowed: int, used: int, now: str = "2026-11-23T14:30:00") -> Use:
    return Use(name, allowed, used, window_of(name, at(now)))


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        pytest.param([], None, id="none"),
        pytest.param([use(HOUR, 200, 50)], ("a", 200, 150, 3600, 1800), id="one"),
        pytest.param([use(HOUR, 200, 50), use(DAY, 1000, 990)], ("a", 1000, 10, 86400, 34200), id="day-is-nearer"),
        pytest.param([use(HOUR, 5, 9), use(DAY, 9, 9)], ("a", 9, 0, 86400, 34200), id="both-used-up"),
    ],
)
def test_the_limit_that_is_met_first_is_told(uses: list[Use], expected: Any) -> None:
    assert find_allowance("a", uses, at("2026-11-23T14:30:00")) == expected


@pytest.mark.parametrize(
    ("used_up", "reason", "message", "seconds", "pulls"),
    [
        (
            [use(HOUR, 200, 200)],
            "pulls_per_hour",
            "plan 'free' allows 200 pulls per hour, and nothing is left of that until 2026-11-23 15:00 UTC; wait",
            1800,
            (200, 3600),
        ),
        (
            [use(HOUR, 1, 1), use(DAY, 1, 1)],
            "pulls_per_day",
            "plan 'free' allows 1 pull per day, and nothing is left of that until 2026-11-24 00:00 UTC; wait",
            34200,
            (1, 86400),
        ),
        (
            [use(MONTH, 5 * 10**11, 10**12)],
            "bytes_per_month",
            "plan 'free' allows 500GB per month, and nothing",
            639000,
            None,
        ),
        (
            [use(NETWORKS, 3, 3)],
            "networks_per_hour",
            "plan 'free' allows pulls from 3 networks per hour, and no other ones until 2026-11-23 15:00 UTC; wait",
            1800,
            None,
        ),
    ],
)
def test_a_refusal_says_which_limit_and_when_it_opens(
    used_up: list[Use], reason: str, message: str, seconds: int, pulls: tuple[int, int] | None
) -> None:
    error = find_refusal("free", "ft-a", used_up, at("2026-11-23T14:30:00"))
    assert error is not None
    assert str(error).startswith(message)
    assert (error.reason, error.retry_seconds, error.pulls, error.account) == (reason, seconds, pulls, "ft-a")


def test_nothing_used_up_is_no_refusal() -> None:
    assert find_refusal("free", "ft-a", [], 0) is None


def test_a_second_that_has_begun_is_waited_for_whole() -> None:
    assert use(HOUR, 1, 1).seconds_left(at("2026-11-23T14:59:59.999")) == 1
