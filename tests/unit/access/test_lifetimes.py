from datetime import UTC, datetime, timedelta

import pytest

from entrepot.access.lifetimes import next_warning, warning_times

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("life", "ahead"),
    [
        (timedelta(days=90), [timedelta(days=14), timedelta(days=1)]),
        (timedelta(days=28), [timedelta(days=14), timedelta(days=1)]),
        (timedelta(days=20), [timedelta(days=1)]),
        (timedelta(days=1), [timedelta(hours=6)]),
        (timedelta(seconds=4), [timedelta(seconds=1)]),
    ],
)
def test_warnings_leave_time_to_act_and_come_late_enough_to_matter(life: timedelta, ahead: list[timedelta]) -> None:
    times = warning_times(BEGIN, BEGIN + life)
    assert times == [BEGIN + life - one for one in ahead]
    assert next_warning(BEGIN, BEGIN + life, BEGIN) == times[0]
    assert next_warning(BEGIN, BEGIN + life, times[-1]) is None


def test_what_does_not_end_is_not_warned_of() -> None:
    assert next_warning(BEGIN, None, BEGIN) is None
