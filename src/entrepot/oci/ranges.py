"""Byte ranges, of downloads (Range) and of upload chunks (Content-Range).

Implements RFC 9110, section 14, for one range, and the chunk form of distribution-spec 1.1 ("Pushing a blob in
chunks"), whose Content-Range has neither a unit nor a total. Several ranges in one request are treated as none, which
RFC 9110 (14.2) allows.
"""

import re
from dataclasses import dataclass
from typing import Self

from entrepot.errors import RangeInvalid, RangeNotSatisfiable

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
_CHUNK = re.compile(r"(?:bytes[ =])?(\d{1,19})-(\d{1,19})(?:/(?:\*|\d{1,19}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start

    @classmethod
    def parse(cls, header: str, size: int) -> Self | None:
        """The range that a Range header asks of content of `size` bytes.

        None when the header is to be ignored: another unit, several ranges, or no range at all (RFC 9110, 14.2). Raises
        RangeNotSatisfiable when it is understood but lies outside the content.
        """
        match = _RANGE.fullmatch(header.strip())
        if match is None or match.groups() == ("", ""):
            return None
        first, last = match.groups()
        if not first:  # the last N bytes
            start, end = max(size - int(last), 0), size
        else:
            start, end = int(first), size if not last else min(int(last) + 1, size)
        if start >= end:
            raise RangeNotSatisfiable(f"range {header!r} lies outside the content of {size} bytes", size=size)
        return cls(start, end)

    @classmethod
    def parse_chunk(cls, header: str) -> Self:
        """The place of an upload chunk, from its Content-Range. Raises RangeInvalid."""
        match = _CHUNK.fullmatch(header.strip())
        if match is None or int(match[2]) < int(match[1]):
            raise RangeInvalid(f"Content-Range {header[:100]!r}: use <first byte>-<last byte>")
        return cls(int(match[1]), int(match[2]) + 1)

    def content_range(self, size: int) -> str:
        """The Content-Range header of a partial answer (RFC 9110, 14.4)."""
        return f"bytes {self.start}-{self.end - 1}/{size}"
