import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.access.semver import Version, VersionRange
from entrepot.errors import RangeUnreadable


def version(text: str) -> Version:
    found = Version.find(text)
    assert found is not None, text
    return found


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("1.2.3", "1.2.3"),
        ("v1.2.3", "1.2.3"),
        ("v1.2", "1.2.0"),
        ("7", "7.0.0"),
        ("1.2.3-rc.1", "1.2.3-rc.1"),
        ("1.2.3-rc1", "1.2.3-rc1"),
        ("1.2.3_build.5", "1.2.3"),  # how OCI tags write the + that they may not hold
        ("1.2.3-rc.1_5", "1.2.3-rc.1"),
    ],
)
def test_versions_that_tags_spell(tag: str, expected: str) -> None:
    assert str(version(tag)) == expected


@pytest.mark.parametrize(
    "tag",
    ["latest", "", "v", "1.2.3.4", "01.2.3", "1.02", "1.2-rc", "v1.2.3-", "1.2.3-a..b", "1.2.x", "٣.1.2", "1" * 300],
)
def test_tags_that_are_no_version(tag: str) -> None:
    assert Version.find(tag) is None


def test_precedence_is_that_of_the_specification() -> None:
    """Semantic Versioning 2.0.0, section 11, its own example."""
    ordered = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"]
    ordered += ["1.0.0-rc.1", "1.0.0", "1.0.1", "1.1.0", "2.0.0", "10.0.0"]
    versions = [version(text) for text in ordered]
    assert sorted(versions, key=lambda one: (one, str(one))) == versions
    assert all(one < other for one, other in itertools.pairwise(versions))


# What node-semver answers, case by case.
@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=1.0 <2.0", ["1.0", "v1.9.9", "1.0.0"], ["0.9", "2.0", "2.0.0-rc.1", "1.5.0-rc.1"]),
        (">= 1.0, < 2.0", ["1.0"], ["2.0"]),
        ("^1.2.3", ["1.2.3", "1.9.0"], ["1.2.2", "2.0.0", "2.0.0-0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("^0", ["0.9.9"], ["1.0.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0"]),
        ("~1", ["1.9.9"], ["2.0.0"]),
        ("1.2", ["1.2.0", "1.2.9"], ["1.3.0", "1.1.9"]),
        ("1.2.x", ["1.2.0"], ["1.3.0"]),
        ("=1.2.3", ["1.2.3"], ["1.2.4"]),
        (">1.2", ["1.3.0"], ["1.2.9"]),
        (">1.2.3", ["1.2.4"], ["1.2.3"]),
        ("<=1.2", ["1.2.9"], ["1.3.0", "1.3.0-rc.1"]),
        ("<1.2.3", ["1.2.2"], ["1.2.3", "1.2.3-rc.1"]),
        ("*", ["0.0.0", "99.0.0"], ["1.0.0-rc.1"]),
        ("<*", [], ["0.0.0", "1.0.0"]),
        (">=1.2.3-rc.1", ["1.2.3-rc.1", "1.2.3-rc.2", "1.2.3", "2.0.0"], ["1.2.3-beta", "1.3.0-rc.1"]),
        ("1.0 || >=3", ["1.0.5", "3.0.0"], ["2.0.0"]),
    ],
)
def test_ranges(text: str, inside: list[str], outside: list[str]) -> None:
    found = VersionRange.parse(text)
    assert [one for one in inside if not found.contains(version(one))] == []
    assert [one for one in outside if found.contains(version(one))] == []


@pytest.mark.parametrize(
    "text", ["", "  ", "latest", ">=", "1.2.3.4", ">>1", "=>1", "1 - 2", "1.2.3-", "x" * 300, "^^1"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(RangeUnreadable):
        VersionRange.parse(text)


numbers = st.tuples(*[st.integers(0, 50)] * 3)


@given(numbers, numbers)
def test_order_of_releases_is_that_of_their_numbers(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (Version(one) < Version(other)) == (one < other)
    assert str(version(str(Version(one)))) == str(Version(one))


@given(numbers, numbers, numbers)
def test_bounds_say_what_they_say(low: tuple[int, ...], high: tuple[int, ...], middle: tuple[int, int, int]) -> None:
    text = f">={'.'.join(map(str, low))} <{'.'.join(map(str, high))}"
    assert VersionRange.parse(text).contains(Version(middle)) == (low <= middle < high)


@pytest.mark.parametrize(
    ("one", "other", "may_meet"),
    [
        (">=1.0 <2.0", ">=2.0", False),
        (">=1.0 <=2.0.0", ">=2.0", True),
        (">1.0.0", "<=1.0.0", False),
        ("^1.2", "~1.2.5", True),
        ("^1", "^2", False),
        ("^1 || ^3", "^2 || ^3", True),
        ("*", "1.x", True),
        ("=1.2.3", "=1.2.3", True),
        ("=1.2.3", "=1.2.4", False),
    ],
)
def test_ranges_that_share_no_version_do_not_meet(one: str, other: str, may_meet: bool) -> None:
    assert VersionRange.parse(one).may_meet(VersionRange.parse(other)) is may_meet
    assert VersionRange.parse(other).may_meet(VersionRange.parse(one)) is may_meet
