import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.access.semver import Version
from entrepot.oci.reference import Tag
from entrepot.replication.source import TagEntry
from entrepot.replication.tag_picks import TagPicks

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def picks(**fields: Any) -> TagPicks:
    return TagPicks.parse(fields, "tags")


def entry(tag: str, days: float | None = None) -> TagEntry:
    """A tag that was pushed so many days ago."""
    return TagEntry(Tag(tag), None, None if days is None else NOW - timedelta(days=days))


def names(entries: list[TagEntry]) -> list[str]:
    return [entry.tag.value for entry in entries]


@pytest.mark.parametrize(
    ("regex", "tag", "is_matched"),
    [
        (r"v\d+\.\d+", "v1.2", True),
        (r"v\d+\.\d+", "v1.2.3", False),
        (r"v\d+\.\d+", "xv1.2", False),
        (r"v1|v2", "v2", True),
        (r"^v1$", "v1", True),
        (r"(?i)release-.*", "Release-7", True),
        (None, "anything", True),
    ],
)
def test_a_regex_must_fit_the_whole_tag(regex: str | None, tag: str, is_matched: bool) -> None:
    assert picks(regex=regex).matches(Tag(tag)) is is_matched


def test_no_regex_takes_long() -> None:
    pick = picks(regex="(a*)*(a|aa)+(.*)*(a+)+b")
    begun = time.monotonic()
    assert not any(pick.matches(Tag("a" * 127 + "c")) for _ in range(1000))
    assert time.monotonic() - begun < 10


def test_the_newest_are_those_pushed_last() -> None:
    entries = [entry("old", 9), entry("new", 1), entry("unknown"), entry("mid", 5), entry("same", 5)]
    assert names(picks(newest=3).select(entries, NOW)) == ["new", "same", "mid"]
    assert names(picks(newest=10).select(entries, NOW))[-1] == "unknown"


def test_the_newest_versions_are_the_highest_and_others_are_left_out() -> None:
    entries = [entry(tag) for tag in ("v1.9.0", "v1.10.0", "latest", "v2.0.0-rc.1", "v2.0.0", "1.10", "main-7")]
    pick = picks(newest={"count": 4, "by": "version"})
    assert names(pick.select(entries, NOW)) == ["v2.0.0", "v2.0.0-rc.1", "v1.10.0", "1.10"]


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-02-28", ["today", "yesterday"]),
        ("2026-02-28T12:00:00", ["today", "yesterday"]),
        ("2026-02-28T12:00:01Z", ["today"]),
        ("2026-02-28T13:00:01+01:00", ["today"]),
        ("1d", ["today", "yesterday"]),
        ("23h", ["today"]),
        ("36500d", ["today", "yesterday", "old"]),
    ],
)
def test_tags_pushed_since_then_are_picked(since: str, expected: list[str]) -> None:
    entries = [entry("today", 0), entry("yesterday", 1), entry("old", 9), entry("unknown")]
    assert names(picks(since=since).select(entries, NOW)) == expected


def test_the_newest_are_counted_among_those_pushed_since() -> None:
    entries = [entry("v1", 0), entry("v9", 9), entry("v2", 1), entry("v3", 2)]
    pick = picks(since="7d", newest={"count": 2, "by": "version"})
    assert names(pick.select(entries, NOW)) == ["v3", "v2"]


@given(tags=st.sets(st.from_regex(r"\Av?[0-9]{1,2}\.[0-9]{1,2}(-rc\.[0-9])?\Z").map(Tag)), count=st.integers(1, 5))
def test_nothing_left_behind_is_a_higher_version(tags: set[Tag], count: int) -> None:
    picked = picks(newest={"count": count, "by": "version"}).select([TagEntry(tag) for tag in tags], NOW)
    assert len(picked) == min(count, sum(Version.find(tag.value) is not None for tag in tags))
    chosen = {one.tag for one in picked}
    versions = {tag: Version.find(tag.value) for tag in tags}
    lowest = min((versions[tag] for tag in chosen), default=None)
    for tag in tags - chosen:
        version = versions[tag]
        assert version is None or lowest is None or version <= lowest


def test_a_hundred_thousand_tags_are_no_trouble() -> None:
    entries = [entry(f"v{number // 1000}.{number % 1000}.0", number % 997) for number in range(100_000)]
    begun = time.monotonic()
    for fields in ({"newest": 50}, {"newest": {"count": 50, "by": "version"}}, {"newest": 90_000}, {"since": "10d"}):
        picks(**fields).select(entries, NOW)
    assert sum(picks(regex=r"v\d+\.\d+\.0").matches(one.tag) for one in entries) == 100_000
    assert time.monotonic() - begun < 30
