import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import RangeInvalid
from entrepot.oci.ranges import ByteRange


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        pytest.param("bytes=0-0", 10, (0, 1), id="first byte"),
        pytest.param("bytes=2-5", 10, (2, 6), id="middle"),
        pytest.param("bytes=5-", 10, (5, 10), id="to the end"),
        pytest.param("bytes=-3", 10, (7, 10), id="last three"),
        pytest.param("bytes=-30", 10, (0, 10), id="more than there is, from the end"),
        pytest.param("bytes=5-99", 10, (5, 10), id="beyond the end"),
        pytest.param("", 10, None, id="no header"),
        pytest.param("bytes=-", 10, None, id="neither end"),
        pytest.param("bytes=0-1,3-4", 10, None, id="several"),
        pytest.param("lines=0-1", 10, None, id="other unit"),
        pytest.param("bytes=a-b", 10, None, id="nonsense"),
        pytest.param("bytes=٠-١", 10, None, id="digits of another script"),
        pytest.param(f"bytes={'9' * 40}-", 10, None, id="absurdly long"),
    ],
)
def test_reads_range_of_a_download(header: str, size: int, expected: tuple[int, int] | None) -> None:
    found = ByteRange.parse(header, size)
    assert (None if found is None else (found.start, found.end)) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-11", 10), ("bytes=5-2", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_refuses_range_outside_the_content(header: str, size: int) -> None:
    with pytest.raises(RangeInvalid):
        ByteRange.parse(header, size)


@given(st.integers(1, 10**12), st.data())
def test_every_inner_range_round_trips(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    part = ByteRange.parse(f"bytes={start}-{end - 1}", size)
    assert part == ByteRange(start, end)
    assert part.size == end - start
    assert part.content_range(size) == f"bytes {start}-{end - 1}/{size}"


@pytest.mark.parametrize(
    ("header", "expected"),
    [("0-9", (0, 10)), ("10-10", (10, 11)), ("bytes 0-9/100", (0, 10)), ("bytes=5-6", (5, 7)), ("0-9/*", (0, 10))],
)
def test_reads_place_of_a_chunk(header: str, expected: tuple[int, int]) -> None:
    part = ByteRange.parse_chunk(header)
    assert (part.start, part.end) == expected


@pytest.mark.parametrize("header", ["", "abc", "5-4", "-4", "5-", "0-9,10-19", "bytes */10"])
def test_refuses_place_that_is_none(header: str) -> None:
    with pytest.raises(RangeInvalid):
        ByteRange.parse_chunk(header)
