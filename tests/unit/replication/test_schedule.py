from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from entrepot.replication.schedule import Schedule, Window

BERLIN = ZoneInfo("Europe/Berlin")
ZONE = ZoneInfo("UTC")


def at(text: str, zone: ZoneInfo = ZONE) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("@daily", "five fields"),
        ("61 * * * *", "bad minute"),
        ("* * 31 2 *", "bad day-of-month"),
        ("0 0 31 4,6,9,11 *", "bad day-of-month"),
        ("* * */20 * 1L", "never comes"),
        ("*/0 * * * *", "bad minute"),
        ("a b c d e", "bad minute"),
        ("* * * * MON" + " " * 300, "five fields"),
    ],
)
def test_an_impossible_schedule_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Schedule.parse(text, ZONE)


@pytest.mark.parametrize(
    ("text", "zone", "after", "expected"),
    [
        ("*/15 * * * *", ZONE, at("2026-03-01T10:07"), at("2026-03-01T10:15")),
        ("*/15 * * * *", ZONE, at("2026-03-01T10:15"), at("2026-03-01T10:30")),
        ("0 6 * * mon-fri", ZONE, at("2026-03-06T07:00"), at("2026-03-09T06:00")),
        ("0 6 * * *", BERLIN, at("2026-01-10T06:30", BERLIN), at("2026-01-11T06:00", BERLIN)),
        # Clocks go forward at 2: half past two is not there, and happens right after.
        ("30 2 * * *", BERLIN, at("2026-03-28T12:00", BERLIN), at("2026-03-29T03:00", BERLIN)),
        # Clocks go back at 3: half past two comes twice, and happens once.
        ("30 2 * * *", BERLIN, at("2026-10-25T00:00", BERLIN), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        ("30 2 * * *", BERLIN, datetime(2026, 10, 25, 0, 30, tzinfo=UTC), at("2026-10-26T02:30", BERLIN)),
        ("0 0 29 2 *", ZONE, at("2026-01-01T00:00"), at("2028-02-29T00:00")),
    ],
)
def test_a_schedule_says_what_comes_next(text: str, zone: ZoneInfo, after: datetime, expected: datetime) -> None:
    assert Schedule.parse(text, zone).next_after(after) == expected


@pytest.mark.parametrize("text", ["", "22-6", "22:00", "24:00-06:00", "22:00-06:60", "22:00-22:00", "22:00 - 06:00"])
def test_a_malformed_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write HH:MM-HH:MM|begins when it ends"):
        Window.parse(text, ZONE)


@pytest.mark.parametrize(
    ("text", "zone", "moment", "expected"),
    [
        ("09:00-17:00", ZONE, at("2026-03-01T09:00"), None),
        ("09:00-17:00", ZONE, at("2026-03-01T16:59"), None),
        ("09:00-17:00", ZONE, at("2026-03-01T17:00"), at("2026-03-02T09:00")),
        ("09:00-17:00", ZONE, at("2026-03-01T08:00"), at("2026-03-01T09:00")),
        ("22:00-06:00", BERLIN, at("2026-03-01T23:00", BERLIN), None),
        ("22:00-06:00", BERLIN, at("2026-03-01T05:59", BERLIN), None),
        ("22:00-06:00", BERLIN, at("2026-03-01T06:00", BERLIN), at("2026-03-01T22:00", BERLIN)),
        # The start is not there on that day: it opens when the clocks have moved.
        ("02:30-06:00", BERLIN, at("2026-03-29T01:00", BERLIN), at("2026-03-29T03:30", BERLIN)),
    ],
)
def test_a_window_says_when_it_is_open(text: str, zone: ZoneInfo, moment: datetime, expected: datetime | None) -> None:
    window = Window.parse(text, zone)
    assert window.is_open(moment) is (expected is None)
    opens = window.next_open(moment)
    assert opens == (expected or moment)
    assert window.is_open(opens)
    assert str(window) == text
